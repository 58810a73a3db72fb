-- migrate:up
-- The rights that each program needs, and no more. The roles cannot log in: a deployment creates its own users and grants
-- them one of the roles. Roles belong to the server, so the migration of another database may have created them.
DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['redrive_api', 'redrive_worker', 'redrive_scaler'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL; -- the migration of another database created it
            END;
        END IF;
    END LOOP;
END
$$;

GRANT USAGE ON SCHEMA redrive TO redrive_api, redrive_worker, redrive_scaler;
GRANT SELECT, INSERT, UPDATE ON redrive.retry_requests TO redrive_api, redrive_worker;
GRANT SELECT, INSERT, UPDATE ON redrive.idempotency_keys TO redrive_api;
GRANT SELECT, INSERT ON redrive.retry_batches TO redrive_api;
GRANT SELECT ON redrive.cursor_key TO redrive_api;
GRANT SELECT ON redrive.backlog TO redrive_scaler;

-- The planner puts a function in place of its call only where the role may execute it. Every role may execute those that
-- are not named here.
REVOKE EXECUTE ON FUNCTION redrive.job_version(
    text, text, bigint, bigint, text, timestamptz, timestamptz, timestamptz, timestamptz
) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION redrive.job_version(
    text, text, bigint, bigint, text, timestamptz, timestamptz, timestamptz, timestamptz
) TO redrive_api, redrive_worker;
REVOKE EXECUTE ON FUNCTION redrive.job_uuid(bigint), redrive.job_number(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION redrive.job_uuid(bigint), redrive.job_number(uuid) TO redrive_api, redrive_worker;
REVOKE EXECUTE ON FUNCTION redrive.error_text(text), redrive.fingerprint(text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION redrive.error_text(text), redrive.fingerprint(text, text) TO redrive_api;

-- Both programs read which migrations are applied. Where these files are run by hand, the table may not exist.
DO $$
BEGIN
    IF to_regclass('redrive.schema_migrations') IS NOT NULL THEN
        GRANT SELECT ON redrive.schema_migrations TO redrive_api, redrive_worker;
    END IF;
END
$$;

-- The jobs table may have another owner, who alone can grant rights on it.
DO $$
BEGIN
    GRANT USAGE ON SCHEMA control_plane TO redrive_api, redrive_worker;
    GRANT SELECT ON control_plane.jobs TO redrive_api, redrive_worker;
    GRANT UPDATE (status, last_error, started_at, completed_at, scheduled_at, max_attempts)
        ON control_plane.jobs TO redrive_worker;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE WARNING 'the owner of control_plane.jobs must grant redrive_api and redrive_worker their rights on it';
END
$$;

-- migrate:down
DO $$ BEGIN RAISE EXCEPTION 'migrations of Redrive only go forward'; END $$;
