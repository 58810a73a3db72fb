"""The ledger: `accept` writes a retry request down, the relay publishes it, `apply` settles it.

A row of `redrive.retry_requests` is an accepted request: its place in the outbox, its audit line and its result. From
it everything else can be rebuilt, so nothing is kept in memory that would be missed.

    queued ──apply──▶ applied | rejected          (with the outcome, and what the retry cleared)

Only `queued` rows are ever settled, under their lock. A message that is delivered twice finds its row settled the
second time, and changes nothing.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from uuid_utils.compat import uuid7

from shared.coalesce import Coalescer
from shared.errors import AttemptsExhausted, DatabaseUnavailable, JobChanged, JobNotFailed, RetryNotFound
from shared.messages import VERSION, RetryMessage
from shared.models import (
    BatchId,
    Job,
    JobId,
    JobKey,
    Outcome,
    ProjectId,
    Retry,
    RetryBlock,
    RetryId,
    RetryState,
    Version,
)
from shared.sql import statements

if TYPE_CHECKING:
    from shared.database import Database, Row, Session
    from shared.jobs import JobStore

_ROUNDS = 5
"""How often `accept` looks again after somebody else's request was faster; each round needs another one settled."""


class RetryRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody asks for: put this failed job back.

    `if_version`: only if the job is still of this version. `extra_attempts`: raise the job's cap so that so many more
    are left. `traceparent`: the W3C trace context to carry to the worker.
    """

    job: JobKey
    actor: str
    reason: str | None = None
    delay_seconds: int = 0
    extra_attempts: int = 0
    if_version: frozenset[Version] | None = None
    traceparent: str | None = None


class Accepted(NamedTuple):
    """The answer to a request: the ledger's row for it, and whether it was there before."""

    retry: Retry
    deduplicated: bool


class Publishable(NamedTuple):
    """A queued request that this relay holds the lease on."""

    message: RetryMessage
    traceparent: str | None


class Settled(NamedTuple):
    """What became of a request, and how long it was in line."""

    outcome: Outcome
    waited_s: float


class Backlog(NamedTuple):
    """What is queued: how many (counted up to a thousand), and how long the oldest has waited."""

    requests: int
    oldest_s: float


class _NewRow(NamedTuple):
    id: RetryId
    request: RetryRequest
    version: Version


class _RetryKey(NamedTuple):
    id: RetryId
    project_id: ProjectId


def blocked_by(job: Job, *, extra_attempts: int = 0) -> RetryBlock | None:
    """What a retry of `job` would be refused for, with that many attempts added."""
    block = job.retry_blocked_by
    return None if block is RetryBlock.ATTEMPTS_EXHAUSTED and extra_attempts > 0 else block


def _retry_of(row: "Row") -> Retry:
    (
        retry_id, project_id, job_id, batch_id, state, outcome, actor, reason, delay_seconds, extra_attempts,
        requested_at, processed_at, attempts_before, error_before,
    ) = row  # fmt: skip
    return Retry(
        id=RetryId(retry_id),
        project_id=ProjectId(project_id),
        job_id=JobId(job_id),
        batch_id=None if batch_id is None else BatchId(batch_id),
        state=RetryState(state),
        outcome=None if outcome is None else Outcome(outcome),
        actor=actor,
        reason=reason,
        delay_seconds=delay_seconds,
        extra_attempts=extra_attempts,
        requested_at=requested_at,
        processed_at=processed_at,
        attempts_before=attempts_before,
        error_before=error_before,
    )


class RetryLedger:
    """Writing and reading the ledger; `jobs` is where `accept` looks at the job."""

    def __init__(self, database: "Database", jobs: "JobStore") -> None:
        self._database = database
        self._jobs = jobs
        self._sql = statements("retries")
        self._accepting: Coalescer[_NewRow, Retry] = Coalescer(self._insert, max_batch=256)
        self._reading: Coalescer[_RetryKey, Retry] = Coalescer(self._load)

    # -- accepting: the api's side

    async def accept(self, request: RetryRequest) -> Accepted:
        """Write the request down; it is safe once this returns, and will be applied or rejected.

        A request that is already queued for the job is the answer to a second one. What is accepted may still be
        rejected: the job is looked at again, under its lock, when the request is applied.

        Raises JobNotFound, JobChanged, JobNotFailed, AttemptsExhausted; DatabaseUnavailable, after which the request
        may or may not have been written.
        """
        for _ in range(_ROUNDS):
            job = await self._jobs.get(request.job)
            if request.if_version is not None and job.version not in request.if_version:
                raise JobChanged
            if job.pending_retry is not None:
                return Accepted(await self.get(job.pending_retry.id, job.project_id), deduplicated=True)
            match blocked_by(job, extra_attempts=request.extra_attempts):
                case RetryBlock.NOT_FAILED:
                    raise JobNotFailed
                case RetryBlock.ATTEMPTS_EXHAUSTED:
                    raise AttemptsExhausted
                case RetryBlock.RETRY_QUEUED | None:
                    pass
            # The id is made here, so the database answers for this very row and not for somebody else's.
            retry = await self._accepting.get(_NewRow(RetryId(uuid7()), request, job.version))
            if retry is not None:
                return Accepted(retry, deduplicated=False)
        raise DatabaseUnavailable("others were faster, again and again")

    async def _insert(self, rows: Sequence[_NewRow]) -> Mapping[_NewRow, Retry]:
        first_for_job = {row.request.job.id: row for row in reversed(rows)}
        chosen = sorted(first_for_job.values(), key=lambda row: row.request.job.id)
        written = await self._database.fetch(
            self._sql["accept"],
            [row.id for row in chosen],
            [row.request.job.project_id for row in chosen],
            [row.request.job.id for row in chosen],
            [row.version for row in chosen],
            [row.request.actor for row in chosen],
            [row.request.reason for row in chosen],
            [row.request.delay_seconds for row in chosen],
            [row.request.extra_attempts for row in chosen],
            [row.request.traceparent for row in chosen],
        )
        retries = {retry.id: retry for retry in map(_retry_of, written)}
        return {row: retries[row.id] for row in chosen if row.id in retries}

    # -- reading

    async def get(self, retry_id: RetryId, project_id: ProjectId) -> Retry:
        """The request as it stands. Raises RetryNotFound, for foreign ones too, and DatabaseUnavailable."""
        retry = await self._reading.get(_RetryKey(retry_id, project_id))
        if retry is None:
            raise RetryNotFound
        return retry

    async def _load(self, keys: Sequence[_RetryKey]) -> Mapping[_RetryKey, Retry]:
        ids, projects = zip(*keys, strict=True)
        rows = await self._database.fetch(self._sql["find_retries"], ids, projects)
        return {_RetryKey(retry.id, retry.project_id): retry for retry in map(_retry_of, rows)}

    async def history(self, job: JobKey, *, limit: int) -> list[Retry]:
        """Up to `limit` requests for the job, newest first; empty for a job that nobody retried, or that is foreign."""
        rows = await self._database.fetch(self._sql["history"], job.id, job.project_id, limit)
        return [_retry_of(row) for row in rows]

    async def backlog(self) -> Backlog:
        """What waits to be settled."""
        ((requests, oldest_s),) = await self._database.fetch(self._sql["backlog"])
        return Backlog(requests, oldest_s)

    # -- publishing: the relay's side

    async def publishable(self, limit: int, *, lease_s: float) -> list[Publishable]:
        """Up to `limit` requests that nobody has published, oldest first, leased to the caller for `lease_s`."""
        rows = await self._database.fetch(self._sql["publishable"], limit, timedelta(seconds=lease_s))
        return [
            Publishable(
                RetryMessage(
                    v=VERSION,
                    request_id=row["id"],
                    job_id=row["job_id"],
                    project_id=row["project_id"],
                    job_version=row["job_version"],
                    run_at=row["run_at"],
                    extra_attempts=row["extra_attempts"],
                    actor=row["actor"],
                    reason=row["reason"],
                    requested_at=row["requested_at"],
                ),
                row["traceparent"],
            )
            for row in sorted(rows, key=lambda row: row["id"])  # UUIDv7: by the time they were made
        ]

    async def mark_published(self, ids: Sequence[RetryId]) -> None:
        """Note that the broker has confirmed these."""
        await self._database.fetch(self._sql["mark_published"], ids)

    async def give_back(self, ids: Sequence[RetryId]) -> None:
        """End the lease on these early: they were not published."""
        await self._database.fetch(self._sql["give_back"], ids)

    # -- settling: the worker's side

    async def apply(self, messages: Sequence[RetryMessage]) -> dict[RetryId, Settled]:
        """Settle the requests that these messages carry, in one transaction: `retry_job` for a batch.

        Every distinct request id has its outcome in the answer; one that was settled before has its first outcome
        again, and no second effect. A request id that the ledger does not know is written down first.

        Raises DatabaseUnavailable: try all of it again later. Raises StatementRefused: one of the rows is at fault;
        nothing was settled.
        """
        by_id = {message.id: message for message in reversed(messages)}
        async with self._database.transaction() as session:
            adopted = await self._adopt(session, list(by_id.values()))
            settled = await self._settle(session, list(by_id), adopted)
            if missing := by_id.keys() - settled.keys():
                for row in await session.fetch(self._sql["outcomes"], list(missing)):
                    settled[RetryId(row["id"])] = Settled(Outcome(row["outcome"]), 0.0)
        return settled

    async def apply_queued(self, limit: int) -> dict[RetryId, Settled]:
        """Settle up to `limit` queued requests straight from the ledger, oldest first: dispatch without a broker.

        Rows that another worker has in hand are left to it. Raises as `apply` does.
        """
        async with self._database.transaction() as session:
            rows = await session.fetch(self._sql["take_queued"], limit)
            return await self._settle(session, [RetryId(row["id"]) for row in rows], []) if rows else {}

    async def _adopt(self, session: "Session", messages: Sequence[RetryMessage]) -> list[RetryId]:
        rows = await session.fetch(
            self._sql["adopt"],
            [message.request_id for message in messages],
            [message.project_id for message in messages],
            [message.job_id for message in messages],
            [message.job_version for message in messages],
            [message.run_at for message in messages],
            [message.extra_attempts for message in messages],
            [message.actor for message in messages],
            [message.reason for message in messages],
            [message.requested_at for message in messages],
        )
        return [RetryId(row["id"]) for row in rows]

    async def _settle(
        self, session: "Session", ids: Sequence[RetryId], adopted: Sequence[RetryId]
    ) -> dict[RetryId, Settled]:
        rows = await session.fetch(self._sql["apply"], ids, adopted)
        return {RetryId(row[0]): Settled(Outcome(row[1]), row[2]) for row in rows}
