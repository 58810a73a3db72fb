CREATE OR REPLACE VIEW control_plane.jobs AS
SELECT
    j.id,
    -- You decide: the project that a job belongs to. A token names one project, in letters, digits, _ and -. A key of
    -- your jobs' args or metadata will do, too: j.metadata ->> 'project_id'. Lists read it for every row.
    ({project})::text AS project_id,
    j.kind AS type,
    j.args AS payload,
    CASE j.state::text
        WHEN 'running' THEN 'running'
        WHEN 'completed' THEN 'completed'
        WHEN 'discarded' THEN 'failed'
        WHEN 'cancelled' THEN 'cancelled'
        ELSE 'pending' -- available, scheduled, retryable, pending
    END AS status,
    j.attempt::int AS attempts,
    -- A discarded job has used up its attempts. Its own JobRetry grants one more; so does a retry here.
    CASE
        WHEN j.state = 'discarded' THEN greatest(j.max_attempts::int, j.attempt + 1) ELSE j.max_attempts::int
    END AS max_attempts,
    CASE WHEN j.state = 'discarded' THEN j.errors[array_upper(j.errors, 1)] ->> 'error' END AS last_error,
    j.scheduled_at,
    CASE WHEN j.state IN ('running', 'completed', 'discarded', 'cancelled') THEN j.attempted_at END AS started_at,
    j.finalized_at AS completed_at,
    j.created_at
FROM {schema}.river_job AS j;

CREATE OR REPLACE FUNCTION control_plane.retry_job() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $redrive$
BEGIN
    IF old.status <> 'failed' OR new.status <> 'pending' THEN
        RAISE EXCEPTION 'this view only takes failed jobs back to pending';
    END IF;
    UPDATE {schema}.river_job SET
        state = CASE WHEN new.scheduled_at > now() THEN 'scheduled' ELSE 'available' END::{schema}.river_job_state,
        max_attempts = greatest(new.max_attempts, attempt + 1),
        scheduled_at = new.scheduled_at,
        finalized_at = NULL -- a constraint wants it set exactly where the state is final
    WHERE id = old.id AND state = 'discarded';
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    RETURN new;
EXCEPTION WHEN unique_violation THEN
    RETURN NULL; -- another job that is unique with it waits or runs: the retry ends as blocked
END
$redrive$;

-- The version of its tables, which `redrive check` compares with those that were tested, and api and worker at their start.
CREATE OR REPLACE FUNCTION control_plane.schema_version() RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $redrive$
    SELECT max(version) FROM {schema}.river_migration WHERE line = 'main';
$redrive$;
