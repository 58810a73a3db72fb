-- name: applied_is_recorded
-- Whether applied versions are recorded: by dbmate, or by what `redrive migrate --print` prints.
SELECT to_regclass('redrive.schema_migrations') IS NOT NULL AS found;

-- name: applied
-- The applied versions, in order.
SELECT version FROM redrive.schema_migrations ORDER BY version;

-- name: facts
-- Whether this connection is encrypted, its user, and its database.
SELECT
    coalesce((SELECT ssl FROM pg_catalog.pg_stat_ssl WHERE pid = pg_backend_pid()), false) AS encrypted,
    session_user::text AS "user",
    current_database()::text AS database;

-- name: make_schema
-- Create the schema of dbmate's own table. dbmate would create it too, after an error in PostgreSQL's log.
DO $$
BEGIN
    IF to_regnamespace('redrive') IS NULL THEN
        CREATE SCHEMA redrive;
    END IF;
EXCEPTION WHEN duplicate_schema OR unique_violation OR insufficient_privilege THEN
    NULL; -- another migration created it; or the right is missing, which dbmate will report
END
$$;
