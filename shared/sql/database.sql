-- name: facts_of
-- What the server is that this connection leads to: whether it takes no writes, and whether it follows another one; and
-- which of its processes answers. Where that is not the one that the connection began with, a pooler stands between.
SELECT
    pg_catalog.pg_backend_pid() AS pid,
    pg_catalog.current_setting('transaction_read_only')::boolean AS read_only,
    pg_catalog.pg_is_in_recovery() AS recovering;

-- name: probe
-- Whether the programs can work here. A right on a single column counts; without the table all rights are NULL.
SELECT
    pg_catalog.current_setting('transaction_read_only')::boolean AS read_only,
    ledger.oid IS NOT NULL AS migrated,
    coalesce(
        has_any_column_privilege(ledger.oid, 'INSERT') AND has_any_column_privilege(ledger.oid, 'UPDATE'), false
    ) AS writable,
    coalesce(has_any_column_privilege(ledger.oid, 'SELECT'), false) AS readable
FROM (SELECT to_regclass('redrive.retry_requests')::oid AS oid) AS ledger;

-- name: cursor_key
-- What cursors are signed with.
SELECT key FROM redrive.cursor_key;

-- name: fetch_within
-- Bound the statements of this transaction.
-- $1 text milliseconds
SELECT set_config('statement_timeout', $1, true);
