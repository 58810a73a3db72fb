-- The api's side of the ledger, redrive.retry_requests: accept retry requests, read them, cancel and redrive them.
-- outbox.sql publishes them, settlement.sql settles them.
-- (project_id, id) names a job. Two projects may have jobs with the same id, so both columns stand in every look-up of a
-- job, and in every look-up of a request by its job. A request's own id is unique over all projects; a look-up for a
-- client names the project, too.
-- A look-up of rows is LATERAL, for the reason that jobs.sql gives.

-- fragment: columns
-- The columns of a Retry by the names of its fields, with the first {length} characters of the error.
r.id, r.project_id, r.job_id, r.batch_id, r.state, r.outcome, r.actor, r.cancelled_by, r.redriven_by,
r.redriven_at, r.reason, r.delay_seconds, r.extra_attempts, r.requested_at, r.processed_at, r.attempts_before,
r.max_attempts_before, r.started_at_before, r.completed_at_before,
left(r.error_before, {length}) AS error_before, coalesce(length(r.error_before) > {length}, false) AS error_before_truncated

-- name: accept
-- Insert accepted requests. A job with a queued request gets no second one: its row is missing from the answer, and the
-- caller looks again.
-- $1 uuid[] ids, $2 text[] project ids, $3 uuid[] job ids, $4 text[] job versions, $5 text[] actors, $6 text[] reasons,
-- $7 int[] delays in seconds, $8 int[] extra attempts, $9 text[] trace contexts, $10 text[] idempotency keys and
-- $11 bytea[] their fingerprints, NULL for none; same length; $12 interval for how long the requests are leased to the
-- caller's relay, NULL: they are free
INSERT INTO redrive.retry_requests (
    id, project_id, job_id, job_version, actor, reason, delay_seconds, extra_attempts, traceparent,
    idempotency_key, idempotency_fingerprint, publish_lease_until
)
SELECT
    id, project_id, job_id, job_version, actor, reason, delay_seconds, extra_attempts, traceparent,
    idempotency_key, idempotency_fingerprint, now() + $12::interval
FROM unnest(
    $1::uuid[], $2::text[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::int[], $8::int[], $9::text[],
    $10::text[], $11::bytea[]
) AS wanted (
    id, project_id, job_id, job_version, actor, reason, delay_seconds, extra_attempts, traceparent,
    idempotency_key, idempotency_fingerprint
)
ORDER BY project_id, job_id -- one order for all processes, so that two batches cannot deadlock
ON CONFLICT (project_id, job_id) WHERE state = 'queued' DO NOTHING
RETURNING id, requested_at, publish_lease_until;

-- name: find_many
-- The requests behind (id, project) pairs; a pair that matches nothing is missing from the answer.
-- $1 uuid[] ids, $2 text[] project ids; same length
SELECT
    {columns length=65536}
FROM unnest($1::uuid[], $2::text[]) AS wanted (id, project_id)
JOIN LATERAL (
    SELECT * FROM redrive.retry_requests
    WHERE retry_requests.project_id = wanted.project_id AND retry_requests.id = wanted.id
    LIMIT 1
) AS r ON true;

-- name: changed
-- Which of the requests have changed, or are gone, since they were seen.
-- $1 uuid[] ids, $2 text[] project ids, $3 text[] states and $4 timestamptz[] times of redriving seen; same length
SELECT wanted.id, wanted.project_id
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[]) AS wanted (id, project_id, state, redriven_at)
LEFT JOIN LATERAL (
    SELECT r.state, r.redriven_at FROM redrive.retry_requests AS r
    WHERE r.project_id = wanted.project_id AND r.id = wanted.id
    LIMIT 1
) AS r ON true
WHERE (r.state, r.redriven_at) IS DISTINCT FROM (wanted.state, wanted.redriven_at);

-- name: page
-- A page of a project's requests, newest first: its audit trail. The comparison with a position is always there, because
-- it bounds the index scan. There is a statement for each index that a filter can use: a plan is made once, and does not
-- know which filters are NULL.
-- $1 text project id; $2 text state, $3 text actor, each NULL for all; $4 timestamptz and $5 uuid the position below
-- which the page begins, $6 int how many
SELECT
    {columns length=2000}
FROM redrive.retry_requests AS r
WHERE
    project_id = $1 AND requested_at < 'infinity' -- the predicate of the index
    AND (requested_at, id)
        < (coalesce($4, 'infinity'::timestamptz), coalesce($5, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
    AND ($2::text IS NULL OR state = $2)
    AND ($3::text IS NULL OR actor = $3)
ORDER BY requested_at DESC, id DESC
LIMIT $6;

-- name: page_of_state
-- The same of the requests in one state other than 'applied', which the index leaves out.
-- $1 text project id, $2 text state, $3 text actor or NULL; $4 timestamptz and $5 uuid the position below which the page
-- begins, $6 int how many
SELECT
    {columns length=2000}
FROM redrive.retry_requests AS r
WHERE
    project_id = $1 AND state = $2
    AND state <> 'applied' AND requested_at > '-infinity' -- the predicate of the index
    AND (requested_at, id)
        < (coalesce($4, 'infinity'::timestamptz), coalesce($5, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
    AND ($3::text IS NULL OR actor = $3)
ORDER BY requested_at DESC, id DESC
LIMIT $6;

-- name: page_of_job
-- The same of the requests for one job.
-- $1 text project id, $2 uuid job id; $3 text state, $4 uuid batch id, $5 text actor, each NULL for all; $6 timestamptz
-- and $7 uuid the position below which the page begins, $8 int how many
SELECT
    {columns length=2000}
FROM (
    SELECT * FROM redrive.retry_requests
    WHERE
        project_id = $1 AND job_id = $2
        AND (requested_at, id)
            < (coalesce($6, 'infinity'::timestamptz), coalesce($7, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
    ORDER BY requested_at DESC, id DESC
    OFFSET 0
) AS r
WHERE
    ($3::text IS NULL OR state = $3)
    AND ($4::uuid IS NULL OR batch_id = $4)
    AND ($5::text IS NULL OR actor = $5)
ORDER BY requested_at DESC, id DESC
LIMIT $8;

-- name: page_of_batch
-- The same of a batch's requests. A batch is bounded, so the positions of all its requests are read, by the batch's own
-- index, and sorted; along the project's index they may lie anywhere. Only the rows of the page are read in full.
-- $1 text project id, $2 uuid batch id; $3 text state, $4 text actor, each NULL for all; $5 timestamptz and $6 uuid the
-- position below which the page begins, $7 int how many
WITH request AS MATERIALIZED (
    SELECT id, requested_at FROM redrive.retry_requests
    WHERE
        project_id = $1 AND batch_id = $2
        AND ($3::text IS NULL OR state = $3)
        AND ($4::text IS NULL OR actor = $4)
),
page AS (
    SELECT id, requested_at FROM request
    WHERE
        (requested_at, id)
        < (coalesce($5, 'infinity'::timestamptz), coalesce($6, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
    ORDER BY requested_at DESC, id DESC
    LIMIT $7
)
SELECT
    {columns length=2000}
FROM page
CROSS JOIN LATERAL (
    SELECT * FROM redrive.retry_requests
    WHERE retry_requests.project_id = $1 AND retry_requests.id = page.id
    LIMIT 1
) AS r
ORDER BY page.requested_at DESC, page.id DESC;

-- name: cancel
-- Cancel a queued request. No row: it is settled, foreign or unknown.
-- $1 uuid id, $2 text project id, $3 text the actor that cancels it
UPDATE redrive.retry_requests AS r
SET state = 'cancelled', outcome = 'cancelled', processed_at = now(), cancelled_by = $3
WHERE project_id = $2 AND id = $1 AND state = 'queued'
RETURNING
    {columns length=2000};

-- name: redrive
-- Queue a dead-lettered request again; the relay publishes it. It keeps the job version that it was made for. No row: it
-- is not dead-lettered, foreign or unknown. The ledger's unique index refuses it while another request for the job is
-- queued.
-- $1 uuid id, $2 text project id, $3 text the actor that redrives it
UPDATE redrive.retry_requests AS r
SET
    state = 'queued', outcome = NULL, processed_at = NULL, published_at = NULL, publish_lease_until = NULL,
    redriven_by = $3, redriven_at = now()
WHERE project_id = $2 AND id = $1 AND state = 'dead_lettered'
RETURNING
    {columns length=2000};
