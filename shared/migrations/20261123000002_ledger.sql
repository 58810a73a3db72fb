-- migrate:up
-- The ledger: a row is an accepted retry request, its place in the outbox, its audit line and its result.
CREATE SCHEMA IF NOT EXISTS redrive;

CREATE TABLE redrive.retry_requests (
    id uuid NOT NULL,
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
-- What waits, single requests before bulk ones, oldest first: the relay, and dispatch without a broker. What is queued
-- is not processed; that these say both keeps a look-up by job, which says only the first, from going along them.
CREATE INDEX retry_requests_queued_idx ON redrive.retry_requests ((batch_id IS NOT NULL), requested_at, id)
    WHERE state = 'queued' AND processed_at IS NULL;
CREATE INDEX retry_requests_unpublished_idx ON redrive.retry_requests ((batch_id IS NOT NULL), requested_at, id)
    WHERE state = 'queued' AND processed_at IS NULL AND published_at IS NULL;
-- What was given up, the longest dead first.
CREATE INDEX retry_requests_dead_idx ON redrive.retry_requests (processed_at, id) WHERE state = 'dead_lettered';
-- The audit trail of a job, of a project, of a batch; and what prune deletes.
CREATE INDEX retry_requests_job_idx ON redrive.retry_requests (job_id, requested_at DESC, id DESC);
CREATE INDEX retry_requests_project_idx ON redrive.retry_requests (project_id, requested_at DESC, id DESC);
CREATE INDEX retry_requests_batch_idx ON redrive.retry_requests (batch_id, state) WHERE batch_id IS NOT NULL;
CREATE INDEX retry_requests_processed_idx ON redrive.retry_requests (processed_at) WHERE state <> 'queued';
-- The last of them: on a table that is known to be empty all indexes cost the same, and of these the planner takes the
-- newest. Of any other that has an id in it, a look-up by id reads all; and plans are kept while the table grows.
ALTER TABLE redrive.retry_requests ADD PRIMARY KEY (id);

-- A bulk retry: who asked for what. How its requests stand is counted from the ledger.
CREATE TABLE redrive.retry_batches (
    id uuid PRIMARY KEY,
    project_id text NOT NULL,
    actor text NOT NULL,
    reason text,
    total int NOT NULL, -- how many were accepted
    skipped jsonb NOT NULL, -- [{"job_id", "code"}]: which were not, and why
    requested_at timestamptz NOT NULL DEFAULT now()
);

-- Which request a client's key stands for. Kept apart from the ledger, because a key can also stand for a request that
-- somebody else had queued already.
CREATE TABLE redrive.idempotency_keys (
    project_id text NOT NULL,
    key text NOT NULL,
    fingerprint bytea NOT NULL, -- of the request: the same key with another request is a mistake
    retry_id uuid,
    batch_id uuid,
    deduplicated boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, key),
    CHECK ((retry_id IS NULL) <> (batch_id IS NULL))
);
CREATE INDEX idempotency_keys_created_idx ON redrive.idempotency_keys (created_at);

-- migrate:down
DROP SCHEMA redrive CASCADE;
