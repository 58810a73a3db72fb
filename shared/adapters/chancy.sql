CREATE OR REPLACE VIEW control_plane.jobs AS
SELECT
    -- Chancy's ids look like UUIDs of version 7, but any digit may stand in the version's place.
    j.id,
    -- You decide: the project that a job belongs to. A token names one project, in letters, digits, _ and -. A key of
    -- your jobs' meta will do, too: j.meta ->> 'project_id'. Lists read it for every row.
    ({project})::text AS project_id,
    j.func AS type,
    j.kwargs AS payload,
    CASE j.state
        WHEN 'retrying' THEN 'pending'
        WHEN 'succeeded' THEN 'completed'
        -- Its cancel writes 'failed' and leaves attempts over. Shown as failed, a bulk retry would bring it back.
        WHEN 'failed' THEN CASE WHEN j.attempts < j.max_attempts THEN 'cancelled' ELSE 'failed' END
        ELSE j.state::text -- pending, running
    END AS status,
    j.attempts,
    -- A failed job has used up its attempts. Its own retry starts to count anew; here it gets one more.
    CASE
        WHEN j.state = 'failed' AND j.attempts >= j.max_attempts THEN j.attempts + 1
        ELSE j.max_attempts
    END AS max_attempts,
    CASE WHEN j.state = 'failed' AND j.attempts >= j.max_attempts THEN j.errors -> -1 ->> 'traceback' END AS last_error,
    j.scheduled_at,
    CASE WHEN j.state NOT IN ('pending', 'retrying') THEN j.started_at END AS started_at,
    j.completed_at,
    j.created_at
FROM {schema}.chancy_jobs AS j; -- You decide: `chancy_` is Chancy's setting `prefix`; it stands here four times

CREATE OR REPLACE FUNCTION control_plane.retry_job() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $redrive$
DECLARE
    its_queue text;
BEGIN
    IF old.status <> 'failed' OR new.status <> 'pending' THEN
        RAISE EXCEPTION 'this view only takes failed jobs back to pending';
    END IF;
    UPDATE {schema}.chancy_jobs SET
        state = 'retrying',
        started_at = NULL,
        completed_at = NULL,
        taken_by = NULL,
        claim_id = NULL,
        scheduled_at = new.scheduled_at,
        max_attempts = greatest(new.max_attempts, attempts + 1)
    WHERE id = old.id AND state = 'failed' AND attempts >= max_attempts
    RETURNING queue INTO its_queue;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    IF new.scheduled_at <= now() THEN -- as its own retry does: an idle worker need not wait for its next poll
        PERFORM pg_notify('chancy_events', json_build_object('t', 'queue.pushed', 'q', its_queue)::text);
    END IF;
    RETURN new;
EXCEPTION WHEN unique_violation THEN
    RETURN NULL; -- another job with its unique_key waits or runs: the retry ends as blocked
END
$redrive$;

-- The version of its tables, which `redrive check` compares with those that were tested, and api and worker at their start.
CREATE OR REPLACE FUNCTION control_plane.schema_version() RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $redrive$
    SELECT version FROM {schema}.chancy_schema_version WHERE version_of = 'chancy';
$redrive$;
