-- Idempotency keys: which request a client's key stands for, for 24 hours.

-- name: find_keys
-- What keys stand for. One that is missing from the answer stands for nothing, or no longer.
-- $1 text[] project ids, $2 text[] keys; same length
SELECT wanted.project_id, wanted.key, known.fingerprint, known.retry_id, known.batch_id, known.deduplicated
FROM unnest($1::text[], $2::text[]) AS wanted (project_id, key)
JOIN LATERAL (
    SELECT k.fingerprint, k.retry_id, k.batch_id, k.deduplicated FROM redrive.idempotency_keys AS k
    WHERE k.project_id = wanted.project_id AND k.key = wanted.key AND k.created_at > now() - interval '24 hours'
    LIMIT 1
) AS known ON true;

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
