-- Idempotency keys: what a client's key names, for 24 hours.

-- name: find
-- What keys name. A key that is missing from the answer names nothing, or no longer does.
-- $1 text[] project ids, $2 text[] keys; same length
SELECT wanted.project_id, wanted.key, known.fingerprint, known.retry_id, known.batch_id, known.deduplicated
FROM unnest($1::text[], $2::text[]) AS wanted (project_id, key)
JOIN LATERAL (
    SELECT k.fingerprint, k.retry_id, k.batch_id, k.deduplicated FROM redrive.idempotency_keys AS k
    WHERE k.project_id = wanted.project_id AND k.key = wanted.key AND k.created_at > now() - interval '24 hours'
    LIMIT 1
) AS known ON true;

-- name: claim
-- Claim keys for requests. A key that is claimed already is missing from the answer. Waits for transactions that are
-- claiming one of the keys.
-- $1 text[] project ids, $2 text[] keys, $3 bytea[] fingerprints, $4 uuid[] retry ids or NULL, $5 uuid[] batch ids or
-- NULL, $6 bool[] whether the request was queued before; same length
INSERT INTO redrive.idempotency_keys AS known (project_id, key, fingerprint, retry_id, batch_id, deduplicated)
SELECT project_id, key, fingerprint, retry_id, batch_id, deduplicated
FROM unnest($1::text[], $2::text[], $3::bytea[], $4::uuid[], $5::uuid[], $6::bool[])
    AS claim (project_id, key, fingerprint, retry_id, batch_id, deduplicated)
ORDER BY project_id, key -- one order for all processes, so that two batches cannot deadlock
ON CONFLICT (project_id, key) DO UPDATE
SET
    fingerprint = excluded.fingerprint, retry_id = excluded.retry_id, batch_id = excluded.batch_id,
    deduplicated = excluded.deduplicated, created_at = now()
WHERE known.created_at <= now() - interval '24 hours'
RETURNING project_id, key;
