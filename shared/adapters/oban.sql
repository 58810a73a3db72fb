-- No version of its tables is compared with those that were tested: Oban for Python keeps none. (Oban for Elixir has one in
-- the table's comment.)
CREATE OR REPLACE VIEW control_plane.jobs AS
SELECT
    j.id,
    -- You decide: the project that a job belongs to. A token names one project, in letters, digits, _ and -. A key of
    -- your jobs' args or meta will do, too: j.args ->> 'project_id'. Lists read it for every row.
    ({project})::text AS project_id,
    j.worker AS type,
    j.args AS payload,
    CASE j.state::text
        WHEN 'executing' THEN 'running'
        WHEN 'completed' THEN 'completed'
        WHEN 'discarded' THEN 'failed'
        WHEN 'cancelled' THEN 'cancelled'
        ELSE 'pending' -- available, scheduled, suspended, retryable
    END AS status,
    j.attempt::int AS attempts,
    -- A discarded job has used up its attempts. Its own retry grants one more; so does a retry here.
    CASE
        WHEN j.state = 'discarded' THEN greatest(j.max_attempts::int, j.attempt + 1) ELSE j.max_attempts::int
    END AS max_attempts,
    -- to_jsonb reads Elixir's errors, which are jsonb[], and Python's, which are jsonb.
    CASE WHEN j.state = 'discarded' THEN to_jsonb(j.errors) -> -1 ->> 'error' END AS last_error,
    -- Oban's times have no zone; they are UTC.
    j.scheduled_at AT TIME ZONE 'UTC' AS scheduled_at,
    CASE
        WHEN j.state IN ('executing', 'completed', 'discarded', 'cancelled') THEN j.attempted_at AT TIME ZONE 'UTC'
    END AS started_at,
    coalesce(j.completed_at, j.discarded_at, j.cancelled_at) AT TIME ZONE 'UTC' AS completed_at,
    j.inserted_at AT TIME ZONE 'UTC' AS created_at
FROM {schema}.oban_jobs AS j;

CREATE OR REPLACE FUNCTION control_plane.retry_job() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $redrive$
BEGIN
    IF old.status <> 'failed' OR new.status <> 'pending' THEN
        RAISE EXCEPTION 'this view only takes failed jobs back to pending';
    END IF;
    UPDATE {schema}.oban_jobs SET
        state = CASE WHEN new.scheduled_at > now() THEN 'scheduled' ELSE 'available' END::{schema}.oban_job_state,
        max_attempts = greatest(new.max_attempts, attempt + 1),
        scheduled_at = new.scheduled_at AT TIME ZONE 'UTC',
        completed_at = NULL,
        cancelled_at = NULL,
        discarded_at = NULL,
        meta = jsonb_set(meta, '{uniq_bmp}', '[]') -- as its own retry does
    WHERE id = old.id AND state = 'discarded';
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    RETURN new;
EXCEPTION WHEN unique_violation THEN
    RETURN NULL; -- another job that is unique with it waits or runs: the retry ends as blocked
END
$redrive$;
