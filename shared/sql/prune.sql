-- Forgetting what is settled and old. Each statement deletes a bounded number of rows; it is run until it finds none.
-- Needs DELETE, which neither program's role has: the owner runs it.

-- name: prune_requests
-- $1 interval settled before, $2 int how many at most
DELETE FROM redrive.retry_requests
WHERE id = ANY (ARRAY(
    SELECT old.id FROM redrive.retry_requests AS old
    WHERE state <> 'queued' AND processed_at < now() - $1::interval
    ORDER BY processed_at
    LIMIT $2
    FOR UPDATE SKIP LOCKED -- a dead letter that is being redriven is no longer old
))
RETURNING id;

-- name: prune_batches
-- Batches of which no request is left, those that never had one included.
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
-- Idempotency keys that have had their day.
-- $1 int how many at most
DELETE FROM redrive.idempotency_keys
WHERE (project_id, key) IN (
    SELECT project_id, key FROM redrive.idempotency_keys
    WHERE created_at <= now() - interval '24 hours'
    ORDER BY created_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED -- it may be claimed anew at this moment
)
RETURNING key;
