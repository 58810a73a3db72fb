-- Dead letters in the ledger: requests whose message RabbitMQ has dead-lettered, and dead-lettered requests.

-- name: any_overdue
-- Whether a request has been with the broker for so long without being settled that its message may be a dead letter.
-- $1 interval how long
SELECT EXISTS (
    SELECT FROM unnest(ARRAY[false, true]) AS of_batch (bulk) -- one look-up in each half of the index
    CROSS JOIN LATERAL (
        SELECT FROM redrive.retry_requests
        WHERE
            state = 'queued' AND processed_at IS NULL
            AND (batch_id IS NOT NULL) = of_batch.bulk AND published_at < now() - $1::interval
        ORDER BY published_at -- so that a plan made on an empty table does not read all unpublished requests
        LIMIT 1
    ) AS overdue
);

-- name: overdue_among
-- Which of these requests are overdue. One that was published again after its letter died has its second chance first.
-- $1 uuid[] request ids, $2 interval how long
SELECT id FROM redrive.retry_requests
WHERE id = ANY ($1::uuid[]) AND state = 'queued' AND published_at < now() - $2::interval;

-- name: republish
-- Publish requests again whose message RabbitMQ has dead-lettered before a worker had it: it expired, or its queue was
-- full. A settled request stays as it is.
-- $1 uuid[] request ids, $2 uuid[] those that are to be published alone from now on
UPDATE redrive.retry_requests
SET published_at = NULL, publish_lease_until = NULL, publish_alone = publish_alone OR id = ANY ($2::uuid[])
WHERE id = ANY (ARRAY(
    SELECT aside.id FROM redrive.retry_requests AS aside WHERE id = ANY ($1::uuid[]) AND state = 'queued'
    ORDER BY id -- the lock order: workers may be settling the same rows
    FOR UPDATE
))
RETURNING id;

-- name: statuses
-- The state of requests, and whether another one is queued for the same job. An id that the ledger does not know is
-- missing.
-- $1 uuid[] request ids
SELECT
    r.id, r.state, r.batch_id IS NOT NULL AS bulk,
    EXISTS (
        SELECT FROM redrive.retry_requests AS q
        WHERE q.project_id = r.project_id AND q.job_id = r.job_id AND q.state = 'queued' AND q.id <> r.id
        OFFSET 0
    ) AS job_is_queued
FROM redrive.retry_requests AS r
WHERE r.id = ANY ($1::uuid[]);

-- name: dead_lettered
-- The dead-lettered requests, the longest dead first.
-- $1 int how many
SELECT
    id, job_id, project_id, job_version, run_at, extra_attempts, actor, reason, requested_at, processed_at
FROM redrive.retry_requests
WHERE state = 'dead_lettered'
ORDER BY processed_at, id
LIMIT $1;

-- name: redrive
-- Queue dead-lettered requests again, unless another one is queued for the job by now. They keep the job version that
-- they were made for, so one whose job has moved on ends as superseded. The caller publishes them; the relay does not,
-- until the lease ends.
-- $1 uuid[] request ids, $2 interval the lease, $3 text actor
WITH dead AS MATERIALIZED (
    SELECT id, project_id, job_id FROM redrive.retry_requests
    WHERE id = ANY ($1::uuid[]) AND state = 'dead_lettered'
    ORDER BY id -- the lock order
    FOR UPDATE
),
chosen AS ( -- at most one request waits for a job
    SELECT DISTINCT ON (project_id, job_id) id FROM dead
    WHERE NOT EXISTS (
        SELECT FROM redrive.retry_requests AS q
        WHERE q.project_id = dead.project_id AND q.job_id = dead.job_id AND q.state = 'queued'
        OFFSET 0
    )
    ORDER BY project_id, job_id, id
)
UPDATE redrive.retry_requests AS r
SET
    state = 'queued', outcome = NULL, processed_at = NULL, published_at = NULL,
    publish_lease_until = now() + $2::interval, redriven_by = $3, redriven_at = now()
FROM chosen
WHERE r.id = ANY (ARRAY[chosen.id])
RETURNING r.id, r.publish_lease_until;
