-- Delete old settled requests. Each statement deletes a bounded number of rows; it is run until it finds none. They need
-- the right to DELETE, which the programs' roles do not have: the owner of the schema runs them.

-- name: prune_requests
-- $1 interval settled before, $2 int how many at most
DELETE FROM redrive.retry_requests
WHERE id = ANY (ARRAY(
    SELECT old.id FROM redrive.retry_requests AS old
    WHERE state <> 'queued' AND processed_at < now() - $1::interval
    ORDER BY processed_at
    LIMIT $2
    FOR UPDATE SKIP LOCKED -- a locked row is being redriven, so it stays
))
RETURNING id;

-- name: prune_batches
-- Batches without requests, also those that never had one.
-- $1 interval requested before, $2 int how many at most
DELETE FROM redrive.retry_batches
WHERE id = ANY (ARRAY(
    SELECT b.id FROM redrive.retry_batches AS b
    WHERE
        b.requested_at < now() - $1::interval
        AND NOT EXISTS (SELECT FROM redrive.retry_requests AS r WHERE r.project_id = b.project_id AND r.batch_id = b.id)
    LIMIT $2
))
RETURNING id;

-- name: prune_keys
-- Expired idempotency keys.
-- $1 int how many at most
DELETE FROM redrive.idempotency_keys
WHERE (project_id, key) IN (
    SELECT project_id, key FROM redrive.idempotency_keys
    WHERE created_at <= now() - interval '24 hours'
    ORDER BY created_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED -- another transaction may be claiming it
)
RETURNING key;
