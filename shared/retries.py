"""The api's side of the ledger: accept retry requests, cancel and redrive them, read them.

A row of `redrive.retry_requests` is an accepted request: its place in the outbox, its audit line and its result. All
else can be rebuilt from it, so a process that dies loses nothing.

    accept ──▶ queued ──▶ applied | rejected | dead_lettered   by a worker: shared/settlement.py
                      ──cancel──▶ cancelled
               dead_lettered ──redrive──▶ queued

A job has at most one queued request. shared/outbox.py says how a queued request reaches a worker; the table at the top
of shared/sql/settlement.sql has every change of a row.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import msgspec
from uuid_utils.compat import uuid7

from shared.coalesce import Coalescer
from shared.errors import (
    AttemptsExhausted,
    IdempotencyKeyReused,
    JobChanged,
    JobNotFailed,
    RetryAlreadySettled,
    RetryNotDeadLettered,
    RetryNotFound,
    RetryQueued,
    StatementRefused,
)
from shared.failpoints import Failpoint, reach
from shared.idempotency import Claim, IdempotencyKey, IdempotencyKeys, Raced
from shared.messages import RetryMessage
from shared.models import (
    BatchId,
    Job,
    JobId,
    JobKey,
    Outcome,
    Position,
    ProjectId,
    Retry,
    RetryBlock,
    RetryId,
    RetryState,
    Version,
)
from shared.outbox import Lease, Leased
from shared.seen import Seen
from shared.sql import statements

if TYPE_CHECKING:
    from shared.database import Database, Row, Session
    from shared.job_ids import JobIds
    from shared.jobs import Jobs
    from shared.outbox import Publisher


class RetryRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A client's request to retry a failed job.

    `if_version`: only if the job has one of these versions. `extra_attempts`: raise max_attempts so that this many are
    left. `traceparent`: the W3C trace context, for the worker.
    """

    job: JobKey
    actor: str
    reason: str | None = None
    delay_seconds: int = 0
    extra_attempts: int = 0
    if_version: frozenset[Version] | None = None
    traceparent: str | None = None
    key: IdempotencyKey | None = None


class Accepted(NamedTuple):
    """The answer to a request. `deduplicated`: another request for the job was queued before, and `retry` is that one.

    `replayed`: it repeats the first answer to the same idempotency key.
    """

    retry: Retry
    deduplicated: bool
    replayed: bool = False


class RetryFilter(NamedTuple):
    """Which requests of a project; None for all."""

    state: RetryState | None = None
    job_id: JobId | None = None
    batch_id: BatchId | None = None
    actor: str | None = None


class _NewRow(NamedTuple):
    id: RetryId
    request: RetryRequest
    version: Version


class _Inserted(NamedTuple):
    requested_at: datetime
    leased_until: datetime | None


class RetryKey(NamedTuple):
    """What a request is read by. The project is part of it, so that a foreign request is not found."""

    id: RetryId
    project_id: ProjectId


def blocked_by(job: Job, *, extra_attempts: int = 0) -> RetryBlock | None:
    """Why a retry of `job` that adds `extra_attempts` would be refused; None when it would be accepted."""
    block = job.retry_blocked_by
    return None if block is RetryBlock.ATTEMPTS_EXHAUSTED and extra_attempts > 0 else block


def _retry_of(row: "Row", ids: "JobIds") -> Retry:
    """A row whose columns are the fields of a Retry."""
    columns = dict(row)
    columns["job_id"] = ids.shown(columns["job_id"])
    columns["state"] = RetryState(columns["state"])
    if columns["outcome"] is not None:
        columns["outcome"] = Outcome(columns["outcome"])
    return Retry(**columns)


def _queued(retry_id: RetryId, request: RetryRequest, requested_at: datetime) -> Retry:
    """The request as it was just inserted."""
    return Retry(
        id=retry_id,
        project_id=request.job.project_id,
        job_id=request.job.id,
        batch_id=None,
        state=RetryState.QUEUED,
        outcome=None,
        actor=request.actor,
        reason=request.reason,
        delay_seconds=request.delay_seconds,
        extra_attempts=request.extra_attempts,
        requested_at=requested_at,
    )


def _leased(row: _NewRow, requested_at: datetime, until: datetime) -> Leased:
    """The request as it was just inserted, for the relay that it is leased to."""
    request = row.request
    message = RetryMessage(
        request_id=row.id,
        job_id=request.job.id,
        project_id=request.job.project_id,
        job_version=row.version,
        extra_attempts=request.extra_attempts,
        actor=request.actor,
        reason=request.reason,
        requested_at=requested_at,
    )
    return Leased(message, request.traceparent, Lease(row.id, until))


def _parts_of(position: Position | None) -> tuple[datetime | int | None, UUID | None]:
    return (None, None) if position is None else (position.at, position.id)


class Retries:
    """Retry requests. `accept` reads the job from `jobs`, and hands the request to `publisher`, if there is one."""

    def __init__(self, database: "Database", jobs: "Jobs", ids: "JobIds", publisher: "Publisher | None" = None) -> None:
        self._database = database
        self._jobs = jobs
        self._ids = ids
        self._publisher = publisher
        self._sql = statements("retries")
        # Apart, because requests with keys are inserted all or none, and one that is too late undoes the others.
        self._accepting: Coalescer[_NewRow, Retry] = Coalescer(self._insert, max_batch=256)
        self._accepting_keyed: Coalescer[_NewRow, Retry] = Coalescer(self._insert, max_batch=256)
        self._keys = IdempotencyKeys(database)
        self._reading: Coalescer[RetryKey, Retry] = Coalescer(self.find_many)
        self._securing: Coalescer[RetryKey, Retry] = Coalescer(self._find_secured)

    async def accept(self, request: RetryRequest) -> Accepted:
        """Insert the request. When this returns, the request is safe, and will be applied or rejected.

        A job with a queued request gets no second one: the answer is the queued request. An accepted request may be
        rejected later, because the worker checks the job again, under its lock.

        Raises JobNotFound, JobChanged, JobNotFailed, AttemptsExhausted, IdempotencyKeyReused, TextUnstorable;
        DatabaseUnavailable, after which the request may be in the ledger or not: a repeated call with the same key
        finds out.
        """
        try:
            return await self._keys.once(
                request.key, replay=lambda claim: self._replay(request, claim), attempt=lambda: self._attempt(request)
            )
        except StatementRefused as error:
            await self._database.find_unstorable(error, {"reason": request.reason, "actor": request.actor})
            raise

    async def _attempt(self, request: RetryRequest) -> Accepted:
        """Read the job and insert the request. Raises Raced when another request was faster with the job or the key."""
        job = await self._jobs.get(request.job)
        if request.if_version is not None and job.version not in request.if_version:
            raise JobChanged
        if job.pending_retry is not None:
            if request.key is not None:
                await self._keys.remember(request.key, Claim(job.pending_retry.id, deduplicated=True))
            return Accepted(await self._get_secured(RetryKey(job.pending_retry.id, job.project_id)), deduplicated=True)
        match blocked_by(job, extra_attempts=request.extra_attempts):
            case RetryBlock.NOT_FAILED:
                raise JobNotFailed
            case RetryBlock.ATTEMPTS_EXHAUSTED:
                raise AttemptsExhausted
            case RetryBlock.RETRY_QUEUED | None:
                pass
        # The id is made here, so that the answer is about this row and not about another request's.
        accepting = self._accepting if request.key is None else self._accepting_keyed
        retry = await accepting.get(_NewRow(RetryId(uuid7()), request, job.version))
        if retry is None:
            raise Raced
        return Accepted(retry, deduplicated=False)

    async def _insert(self, rows: Sequence[_NewRow]) -> Mapping[_NewRow, Retry]:
        """Insert one row for each job and each key. A row that was not inserted is missing in the answer."""
        first_for_job = {(row.request.job.project_id, row.request.job.id): row for row in reversed(rows)}
        # Of one key with two bodies, too: the second is refused when it looks again.
        first_for_key = {row.request.key[:2] if row.request.key else row.id: row for row in first_for_job.values()}
        chosen = list(first_for_key.values())
        claims = [(row.request.key, Claim(row.id)) for row in chosen if row.request.key is not None]
        try:
            inserted = await (
                self._claim_and_accept(chosen, claims) if claims else self._accept(self._database, chosen)
            )
        except Raced:
            return {}
        reach(Failpoint.AFTER_INSERT)
        self._hand_over(inserted)
        return {row: _queued(row.id, row.request, one.requested_at) for row, one in inserted.items()}

    def _hand_over(self, inserted: Mapping[_NewRow, _Inserted]) -> None:
        """Have these published, after their commit: those that are leased to the relay, or else what it finds."""
        if self._publisher is None or not inserted:
            return
        # Of one statement all are leased, or none.
        leased = [_leased(row, one.requested_at, one.leased_until) for row, one in inserted.items() if one.leased_until]
        if leased:
            self._publisher.take(leased)
        else:
            self._publisher.poke()

    async def _claim_and_accept(
        self, rows: Sequence[_NewRow], claims: Sequence[tuple[IdempotencyKey, Claim]]
    ) -> Mapping[_NewRow, _Inserted]:
        """Insert all of these rows and claim their keys. Raises Raced, with nothing written, where one is not free."""
        async with self._database.transaction() as session:
            await self._keys.claim(session, claims)  # first: it may wait, and must not wait with rows inserted
            inserted = await self._accept(session, rows)
            if len(inserted) < len(rows):
                raise Raced  # a key must not name a request that was not inserted
            return inserted

    async def _accept(self, database: "Database | Session", rows: Sequence[_NewRow]) -> Mapping[_NewRow, _Inserted]:
        """Insert rows. One whose job has a queued request is missing in the answer."""
        lease_s = None if self._publisher is None else self._publisher.lease_s
        inserted = await database.fetch(
            self._sql["accept"],
            [row.id for row in rows],
            [row.request.job.project_id for row in rows],
            [self._ids.stored(row.request.job.id) for row in rows],
            [row.version for row in rows],
            [row.request.actor for row in rows],
            [row.request.reason for row in rows],
            [row.request.delay_seconds for row in rows],
            [row.request.extra_attempts for row in rows],
            [row.request.traceparent for row in rows],
            [None if row.request.key is None else row.request.key.text for row in rows],
            [None if row.request.key is None else row.request.key.fingerprint for row in rows],
            None if lease_s is None else timedelta(seconds=lease_s),
        )
        found = {row["id"]: _Inserted(row["requested_at"], row["publish_lease_until"]) for row in inserted}
        return {row: found[row.id] for row in rows if row.id in found}

    async def _replay(self, request: RetryRequest, claim: Claim) -> Accepted:
        """The first answer again: the request as it was then."""
        if claim.retry_id is None:
            raise IdempotencyKeyReused
        retry = await self._get_secured(RetryKey(claim.retry_id, request.job.project_id))
        first = Retry(
            id=retry.id,
            project_id=retry.project_id,
            job_id=retry.job_id,
            batch_id=retry.batch_id,
            state=RetryState.QUEUED,
            outcome=None,
            actor=retry.actor,
            reason=retry.reason,
            delay_seconds=retry.delay_seconds,
            extra_attempts=retry.extra_attempts,
            requested_at=retry.requested_at,
        )
        return Accepted(first, claim.deduplicated, replayed=True)

    async def cancel(self, key: RetryKey, *, actor: str) -> Retry:
        """Cancel a queued request, in the name of `actor`.

        Raises RetryNotFound, RetryAlreadySettled, ActorUnstorable.
        """
        async with self._database.slot():
            try:
                rows = await self._database.fetch(self._sql["cancel"], key.id, key.project_id, actor)
            except StatementRefused as error:
                await self._database.find_unstorable(error, {"actor": actor})
                raise
        if not rows:
            await self.get(key)
            raise RetryAlreadySettled
        return _retry_of(rows[0], self._ids)

    async def redrive(self, key: RetryKey, *, actor: str) -> Retry:
        """Queue a dead-lettered request again, in the name of `actor`. The relay publishes it, or a worker takes it.

        Raises RetryNotFound, RetryNotDeadLettered, RetryQueued, ActorUnstorable.
        """
        async with self._database.slot():
            try:
                rows = await self._database.fetch(self._sql["redrive"], key.id, key.project_id, actor)
            except StatementRefused as error:
                if error.by_unique_index:  # at most one request is queued for a job
                    raise RetryQueued from error
                await self._database.find_unstorable(error, {"actor": actor})
                raise
        if not rows:
            await self.get(key)
            raise RetryNotDeadLettered
        return _retry_of(rows[0], self._ids)

    async def get(self, key: RetryKey) -> Retry:
        """The request as of now. Raises RetryNotFound, also for a foreign one, and DatabaseUnavailable."""
        retry = await self._reading.get(key)
        if retry is None:
            raise RetryNotFound
        return retry

    async def _get_secured(self, key: RetryKey) -> Retry:
        """The same of a request that another call has inserted, which may not have seen its commit. Raises as `get`."""
        retry = await self._securing.get(key)
        if retry is None:
            raise RetryNotFound
        return retry

    async def _find_secured(self, keys: Sequence[RetryKey]) -> Mapping[RetryKey, Retry]:
        found = await self.find_many(keys)
        await self._database.secure()
        return found

    async def find_many(self, keys: Sequence[RetryKey]) -> Mapping[RetryKey, Retry]:
        """The requests behind distinct keys, in one query; a key that matches nothing is missing."""
        ids, projects = zip(*keys, strict=True)
        rows = await self._database.fetch(self._sql["find_many"], ids, projects)
        return {RetryKey(retry.id, retry.project_id): retry for retry in (_retry_of(row, self._ids) for row in rows)}

    async def changed(self, seen: Mapping[RetryKey, Seen[Retry]]) -> Sequence[RetryKey]:
        """Which of the requests have changed since they were seen, or are gone."""
        rows = await self._database.fetch(
            self._sql["changed"],
            [key.id for key in seen],
            [key.project_id for key in seen],
            [one.value.state for one in seen.values()],
            [one.value.redriven_at for one in seen.values()],
        )
        return [RetryKey(RetryId(row["id"]), ProjectId(row["project_id"])) for row in rows]

    async def history(self, job: JobKey, *, after: Position | None, limit: int) -> list[Retry]:
        """Up to `limit` requests for the job that follow `after`, newest first; none for a foreign job."""
        return await self.page(job.project_id, RetryFilter(job_id=job.id), after=after, limit=limit)

    async def page(
        self, project_id: ProjectId, wanted: RetryFilter, *, after: Position | None, limit: int
    ) -> list[Retry]:
        """Up to `limit` requests of the project that follow `after`, newest first."""
        state, job_id, batch_id, actor = wanted
        position = _parts_of(after)
        # The statement whose index has the fewest rows: a plan is made once, before it is known which filters are None.
        asked: tuple[object, ...]
        if job_id is not None:
            name, asked = "page_of_job", (project_id, self._ids.stored(job_id), state, batch_id, actor)
        elif batch_id is not None:
            name, asked = "page_of_batch", (project_id, batch_id, state, actor)
        else:
            whole_trail = state is None or state is RetryState.APPLIED
            name, asked = "page" if whole_trail else "page_of_state", (project_id, state, actor)
        async with self._database.slot():
            try:
                rows = await self._database.fetch(self._sql[name], *asked, *position, limit)
            except StatementRefused as error:
                if error.by_encoding:
                    return []  # an actor that the database cannot hold has no request
                raise
        return [_retry_of(row, self._ids) for row in rows]
