-- A column of type json takes what jsonb refuses: \u0000, or half of a character beyond the first 65,536. One such row
-- would be an error on every page that it is on. It is read safely where such an escape is in it, else by a plain cast.
CREATE OR REPLACE FUNCTION control_plane.jsonb_or_text(document json) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $redrive$
BEGIN
    RETURN document::jsonb;
EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
    RETURN jsonb_build_object('unreadable', document::text);
END
$redrive$;

CREATE OR REPLACE FUNCTION control_plane.jsonb_of(document json) RETURNS jsonb
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN CASE WHEN strpos(document::text, '\u') > 0 THEN control_plane.jsonb_or_text(document) ELSE document::jsonb END;

-- The tables have row-level security and no policy: run as another role than their owner, this shows no job at all.
CREATE OR REPLACE VIEW control_plane.jobs AS
SELECT
    j.id,
    -- You decide: the project that a job belongs to. A token names one project, in letters, digits, _ and -. A key of
    -- your payloads will do, too: control_plane.jsonb_of(j.payload) ->> 'project_id'. Lists read it for every row.
    ({project})::text AS project_id,
    (SELECT t.identifier FROM {schema}._private_tasks AS t WHERE t.id = j.task_id) AS type,
    control_plane.jsonb_of(j.payload) AS payload,
    CASE
        WHEN j.locked_at IS NOT NULL THEN 'running'
        WHEN j.attempts >= j.max_attempts THEN 'failed'
        ELSE 'pending'
    END AS status,
    j.attempts::int AS attempts,
    -- A failed job has used up its attempts: a retry grants one more.
    CASE
        WHEN j.locked_at IS NULL AND j.attempts >= j.max_attempts THEN j.attempts + 1
        ELSE j.max_attempts::int
    END AS max_attempts,
    CASE WHEN j.locked_at IS NULL AND j.attempts >= j.max_attempts THEN j.last_error END AS last_error, -- it stays later
    j.run_at AS scheduled_at,
    j.locked_at AS started_at,
    NULL::timestamptz AS completed_at, -- it stores no end; success deletes the row
    j.created_at
FROM {schema}._private_jobs AS j;

CREATE OR REPLACE FUNCTION control_plane.retry_job() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $redrive$
BEGIN
    IF old.status <> 'failed' OR new.status <> 'pending' THEN
        RAISE EXCEPTION 'this view only takes failed jobs back to pending';
    END IF;
    -- Its own function takes jobs that wait, too.
    PERFORM FROM {schema}._private_jobs
    WHERE id = old.id AND locked_at IS NULL AND attempts >= max_attempts
    FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    PERFORM FROM {schema}.reschedule_jobs(
        ARRAY[old.id], new.scheduled_at, NULL, NULL, greatest(new.max_attempts, old.attempts + 1)
    );
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    IF new.scheduled_at <= now() THEN -- as for a new job: an idle worker need not wait for its next poll
        PERFORM pg_notify('jobs:insert', json_build_object('r', random(), 'count', 1)::text);
    END IF;
    RETURN new;
END
$redrive$;

-- The version of its tables, which `redrive check` compares with those that were tested, and api and worker at their start.
CREATE OR REPLACE FUNCTION control_plane.schema_version() RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $redrive$
    SELECT max(id) FROM {schema}.migrations;
$redrive$;
