-- migrate:up
-- The ledger. A row is an accepted retry request: its outbox entry, its audit line and its result.
CREATE SCHEMA IF NOT EXISTS redrive;

CREATE TABLE redrive.retry_requests (
    id uuid NOT NULL,
    project_id text NOT NULL,
    job_id uuid NOT NULL, -- no foreign key: the jobs are not ours, and the audit trail outlives them
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
    publish_alone boolean NOT NULL DEFAULT false, -- its message was delivered before, and a worker may have failed with it
    processed_at timestamptz,
    cancelled_by text, -- the actor that cancelled the request
    redriven_by text, -- the last actor that redrove it, and when
    redriven_at timestamptz,
    -- what the job had before it was retried
    attempts_before bigint, -- the jobs table may be as wide
    max_attempts_before bigint,
    error_before text,
    started_at_before timestamptz,
    completed_at_before timestamptz,
    CONSTRAINT retry_requests_settled_whole CHECK (
        (state = 'queued') = (outcome IS NULL) AND (state = 'queued') = (processed_at IS NULL)
    )
);

-- At most one request is queued for a job. (project_id, job_id) names the job: another project may have a job with the
-- same id. The id comes first in the index: it distinguishes most jobs, and UUIDs compare faster than texts.
CREATE UNIQUE INDEX retry_requests_queued_job_idx ON redrive.retry_requests (job_id, project_id)
    WHERE state = 'queued';
-- Queued requests, single ones before bulk ones, oldest first: for the relay, and for dispatch without a broker. A queued
-- request is not processed. Both predicates, so that the planner does not use this index for look-ups by job_id.
CREATE INDEX retry_requests_queued_idx ON redrive.retry_requests ((batch_id IS NOT NULL), requested_at, id)
    WHERE state = 'queued' AND processed_at IS NULL;
CREATE INDEX retry_requests_unpublished_idx ON redrive.retry_requests ((batch_id IS NOT NULL), requested_at, id)
    WHERE state = 'queued' AND processed_at IS NULL AND published_at IS NULL;
-- Published requests that are not settled, the longest published first: whose message may be a dead letter, or lost. The
-- predicate on published_at keeps other statements from this index, and a request that is settled before it is marked
-- never enters it.
CREATE INDEX retry_requests_published_idx ON redrive.retry_requests ((batch_id IS NOT NULL), published_at)
    WHERE state = 'queued' AND processed_at IS NULL AND published_at IS NOT NULL;
-- Dead-lettered requests, the longest dead first.
CREATE INDEX retry_requests_dead_idx ON redrive.retry_requests (processed_at, id) WHERE state = 'dead_lettered';
-- The audit trails of a project, a batch and a job; and what prune deletes. Trails are read backwards, newest first: new
-- rows come at the end of an index, which leaves full pages full. With the newest first they would split each page in the
-- middle, and the index would be twice as large.
-- While the ledger is empty, or was when it was analyzed, all indexes cost the same, and a plan that is made then is kept while
-- the ledger grows. So no look-up by id or job may find another index than its own: predicates on the time, which only their
-- readers repeat, keep it from the project's two indexes, and the job's does not have the id, which costs its readers a sort
-- of a few rows.
CREATE INDEX retry_requests_project_idx ON redrive.retry_requests (project_id, requested_at, id)
    WHERE requested_at < 'infinity';
-- The project's trail by state, without 'applied', the state of most requests: those are found along the whole trail.
CREATE INDEX retry_requests_state_idx ON redrive.retry_requests (project_id, state, requested_at, id)
    WHERE state <> 'applied' AND requested_at > '-infinity';
CREATE INDEX retry_requests_batch_idx ON redrive.retry_requests (project_id, batch_id, state)
    WHERE batch_id IS NOT NULL;
CREATE INDEX retry_requests_job_idx ON redrive.retry_requests (job_id, project_id, requested_at DESC);
CREATE INDEX retry_requests_processed_idx ON redrive.retry_requests (processed_at) WHERE state <> 'queued';
-- The primary key comes last: on an empty table all indexes cost the same, and the planner takes the newest. With any
-- other index a look-up by id reads the whole table, and a plan is kept while the table grows.
ALTER TABLE redrive.retry_requests ADD PRIMARY KEY (id);

-- A bulk retry: its actor and what was asked for. The states of its requests are counted from the ledger.
CREATE TABLE redrive.retry_batches (
    id uuid PRIMARY KEY,
    project_id text NOT NULL,
    actor text NOT NULL,
    reason text,
    filter jsonb, -- the request's; NULL where the jobs were named by their ids
    total int NOT NULL, -- how many were accepted
    skipped jsonb NOT NULL, -- [{"job_id", "code"}]: which were skipped, and why
    requested_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX retry_batches_project_idx ON redrive.retry_batches (project_id, requested_at, id)
    WHERE requested_at < 'infinity'; -- for the same reason as above

-- What a client's idempotency key names. It is kept apart from the ledger, because a key can also name a request that was
-- queued by another.
CREATE TABLE redrive.idempotency_keys (
    project_id text NOT NULL,
    key text NOT NULL,
    fingerprint bytea NOT NULL, -- of the request: the same key with another request is refused
    retry_id uuid,
    batch_id uuid,
    deduplicated boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, key),
    CHECK ((retry_id IS NULL) <> (batch_id IS NULL))
);
CREATE INDEX idempotency_keys_created_idx ON redrive.idempotency_keys (created_at);

-- What cursors are signed with: the same for all processes of a deployment, unknown to clients, and not changed where a
-- password or a key of tokens is. A row of the database outlives all of these, and goes along with a dump.
CREATE TABLE redrive.cursor_key (
    id boolean PRIMARY KEY DEFAULT true CHECK (id), -- one row
    key bytea NOT NULL
);
INSERT INTO redrive.cursor_key (key) VALUES (sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())));

-- For a scaler of workers: how many queued requests a worker could take now, counted up to 20,000.
CREATE VIEW redrive.backlog AS
SELECT count(*)::int AS waiting
FROM (
    SELECT FROM redrive.retry_requests
    WHERE state = 'queued' AND processed_at IS NULL AND (publish_lease_until IS NULL OR publish_lease_until < now())
    LIMIT 20000
) AS queued;

-- migrate:down
DO $$ BEGIN RAISE EXCEPTION 'migrations of Redrive only go forward'; END $$;
