-- The relay's side of the ledger: which requests are to be published, and which are.
--
-- published_at  publish_lease_until   a queued request is
-- NULL          NULL, or in the past  waiting: a relay may lease it
-- NULL          in the future         leased by a relay, or for one as it was accepted, or by a worker's bypass, or deferred
--                                     by a worker: no other relay and no worker takes it
-- set           NULL                  with the broker
--
-- Every statement chooses its rows once, in an ARRAY, and finds them by their ids. Joined to the choice instead, the
-- whole ledger might be read, and the choice made anew for each row, by a plan made while the table was empty.
-- They skip locked rows, so they need no lock order, and no relay waits for a worker that settles them, or for a client that
-- cancels them.

-- name: lease
-- Take the oldest requests that no relay has published, on a lease: until it ends no other relay takes them. The leases
-- of a relay that dies end by themselves.
-- $1 int how many, $2 interval the lease, $3 bool those of batches, or single ones; $4 timestamptz and $5 uuid the request
-- behind which to look, NULL for none: what was leased just before would be read again each time
UPDATE redrive.retry_requests
SET publish_lease_until = now() + $2
WHERE id = ANY (ARRAY(
    SELECT free.id FROM redrive.retry_requests AS free
    WHERE
        state = 'queued' AND processed_at IS NULL AND published_at IS NULL
        AND (batch_id IS NOT NULL) = $3
        AND (requested_at, id)
            > (coalesce($4, '-infinity'::timestamptz), coalesce($5, '00000000-0000-0000-0000-000000000000'::uuid))
        AND (publish_lease_until IS NULL OR publish_lease_until < now())
    ORDER BY requested_at, id
    LIMIT $1
    FOR UPDATE SKIP LOCKED
))
RETURNING
    id, job_id, project_id, job_version, run_at, extra_attempts, actor, reason, requested_at, traceparent,
    publish_lease_until, publish_alone;

-- fragment: still_leased
-- The requests of $1 whose leases still end at the times of $2.
id = ANY (ARRAY(
    SELECT leased.id
    FROM unnest($1::uuid[], $2::timestamptz[]) AS lease (id, until)
    CROSS JOIN LATERAL (
        SELECT r.id FROM redrive.retry_requests AS r
        WHERE r.id = lease.id AND r.published_at IS NULL AND r.publish_lease_until = lease.until
        FOR UPDATE SKIP LOCKED
    ) AS leased
))

-- name: mark_published
-- Mark requests that the broker has confirmed. A request that a worker has settled is marked already. A request whose
-- lease is another by now stays unmarked and is published again, unless it is settled before: a worker has deferred it
-- meanwhile, or taken it past the broker (`lease_held_up`). A locked row is skipped; if its settling is rolled back, it is
-- published again when its lease ends.
-- $1 uuid[] ids, $2 timestamptz[] the ends of their leases, same length
UPDATE redrive.retry_requests SET published_at = now(), publish_lease_until = NULL
WHERE {still_leased};

-- name: give_back
-- End the lease of requests that could not be published, so that the next attempt does not wait for its end. A lease that
-- is another by now is another relay's or a bypass's, or a worker has deferred the request: it stays. So does that of a locked row.
-- $1 uuid[] ids, $2 timestamptz[] the ends of their leases, same length
UPDATE redrive.retry_requests SET publish_lease_until = NULL
WHERE {still_leased};

-- name: republish_stale
-- Let requests be published again that were published long ago and are still queued: their queue may have been lost. A
-- second copy of a message has no effect. The longest published come first.
-- $1 interval how long ago, $2 int how many at most, $3 bool those of batches, or single ones, $4 bool only once: those that
-- do not travel alone, which do so from then on
UPDATE redrive.retry_requests
SET published_at = NULL, publish_lease_until = NULL, publish_alone = publish_alone OR $4
WHERE id = ANY (ARRAY(
    SELECT stale.id FROM redrive.retry_requests AS stale
    WHERE
        state = 'queued' AND processed_at IS NULL
        AND (batch_id IS NOT NULL) = $3 AND published_at < now() - $1::interval
        AND NOT ($4 AND publish_alone)
    ORDER BY published_at
    LIMIT $2
    FOR UPDATE SKIP LOCKED -- a worker has the message of a locked row, so it is not lost
))
RETURNING id;
