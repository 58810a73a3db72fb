-- Failed jobs by what they have in common. Lists and bulk retries share these statements, so that a list shows the jobs
-- that a bulk retry would choose.

-- fragment: candidates
-- The failed jobs of a project, before the filters that need a job's error or its retries.
SELECT
    j.id, j.type::text AS type, j.created_at::timestamptz AS created_at, j.last_error::text AS last_error,
    j.attempts, j.max_attempts,
    j.type IS NULL OR j.created_at IS NULL OR NOT redrive.fit_bigint(j.attempts, j.max_attempts) AS is_unreadable
FROM control_plane.jobs AS j
WHERE
    j.project_id = $1 AND j.status::text = 'failed'
    AND j.id > 0 -- only where ids are bigint
    AND ($2::text IS NULL OR j.type::text = $2)

-- fragment: chosen
-- A candidate's position, and why it cannot be retried, NULL where it can.
SELECT
    newest.id, newest.created_at,
    {microseconds time=newest.created_at} AS place,
    CASE
        WHEN newest.is_unreadable THEN 'job_unreadable'
        WHEN queued.id IS NOT NULL THEN 'retry_queued'
        WHEN redrive.is_exhausted(newest.attempts, newest.max_attempts, $9::int) THEN 'attempts_exhausted'
    END AS blocked_by

-- fragment: filtered
-- The filters that need a candidate's error or its retries.
{queued columns=r.id project=$1 job=redrive.job_uuid(newest.id)}
{retried job=redrive.job_uuid(newest.id) counted=$7 seconds=$8}
WHERE
    ($5::text IS NULL OR position($5 IN newest.last_error) > 0)
    AND ($7::int IS NULL OR retried.times < $7::int)
    AND ($6::text IS NULL OR redrive.fingerprint(newest.type, redrive.error_text(newest.last_error)) = $6)

-- name: match
-- The failed jobs of a project that a filter matches, newest first, and why each cannot be retried, NULL where it can;
-- jobs without a time come last. The filters that need a job's error or its retries ($5 to $8) are applied to the newest
-- $10 jobs that pass the other filters. `place` is the time in microseconds since 2000, as the server has it. The second
-- part is read only where the first has not found enough.
-- $1 text project id, $2 text type or NULL, $3 timestamptz created at or after, $4 timestamptz created at or before,
-- $5 text that the error contains or NULL, $6 text fingerprint or NULL, $7 int fewer than how many retries or NULL,
-- $8 int within how many seconds, $9 int extra attempts, $10 int how many to look at or NULL, $11 int how many,
-- $12 boolean true for jobs that can be retried, false for the others, NULL for all, $13 timestamptz or NULL and $14
-- uuid the position below which they begin, $15 uuid below which those without a time begin
SELECT redrive.job_uuid(found.id) AS id, place, blocked_by
FROM (
    (
        SELECT j.id, j.place, j.blocked_by
        FROM (
            {chosen}
            FROM (
                {candidates}
                AND j.created_at >= coalesce($3, '-infinity'::timestamptz)
                AND j.created_at <= coalesce($4, 'infinity'::timestamptz)
                ORDER BY j.created_at DESC, j.id DESC
                LIMIT $10::int
            ) AS newest
            {filtered}
            AND (newest.created_at, newest.id) < (coalesce($13, 'infinity'::timestamptz), redrive.job_number($14::uuid))
        ) AS j
        WHERE $12::boolean IS NULL OR (j.blocked_by IS NULL) = $12
        ORDER BY j.created_at DESC, j.id DESC
        LIMIT $11
    )
    UNION ALL
    (
        SELECT j.id, j.place, j.blocked_by
        FROM (
            {chosen}
            FROM (
                {candidates}
                AND j.created_at IS NULL AND $3::timestamptz IS NULL AND $4::timestamptz IS NULL
                ORDER BY j.id DESC
                LIMIT $10::int
            ) AS newest
            {filtered}
            AND newest.id < redrive.job_number($15::uuid)
        ) AS j
        WHERE $12::boolean IS NULL OR (j.blocked_by IS NULL) = $12
        ORDER BY j.id DESC
        LIMIT $11
    )
    LIMIT $11
) AS found
ORDER BY place DESC NULLS LAST, found.id DESC;

-- name: has_more
-- Whether more jobs have failed than `match` looks at.
-- $1 to $4 as above, $5 int how many are looked at
SELECT EXISTS (
    SELECT FROM (
        (
            SELECT FROM control_plane.jobs AS j
            WHERE
                j.project_id = $1 AND j.status::text = 'failed'
                AND j.id > 0 -- only where ids are bigint
                AND ($2::text IS NULL OR j.type::text = $2)
                AND j.created_at >= coalesce($3, '-infinity'::timestamptz)
                AND j.created_at <= coalesce($4, 'infinity'::timestamptz)
            ORDER BY j.created_at DESC, j.id DESC
            LIMIT $5::int + 1
        )
        UNION ALL
        (
            SELECT FROM control_plane.jobs AS j
            WHERE
                j.project_id = $1 AND j.status::text = 'failed'
                AND j.id > 0 -- only where ids are bigint
                AND ($2::text IS NULL OR j.type::text = $2)
                AND j.created_at IS NULL AND $3::timestamptz IS NULL AND $4::timestamptz IS NULL
            ORDER BY j.id DESC
            LIMIT $5::int + 1
        )
    ) AS failed
    OFFSET $5::int
    LIMIT 1
) AS more;
