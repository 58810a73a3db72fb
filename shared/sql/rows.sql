-- The newest jobs of a project, in two steps: their ids, then what counts, lists and bulk retries need of them. These
-- statements are run only after one that reads many jobs at once was refused because of a row (shared/rows.py).
-- Look-ups of jobs are LATERAL, for the reason that jobs.sql gives.

-- fragment: place
{microseconds time=j.created_at::timestamptz} AS place

-- fragment: in_time
-- Newest first; jobs without a time are in the second part.
AND j.id > 0 -- only where ids are bigint
AND j.created_at >= coalesce($2, '-infinity'::timestamptz)
AND j.created_at <= coalesce($3, 'infinity'::timestamptz)
ORDER BY j.created_at DESC, j.id DESC
LIMIT $4

-- fragment: without_time
AND j.id > 0 -- only where ids are bigint
AND j.created_at IS NULL AND $2::timestamptz IS NULL AND $3::timestamptz IS NULL
ORDER BY j.id DESC
LIMIT $4

-- fragment: in_order
LIMIT $4
) AS newest
ORDER BY place DESC NULLS LAST, newest.id DESC

-- name: newest
-- The ids of a project's newest jobs, and their times in microseconds since 2000; those without a time come last.
-- $1 text project id, $2 timestamptz created at or after, $3 timestamptz created at or before, $4 int how many
SELECT redrive.job_uuid(newest.id) AS id, place
FROM (
    (SELECT j.id, {place} FROM control_plane.jobs AS j WHERE j.project_id = $1 {in_time})
    UNION ALL
    (SELECT j.id, NULL::bigint FROM control_plane.jobs AS j WHERE j.project_id = $1 {without_time})
    {in_order};

-- name: newest_failed
-- The same of the failed jobs.
-- $1 to $4 as above
SELECT redrive.job_uuid(newest.id) AS id, place
FROM (
    (SELECT j.id, {place} FROM control_plane.jobs AS j WHERE j.project_id = $1 AND j.status::text = 'failed' {in_time})
    UNION ALL
    (
        SELECT j.id, NULL::bigint FROM control_plane.jobs AS j
        WHERE j.project_id = $1 AND j.status::text = 'failed' {without_time}
    )
    {in_order};

-- name: facts
-- What is counted and chosen by, of some jobs of a project; those that are gone are missing. `error`: what failed jobs are
-- grouped by, or where $5 is false, only the beginning of the error.
-- $1 text project id, $2 uuid[] ids, $3 boolean whether to read the error, $4 text that it may contain or NULL,
-- $5 boolean whether to group by it, $6 int within how many seconds retries are counted or NULL, $7 int extra attempts
SELECT
    wanted.id, j.type, j.status, j.created_at, queued.id IS NOT NULL AS is_queued,
    redrive.is_exhausted(j.attempts, j.max_attempts, $7::int) AS is_exhausted,
    redrive.fit_bigint(j.attempts, j.max_attempts) AS fit_bigint,
    CASE WHEN $5::boolean THEN redrive.error_text(j.last_error) ELSE left(j.last_error, 300) END AS error,
    CASE WHEN $5::boolean THEN redrive.fingerprint(j.type, redrive.error_text(j.last_error)) END AS fingerprint,
    $4::text IS NULL OR coalesce(position($4 IN j.last_error) > 0, false) AS contains, retried.times
FROM unnest($2::uuid[]) AS wanted (id)
JOIN LATERAL (
    SELECT
        jobs.type::text AS type, jobs.status::text AS status, jobs.created_at::timestamptz AS created_at,
        jobs.attempts, jobs.max_attempts,
        CASE WHEN $3::boolean THEN jobs.last_error::text END AS last_error
    FROM control_plane.jobs
    WHERE jobs.project_id = $1 AND jobs.id = redrive.job_number(wanted.id)
    LIMIT 1
) AS j ON true
{queued columns=r.id project=$1 job=wanted.id}
{retried job=wanted.id counted=$6 seconds=$6};
