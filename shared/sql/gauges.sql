-- What both programs show of the database as gauges.

-- name: backlog
-- How many requests wait, up to a thousand, and how many seconds the oldest has waited.
SELECT count(*), coalesce(extract(epoch FROM now() - min(requested_at)), 0)::float8
FROM (
    SELECT requested_at FROM redrive.retry_requests
    WHERE state = 'queued' AND processed_at IS NULL
    ORDER BY (batch_id IS NOT NULL), requested_at, id
    LIMIT 1000
) AS oldest;

-- name: written
-- How far a primary has written its log, in bytes since the beginning of time; NULL on a standby.
SELECT CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN (pg_catalog.pg_current_wal_lsn() - '0/0'::pg_lsn)::int8 END;

-- name: replayed
-- How far a standby has replayed its primary's log, likewise; NULL on any other server.
SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN (pg_catalog.pg_last_wal_replay_lsn() - '0/0'::pg_lsn)::int8 END;
