-- PgQueuer keeps a failed job only where its entrypoint says on_failure='hold', and deletes every job that succeeds.
-- No version of its tables is compared with those that were tested: PgQueuer keeps none.
CREATE OR REPLACE VIEW control_plane.jobs AS
SELECT
    j.id,
    -- You decide: the project that a job belongs to. A token names one project, in letters, digits, _ and -. A header of
    -- your jobs will do, too: j.headers ->> 'project_id'. Lists read it for every row.
    ({project})::text AS project_id,
    j.entrypoint AS type,
    jsonb_build_object('base64', encode(j.payload, 'base64')) AS payload, -- any bytes may be in it
    CASE j.status::text
        WHEN 'queued' THEN 'pending'
        WHEN 'picked' THEN 'running'
        ELSE j.status::text -- failed
    END AS status,
    j.attempts,
    -- The table has no limit: a failed job may always run once more.
    CASE WHEN j.status = 'failed' THEN j.attempts + 1 ELSE greatest(j.attempts, 1) END AS max_attempts,
    CASE
        WHEN j.status = 'failed' THEN (
            SELECT concat_ws(': ', l.traceback ->> 'exception_type', l.traceback ->> 'exception_message')
            FROM {schema}.pgqueuer_log AS l -- You decide: with PgQueuer's setting `prefix` its tables have other names
            WHERE l.job_id = j.id AND l.status = 'failed'
            ORDER BY l.created DESC, l.id DESC
            LIMIT 1
        )
    END AS last_error,
    j.execute_after AS scheduled_at,
    NULL::timestamptz AS started_at, -- it stores no start
    CASE WHEN j.status = 'failed' THEN j.updated END AS completed_at,
    j.created AS created_at
FROM {schema}.pgqueuer AS j;

CREATE OR REPLACE FUNCTION control_plane.retry_job() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $redrive$
DECLARE
    job {schema}.pgqueuer;
BEGIN
    IF old.status <> 'failed' OR new.status <> 'pending' THEN
        RAISE EXCEPTION 'this view only takes failed jobs back to pending';
    END IF;
    UPDATE {schema}.pgqueuer SET
        status = 'queued',
        execute_after = new.scheduled_at,
        updated = now(),
        attempts = 0, -- as its own requeue does
        queue_manager_id = NULL
    WHERE id = old.id AND status = 'failed'
    RETURNING * INTO job;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    INSERT INTO {schema}.pgqueuer_log (job_id, status, entrypoint, priority)
    VALUES (job.id, 'queued', job.entrypoint, job.priority);
    IF new.scheduled_at <= now() THEN -- its own trigger is silent about updates: an idle worker would sleep on
        PERFORM pg_notify(
            'ch_pgqueuer',
            json_build_object(
                'channel', 'ch_pgqueuer', 'operation', 'insert', 'sent_at', now(), 'table', 'pgqueuer',
                'type', 'table_changed_event'
            )::text
        );
    END IF;
    RETURN new;
EXCEPTION WHEN unique_violation THEN
    RETURN NULL; -- another job with its dedupe_key waits or runs: the retry ends as blocked
END
$redrive$;
