-- migrate:up
-- The ledger: a row is an accepted retry request, its place in the outbox, its audit line and its result.
CREATE SCHEMA IF NOT EXISTS redrive;

CREATE TABLE redrive.retry_requests (
    id uuid NOT NULL,
    project_id text NOT NULL,
    job_id uuid NOT NULL, -- no foreign key: the jobs are not ours, and the audit outlives them
    batch_id uuid,
    job_version text, -- the job's version when the request was made; NULL: of any version
    state text NOT NULL DEFAULT 'queued'
        CHECK (state IN ('queued', 'applied', 'rejected', 'cancelled', 'dead_lettered')),
    outcome text
        CHECK (outcome IN (
            'applied', 'job_not_found', 'job_not_failed', 'attempts_exhausted', 'superseded', 'blocked', 'cancelled',
            'poison'
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
    cancelled_by text, -- the actor that took the request back
    redriven_by text, -- the last that queued it again after it was dead-lettered, and when
    redriven_at timestamptz,
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

-- At most one request waits for a job, however often it is asked for. (project_id, job_id) names the job: another
-- project may have one of the same id.
-- The id stands first in the index: it tells most jobs apart, and UUIDs compare faster than texts do.
CREATE UNIQUE INDEX retry_requests_queued_job_idx ON redrive.retry_requests (job_id, project_id)
    WHERE state = 'queued';
-- What waits, single requests before bulk ones, oldest first: the relay, and dispatch without a broker. What is queued
-- is not processed; that these say both keeps a look-up by job, which says only the first, from going along them.
CREATE INDEX retry_requests_queued_idx ON redrive.retry_requests ((batch_id IS NOT NULL), requested_at, id)
    WHERE state = 'queued' AND processed_at IS NULL;
CREATE INDEX retry_requests_unpublished_idx ON redrive.retry_requests ((batch_id IS NOT NULL), requested_at, id)
    WHERE state = 'queued' AND processed_at IS NULL AND published_at IS NULL;
-- What was published and is not settled, the longest published first: whether a message may be a dead letter, and what
-- must have been lost. That it names the published ones keeps all other statements from going along it, and what is
-- settled before it is marked never enters it.
CREATE INDEX retry_requests_published_idx ON redrive.retry_requests ((batch_id IS NOT NULL), published_at)
    WHERE state = 'queued' AND processed_at IS NULL AND published_at IS NOT NULL;
-- What was given up, the longest dead first.
CREATE INDEX retry_requests_dead_idx ON redrive.retry_requests (processed_at, id) WHERE state = 'dead_lettered';
-- The audit trail of a project, of a batch, of a job; and what prune deletes.
CREATE INDEX retry_requests_project_idx ON redrive.retry_requests (project_id, requested_at DESC, id DESC);
-- The project's trail by state: all but the state that most requests end in. What is applied costs it nothing more, and
-- is found along the whole trail. That it speaks of a time, too, which its only reader repeats, keeps look-ups of
-- something queued from going along it.
CREATE INDEX retry_requests_state_idx ON redrive.retry_requests (project_id, state, requested_at DESC, id DESC)
    WHERE state <> 'applied' AND requested_at < 'infinity';
CREATE INDEX retry_requests_batch_idx ON redrive.retry_requests (project_id, batch_id, state)
    WHERE batch_id IS NOT NULL;
CREATE INDEX retry_requests_job_idx ON redrive.retry_requests (job_id, project_id, requested_at DESC, id DESC);
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
    filter jsonb, -- as it was asked; NULL where the jobs were named by their ids
    total int NOT NULL, -- how many were accepted
    skipped jsonb NOT NULL, -- [{"job_id", "code"}]: which were not, and why
    requested_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX retry_batches_project_idx ON redrive.retry_batches (project_id, requested_at DESC, id DESC);

-- What a scaler of workers looks at: how many queued requests a worker could take now, counted up to 20,000.
CREATE VIEW redrive.backlog AS
SELECT count(*)::int AS waiting
FROM (
    SELECT FROM redrive.retry_requests
    WHERE state = 'queued' AND processed_at IS NULL AND (publish_lease_until IS NULL OR publish_lease_until < now())
    LIMIT 20000
) AS queued;

-- Which request a client's key stands for. Kept apart from the ledger, because a key can also stand for a request that
-- was queued already.
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
