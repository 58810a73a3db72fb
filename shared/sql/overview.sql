-- A project's jobs counted by status, type, time and error, and its retries.
-- Every part of a statement here reads a bounded number of rows along an index, and says how many it has read
-- (`looked_at`): a number above the bound means that there may be more. A condition that no index serves (a type) is
-- checked after the bound, not before it. So is that of numbers that are no ids, where there is a status: before it, the
-- planner takes another index. Each statement on a status has a second form (`*_of_newest`), for tables without an index on
-- (project_id, status, created_at, id): it reads the newest rows, whatever their status.

-- name: stats
-- For each status, how many jobs have it, from the oldest on, the oldest, and how many have no attempts left.
-- `other`: of the newest jobs, those with any other word, or none.
-- $1 text project id, $2 text type or NULL, $3 int how many rows to look at for each
SELECT s.status, counted.jobs, counted.oldest_at, counted.exhausted, counted.looked_at
FROM unnest(ARRAY['pending', 'running', 'failed', 'completed']) AS s (status)
CROSS JOIN LATERAL (
    SELECT
        count(*) FILTER (WHERE wanted) AS jobs, (min(created_at) FILTER (WHERE wanted))::timestamptz AS oldest_at,
        count(*) FILTER (WHERE wanted AND used_up) AS exhausted, count(*) AS looked_at
    FROM (
        SELECT
            j.created_at,
            ($2::text IS NULL OR j.type::text = $2)
            AND j.id > 0 -- only where ids are bigint
            AS wanted,
            redrive.is_exhausted(j.attempts, j.max_attempts, 0) AS used_up
        FROM control_plane.jobs AS j
        WHERE j.project_id = $1 AND j.status::text = s.status
        ORDER BY j.created_at, j.id
        LIMIT $3::int + 1
    ) AS oldest
) AS counted
UNION ALL
SELECT
    'other', count(*) FILTER (WHERE wanted), (min(created_at) FILTER (WHERE wanted))::timestamptz, 0, count(*)
FROM (
    SELECT
        j.created_at,
        coalesce(j.status::text NOT IN ('pending', 'running', 'failed', 'completed'), true)
        AND ($2::text IS NULL OR j.type::text = $2) AS wanted
    FROM control_plane.jobs AS j
    WHERE
        j.project_id = $1
        AND j.id > 0 -- only where ids are bigint
    ORDER BY j.created_at DESC, j.id DESC
    LIMIT $3::int + 1
) AS newest;

-- name: stats_of_newest
-- $1 to $3 as above
WITH newest AS MATERIALIZED (
    SELECT
        CASE WHEN j.status::text IN ('pending', 'running', 'failed', 'completed') THEN j.status::text ELSE 'other' END
            AS status,
        j.created_at, $2::text IS NULL OR j.type::text = $2 AS wanted,
        redrive.is_exhausted(j.attempts, j.max_attempts, 0) AS used_up
    FROM control_plane.jobs AS j
    WHERE
        j.project_id = $1
        AND j.id > 0 -- only where ids are bigint
    ORDER BY j.created_at DESC, j.id DESC
    LIMIT $3::int + 1
)
SELECT
    s.status, count(*) FILTER (WHERE wanted) AS jobs, (min(created_at) FILTER (WHERE wanted))::timestamptz AS oldest_at,
    count(*) FILTER (WHERE wanted AND used_up) AS exhausted, (SELECT count(*) FROM newest) AS looked_at
FROM unnest(ARRAY['pending', 'running', 'failed', 'completed', 'other']) AS s (status)
LEFT JOIN newest USING (status)
GROUP BY s.status;

-- name: types
-- The types of the project's newest jobs, the most frequent first. `types`: how many there are; `more`: there are more
-- jobs.
-- $1 text project id, $2 int how many rows to look at, $3 int how many types
SELECT
    type, count(*) AS jobs, (sum(count(*)) OVER ())::bigint AS looked_at, count(*) OVER () AS types,
    EXISTS (
        SELECT FROM control_plane.jobs AS j
        WHERE
            j.project_id = $1
            AND j.id > 0 -- only where ids are bigint
        ORDER BY j.created_at DESC, j.id DESC
        OFFSET $2::int
        LIMIT 1
    ) AS more
FROM (
    SELECT coalesce(left(j.type::text, 1000), '') AS type
    FROM control_plane.jobs AS j
    WHERE
        j.project_id = $1
        AND j.id > 0 -- only where ids are bigint
    ORDER BY j.created_at DESC, j.id DESC
    LIMIT $2::int
) AS newest
GROUP BY type
ORDER BY jobs DESC, type
LIMIT $3;

-- name: series
-- How many jobs were made in each bucket of time, by status: a cell. The cells are counted one after the other, those of
-- `failed` first, and each takes from what may be read in all: the first three statuses as much as a cell may, the
-- others a fair share of the rest. A quarter of all is kept for these. Every cell reads at least one row, so that one
-- without jobs is known to be empty.
-- $1 text project id, $2 text type or NULL, $3 timestamptz from, $4 int how many buckets, $5 int seconds of a bucket,
-- $6 int how many rows to look at for a cell, $7 int for all of them, $8 timestamptz to, exclusive
WITH RECURSIVE counted AS (
    SELECT
        -1 AS cell, NULL::text AS status, 0 AS bucket, 0::bigint AS jobs, 0::bigint AS looked_at, 0 AS most,
        $7::int AS left_over
    UNION ALL
    SELECT
        next.cell, next.status, next.bucket, found.jobs, found.looked_at, next.most,
        counted.left_over - least(found.looked_at, next.most)::int
    FROM counted
    CROSS JOIN LATERAL (
        SELECT
            counted.cell + 1 AS cell,
            (ARRAY['failed', 'running', 'pending', 'completed', 'other'])[(counted.cell + 1) / $4::int + 1] AS status,
            $4::int - 1 - (counted.cell + 1) % $4::int AS bucket,
            $3::timestamptz + ($4::int - 1 - (counted.cell + 1) % $4::int) * $5::int * interval '1 second' AS at,
            least(
                $6::int,
                CASE
                    WHEN counted.cell + 1 < 3 * $4::int THEN greatest(counted.left_over - $7::int / 4, 0)
                    ELSE counted.left_over / greatest(5 * $4::int - counted.cell - 1, 1)
                END
            ) AS most
    ) AS next
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE wanted) AS jobs, count(*) AS looked_at
        FROM (
            (
                SELECT
                    ($2::text IS NULL OR j.type::text = $2)
                    AND j.id > 0 -- only where ids are bigint
                    AS wanted
                FROM control_plane.jobs AS j
                WHERE
                    next.status <> 'other' AND j.project_id = $1 AND j.status::text = next.status
                    AND j.created_at >= next.at
                    AND j.created_at < least(next.at + $5::int * interval '1 second', $8::timestamptz)
                ORDER BY j.created_at, j.id
                LIMIT next.most + 1
            )
            UNION ALL
            (
                SELECT
                    coalesce(j.status::text NOT IN ('pending', 'running', 'failed', 'completed'), true)
                    AND ($2::text IS NULL OR j.type::text = $2)
                    AND j.id > 0 -- only where ids are bigint
                    AS wanted
                FROM control_plane.jobs AS j
                WHERE
                    next.status = 'other' AND j.project_id = $1
                    AND j.created_at >= next.at
                    AND j.created_at < least(next.at + $5::int * interval '1 second', $8::timestamptz)
                ORDER BY j.created_at DESC, j.id DESC
                LIMIT next.most + 1
            )
        ) AS looked_at_rows
    ) AS found
    WHERE counted.cell + 1 < 5 * $4::int
)
SELECT status, bucket, least(jobs, most) AS jobs, looked_at > most AS capped FROM counted WHERE cell >= 0;

-- name: series_of_newest
-- The same of the newest jobs of each bucket.
-- $1 to $8 as above
SELECT found.status, b.bucket, least(found.jobs, b.most) AS jobs, counted.looked_at > b.most AS capped
FROM (
    SELECT bucket, $3::timestamptz + bucket * $5::int * interval '1 second' AS at, least($6::int, $7::int / $4::int) AS most
    FROM generate_series(0, $4::int - 1) AS numbered (bucket)
) AS b
CROSS JOIN LATERAL (
    SELECT
        count(*) FILTER (WHERE status = 'pending') AS pending, count(*) FILTER (WHERE status = 'running') AS running,
        count(*) FILTER (WHERE status = 'failed') AS failed, count(*) FILTER (WHERE status = 'completed') AS completed,
        count(*) FILTER (WHERE status = 'other') AS other, count(*) AS looked_at
    FROM (
        SELECT
            CASE
                WHEN $2::text IS NOT NULL AND j.type::text IS DISTINCT FROM $2 THEN ''
                WHEN j.status::text IN ('pending', 'running', 'failed', 'completed') THEN j.status::text
                ELSE 'other'
            END AS status
        FROM control_plane.jobs AS j
        WHERE
            j.project_id = $1
            AND j.id > 0 -- only where ids are bigint
            AND j.created_at >= b.at
            AND j.created_at < least(b.at + $5::int * interval '1 second', $8::timestamptz)
        ORDER BY j.created_at DESC, j.id DESC
        LIMIT b.most + 1
    ) AS newest
) AS counted
CROSS JOIN LATERAL (
    VALUES
        ('pending', counted.pending), ('running', counted.running), ('failed', counted.failed),
        ('completed', counted.completed), ('other', counted.other)
) AS found (status, jobs);

-- fragment: groups
-- The wanted ones of `failed` in groups of one type and one error, the largest first.
SELECT
    f.type, f.error, count(*) AS jobs, count(*) FILTER (WHERE queued.id IS NOT NULL) AS queued,
    count(*) FILTER (WHERE queued.id IS NULL AND f.used_up) AS exhausted,
    min(f.created_at) AS first_at, max(f.created_at) AS last_at,
    (array_agg(redrive.job_uuid(f.id) ORDER BY f.created_at DESC, f.id DESC))[1:$7::int] AS sample
FROM failed AS f
{queued columns=r.id project=$1 job=redrive.job_uuid(f.id)}
WHERE f.wanted
GROUP BY f.type, f.error
ORDER BY jobs DESC, last_at DESC, f.type, f.error
LIMIT $6::int

-- fragment: group_columns
looked.sampled, looked.truncated, redrive.fingerprint(g.type, g.error) AS fingerprint, left(g.type, 1000) AS type,
g.error, g.jobs, g.jobs - g.exhausted - g.queued AS retryable, g.exhausted, g.queued, g.first_at, g.last_at, g.sample

-- name: failures
-- The newest failed jobs in groups of one type and one error, the largest first. One row at least: without groups, its
-- columns but the first two are NULL. A job that cannot be shown is in no group.
-- $1 text project id, $2 text type or NULL, $3 timestamptz created at or after, $4 timestamptz created at or before,
-- $5 int how many jobs to look at, $6 int how many groups, $7 int how many ids of each
WITH failed AS MATERIALIZED (
    SELECT
        j.id, j.type::text AS type, j.created_at::timestamptz AS created_at,
        ($2::text IS NULL OR j.type::text = $2)
        AND j.type IS NOT NULL AND redrive.fit_bigint(j.attempts, j.max_attempts) AS wanted,
        redrive.is_exhausted(j.attempts, j.max_attempts, 0) AS used_up,
        CASE WHEN $2::text IS NULL OR j.type::text = $2 THEN redrive.error_text(j.last_error::text) END AS error
    FROM control_plane.jobs AS j
    WHERE
        j.project_id = $1 AND j.status::text = 'failed'
        AND j.id > 0 -- only where ids are bigint
        AND j.created_at >= coalesce($3, '-infinity'::timestamptz)
        AND j.created_at <= coalesce($4, 'infinity'::timestamptz)
    ORDER BY j.created_at DESC, j.id DESC
    LIMIT $5::int
),
grouped AS (
    {groups}
)
SELECT
    {group_columns}
FROM (
    SELECT
        (SELECT count(*) FROM failed) AS sampled,
        EXISTS (
            SELECT FROM control_plane.jobs AS j
            WHERE
                j.project_id = $1 AND j.status::text = 'failed'
                AND j.created_at >= coalesce($3, '-infinity'::timestamptz)
                AND j.created_at <= coalesce($4, 'infinity'::timestamptz)
            ORDER BY j.created_at DESC, j.id DESC
            OFFSET $5::int
            LIMIT 1
        ) AS truncated
) AS looked
LEFT JOIN grouped AS g ON true
ORDER BY g.jobs DESC, g.last_at DESC, g.type, g.error;

-- name: failures_of_newest
-- The same of the failed jobs among the project's newest jobs; `truncated`: there are more of these.
-- $1 to $7 as above, $8 int how many jobs of any status to look at
WITH newest AS MATERIALIZED (
    SELECT j.id, j.status::text = 'failed' AS failed
    FROM control_plane.jobs AS j
    WHERE
        j.project_id = $1
        AND j.id > 0 -- only where ids are bigint
        AND j.created_at >= coalesce($3, '-infinity'::timestamptz)
        AND j.created_at <= coalesce($4, 'infinity'::timestamptz)
    ORDER BY j.created_at DESC, j.id DESC
    LIMIT $8::int + 1
),
failed AS MATERIALIZED (
    SELECT
        j.id, j.type, j.created_at, j.used_up, ($2::text IS NULL OR j.type = $2) AND j.is_readable AS wanted,
        CASE WHEN $2::text IS NULL OR j.type = $2 THEN redrive.error_text(j.last_error) END AS error
    FROM (SELECT id FROM newest WHERE failed LIMIT $5::int) AS few
    CROSS JOIN LATERAL (
        SELECT
            jobs.id, jobs.type::text AS type, jobs.created_at::timestamptz AS created_at,
            jobs.last_error::text AS last_error,
            redrive.is_exhausted(jobs.attempts, jobs.max_attempts, 0) AS used_up,
            jobs.type IS NOT NULL AND redrive.fit_bigint(jobs.attempts, jobs.max_attempts) AS is_readable
        FROM control_plane.jobs
        WHERE jobs.project_id = $1 AND jobs.id = few.id
        LIMIT 1
    ) AS j
),
grouped AS (
    {groups}
)
SELECT
    {group_columns}
FROM (
    SELECT
        (SELECT count(*) FROM failed) AS sampled,
        (SELECT count(*) > $8::int OR count(*) FILTER (WHERE failed) > $5::int FROM newest) AS truncated
) AS looked
LEFT JOIN grouped AS g ON true
ORDER BY g.jobs DESC, g.last_at DESC, g.type, g.error;

-- name: retries
-- A project's retries: how many wait, and, of its newest requests, what was settled in the last hour, and how long
-- the newest applied ones have waited, in milliseconds. `capped`: of the last hour there may be more. An older request may
-- have been settled in it, too; so it is also true where the project has more settled requests than these show, or where not
-- all projects' settled requests were looked at.
-- $1 text project id, $2 int how many requests to look at, $3 int how many waits
WITH newest AS MATERIALIZED (
    SELECT r.state, r.requested_at, coalesce(r.redriven_at, r.requested_at) AS waited_from, r.processed_at, r.id
    FROM redrive.retry_requests AS r
    WHERE r.project_id = $1 AND r.requested_at < 'infinity' -- the predicate of the index
    ORDER BY r.requested_at DESC, r.id DESC
    LIMIT $2::int + 1
)
SELECT waiting.queued, waiting.oldest_requested_at, settled.*, waits.p50, waits.p95
FROM (
    SELECT count(*) AS queued, min(requested_at) AS oldest_requested_at
    FROM (
        SELECT r.requested_at
        FROM redrive.retry_requests AS r
        WHERE r.project_id = $1 AND r.state = 'queued' AND r.requested_at > '-infinity'
        ORDER BY r.requested_at, r.id
        LIMIT $2::int + 1
    ) AS oldest
) AS waiting
CROSS JOIN (
    SELECT
        counted.applied, counted.rejected, counted.cancelled, counted.dead_lettered,
        CASE -- its last part is read only where the others do not decide
            WHEN counted.looked_at <= $2::int THEN false
            WHEN counted.oldest_at > now() - interval '1 hour' THEN true
            ELSE (
                SELECT count(*) > $2::int OR count(*) FILTER (WHERE latest.project_id = $1) > counted.recent
                FROM (
                    SELECT r.project_id
                    FROM redrive.retry_requests AS r
                    WHERE r.state <> 'queued' AND r.processed_at > now() - interval '1 hour'
                    ORDER BY r.processed_at DESC
                    LIMIT $2::int + 1
                ) AS latest
            )
        END AS capped
    FROM (
        SELECT
            count(*) FILTER (WHERE state = 'applied' AND recent) AS applied,
            count(*) FILTER (WHERE state = 'rejected' AND recent) AS rejected,
            count(*) FILTER (WHERE state = 'cancelled' AND recent) AS cancelled,
            count(*) FILTER (WHERE state = 'dead_lettered' AND recent) AS dead_lettered,
            count(*) FILTER (WHERE recent) AS recent, min(requested_at) AS oldest_at, count(*) AS looked_at
        FROM (SELECT state, requested_at, processed_at > now() - interval '1 hour' AS recent FROM newest) AS one
    ) AS counted
) AS settled
CROSS JOIN (
    SELECT
        percentile_disc(0.5) WITHIN GROUP (ORDER BY wait_ms) AS p50,
        percentile_disc(0.95) WITHIN GROUP (ORDER BY wait_ms) AS p95
    FROM (
        SELECT greatest(0, extract(epoch FROM processed_at - waited_from) * 1000)::bigint AS wait_ms
        FROM newest
        WHERE state = 'applied'
        ORDER BY requested_at DESC, id DESC
        LIMIT $3::int
    ) AS applied
) AS waits;
