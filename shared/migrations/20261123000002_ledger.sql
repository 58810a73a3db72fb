-- migrate:up
-- The ledger: a row is an accepted retry request, its place in the outbox, its audit line and its result.
CREATE SCHEMA IF NOT EXISTS redrive;

CREATE TABLE redrive.retry_requests (
    id uuid PRIMARY KEY,
    project_id text NOT NULL,
    job_id uuid NOT NULL, -- no foreign key: the jobs are not ours, and the audit outlives them
    batch_id uuid,
    job_version text, -- xmin of the job's row when the request was made; NULL: of any version
    state text NOT NULL DEFAULT 'queued'
        CHECK (state IN ('queued', 'applied', 'rejected', 'cancelled', 'dead_lettered')),
    outcome text
        CHECK (outcome IN (
            'applied', 'job_not_found', 'job_not_failed', 'attempts_exhausted', 'superseded', 'cancelled', 'poison'
        )),
    actor text NOT NULL,
    reason text,
    delay_seconds int NOT NULL DEFAULT 0 CHECK (delay_seconds >= 0),
    extra_attempts int NOT NULL DEFAULT 0 CHECK (extra_attempts >= 0),
    run_at timestamptz,
    idempotency_key text,
    idempotency_fingerprint bytea,
    traceparent text,
    requested_at timestamptz NOT NULL DEFAULT now(),
    publish_lease_until timestamptz,
    published_at timestamptz,
    processed_at timestamptz,
    -- what the retry cleared
    attempts_before int,
    max_attempts_before int,
    error_before text,
    started_at_before timestamptz,
    completed_at_before timestamptz,
    CONSTRAINT retry_requests_settled_whole CHECK (
        (state = 'queued') = (outcome IS NULL) AND (state = 'queued') = (processed_at IS NULL)
    )
);

-- At most one request waits for a job, whoever asks, however often.
CREATE UNIQUE INDEX retry_requests_queued_job_idx ON redrive.retry_requests (job_id) WHERE state = 'queued';
-- What waits, oldest first: the relay, dispatch without a broker, and the backlog.
CREATE INDEX retry_requests_queued_idx ON redrive.retry_requests (requested_at, id) WHERE state = 'queued';
CREATE INDEX retry_requests_unpublished_idx ON redrive.retry_requests (requested_at, id)
    WHERE state = 'queued' AND published_at IS NULL;
-- The audit trail of a job, and of a project.
CREATE INDEX retry_requests_job_idx ON redrive.retry_requests (job_id, requested_at DESC, id DESC);
CREATE INDEX retry_requests_project_idx ON redrive.retry_requests (project_id, requested_at DESC, id DESC);

-- migrate:down
DROP SCHEMA redrive CASCADE;
