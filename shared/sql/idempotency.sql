-- Idempotency keys: which request a client's key stands for, for 24 hours.

-- name: find_key
-- What a key stands for. No row: nothing, or no longer.
-- $1 text project id, $2 text key
SELECT fingerprint, retry_id, batch_id, deduplicated
FROM redrive.idempotency_keys
WHERE project_id = $1 AND key = $2 AND created_at > now() - interval '24 hours';

-- name: claim_keys
-- Let keys stand for requests. A key that stands for one already is missing from the answer, after waiting for whoever
-- is claiming it at this moment.
-- $1 text[] project ids, $2 text[] keys, $3 bytea[] fingerprints, $4 uuid[] retry ids or NULL, $5 uuid[] batch ids or
-- NULL, $6 bool[] whether the request was queued before; same length
INSERT INTO redrive.idempotency_keys AS known (project_id, key, fingerprint, retry_id, batch_id, deduplicated)
SELECT project_id, key, fingerprint, retry_id, batch_id, deduplicated
FROM unnest($1::text[], $2::text[], $3::bytea[], $4::uuid[], $5::uuid[], $6::bool[])
    AS claim (project_id, key, fingerprint, retry_id, batch_id, deduplicated)
ORDER BY project_id, key -- one order for all processes
ON CONFLICT (project_id, key) DO UPDATE
SET
    fingerprint = excluded.fingerprint, retry_id = excluded.retry_id, batch_id = excluded.batch_id,
    deduplicated = excluded.deduplicated, created_at = now()
WHERE known.created_at <= now() - interval '24 hours'
RETURNING project_id, key;
