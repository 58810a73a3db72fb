CREATE OR REPLACE VIEW control_plane.jobs AS
SELECT
    j.id,
    -- You decide: the project that a job belongs to. A token names one project, in letters, digits, _ and -. Here it is
    -- the queue: the primary key is (name, id), and with any other project a look-up reads every queue's part of it.
    ({project})::text AS project_id,
    j.name AS type,
    j.data AS payload,
    CASE j.state::text
        WHEN 'created' THEN 'pending'
        WHEN 'retry' THEN 'pending'
        WHEN 'active' THEN 'running'
        ELSE j.state::text -- completed, failed; cancelled
    END AS status,
    j.retry_count + (j.started_on IS NOT NULL)::int AS attempts,
    -- A failed job has used up its attempts. Its own retry() grants one more; so does a retry here.
    CASE
        WHEN j.state = 'failed' THEN greatest(j.retry_limit, j.retry_count + (j.started_on IS NOT NULL)::int) + 1
        ELSE j.retry_limit + 1
    END AS max_attempts,
    CASE
        WHEN j.state = 'failed'
            THEN coalesce(j.output ->> 'message', j.output -> 'value' ->> 'message', j.output::text)
    END AS last_error,
    j.start_after AS scheduled_at,
    CASE WHEN j.state NOT IN ('created', 'retry') THEN j.started_on END AS started_at,
    j.completed_on AS completed_at,
    j.created_on AS created_at
FROM {schema}.job AS j;

CREATE OR REPLACE FUNCTION control_plane.retry_job() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $redrive$
BEGIN
    IF old.status <> 'failed' OR new.status <> 'pending' THEN
        RAISE EXCEPTION 'this view only takes failed jobs back to pending';
    END IF;
    UPDATE {schema}.job SET
        state = 'retry',
        retry_limit = greatest(new.max_attempts - 1, retry_count + 1), -- started_on stays, so the next start counts one
        completed_on = NULL,
        start_after = new.scheduled_at,
        -- You decide: how long it may wait. Maintenance throws away what waits past keep_until, which a job that failed
        -- long ago has behind it: it gets the time again that it was given at first.
        keep_until = greatest(keep_until, new.scheduled_at + (keep_until - created_on))
    WHERE name = old.type AND id = old.id AND state = 'failed';
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    RETURN new;
EXCEPTION WHEN unique_violation THEN
    RETURN NULL; -- the queue's policy allows one such job, and there is one: the retry ends as blocked
END
$redrive$;

-- The version of its tables, which `redrive check` compares with those that were tested, and api and worker at their start.
CREATE OR REPLACE FUNCTION control_plane.schema_version() RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $redrive$
    SELECT version FROM {schema}.version;
$redrive$;
