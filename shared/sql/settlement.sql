-- The worker's side of the ledger: the statements that end a request, or defer it.
--
-- Lock order of every statement: ledger rows by id, then jobs by (project_id, id). Two batches can wait for each other's
-- rows, and never deadlock. Look-ups are LATERAL, or by an array of one, for the reason that jobs.sql gives. Words in braces,
-- such as {version}, are fragments of fragments.sql.
--
-- No relay takes a queued request before its publish_lease_until, and no worker takes one from the ledger: it is leased to
-- be published or settled, or deferred until then. A request that a message brings is settled whatever its lease.
--
-- Every change of a row's state, the statement that makes it, and the columns that it sets. `queued` means outcome and
-- processed_at NULL; every other state sets both. outbox.sql says how published_at and publish_lease_until go together.
--
--   from           to             statement                                sets
--   no row         queued         retries.accept                           what was asked; publish_lease_until where its relay keeps up
--   no row         queued         batches.insert_requests                  what was asked; batch_id, and run_at if spread
--   no row         queued         defer                                    what the message says; publish_lease_until
--   no row         rejected       adopt                                    what the message says; `apply` or `block` runs next
--   queued         queued         outbox.*, dead_letters.republish         published_at, publish_lease_until; some publish_alone
--   queued         queued         apply, defer                             published_at NULL, publish_lease_until
--   rejected       queued         apply                                    the same, on a row that `adopt` has just inserted
--   queued         queued         take_apart                               published_at, publish_lease_until NULL; publish_alone
--   rejected       queued         take_apart                               the same, on a row that `adopt` has just inserted
--   queued         queued         lease_held_up                            published_at NULL, publish_lease_until; publish_alone
--   queued         applied        apply                                    *_before, and status = 'pending' on the job
--   queued         rejected       apply                                    attempts_before, max_attempts_before
--   queued         rejected       block                                    the same; outcome 'blocked'
--   applied        rejected       block_unmoved                            outcome 'blocked'; in the transaction of `apply`
--   queued         dead_lettered  dead_letter                              outcome 'poison'; published_at NULL while its letter is due
--   dead_lettered  dead_lettered  mark_letters                             published_at
--   queued         cancelled      retries.cancel, batches.cancel           cancelled_by
--   dead_lettered  queued         retries.redrive, dead_letters.redrive    redriven_by, redriven_at; published_at NULL
--   not queued     no row         prune.prune_requests

-- name: apply
-- retry_job for a batch: settle every request of $1 that is still queued, and every request of $2, which `adopt` has just
-- inserted. Answers the settled requests, and for some applied ones the version of the job: where triggers may undo or
-- replace the update, `block_unmoved` checks the job again. A request that is missing was settled before, or is deferred:
-- another transaction has locked its job, and this one does not wait for it. Jobs of adopted requests are waited for,
-- because no relay would bring these requests again.
-- $1 uuid[] request ids, $2 uuid[] the adopted among them, $3 bool whether there is a broker: then a request without
-- a published_at gets one now. Its relay may not have marked it yet; of what a bypass takes from the ledger, some was never
-- published
WITH request AS MATERIALIZED (
    SELECT
        id, job_id, project_id, job_version, delay_seconds, extra_attempts,
        -- A batch's times were drawn at random when it was accepted. Applied late, they would all lie in the past, so only
        -- their distance to requested_at counts. A run_at without a batch comes from another program and is taken as it is.
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
        WHERE jobs.project_id = wanted.project_id AND jobs.id = redrive.job_number(wanted.job_id)
        FOR NO KEY UPDATE -- does not conflict with foreign keys of other tables that refer to a job
    ) AS j
),
wanted AS MATERIALIZED (
    SELECT DISTINCT project_id, job_id FROM request
    -- Always true; it runs waited_for first: to wait for a job while holding a later one breaks the order.
    WHERE (SELECT count(*) FROM waited_for) IS NOT NULL
    ORDER BY project_id, job_id
),
job AS MATERIALIZED (
    SELECT one.job_id, j.*
    FROM unnest( -- of arrays, so that the planner expects more than one row, and joins the jobs by a hash below
        ARRAY(SELECT project_id FROM wanted), ARRAY(SELECT job_id FROM wanted)
    ) AS one (project_id, job_id)
    CROSS JOIN LATERAL (
        SELECT
            id, project_id, status, coalesce(attempts, 0) AS attempts,
            redrive.attempts_allowed(attempts, max_attempts, 0) AS max_attempts,
            last_error, started_at, completed_at,
            {version} AS version
        FROM control_plane.jobs
        WHERE jobs.project_id = one.project_id AND jobs.id = redrive.job_number(one.job_id)
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS j
),
checked AS MATERIALIZED ( -- computed once: each reference to an outcome would compute it again
    SELECT
        request.id, request.project_id, request.job_id, request.run_at, request.delay_seconds, request.extra_attempts,
        job.id AS row_id, job.attempts, job.max_attempts, job.last_error, job.started_at, job.completed_at, job.version,
        CASE
            WHEN job.id IS NULL AND EXISTS (
                SELECT FROM control_plane.jobs AS j
                WHERE j.project_id = request.project_id AND j.id = redrive.job_number(request.job_id)
                OFFSET 0
            ) THEN 'deferred'
            WHEN job.id IS NULL THEN 'job_not_found'
            WHEN job.version <> request.job_version THEN 'superseded'
            WHEN job.status IS DISTINCT FROM 'failed' THEN 'job_not_failed'
            WHEN redrive.is_exhausted(job.attempts, job.max_attempts, request.extra_attempts) THEN 'attempts_exhausted'
            ELSE 'applied'
        END AS outcome
    FROM request
    LEFT JOIN job ON job.project_id = request.project_id AND job.job_id = request.job_id
),
verdict AS ( -- of several requests for one job the first is applied, and supersedes the rest
    SELECT
        checked.*,
        CASE
            WHEN outcome = 'applied' AND row_number() OVER (PARTITION BY project_id, job_id, outcome ORDER BY id) > 1
                THEN 'superseded'
            -- At most one request is queued for a job.
            WHEN
                outcome = 'deferred' AND id = ANY ($2::uuid[])
                AND (
                    row_number() OVER (PARTITION BY project_id, job_id, outcome ORDER BY id) > 1
                    OR EXISTS (
                        SELECT FROM redrive.retry_requests AS q
                        WHERE q.project_id = checked.project_id AND q.job_id = checked.job_id AND q.state = 'queued'
                        OFFSET 0
                    )
                )
                THEN 'superseded'
            ELSE outcome
        END AS final_outcome
    FROM checked
),
deferred AS ( -- an adopted request is queued now: a relay brings it again, as it does the others
    UPDATE redrive.retry_requests
    SET
        state = 'queued', outcome = NULL, processed_at = NULL, published_at = NULL,
        publish_lease_until = redrive.deferred_until(requested_at, interval '5 s')
    WHERE id = ANY (ARRAY(SELECT id FROM verdict WHERE final_outcome = 'deferred'))
),
put_back AS (
    UPDATE control_plane.jobs AS j
    SET
        status = 'pending', last_error = NULL, started_at = NULL, completed_at = NULL,
        scheduled_at = greatest(now() + verdict.delay_seconds * interval '1 second', verdict.run_at),
        max_attempts = CASE
            WHEN verdict.extra_attempts > 0
                THEN redrive.attempts_allowed(verdict.attempts, verdict.max_attempts, verdict.extra_attempts)
            ELSE j.max_attempts
        END
    FROM verdict
    WHERE
        j.project_id = ANY (ARRAY[verdict.project_id]) AND j.id = ANY (ARRAY[verdict.row_id])
        AND verdict.final_outcome = 'applied'
    RETURNING j.project_id, j.id
),
done AS MATERIALIZED ( -- a trigger of the table's owner may veto an update without an error: then it answers no row
    SELECT
        verdict.*,
        CASE
            WHEN final_outcome = 'applied' AND (project_id, row_id) NOT IN (SELECT project_id, id FROM put_back)
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
WHERE r.id = ANY (ARRAY[done.id]) AND done.what_became <> 'deferred'
RETURNING
    r.id, r.outcome, extract(epoch FROM now() - r.requested_at)::float8 AS waited_s,
    CASE
        WHEN r.outcome = 'applied' AND (
            SELECT relkind <> 'r' OR relhastriggers OR relhassubclass FROM pg_class
            WHERE oid = 'control_plane.jobs'::regclass
        ) THEN done.version
    END AS job_version;

-- name: block_unmoved
-- Of requests that `apply` has just applied, reject those whose job is failed still, at the version that was seen: what
-- a trigger has left, or put, as it was. Only a statement of its own sees what triggers after the update, or in its place,
-- have done. Answers their ids.
-- $1 uuid[] request ids, $2 text[] versions seen; same length
UPDATE redrive.retry_requests AS r
SET
    state = 'rejected', outcome = 'blocked', error_before = NULL, started_at_before = NULL, completed_at_before = NULL
FROM unnest($1::uuid[], $2::text[]) AS applied (id, version)
CROSS JOIN LATERAL (
    SELECT request.id FROM redrive.retry_requests AS request
    CROSS JOIN LATERAL (
        SELECT
            jobs.status,
            {version} AS version
        FROM control_plane.jobs
        WHERE jobs.project_id = request.project_id AND jobs.id = redrive.job_number(request.job_id)
        LIMIT 1
    ) AS job
    WHERE request.id = applied.id AND job.status::text = 'failed' AND job.version = applied.version
    LIMIT 1
) AS unmoved
WHERE r.id = ANY (ARRAY[unmoved.id])
RETURNING r.id;

-- name: outcomes
-- The outcomes of requests, NULL for a queued one; an id that the ledger does not know is missing.
-- $1 uuid[] request ids
SELECT id, outcome FROM redrive.retry_requests WHERE id = ANY ($1::uuid[]);

-- name: adopt
-- Insert requests that another program published, before `apply` or `block` settles them in the same transaction. They
-- are inserted as rejected, the state that holds if neither does. A second copy of the message, in another worker, waits
-- for this insertion until the transaction ends, and then finds the row. Answers the ids of the inserted rows.
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

-- name: take_apart
-- Have requests published again, each in a message of its own: the requests of $1 that are still queued, and the requests
-- of $2, which `adopt` has just inserted. Of those, one for whose job another request is queued is superseded. Answers
-- them; a request that is missing was settled before.
-- $1 uuid[] request ids, $2 uuid[] the adopted among them
WITH request AS MATERIALIZED (
    SELECT id, project_id, job_id, id = ANY ($2::uuid[]) AS adopted FROM redrive.retry_requests
    WHERE id = ANY ($1::uuid[]) AND (state = 'queued' OR id = ANY ($2::uuid[]))
    ORDER BY id -- the lock order
    FOR UPDATE
),
verdict AS (
    SELECT
        id,
        adopted AND (
            row_number() OVER (PARTITION BY project_id, job_id, adopted ORDER BY id) > 1
            OR EXISTS (
                SELECT FROM redrive.retry_requests AS q
                WHERE q.project_id = request.project_id AND q.job_id = request.job_id AND q.state = 'queued'
                OFFSET 0
            )
        ) AS superseded
    FROM request
)
UPDATE redrive.retry_requests AS r
SET
    state = CASE WHEN verdict.superseded THEN 'rejected' ELSE 'queued' END,
    outcome = CASE WHEN verdict.superseded THEN 'superseded' END,
    processed_at = CASE WHEN verdict.superseded THEN now() END,
    published_at = CASE WHEN verdict.superseded THEN r.published_at END,
    publish_lease_until = NULL,
    publish_alone = true
FROM verdict
WHERE r.id = ANY (ARRAY[verdict.id])
RETURNING r.id, r.outcome, extract(epoch FROM now() - r.requested_at)::float8 AS waited_s;

-- name: lease_held_up
-- Take the oldest queued requests that the broker holds up, on a lease: until it ends no relay and no worker takes them.
-- A relay may have published them: what that message brings later is settled. If the worker dies with them, they are
-- published alone, and not taken here again: one of them may be why it died.
-- $1 int how many, $2 bool true: only those of batches, false: only single ones, $3 interval how old they are
-- at least, $4 interval how long ago they were published, or their last lease or deferral ended, $5 interval the lease
UPDATE redrive.retry_requests
SET published_at = NULL, publish_lease_until = now() + $5::interval, publish_alone = true
WHERE id = ANY (ARRAY(
    SELECT waiting.id FROM redrive.retry_requests AS waiting
    WHERE
        state = 'queued' AND processed_at IS NULL AND NOT publish_alone
        AND (batch_id IS NOT NULL) = $2 AND requested_at < now() - $3::interval
        AND (published_at IS NULL OR published_at < now() - $4::interval)
        AND (publish_lease_until IS NULL OR publish_lease_until < now() - $4::interval)
    ORDER BY requested_at, id
    LIMIT $1
    FOR UPDATE SKIP LOCKED -- a worker settles a locked one
))
RETURNING id, job_id, project_id, job_version, run_at, extra_attempts, actor, reason, requested_at;

-- name: take
-- Dispatch without a broker: lock the oldest queued requests that no other worker has locked.
-- $1 int how many
SELECT id FROM redrive.retry_requests
WHERE state = 'queued' AND processed_at IS NULL AND (publish_lease_until IS NULL OR publish_lease_until < now())
ORDER BY (batch_id IS NOT NULL), requested_at, id -- bulk never delays a single request
LIMIT $1
FOR UPDATE SKIP LOCKED;

-- name: queued
-- The oldest queued requests, without a lock: to find the one that the database refuses.
-- $1 int how many
SELECT id, job_id, project_id, job_version, run_at, extra_attempts, actor, reason, requested_at
FROM redrive.retry_requests
WHERE state = 'queued' AND processed_at IS NULL AND (publish_lease_until IS NULL OR publish_lease_until < now())
ORDER BY (batch_id IS NOT NULL), requested_at, id
LIMIT $1;

-- name: defer
-- Set requests aside that cannot be settled in time: each stays queued, and no worker takes it for up to a minute.
-- (`apply` defers for less, because a locked job costs its neighbours nothing, and a slow one costs them the time of each
-- attempt.) A request that another program published is inserted, and from then on published by the relay. A settled row
-- stays as it is.
-- $1 to $9 as for `adopt`, $10 bool whether to insert requests that the ledger does not know
INSERT INTO redrive.retry_requests AS r (
    id, project_id, job_id, job_version, run_at, extra_attempts, actor, reason, requested_at, publish_lease_until
)
SELECT
    id, project_id, job_id, job_version, run_at, extra_attempts, actor, reason, coalesce(requested_at, now()),
    redrive.deferred_until(now(), interval '1 min')
FROM unnest(
    $1::uuid[], $2::text[], $3::uuid[], $4::text[], $5::timestamptz[], $6::int[], $7::text[], $8::text[],
    $9::timestamptz[]
) AS message (id, project_id, job_id, job_version, run_at, extra_attempts, actor, reason, requested_at)
WHERE $10 OR id = ANY (ARRAY(SELECT known.id FROM redrive.retry_requests AS known WHERE known.id = ANY ($1::uuid[])))
ORDER BY id
ON CONFLICT (id) DO UPDATE SET
    published_at = NULL,
    publish_lease_until = redrive.deferred_until(r.requested_at, interval '1 min')
    WHERE r.state = 'queued';

-- name: block
-- Reject requests whose job the table's owner does not take back now: the requests of $1 that are still queued, and the
-- requests of $2. Answers them; a request that is missing was settled before.
-- $1 uuid[] request ids, $2 uuid[] those among them that were adopted in this transaction, $3 bool whether to read the
-- job: its row may hold what no column of the ledger does
UPDATE redrive.retry_requests AS r
SET
    state = 'rejected', outcome = 'blocked', processed_at = now(),
    (attempts_before, max_attempts_before) = (
        SELECT coalesce(j.attempts, 0), redrive.attempts_allowed(j.attempts, j.max_attempts, 0)
        FROM control_plane.jobs AS j
        WHERE $3 AND j.project_id = r.project_id AND j.id = redrive.job_number(r.job_id)
        LIMIT 1
    )
WHERE id = ANY (ARRAY(
    SELECT refused.id FROM redrive.retry_requests AS refused
    WHERE id = ANY ($1::uuid[]) AND (state = 'queued' OR id = ANY ($2::uuid[]))
    ORDER BY id -- the lock order: other workers may be settling the same rows
    FOR UPDATE
))
RETURNING id, outcome, extract(epoch FROM now() - requested_at)::float8 AS waited_s;

-- name: dead_letter
-- Give up requests that are still queued. Answers them; a request that is missing was settled before. Without a lease, so
-- that a relay, which may mark them as published only now, leaves published_at NULL where a letter is due.
-- $1 uuid[] request ids, $2 bool whether their letters are in the dead-letter queue already
UPDATE redrive.retry_requests
SET
    state = 'dead_lettered', outcome = 'poison', processed_at = now(),
    published_at = CASE WHEN $2 THEN now() END, publish_lease_until = NULL
WHERE id = ANY (ARRAY(
    SELECT refused.id FROM redrive.retry_requests AS refused WHERE id = ANY ($1::uuid[]) AND state = 'queued'
    ORDER BY id -- the lock order: other workers may be settling the same rows
    FOR UPDATE
))
RETURNING id, outcome, extract(epoch FROM now() - requested_at)::float8 AS waited_s;

-- name: dead_among
-- Which of these requests are dead-lettered, since when, and whether they have their letter.
-- $1 uuid[] request ids
SELECT id, processed_at, published_at IS NOT NULL AS has_letter FROM redrive.retry_requests
WHERE id = ANY ($1::uuid[]) AND state = 'dead_lettered';

-- name: mark_letters
-- Mark dead-lettered requests whose letter the broker has confirmed: another message of theirs is no second letter. One
-- that was redriven since stays unmarked: when it is dead-lettered again, it has another processed_at, and another letter.
-- $1 uuid[] request ids, $2 timestamptz[] since when each is dead-lettered, as `dead_among` has answered; same length
UPDATE redrive.retry_requests SET published_at = now()
WHERE id = ANY (ARRAY(
    SELECT dead.id
    FROM (
        SELECT id, died_at FROM unnest($1::uuid[], $2::timestamptz[]) AS letter (id, died_at)
        ORDER BY id -- the lock order
    ) AS letter
    CROSS JOIN LATERAL (
        SELECT r.id FROM redrive.retry_requests AS r
        WHERE r.id = letter.id AND r.processed_at = letter.died_at AND r.published_at IS NULL
        FOR UPDATE
    ) AS dead
));

-- name: traces
-- The trace context of each of these requests whose trace is sampled: the last bit of the flags, which end it.
-- $1 uuid[] request ids, $2 int how many at most
SELECT r.id, r.traceparent
FROM unnest($1::uuid[]) AS wanted (id)
JOIN LATERAL (
    SELECT requests.id, requests.traceparent FROM redrive.retry_requests AS requests
    WHERE requests.id = wanted.id AND right(requests.traceparent, 1) IN ('1', '3', '5', '7', '9', 'b', 'd', 'f')
    LIMIT 1
) AS r ON true
LIMIT $2;

-- name: is_under_row_security
-- Whether row-level security decides which jobs this role sees and updates. A hidden row is no error: it is not there.
SELECT row_security_active('control_plane.jobs'::regclass);
