CREATE OR REPLACE VIEW control_plane.jobs AS
SELECT
    j.id,
    -- You decide: the project that a task belongs to. A token names one project, in letters, digits, _ and -. An argument
    -- of your tasks will do, too: j.args_kwargs -> 'kwargs' ->> 'project_id'. Lists read it for every row.
    ({project})::text AS project_id,
    j.task_path AS type,
    j.args_kwargs AS payload,
    CASE j.status
        WHEN 'READY' THEN 'pending'
        WHEN 'RUNNING' THEN 'running'
        WHEN 'SUCCESSFUL' THEN 'completed'
        WHEN 'FAILED' THEN 'failed'
        ELSE lower(j.status)
    END AS status,
    jsonb_array_length(j.worker_ids) AS attempts, -- it keeps no count; each run adds its worker
    -- It knows no limit: a failed task may always run once more.
    CASE
        WHEN j.status = 'FAILED' THEN jsonb_array_length(j.worker_ids) + 1
        ELSE greatest(jsonb_array_length(j.worker_ids), 1)
    END AS max_attempts,
    CASE WHEN j.status = 'FAILED' THEN nullif(j.traceback, '') END AS last_error,
    CASE WHEN j.run_after >= '9999-01-01Z' THEN j.enqueued_at ELSE j.run_after END AS scheduled_at, -- 9999 is "at once"
    CASE WHEN j.status <> 'READY' THEN j.started_at END AS started_at,
    CASE WHEN j.status <> 'READY' THEN j.finished_at END AS completed_at,
    j.enqueued_at AS created_at
FROM {schema}.django_tasks_database_dbtaskresult AS j;

CREATE OR REPLACE FUNCTION control_plane.retry_job() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $redrive$
BEGIN
    IF old.status <> 'failed' OR new.status <> 'pending' THEN
        RAISE EXCEPTION 'this view only takes failed jobs back to pending';
    END IF;
    -- It has no retry of its own: the columns become those of a task that waits.
    UPDATE {schema}.django_tasks_database_dbtaskresult SET
        status = 'READY',
        run_after = new.scheduled_at,
        started_at = NULL,
        finished_at = NULL,
        exception_class_path = '',
        traceback = ''
    WHERE id = old.id AND status = 'FAILED';
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    RETURN new;
END
$redrive$;

-- The version of its tables, which `redrive check` compares with those that were tested, and api and worker at their start.
-- Django counts the migrations of each application. You decide: its table may be in another schema than the tasks'.
CREATE OR REPLACE FUNCTION control_plane.schema_version() RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $redrive$
    SELECT max(substring(name FROM '^[0-9]+')::bigint) FROM {schema}.django_migrations WHERE app = 'django_tasks_database';
$redrive$;
