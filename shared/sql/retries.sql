-- The ledger, redrive.retry_requests: accepting, publishing and settling retry requests.
-- (project_id, id) names a job: both stand in every look-up of a job, and of a request by its job. Two projects may have
-- a job of the same id. A request's own id is unique over all projects; what a client asks for names its project, too.
-- Rows are looked up one by one, LATERAL or behind an OFFSET, for the reason that jobs.sql gives. Rows to be written are
-- chosen once, in an ARRAY, and found by their ids: joined to their choice they may, by a plan made while the table was
-- empty, be what is read in full, with the choice made anew for each of them.
-- Lock order, for every statement here: ledger rows by id, then jobs by (project_id, id). Two batches can wait, never deadlock.
-- Nobody takes a queued request before its `publish_lease_until`: a relay is publishing it, or its job was locked or slow.

-- name: accept
-- Write down accepted requests. A job that has a queued request already gets no second one: its row is missing from
-- the answer, and the caller looks again.
-- $1 uuid[] ids, $2 text[] project ids, $3 uuid[] job ids, $4 text[] job versions, $5 text[] actors, $6 text[] reasons,
-- $7 int[] delays in seconds, $8 int[] extra attempts, $9 text[] trace contexts, $10 text[] idempotency keys and
-- $11 bytea[] their fingerprints, NULL for none; same length
INSERT INTO redrive.retry_requests (
    id, project_id, job_id, job_version, actor, reason, delay_seconds, extra_attempts, traceparent,
    idempotency_key, idempotency_fingerprint
)
SELECT
    id, project_id, job_id, job_version, actor, reason, delay_seconds, extra_attempts, traceparent,
    idempotency_key, idempotency_fingerprint
FROM unnest(
    $1::uuid[], $2::text[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::int[], $8::int[], $9::text[],
    $10::text[], $11::bytea[]
) AS wanted (
    id, project_id, job_id, job_version, actor, reason, delay_seconds, extra_attempts, traceparent,
    idempotency_key, idempotency_fingerprint
)
ORDER BY project_id, job_id -- one order for all processes, so two batches cannot wait for each other in a ring
ON CONFLICT (project_id, job_id) WHERE state = 'queued' DO NOTHING
RETURNING id, requested_at;

-- name: find_retries
-- The requests behind (id, project) pairs; a pair that matches nothing is missing from the answer.
-- $1 uuid[] ids, $2 text[] project ids; same length
SELECT
    r.id, r.project_id, r.job_id, r.batch_id, r.state, r.outcome, r.actor, r.cancelled_by, r.redriven_by,
    r.redriven_at, r.reason, r.delay_seconds, r.extra_attempts, r.requested_at, r.processed_at, r.attempts_before,
    r.max_attempts_before, r.started_at_before, r.completed_at_before,
    left(r.error_before, 65536), coalesce(length(r.error_before) > 65536, false)
FROM unnest($1::uuid[], $2::text[]) AS wanted (id, project_id)
JOIN LATERAL (
    SELECT * FROM redrive.retry_requests
    WHERE retry_requests.project_id = wanted.project_id AND retry_requests.id = wanted.id
    LIMIT 1
) AS r ON true;

-- name: changed_retries
-- Which of the requests are no longer as seen, or gone.
-- $1 uuid[] ids, $2 text[] project ids, $3 text[] states and $4 timestamptz[] times of redriving seen; same length
SELECT wanted.id, wanted.project_id
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[]) AS wanted (id, project_id, state, redriven_at)
LEFT JOIN LATERAL (
    SELECT r.state, r.redriven_at FROM redrive.retry_requests AS r
    WHERE r.project_id = wanted.project_id AND r.id = wanted.id
    LIMIT 1
) AS r ON true
WHERE (r.state, r.redriven_at) IS DISTINCT FROM (wanted.state, wanted.redriven_at);

-- name: history
-- A page of the requests for one job, newest first: its audit trail. The place to start from is always there, so that
-- it bounds the index scan.
-- $1 text project id, $2 uuid job id; $3 text state, $4 uuid batch id, $5 text actor, each NULL for all; $6 timestamptz
-- and $7 uuid the place below which the page begins, $8 int how many
SELECT
    id, project_id, job_id, batch_id, state, outcome, actor, cancelled_by, redriven_by, redriven_at,
    reason, delay_seconds, extra_attempts, requested_at, processed_at, attempts_before, max_attempts_before,
    started_at_before, completed_at_before, left(error_before, 2000), coalesce(length(error_before) > 2000, false)
FROM (
    SELECT * FROM redrive.retry_requests
    WHERE
        project_id = $1 AND job_id = $2
        AND (requested_at, id)
            < (coalesce($6, 'infinity'::timestamptz), coalesce($7, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
    ORDER BY requested_at DESC, id DESC
    OFFSET 0
) AS of_job
WHERE
    ($3::text IS NULL OR state = $3)
    AND ($4::uuid IS NULL OR batch_id = $4)
    AND ($5::text IS NULL OR actor = $5)
ORDER BY requested_at DESC, id DESC
LIMIT $8;

-- name: list_retries
-- A page of a project's requests, newest first: its audit trail.
-- $1 text project id; $2 text state, $3 text actor, each NULL for all; $4 timestamptz and $5 uuid the place below which
-- the page begins, $6 int how many
SELECT
    id, project_id, job_id, batch_id, state, outcome, actor, cancelled_by, redriven_by, redriven_at,
    reason, delay_seconds, extra_attempts, requested_at, processed_at, attempts_before, max_attempts_before,
    started_at_before, completed_at_before, left(error_before, 2000), coalesce(length(error_before) > 2000, false)
FROM redrive.retry_requests
WHERE
    project_id = $1
    AND (requested_at, id)
        < (coalesce($4, 'infinity'::timestamptz), coalesce($5, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
    AND ($2::text IS NULL OR state = $2)
    AND ($3::text IS NULL OR actor = $3)
ORDER BY requested_at DESC, id DESC
LIMIT $6;

-- name: list_retries_of_state
-- The same of those in one state, but for 'applied': a statement of its own, as a plan that serves both could not use an
-- index on it.
-- $1 text project id, $2 text state, $3 text actor or NULL; $4 timestamptz and $5 uuid the place below which the page
-- begins, $6 int how many
SELECT
    id, project_id, job_id, batch_id, state, outcome, actor, cancelled_by, redriven_by, redriven_at,
    reason, delay_seconds, extra_attempts, requested_at, processed_at, attempts_before, max_attempts_before,
    started_at_before, completed_at_before, left(error_before, 2000), coalesce(length(error_before) > 2000, false)
FROM redrive.retry_requests
WHERE
    project_id = $1 AND state = $2
    AND state <> 'applied' AND requested_at < 'infinity' -- what the index says of itself
    AND (requested_at, id)
        < (coalesce($4, 'infinity'::timestamptz), coalesce($5, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
    AND ($3::text IS NULL OR actor = $3)
ORDER BY requested_at DESC, id DESC
LIMIT $6;

-- name: list_batch
-- A page of a batch's requests, newest first. A batch is bounded, so its places are read whole, by its own index, and
-- sorted: along the project's index it may lie anywhere. Only what is on the page is read in full.
-- $1 text project id, $2 uuid batch id; $3 text state, $4 text actor, each NULL for all; $5 timestamptz and $6 uuid the
-- place below which the page begins, $7 int how many
WITH request AS MATERIALIZED (
    SELECT id, requested_at FROM redrive.retry_requests
    WHERE
        project_id = $1 AND batch_id = $2
        AND ($3::text IS NULL OR state = $3)
        AND ($4::text IS NULL OR actor = $4)
),
page AS (
    SELECT id, requested_at FROM request
    WHERE
        (requested_at, id)
        < (coalesce($5, 'infinity'::timestamptz), coalesce($6, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
    ORDER BY requested_at DESC, id DESC
    LIMIT $7
)
SELECT
    r.id, r.project_id, r.job_id, r.batch_id, r.state, r.outcome, r.actor, r.cancelled_by, r.redriven_by,
    r.redriven_at, r.reason, r.delay_seconds, r.extra_attempts, r.requested_at, r.processed_at, r.attempts_before,
    r.max_attempts_before, r.started_at_before, r.completed_at_before,
    left(r.error_before, 2000), coalesce(length(r.error_before) > 2000, false)
FROM page
CROSS JOIN LATERAL (
    SELECT * FROM redrive.retry_requests
    WHERE retry_requests.project_id = $1 AND retry_requests.id = page.id
    LIMIT 1
) AS r
ORDER BY page.requested_at DESC, page.id DESC;

-- name: cancel
-- Take a queued request back. No row: it is settled, foreign or unknown.
-- $1 uuid id, $2 text project id, $3 text the actor that takes it back
UPDATE redrive.retry_requests
SET state = 'cancelled', outcome = 'cancelled', processed_at = now(), cancelled_by = $3
WHERE project_id = $2 AND id = $1 AND state = 'queued'
RETURNING
    id, project_id, job_id, batch_id, state, outcome, actor, cancelled_by, redriven_by, redriven_at,
    reason, delay_seconds, extra_attempts, requested_at, processed_at, attempts_before, max_attempts_before,
    started_at_before, completed_at_before, left(error_before, 2000), coalesce(length(error_before) > 2000, false);

-- name: redrive_retry
-- Queue one request again that was given up; the relay publishes it. It keeps the job version that it was made for. No
-- row: it is not dead-lettered, foreign or unknown. Refused by the ledger's unique index while another request is queued
-- for the job.
-- $1 uuid id, $2 text project id, $3 text the actor that redrives it
UPDATE redrive.retry_requests
SET
    state = 'queued', outcome = NULL, processed_at = NULL, published_at = NULL, publish_lease_until = NULL,
    redriven_by = $3, redriven_at = now()
WHERE project_id = $2 AND id = $1 AND state = 'dead_lettered'
RETURNING
    id, project_id, job_id, batch_id, state, outcome, actor, cancelled_by, redriven_by, redriven_at,
    reason, delay_seconds, extra_attempts, requested_at, processed_at, attempts_before, max_attempts_before,
    started_at_before, completed_at_before, left(error_before, 2000), coalesce(length(error_before) > 2000, false);

-- name: publishable
-- Take requests that nobody has published yet, oldest first, on a lease: another relay leaves them alone until the
-- lease ends, and a relay that dies gives them back by dying.
-- $1 int how many, $2 interval the lease, $3 bool those of batches, or single ones
UPDATE redrive.retry_requests
SET publish_lease_until = now() + $2
WHERE id = ANY (ARRAY(
    SELECT free.id FROM redrive.retry_requests AS free
    WHERE
        state = 'queued' AND processed_at IS NULL AND published_at IS NULL
        AND (batch_id IS NOT NULL) = $3
        AND (publish_lease_until IS NULL OR publish_lease_until < now())
    ORDER BY requested_at, id
    LIMIT $1
    FOR UPDATE SKIP LOCKED
))
RETURNING
    id, job_id, project_id, job_version, run_at, extra_attempts, actor, reason, requested_at, traceparent,
    publish_lease_until;

-- name: mark_published
-- The broker has these: it confirmed them. What its worker has settled is marked already. What is no longer on the lease
-- that it was published under is to be published again: its worker has found the job locked, faster than we are here.
-- $1 uuid[] ids, $2 timestamptz[] the ends of their leases, same length
UPDATE redrive.retry_requests SET published_at = now(), publish_lease_until = NULL
WHERE id = ANY (ARRAY(
    SELECT leased.id FROM redrive.retry_requests AS leased
    WHERE
        id = ANY ($1::uuid[]) AND published_at IS NULL
        AND publish_lease_until = ($2::timestamptz[])[array_position($1::uuid[], id)]
    ORDER BY id -- the workers' order: they may be settling the same rows
    FOR UPDATE
));

-- name: give_back
-- End the lease on requests that could not be published, so that the next attempt need not wait for it.
-- $1 uuid[] ids
UPDATE redrive.retry_requests SET publish_lease_until = NULL
WHERE id = ANY (ARRAY(
    SELECT leased.id FROM redrive.retry_requests AS leased WHERE id = ANY ($1::uuid[]) AND published_at IS NULL
    ORDER BY id -- the workers' order: they may be settling the same rows
    FOR UPDATE
));

-- name: republish_stale
-- Let requests be published again that were published long ago and are not settled: their queue may have been lost. A
-- copy too many does nothing. The longest published first.
-- $1 interval how long ago, $2 int how many at most, $3 bool those of batches, or single ones
UPDATE redrive.retry_requests
SET published_at = NULL, publish_lease_until = NULL
WHERE id = ANY (ARRAY(
    SELECT stale.id FROM redrive.retry_requests AS stale
    WHERE
        state = 'queued' AND processed_at IS NULL
        AND (batch_id IS NOT NULL) = $3 AND published_at < now() - $1::interval
    ORDER BY published_at
    LIMIT $2
    FOR UPDATE SKIP LOCKED -- what a worker has in hand is not lost
))
RETURNING id;

-- name: backlog
-- How many requests wait, up to a thousand, and how long the oldest has waited, in seconds.
SELECT count(*), coalesce(extract(epoch FROM now() - min(requested_at)), 0)::float8
FROM (
    SELECT requested_at FROM redrive.retry_requests
    WHERE state = 'queued' AND processed_at IS NULL
    ORDER BY (batch_id IS NOT NULL), requested_at, id
    LIMIT 1000
) AS oldest;

-- name: row_security
-- Whether row-level security decides which jobs this role sees and updates: what it hides is no error, it is not there.
SELECT row_security_active('control_plane.jobs'::regclass);

-- name: take_queued
-- Dispatch without a broker: lock the oldest queued requests that no other worker has in hand.
-- $1 int how many
SELECT id FROM redrive.retry_requests
WHERE state = 'queued' AND processed_at IS NULL AND (publish_lease_until IS NULL OR publish_lease_until < now())
ORDER BY (batch_id IS NOT NULL), requested_at, id -- bulk never delays a single request
LIMIT $1
FOR UPDATE SKIP LOCKED;

-- name: queued
-- The oldest queued requests, without taking them: for finding the one that the database refuses.
-- $1 int how many
SELECT id, job_id, project_id, job_version, run_at, extra_attempts, actor, reason, requested_at
FROM redrive.retry_requests
WHERE state = 'queued' AND processed_at IS NULL AND (publish_lease_until IS NULL OR publish_lease_until < now())
ORDER BY (batch_id IS NOT NULL), requested_at, id
LIMIT $1;

-- name: dead_letter
-- Give up on requests that are still queued. Answers them; a request that is missing had been settled before.
-- $1 uuid[] request ids
UPDATE redrive.retry_requests
SET state = 'dead_lettered', outcome = 'poison', processed_at = now()
WHERE id = ANY (ARRAY(
    SELECT refused.id FROM redrive.retry_requests AS refused WHERE id = ANY ($1::uuid[]) AND state = 'queued'
    ORDER BY id -- the workers' order: they may be settling the same rows
    FOR UPDATE
))
RETURNING id, outcome, extract(epoch FROM now() - requested_at)::float8;

-- name: block
-- Reject requests whose job the table's owner does not take back now: those of $1 that are still queued, and those just
-- adopted ($2). Answers them; a request that is missing had been settled before.
-- $1 uuid[] request ids, $2 uuid[] those of them that were adopted in this transaction
UPDATE redrive.retry_requests AS r
SET
    state = 'rejected', outcome = 'blocked', processed_at = now(),
    (attempts_before, max_attempts_before) = (
        SELECT coalesce(j.attempts, 0), coalesce(j.max_attempts, 3) FROM control_plane.jobs AS j
        WHERE j.project_id = r.project_id AND j.id = r.job_id
        LIMIT 1
    )
WHERE id = ANY (ARRAY(
    SELECT refused.id FROM redrive.retry_requests AS refused
    WHERE id = ANY ($1::uuid[]) AND (state = 'queued' OR id = ANY ($2::uuid[]))
    ORDER BY id -- the workers' order: they may be settling the same rows
    FOR UPDATE
))
RETURNING id, outcome, extract(epoch FROM now() - requested_at)::float8;

-- name: adopt
-- Write down requests that some other program published, before they are settled below in the same transaction. They
-- enter as what they are if nobody looks: rejected. Inserting first makes a second copy of the message, in another
-- worker's hands, wait here until this transaction ends, and then find the row.
-- $1 uuid[] ids, $2 text[] project ids, $3 uuid[] job ids, $4 text[] job versions, $5 timestamptz[] run at,
-- $6 int[] extra attempts, $7 text[] actors, $8 text[] reasons, $9 timestamptz[] requested at; same length
INSERT INTO redrive.retry_requests (
    id, project_id, job_id, job_version, run_at, extra_attempts, actor, reason, requested_at,
    state, outcome, published_at, processed_at
)
SELECT
    id, project_id, job_id, job_version, run_at, extra_attempts, actor, reason, coalesce(requested_at, now()),
    'rejected', 'job_not_found', now(), now()
FROM unnest(
    $1::uuid[], $2::text[], $3::uuid[], $4::text[], $5::timestamptz[], $6::int[], $7::text[], $8::text[],
    $9::timestamptz[]
) AS message (id, project_id, job_id, job_version, run_at, extra_attempts, actor, reason, requested_at)
WHERE id <> ALL (ARRAY(SELECT known.id FROM redrive.retry_requests AS known WHERE known.id = ANY ($1::uuid[])))
ORDER BY id
ON CONFLICT (id) DO NOTHING
RETURNING id;

-- name: hold
-- Set requests aside that cannot be settled in time: each is queued, and comes again when nobody has asked for it for a
-- second, or for a quarter of the time that it has waited, a minute at most. (That is longer than `apply` holds what is
-- merely locked: the neighbours pay for each try, with the time that it takes.) One that some other program published is
-- written down, and from then on brought by the relay. A row that is settled is left alone.
-- $1 … $9 as for `adopt`, $10 bool whether those that are not there are to be written down
INSERT INTO redrive.retry_requests AS r (
    id, project_id, job_id, job_version, run_at, extra_attempts, actor, reason, requested_at, publish_lease_until
)
SELECT
    id, project_id, job_id, job_version, run_at, extra_attempts, actor, reason, coalesce(requested_at, now()),
    now() + interval '1 s'
FROM unnest(
    $1::uuid[], $2::text[], $3::uuid[], $4::text[], $5::timestamptz[], $6::int[], $7::text[], $8::text[],
    $9::timestamptz[]
) AS message (id, project_id, job_id, job_version, run_at, extra_attempts, actor, reason, requested_at)
WHERE $10 OR id = ANY (ARRAY(SELECT known.id FROM redrive.retry_requests AS known WHERE known.id = ANY ($1::uuid[])))
ORDER BY id
ON CONFLICT (id) DO UPDATE SET
    published_at = NULL,
    publish_lease_until = now() + least(greatest((now() - r.requested_at) / 4, interval '1 s'), interval '1 min')
    WHERE r.state = 'queued';

-- name: apply
-- retry_job for a batch: settle every request of $1 that is still queued, and those just adopted ($2), whatever their
-- state. Answers what was settled; a request that is missing had been settled before, or is held: somebody keeps its job
-- locked. It stays queued, not to be taken for a second, or for a quarter of the time that it has waited, five seconds at
-- most, and does not delay its neighbours. Jobs of adopted requests are waited for: nobody would bring these again.
-- $1 uuid[] request ids, $2 uuid[] those of them that were adopted in this transaction, $3 bool whether a broker brought
-- them: then they have been published, which their relay may not have come to write down
WITH request AS MATERIALIZED (
    SELECT
        id, job_id, project_id, job_version, delay_seconds, extra_attempts,
        -- A batch's times were drawn when it was accepted. Applied late, they would all have passed: what holds is how far
        -- each lies behind the request. Another program's time, which comes without a batch, is meant as it stands.
        CASE WHEN batch_id IS NULL THEN run_at ELSE now() + (run_at - requested_at) END AS run_at
    FROM redrive.retry_requests
    WHERE id = ANY ($1::uuid[]) AND (state = 'queued' OR id = ANY ($2::uuid[]))
    ORDER BY id
    FOR UPDATE
),
waited_for AS MATERIALIZED (
    SELECT j.id
    FROM (
        SELECT DISTINCT project_id, job_id FROM request WHERE id = ANY ($2::uuid[])
        ORDER BY project_id, job_id -- one lock order for all workers, so overlapping batches cannot deadlock
    ) AS wanted
    CROSS JOIN LATERAL (
        SELECT id FROM control_plane.jobs
        WHERE jobs.project_id = wanted.project_id AND jobs.id = wanted.job_id
        FOR NO KEY UPDATE -- of other tables, rows that refer to a job neither wait for this nor are waited for
    ) AS j
),
wanted AS MATERIALIZED (
    SELECT DISTINCT project_id, job_id FROM request
    WHERE (SELECT count(*) FROM waited_for) IS NOT NULL -- first: what waits holds nothing out of order
    ORDER BY project_id, job_id
),
job AS MATERIALIZED (
    SELECT j.*
    FROM unnest( -- of arrays, so that the planner expects more than one row, and joins what is locked by its hash below
        ARRAY(SELECT project_id FROM wanted), ARRAY(SELECT job_id FROM wanted)
    ) AS one (project_id, job_id)
    CROSS JOIN LATERAL (
        SELECT
            id, project_id, status, coalesce(attempts, 0) AS attempts, coalesce(max_attempts, 3) AS max_attempts,
            last_error, scheduled_at, started_at, completed_at, xmin::text AS version
        FROM control_plane.jobs
        WHERE jobs.project_id = one.project_id AND jobs.id = one.job_id
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS j
),
looked_at AS (
    SELECT
        request.id, request.project_id, request.job_id, request.run_at, request.delay_seconds, request.extra_attempts,
        job.attempts, job.max_attempts, job.last_error, job.scheduled_at, job.started_at, job.completed_at,
        CASE
            WHEN job.id IS NULL AND EXISTS (
                SELECT FROM control_plane.jobs AS j WHERE j.project_id = request.project_id AND j.id = request.job_id
            ) THEN 'held'
            WHEN job.id IS NULL THEN 'job_not_found'
            WHEN job.version <> request.job_version THEN 'superseded'
            WHEN job.status <> 'failed' THEN 'job_not_failed'
            WHEN job.attempts >= greatest(job.max_attempts, job.attempts + request.extra_attempts)
                THEN 'attempts_exhausted'
            ELSE 'applied'
        END AS outcome
    FROM request
    LEFT JOIN job ON job.project_id = request.project_id AND job.id = request.job_id
),
verdict AS ( -- of several requests that would each be applied to one job, the first is; it moves the job on for the rest
    SELECT
        looked_at.*,
        CASE
            WHEN outcome = 'applied' AND row_number() OVER (PARTITION BY project_id, job_id, outcome ORDER BY id) > 1
                THEN 'superseded'
            ELSE outcome
        END AS final_outcome
    FROM looked_at
),
held AS (
    UPDATE redrive.retry_requests
    SET
        published_at = NULL,
        publish_lease_until = now() + least(greatest((now() - requested_at) / 4, interval '1 s'), interval '5 s')
    WHERE id = ANY (ARRAY(SELECT id FROM verdict WHERE final_outcome = 'held'))
),
put_back AS (
    UPDATE control_plane.jobs AS j
    SET
        status = 'pending', last_error = NULL, started_at = NULL, completed_at = NULL,
        scheduled_at = greatest(now() + verdict.delay_seconds * interval '1 second', verdict.run_at),
        max_attempts = CASE
            WHEN verdict.extra_attempts > 0
                THEN greatest(verdict.max_attempts, verdict.attempts + verdict.extra_attempts)
            ELSE j.max_attempts
        END
    FROM verdict
    WHERE j.project_id = verdict.project_id AND j.id = verdict.job_id AND verdict.final_outcome = 'applied'
    RETURNING
        j.project_id, j.id,
        j.status = 'failed'
        AND (
            j.last_error, j.scheduled_at, j.started_at, j.completed_at, coalesce(j.attempts, 0),
            coalesce(j.max_attempts, 3)
        ) IS NOT DISTINCT FROM (
            verdict.last_error, verdict.scheduled_at, verdict.started_at, verdict.completed_at, verdict.attempts,
            verdict.max_attempts
        ) AS as_it_was
),
done AS ( -- a trigger of the owner's may veto an update without an error: then the job is as it was
    SELECT
        verdict.*,
        CASE
            WHEN final_outcome = 'applied'
                AND (project_id, job_id) NOT IN (SELECT project_id, id FROM put_back WHERE as_it_was IS NOT TRUE)
                THEN 'blocked'
            ELSE final_outcome
        END AS what_became
    FROM verdict
)
UPDATE redrive.retry_requests AS r
SET
    state = CASE done.what_became WHEN 'applied' THEN 'applied' ELSE 'rejected' END,
    outcome = done.what_became,
    published_at = CASE WHEN $3 THEN coalesce(r.published_at, now()) ELSE r.published_at END,
    processed_at = now(),
    attempts_before = done.attempts,
    max_attempts_before = done.max_attempts,
    error_before = CASE WHEN done.what_became = 'applied' THEN done.last_error END, -- only what was cleared
    started_at_before = CASE WHEN done.what_became = 'applied' THEN done.started_at END,
    completed_at_before = CASE WHEN done.what_became = 'applied' THEN done.completed_at END
FROM done
WHERE r.id = ANY ($1::uuid[]) AND r.id = done.id AND done.what_became <> 'held'
RETURNING r.id, r.outcome, extract(epoch FROM now() - r.requested_at)::float8;

-- name: outcomes
-- What became of requests, NULL for one that is queued; an id that the ledger does not know is missing.
-- $1 uuid[] request ids
SELECT id, outcome FROM redrive.retry_requests WHERE id = ANY ($1::uuid[]);
