-- Redrive's adapter for {system}: control_plane.jobs as a view of the jobs in schema {schema}.
-- Tested with {tested}.
--
-- Read it, change it where a comment says "You decide", and run it as the owner of those tables, before
-- `redrive migrate`: psql --set ON_ERROR_STOP=1 --file THIS_FILE. It may be run again, also after `redrive migrate`.
-- It changes no table of {system} and adds no index. To remove it:
-- DROP VIEW control_plane.jobs; DROP FUNCTION {functions};
-- In the environment of api, worker and commands: {settings}.

BEGIN;

DO $redrive$
BEGIN
    IF to_regnamespace('control_plane') IS NULL THEN
        CREATE SCHEMA control_plane; -- needs CREATE on the database
    ELSIF EXISTS (
        SELECT FROM pg_class WHERE relnamespace = to_regnamespace('control_plane') AND relname = 'jobs' AND relkind <> 'v'
    ) THEN -- not by to_regclass, which a schema of another user refuses
        RAISE EXCEPTION 'control_plane.jobs is a table: redrive migrate ran before this file, and made it'
            USING HINT = format('Where nothing is in it, let its owner run: DROP TABLE control_plane.jobs; '
                'ALTER SCHEMA control_plane OWNER TO %I; then run this file again.', current_user);
    ELSIF NOT has_schema_privilege('control_plane', 'CREATE') THEN
        RAISE EXCEPTION 'the schema control_plane belongs to another user'
            USING HINT = format('Let its owner run: ALTER SCHEMA control_plane OWNER TO %I; then run this file again.',
                current_user);
    END IF;
END
$redrive$;

{adapter}

-- `redrive check` reads here which adapter this is.
COMMENT ON VIEW control_plane.jobs IS 'redrive adapter {name}; tested with {tested}{versions}';

REVOKE ALL ON FUNCTION control_plane.retry_job() FROM PUBLIC;

CREATE OR REPLACE TRIGGER retry_job INSTEAD OF UPDATE ON control_plane.jobs
    FOR EACH ROW EXECUTE FUNCTION control_plane.retry_job();

-- The rights that Redrive's programs need, and no right on any table of {system}. `redrive migrate` makes the roles, and
-- grants the same where its user may.
DO $redrive$
BEGIN
    IF to_regrole('redrive_api') IS NOT NULL AND to_regrole('redrive_worker') IS NOT NULL THEN
        GRANT USAGE ON SCHEMA control_plane TO redrive_api, redrive_worker;
        GRANT SELECT ON control_plane.jobs TO redrive_api, redrive_worker;
        GRANT UPDATE (status, last_error, started_at, completed_at, scheduled_at, max_attempts)
            ON control_plane.jobs TO redrive_worker;
    END IF;
END
$redrive$;

COMMIT;
