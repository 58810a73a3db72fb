-- name: facts_of
-- Whether the server of this connection is read-only, whether it is a standby, and which of its processes answers. Where
-- that is not the process that the connection began with, there is a pooler.
SELECT
    pg_catalog.pg_backend_pid() AS pid,
    pg_catalog.current_setting('transaction_read_only')::boolean AS read_only,
    pg_catalog.pg_is_in_recovery() AS recovering;

-- name: probe
-- Whether the programs can work with this database. A right on one column is enough; without the table all are NULL.
SELECT
    pg_catalog.current_setting('transaction_read_only')::boolean AS read_only,
    ledger.oid IS NOT NULL AS migrated,
    coalesce(
        has_any_column_privilege(ledger.oid, 'INSERT') AND has_any_column_privilege(ledger.oid, 'UPDATE'), false
    ) AS writable,
    coalesce(has_any_column_privilege(ledger.oid, 'SELECT'), false) AS readable
FROM (SELECT to_regclass('redrive.retry_requests')::oid AS oid) AS ledger;

-- name: cursor_key
-- The key that cursors are signed with.
SELECT key FROM redrive.cursor_key;

-- name: secure
-- Write a record that changes nothing. Its commit waits for the disk, and for the standby where there is a synchronous
-- one: so all that was committed before is as safe.
SELECT pg_catalog.pg_logical_emit_message(true, 'redrive', '')::text;

-- name: fetch_within
-- Bound the time of the statements of this transaction.
-- $1 text milliseconds
SELECT set_config('statement_timeout', $1, true);

-- name: find_unstorable
-- Take a text, as a statement does that writes it.
-- $1 text
SELECT length($1::text);
