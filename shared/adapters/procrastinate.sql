CREATE OR REPLACE VIEW control_plane.jobs AS
SELECT
    j.id,
    -- You decide: the project that a job belongs to. A token names one project, in letters, digits, _ and -. An argument
    -- of your tasks will do, too: j.args ->> 'project_id'. Lists read it for every row.
    ({project})::text AS project_id,
    j.task_name::text AS type,
    j.args AS payload,
    CASE j.status::text
        WHEN 'todo' THEN 'pending'
        WHEN 'doing' THEN 'running'
        WHEN 'succeeded' THEN 'completed'
        ELSE j.status::text -- failed; cancelled, aborting, aborted
    END AS status,
    j.attempts,
    -- It stores no limit: a failed job may always run once more.
    CASE WHEN j.status = 'failed' THEN j.attempts + 1 ELSE greatest(j.attempts, 1) END AS max_attempts,
    NULL::text AS last_error, -- it stores no error
    j.scheduled_at,
    CASE
        WHEN j.status <> 'todo' THEN (
            SELECT max(e.at) FROM {schema}.procrastinate_events AS e WHERE e.job_id = j.id AND e.type = 'started'
        )
    END AS started_at,
    CASE
        WHEN j.status NOT IN ('todo', 'doing') THEN (
            SELECT max(e.at) FROM {schema}.procrastinate_events AS e
            WHERE e.job_id = j.id AND e.type IN ('succeeded', 'failed', 'cancelled', 'aborted')
        )
    END AS completed_at,
    (SELECT min(e.at) FROM {schema}.procrastinate_events AS e WHERE e.job_id = j.id) AS created_at
FROM {schema}.procrastinate_jobs AS j;

-- Procrastinate's own functions and triggers name its tables without their schema, so it stands on the path, too.
CREATE OR REPLACE FUNCTION control_plane.retry_job() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp AS $redrive$
DECLARE
    its_queue text;
BEGIN
    IF old.status <> 'failed' OR new.status <> 'pending' THEN
        RAISE EXCEPTION 'this view only takes failed jobs back to pending';
    END IF;
    -- Its own function takes running jobs back, too.
    SELECT queue_name INTO its_queue FROM {schema}.procrastinate_jobs
    WHERE id = old.id AND status = 'failed'
    FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    PERFORM {schema}.procrastinate_retry_job_v2(old.id, new.scheduled_at, NULL, NULL, NULL);
    IF new.scheduled_at <= now() THEN -- as for a new job: an idle worker need not wait for its next poll
        PERFORM pg_notify('procrastinate_queue_v1#' || its_queue, job), pg_notify('procrastinate_any_queue_v1', job)
        FROM (SELECT json_build_object('type', 'job_inserted', 'job_id', old.id)::text AS job) AS inserted;
    END IF;
    RETURN new;
EXCEPTION WHEN unique_violation THEN
    RETURN NULL; -- another job with its queueing lock waits: the retry ends as blocked
END
$redrive$;

-- Procrastinate keeps no version of its tables. Its functions have one in their names; that of the function called above
-- stands for it. `redrive check` compares it with the one that was tested, and api and worker do so at their start.
CREATE OR REPLACE FUNCTION control_plane.schema_version() RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp AS $redrive$
    SELECT max(substring(proname FROM '[0-9]+$')::bigint) FROM pg_proc
    WHERE proname LIKE 'procrastinate\_retry\_job\_v%' AND pg_function_is_visible(oid);
$redrive$;
