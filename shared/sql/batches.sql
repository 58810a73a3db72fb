-- Bulk retries: check jobs, insert their requests at once, and count the requests of batches by their state.
-- Look-ups of jobs are LATERAL, for the reason that jobs.sql gives.

-- name: blocks
-- Why each of these jobs cannot be retried, NULL where it can; in the order given.
-- $1 text project id, $2 uuid[] job ids, distinct, $3 int extra attempts
SELECT
    wanted.id,
    CASE
        WHEN j.id IS NULL THEN 'job_not_found'
        WHEN j.type IS NULL OR j.status IS NULL OR j.created_at IS NULL THEN 'job_unreadable'
        WHEN NOT redrive.fit_bigint(j.attempts, j.max_attempts) THEN 'job_unreadable'
        WHEN queued.id IS NOT NULL THEN 'retry_queued'
        WHEN j.status::text <> 'failed' THEN 'not_failed'
        WHEN redrive.is_exhausted(j.attempts, j.max_attempts, $3::int) THEN 'attempts_exhausted'
    END AS blocked_by,
    j.nulls
FROM unnest($2::uuid[]) WITH ORDINALITY AS wanted (id, position)
LEFT JOIN LATERAL (
    SELECT
        jobs.id, jobs.project_id, jobs.type, jobs.status, jobs.attempts, jobs.max_attempts, jobs.created_at,
        num_nulls( -- reads all that a version is made of, and hashes nothing: a job that has none is refused here
            jobs.type::text, jobs.status::text, jobs.last_error::text, jobs.scheduled_at::timestamptz,
            jobs.started_at::timestamptz, jobs.completed_at::timestamptz, jobs.created_at::timestamptz
        ) AS nulls
    FROM control_plane.jobs
    WHERE jobs.project_id = $1 AND jobs.id = redrive.job_number(wanted.id)
    LIMIT 1
) AS j ON true
{queued columns=r.id project=j.project_id job=wanted.id}
ORDER BY wanted.position;

-- name: insert_requests
-- Insert a request for each of these jobs that is still failed and has no queued request. Answers the jobs whose request
-- was inserted. When a request is applied, the distance from `requested_at`, which is now, to `run_at` counts.
-- $1 uuid batch id, $2 text project id, $3 uuid[] request ids, $4 uuid[] job ids, same length, $5 text actor,
-- $6 text reason, $7 int delay in seconds, $8 int extra attempts, $9 int seconds to spread over, $10 text traceparent
INSERT INTO redrive.retry_requests (
    id, project_id, job_id, batch_id, job_version, actor, reason, delay_seconds, extra_attempts, traceparent, run_at
)
SELECT
    wanted.id, $2, wanted.job_id, $1, j.version, $5, $6, $7::int, $8::int, $10,
    CASE WHEN $9::int > 0 THEN now() + ($7::int + random() * $9::int) * interval '1 second' END
FROM unnest($3::uuid[], $4::uuid[]) AS wanted (id, job_id)
JOIN LATERAL (
    SELECT
        jobs.id, jobs.status, {version} AS version
    FROM control_plane.jobs
    WHERE jobs.project_id = $2 AND jobs.id = redrive.job_number(wanted.job_id)
    LIMIT 1
) AS j ON j.status = 'failed'
ORDER BY wanted.job_id -- one order for all processes, so that two batches cannot deadlock
ON CONFLICT (project_id, job_id) WHERE state = 'queued' DO NOTHING
RETURNING job_id;

-- name: insert_batch
-- $1 uuid id, $2 text project id, $3 text actor, $4 text reason, $5 jsonb the filter or NULL, $6 int how many were
-- accepted, $7 jsonb the skipped
INSERT INTO redrive.retry_batches (id, project_id, actor, reason, filter, total, skipped)
VALUES ($1, $2, $3, $4, $5, $6, $7);

-- fragment: counted_by_state
-- How many requests a batch has in each state.
SELECT
    count(*) FILTER (WHERE state = 'queued') AS queued,
    count(*) FILTER (WHERE state = 'applied') AS applied,
    count(*) FILTER (WHERE state = 'rejected') AS rejected,
    count(*) FILTER (WHERE state = 'cancelled') AS cancelled,
    count(*) FILTER (WHERE state = 'dead_lettered') AS dead_lettered
FROM redrive.retry_requests
WHERE retry_requests.project_id = {project} AND retry_requests.batch_id = {batch}

-- name: find_many
-- Batches by (id, project), with the number of their requests in each state.
-- $1 uuid[] ids, $2 text[] project ids; same length
SELECT
    b.id, b.project_id, b.actor, b.reason, b.filter, b.requested_at, b.total,
    r.queued, r.applied, r.rejected, r.cancelled, r.dead_lettered
FROM unnest($1::uuid[], $2::text[]) AS wanted (id, project_id)
JOIN LATERAL (
    SELECT * FROM redrive.retry_batches
    WHERE retry_batches.project_id = wanted.project_id AND retry_batches.id = wanted.id
    LIMIT 1
) AS b ON true
CROSS JOIN LATERAL ({counted_by_state project=b.project_id batch=b.id}) AS r;

-- name: page
-- A page of a project's batches, newest first, with the number of their requests in each state. Batches beyond the sum of
-- $6 requests are not counted (`counted` is false); the first always is.
-- $1 text project id, $2 text actor or NULL; $3 timestamptz and $4 uuid the position below which the page begins, $5 int
-- how many, $6 int how many requests are counted
WITH page AS MATERIALIZED (
    SELECT id, project_id, actor, reason, filter, requested_at, total
    FROM redrive.retry_batches
    WHERE
        project_id = $1 AND requested_at < 'infinity' -- the predicate of the index
        AND (requested_at, id)
            < (coalesce($3, 'infinity'::timestamptz), coalesce($4, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
        AND ($2::text IS NULL OR actor = $2)
    ORDER BY requested_at DESC, id DESC
    LIMIT $5
),
bounded AS (
    SELECT
        page.*,
        row_number() OVER newest_first = 1 OR sum(total) OVER newest_first <= $6 AS counted
    FROM page
    WINDOW newest_first AS (ORDER BY requested_at DESC, id DESC)
)
SELECT
    b.id, b.project_id, b.actor, b.reason, b.filter, b.requested_at, b.total, b.counted,
    r.queued, r.applied, r.rejected, r.cancelled, r.dead_lettered
FROM bounded AS b
CROSS JOIN LATERAL (
    {counted_by_state project=$1 batch=b.id}
    AND b.counted
) AS r
ORDER BY b.requested_at DESC, b.id DESC;

-- name: cancel
-- Cancel the queued requests of a batch, except those that a worker or the relay has locked: does not wait for these.
-- $1 text project id, $2 uuid batch id, $3 text the actor that cancels them, $4 int how many at most
UPDATE redrive.retry_requests
SET state = 'cancelled', outcome = 'cancelled', processed_at = now(), cancelled_by = $3
WHERE id = ANY (ARRAY(
    SELECT free.id FROM redrive.retry_requests AS free
    WHERE project_id = $1 AND batch_id = $2 AND state = 'queued'
    LIMIT $4
    FOR UPDATE SKIP LOCKED
))
RETURNING id;

-- name: replay
-- How many jobs a batch accepted, and which it skipped, as it was first answered.
-- $1 uuid id, $2 text project id
SELECT total, skipped FROM redrive.retry_batches WHERE project_id = $2 AND id = $1;
