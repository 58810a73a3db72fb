-- migrate:up
-- A stand-in for the control plane's table where there is none (development, one machine). A table that exists
-- belongs to the control plane: it gets no column, trigger or index from us.
DO $$
BEGIN
    IF to_regclass('control_plane.jobs') IS NOT NULL THEN
        RETURN;
    END IF;

    CREATE SCHEMA IF NOT EXISTS control_plane;

    CREATE TABLE control_plane.jobs (
        id uuid NOT NULL DEFAULT gen_random_uuid(),
        project_id text NOT NULL,
        type text NOT NULL,
        payload jsonb DEFAULT '{}',
        status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'running', 'failed', 'completed')),
        attempts int DEFAULT 0,
        max_attempts int DEFAULT 3,
        last_error text,
        scheduled_at timestamptz DEFAULT now(),
        started_at timestamptz,
        completed_at timestamptz,
        created_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT jobs_attempts_within_max CHECK (attempts <= max_attempts)
    );
    CREATE INDEX jobs_pending_idx ON control_plane.jobs (scheduled_at) WHERE status = 'pending';
    CREATE INDEX jobs_project_created_idx ON control_plane.jobs (project_id, created_at DESC, id DESC);
    -- The primary key comes last: on an empty table all indexes cost the same, and the planner takes the newest. With any
    -- other index a look-up by (project_id, id) reads the whole project, and a plan is kept while the table grows.
    ALTER TABLE control_plane.jobs ADD PRIMARY KEY (id);
END
$$;

-- migrate:down
DO $$ BEGIN RAISE EXCEPTION 'migrations of Redrive only go forward'; END $$;
