-- name: is_recorded
-- Whether dbmate has written down what it applied; it has not where the files were run by hand.
SELECT to_regclass('redrive.schema_migrations') IS NOT NULL AS found;

-- name: applied
-- The versions that were applied, in order.
SELECT version FROM redrive.schema_migrations ORDER BY version;

-- name: facts
-- Where this connection leads to: whether it is encrypted, whose it is, and to which database.
SELECT
    coalesce((SELECT ssl FROM pg_catalog.pg_stat_ssl WHERE pid = pg_backend_pid()), false) AS encrypted,
    session_user::text AS "user",
    current_database()::text AS database;

-- name: make_schema
-- The schema that dbmate's own table lies in. dbmate would make it, once PostgreSQL has logged an error that it is missing.
DO $$
BEGIN
    IF to_regnamespace('redrive') IS NULL THEN
        CREATE SCHEMA redrive;
    END IF;
EXCEPTION WHEN duplicate_schema OR unique_violation OR insufficient_privilege THEN
    NULL; -- another migration was faster; or the right is missing, and dbmate says so
END
$$;
