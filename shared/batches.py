"""Bulk retries: accept retries of many failed jobs in one call, as a batch; count, list and cancel batches.

A few set-based statements choose and accept ten thousand jobs. A job that cannot be retried is skipped, and listed with
the reason. The accepted requests are rows of the ledger like any other, with the batch's id.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from uuid_utils.compat import uuid7

from shared.bounds import MAX_BATCH
from shared.coalesce import Coalescer, Splitter
from shared.errors import (
    BatchNotFound,
    DatabaseUnfit,
    JobUnreadable,
    RedriveError,
    StatementRefused,
    TooManyMatches,
)
from shared.failed import JOB_UNREADABLE, FailedFilter, FailedJobs
from shared.idempotency import Claim, IdempotencyKey, IdempotencyKeys
from shared.models import BatchId, JobId, Position, ProjectId, RetryBlock
from shared.seen import Seen
from shared.times import in_utc

if TYPE_CHECKING:
    from shared.database import Database, Row, Session
    from shared.job_ids import JobIds

COUNTED_AT_ONCE: Final = 16
"""So many batches are counted in one statement: each may have 10,000 requests, and one statement has two seconds."""
SAMPLE: Final = 20

JOB_NOT_FOUND: Final = "job_not_found"
_CODES: Final = {
    JOB_NOT_FOUND: "job-not-found",
    JOB_UNREADABLE: "job-unreadable",
    RetryBlock.NOT_FAILED: "job-not-failed",
    RetryBlock.ATTEMPTS_EXHAUSTED: "attempts-exhausted",
    RetryBlock.RETRY_QUEUED: "retry-queued",
}


CANCELLED_AT_ONCE: Final = 2_000
"""How many requests of a batch one statement cancels, well within the time of a statement."""
_CANCEL_AGAIN_S: Final = 0.05
_CANCEL_WITHIN_S: Final = 1.0
"""For how long `cancel` tries again the rows that a worker or the relay has locked."""

COUNTED: Final = 100_000
"""How many requests a page of batches counts; it ends early where it would count more."""


class BatchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Retries of the named jobs, or of the failed jobs that a filter matches, but of no more than `maximum`.

    `spread_seconds`: each job is scheduled at a random time within so many seconds after the delay. `traceparent`: the
    W3C trace context, for the worker.
    """

    project_id: ProjectId
    actor: str
    chosen: tuple[JobId, ...] | FailedFilter
    maximum: int = MAX_BATCH
    reason: str | None = None
    delay_seconds: int = 0
    extra_attempts: int = 0
    spread_seconds: int = 0
    traceparent: str | None = None
    key: IdempotencyKey | None = None


class BulkDryRun(NamedTuple):
    """What a bulk retry would do: how many jobs it would retry, how many it would skip for what, and a sample."""

    matched: int
    retryable: int
    skipped: Mapping[str, int]
    sample: tuple[JobId, ...]
    truncated: bool


class Skipped(msgspec.Struct, frozen=True):
    """A job that was not retried; `code` is the one that a single retry of it would be refused with."""

    job_id: JobId
    code: str


class AcceptedBatch(NamedTuple):
    """The answer to a bulk retry. `replayed`: it repeats the first answer to the same idempotency key."""

    id: BatchId
    accepted: int
    skipped: list[Skipped]
    replayed: bool = False


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A bulk retry, and how many of its requests are in each state.

    The counts add up to `total`, until settled requests are pruned. `filter` is the request's, as JSON; None where the
    request named the jobs by their ids.
    """

    id: BatchId
    project_id: ProjectId
    actor: str
    reason: str | None
    filter: msgspec.Raw | None
    requested_at: datetime
    total: int
    queued: int
    applied: int
    rejected: int
    cancelled: int
    dead_lettered: int

    @property
    def done(self) -> bool:
        """Whether all of its requests are settled."""
        return self.queued == 0


class BatchKey(NamedTuple):
    """What a batch is read by. The project is part of it, so that a foreign batch is not found."""

    id: BatchId
    project_id: ProjectId


def _batch_of(row: "Row") -> Batch:
    return Batch(
        id=BatchId(row["id"]),
        project_id=ProjectId(row["project_id"]),
        actor=row["actor"],
        reason=row["reason"],
        filter=None if row["filter"] is None else msgspec.Raw(row["filter"].encode()),
        requested_at=row["requested_at"],
        total=row["total"],
        queued=row["queued"],
        applied=row["applied"],
        rejected=row["rejected"],
        cancelled=row["cancelled"],
        dead_lettered=row["dead_lettered"],
    )


def _json_of(chosen: FailedFilter) -> str:
    """The filter as the request had it, without what it leaves open; times are in UTC, see `in_utc`."""
    asked = {name: value for name, value in chosen._asdict().items() if value is not None}
    times = {name: in_utc(value) for name, value in asked.items() if isinstance(value, datetime)}
    return msgspec.json.encode(asked | times).decode()


class Batches:
    """The batches of all projects, in one database."""

    def __init__(self, database: "Database", ids: "JobIds") -> None:
        self._database = database
        self._ids = ids
        self._sql = ids.statements("batches")
        self._keys = IdempotencyKeys(database)
        self._failed = FailedJobs(database, ids)
        self._reading: Coalescer[BatchKey, Batch] = Coalescer(self.find_many, max_batch=COUNTED_AT_ONCE)

    async def dry_run(self, request: BatchRequest) -> BulkDryRun:
        """What `accept` would do now; nothing is written. Counts at most MAX_BATCH jobs; `truncated`: more match."""
        async with self._database.slot():
            blocks = await self._blocks(request, limit=MAX_BATCH + 1)
            truncated = len(blocks) > MAX_BATCH
            blocks = blocks[:MAX_BATCH]
            if isinstance(chosen := request.chosen, FailedFilter):
                if chosen.looked_at is not None:
                    truncated = await self._failed.has_more(request.project_id, chosen)
                blocks = await self._blocks_by_id(request, blocks)
        free = [job_id for job_id, block in blocks if block is None]
        counts = Counter(block for _, block in blocks if block is not None)
        return BulkDryRun(len(blocks), len(free), counts, tuple(free[:SAMPLE]), truncated)

    async def accept(self, request: BatchRequest) -> AcceptedBatch:
        """Insert a request for every job that can be retried; list the others.

        Raises TooManyMatches, TextUnstorable, with nothing written; IdempotencyKeyReused; DatabaseUnavailable, after
        which the batch may be in the ledger or not: a repeated call with the same key finds out.
        """
        try:
            return await self._keys.once(
                request.key,
                replay=lambda claim: self._replay(request.project_id, claim),
                attempt=lambda: self._attempt(request),
            )
        except StatementRefused as error:
            texts = {"reason": request.reason, "actor": request.actor}
            if isinstance(chosen := request.chosen, FailedFilter):
                texts |= {"filter/type": chosen.type, "filter/error_contains": chosen.error_contains}
            await self._database.find_unstorable(error, texts)
            raise

    async def _attempt(self, request: BatchRequest) -> AcceptedBatch:
        """Choose the jobs and insert their requests. Raises Raced when another request was faster with the key."""
        async with self._database.slot():
            blocks = await self._blocks(request, limit=request.maximum + 1)
            if len(blocks) > request.maximum:
                raise TooManyMatches
            try:
                async with self._database.transaction() as session:
                    return await self._insert(session, request, blocks)
            except (StatementRefused, DatabaseUnfit):
                blocks, before = await self._blocks_by_id(request, blocks), blocks
                if blocks == before:
                    raise  # no job is at fault
            async with self._database.transaction() as session:
                return await self._insert(session, request, blocks)

    async def _blocks_by_id(
        self, request: BatchRequest, blocks: Sequence[tuple[JobId, str | None]]
    ) -> list[tuple[JobId, str | None]]:
        """The same blocks, with those of the jobs that can be chosen, but not be read as a whole."""
        free = [job_id for job_id, block in blocks if block is None]
        apart = dict(await self._blocks_of(request, free))
        return [(job_id, JOB_UNREADABLE if apart.get(job_id) == JOB_UNREADABLE else block) for job_id, block in blocks]

    async def _blocks(self, request: BatchRequest, *, limit: int) -> list[tuple[JobId, str | None]]:
        """The chosen jobs, each with what stands against retrying it. Raises as `FailedJobs.match` does."""
        chosen = request.chosen
        if not isinstance(chosen, FailedFilter):
            return await self._blocks_of(request, list(dict.fromkeys(chosen)))
        found = await self._failed.match(request.project_id, chosen, extra_attempts=request.extra_attempts, limit=limit)
        return [(job.id, job.blocked_by) for job in found]

    async def _blocks_of(self, request: BatchRequest, ids: Sequence[JobId]) -> list[tuple[JobId, str | None]]:
        """The same of distinct jobs; those that the database refuses to look at stand alone."""

        async def blocks(part: Sequence[JobId]) -> Mapping[JobId, str | RedriveError | None]:
            stored = [self._ids.stored(each) for each in part]
            rows = await self._database.fetch(self._sql["blocks"], request.project_id, stored, request.extra_attempts)
            return {self._ids.shown(row["id"]): row["blocked_by"] for row in rows}

        splitter: Splitter[JobId, str | None] = Splitter(blocks, probe=lambda: blocks(()))
        try:
            found = await splitter.load(ids)
        except StatementRefused as error:  # even for no job at all
            raise JobUnreadable from error
        return [
            (job_id, JOB_UNREADABLE if isinstance(block := found[job_id], RedriveError) else block) for job_id in ids
        ]

    async def _insert(
        self, session: "Session", request: BatchRequest, blocks: Sequence[tuple[JobId, str | None]]
    ) -> AcceptedBatch:
        batch_id = BatchId(uuid7())
        if request.key is not None:  # first: it may wait, and must not wait with rows inserted
            await self._keys.claim(session, [(request.key, Claim(batch_id=batch_id))])
        free = [job_id for job_id, block in blocks if block is None]
        rows = await session.fetch(
            self._sql["insert_requests"],
            batch_id,
            request.project_id,
            [uuid7() for _ in free],
            [self._ids.stored(each) for each in free],
            request.actor,
            request.reason,
            request.delay_seconds,
            request.extra_attempts,
            request.spread_seconds,
            request.traceparent,
        )
        inserted = {self._ids.shown(row["job_id"]) for row in rows}
        reasons = await self._blocks_of_lost(session, request, [job_id for job_id in free if job_id not in inserted])
        skipped = [
            Skipped(job_id, _CODES[block or reasons[job_id]]) for job_id, block in blocks if job_id not in inserted
        ]
        await session.fetch(
            self._sql["insert_batch"],
            batch_id,
            request.project_id,
            request.actor,
            request.reason,
            _json_of(request.chosen) if isinstance(request.chosen, FailedFilter) else None,
            len(inserted),
            msgspec.json.encode(skipped).decode(),
        )
        return AcceptedBatch(batch_id, len(inserted), skipped)

    async def _blocks_of_lost(
        self, session: "Session", request: BatchRequest, lost: Sequence[JobId]
    ) -> Mapping[JobId, str]:
        """Why no request was inserted for jobs that could be retried a moment before."""
        if not lost:
            return {}
        stored = [self._ids.stored(each) for each in lost]
        rows = await session.fetch(self._sql["blocks"], request.project_id, stored, request.extra_attempts)
        return {self._ids.shown(row["id"]): row["blocked_by"] or RetryBlock.RETRY_QUEUED for row in rows}

    async def _replay(self, project_id: ProjectId, claim: Claim) -> AcceptedBatch:
        if claim.batch_id is None:
            raise BatchNotFound
        async with self._database.slot():
            ((total, skipped),) = await self._database.fetch(self._sql["replay"], claim.batch_id, project_id)
            await self._database.secure()  # the first call may not have seen its commit
        return AcceptedBatch(claim.batch_id, total, msgspec.json.decode(skipped, type=list[Skipped]), replayed=True)

    async def get(self, key: BatchKey) -> Batch:
        """The batch with its counts as of now. Raises BatchNotFound, DatabaseUnavailable."""
        batch = await self._reading.get(key)
        if batch is None:
            raise BatchNotFound
        return batch

    async def find_many(self, keys: Sequence[BatchKey]) -> Mapping[BatchKey, Batch]:
        """The batches behind distinct keys, COUNTED_AT_ONCE in a statement; one that matches nothing is missing."""
        found: dict[BatchKey, Batch] = {}
        for start in range(0, len(keys), COUNTED_AT_ONCE):
            ids, projects = zip(*keys[start : start + COUNTED_AT_ONCE], strict=True)
            for row in await self._database.fetch(self._sql["find_many"], ids, projects):
                batch = _batch_of(row)
                found[BatchKey(batch.id, batch.project_id)] = batch
        return found

    async def page(
        self, project_id: ProjectId, *, actor: str | None, after: Position | None, limit: int
    ) -> tuple[list[Batch], bool]:
        """Up to `limit` of the project's batches that follow `after`, newest first, and whether more follow these.

        Fewer where the next batch would raise the number of counted requests over COUNTED, but always the first.
        """
        at, batch_id = (None, None) if after is None else after
        async with self._database.slot():
            try:
                rows = await self._database.fetch(
                    self._sql["page"], project_id, actor, at, batch_id, limit + 1, COUNTED
                )
            except StatementRefused as error:
                if error.by_encoding:
                    return [], False  # an actor that the database cannot hold has no batch
                raise
        shown = [row for row in rows if row["counted"]][:limit]
        return [_batch_of(row) for row in shown], len(rows) > len(shown)

    async def cancel(self, key: BatchKey, *, actor: str) -> Batch:
        """Cancel the queued requests of the batch, in the name of `actor`; returns the batch as it is then.

        Does not wait for a request that a worker has locked: the worker settles it, or unlocks it within a second and
        it is cancelled. A request that was queued before the batch does not belong to the batch.

        Raises BatchNotFound, also for a foreign one; ActorUnstorable; DatabaseUnavailable, after which some may
        have been cancelled.
        """
        batch = await self.get(key)
        until = asyncio.get_running_loop().time() + _CANCEL_WITHIN_S
        while not batch.done:
            async with self._database.slot():
                try:
                    rows = await self._database.fetch(
                        self._sql["cancel"], key.project_id, key.id, actor, CANCELLED_AT_ONCE
                    )
                except StatementRefused as error:
                    await self._database.find_unstorable(error, {"actor": actor})
                    raise
            if len(rows) == CANCELLED_AT_ONCE:
                continue
            batch = await self.get(key)
            if batch.done or asyncio.get_running_loop().time() >= until:
                break
            await asyncio.sleep(_CANCEL_AGAIN_S)
        return batch

    async def changed(self, seen: Mapping[BatchKey, Seen[Batch]]) -> Sequence[BatchKey]:
        """Which of the batches have changed since they were seen, or are gone.

        One that is settled without a dead letter stays as it is, and is not counted again.
        """
        moving = [key for key, one in seen.items() if not one.value.done or one.value.dead_lettered]
        now = await self.find_many(moving)
        return [key for key in moving if now.get(key) != seen[key].value]
