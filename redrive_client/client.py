"""Redrive: the API as methods."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal, Self, TypeVar, overload
from uuid import UUID

import msgspec
from aiohttp import hdrs

from redrive_client import transport
from redrive_client.events import Event, events_in
from redrive_client.long_poll import changes, wait_until_done
from redrive_client.models import (
    Accepted,
    AcceptedBatch,
    Batch,
    BulkDryRun,
    DryRun,
    FailedFilter,
    Failures,
    Found,
    Job,
    JobId,
    JobStatus,
    Me,
    Retried,
    RetriedFewerThan,
    Retry,
    RetryState,
    RetryStats,
    Series,
    Stats,
    Types,
    UnreadableJob,
)
from redrive_client.problems import Conflict, RateLimited, Unavailable, Unreachable
from redrive_client.resources import (
    AcceptedBatchBody,
    AcceptedBody,
    Counted,
    Envelope,
    FoundBody,
    Id,
    Ids,
    Page,
    batch_at,
    body_of,
    chosen_in_body,
    decoded,
    given,
    job_at,
    listed_job,
    retry_at,
    text_of,
)
from redrive_client.transport import Answer, Backoff, OnPause, Request, Token, Transport

if TYPE_CHECKING:
    from types import TracebackType

T = TypeVar("T")

IDS_AT_ONCE: Final = 100
MAX_MATCHES: Final = 10_000


class Redrive:
    """A client of one server, to be entered before it is used; safe for many tasks at once.

    `token` is a bearer token, or a coroutine function that gives one that is good now, asked before each request.
    `project_id` names another project than the token's, for tokens with the scope `jobs:admin`. `timeout_s` bounds
    every call that does not wait for something, repetitions included. `on_pause` is called before a request
    is sent again, with the reason and the pause in seconds.

    Any method may raise RedriveProblem (its subclasses tell why), Unreachable and UnexpectedAnswer. Raises ValueError
    for a URL that cannot be one.
    """

    def __init__(
        self,
        url: str,
        *,
        token: Token,
        project_id: str | None = None,
        timeout_s: float = 30,
        on_pause: OnPause | None = None,
    ) -> None:
        self._transport = Transport(url, token=token, project_id=project_id, on_pause=on_pause)
        self._timeout_s = timeout_s

    def __repr__(self) -> str:
        return f"Redrive({self._transport.base!r})"

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: "type[BaseException] | None", error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        await self._transport.__aexit__(kind, error, trace)

    # -- jobs

    async def get(self, job_id: JobId, *, include_payload: bool = False, fresh: bool = False) -> Job:
        """How a job stands; `fresh`: not as a replica has it, which may be behind.

        Raises NotFound, for another project's job, too.
        """
        resource = job_at(job_id, fresh=fresh)
        query = {**resource.query, **({"include": "payload"} if include_payload else {})}
        return resource.read(await self._answer(Request("GET", resource.path, query)))

    async def wait(self, job_id: JobId, *, timeout_s: float) -> Job:
        """The job once it is done: completed, failed with no retry queued, or in a status that is final there.

        Raises WaitTimeout, with the job as it was last seen, and NotFound once its row is deleted. A server that is
        away meanwhile is waited for, too.
        """
        return await wait_until_done(self._transport, job_at(job_id), timeout_s=timeout_s)

    async def events(self, job_id: JobId) -> AsyncIterator[Job]:
        """Yield the job as it is, then at each change, until it is done. A stream that breaks is taken up again.

        A change that another follows at once may be left out. A server where too many wait already ends the stream at
        once, and is asked again after the time that it names. Raises NotFound once the job's row is deleted.
        """
        seen = None
        async for event in self._events(Request("GET", f"{job_at(job_id).path}/events")):
            if event.kind != "job" or event.id == seen:
                continue
            job = listed_job(msgspec.Raw(event.data))
            if not isinstance(job, Job):
                continue  # its row cannot be shown any more: the stream ends, and to ask for it again says so
            seen = event.id
            job = msgspec.structs.replace(job, etag=f'"{event.id}"')
            yield job
            if job.done:
                return

    async def events_of(self, job_ids: Sequence[JobId]) -> AsyncIterator[Job]:
        """Yield each of up to 100 jobs as it is, then at each change, until all are done, in one stream.

        A job that is not there, or is deleted, counts as done; a row that the server cannot show is left out. The jobs
        carry no `etag`.
        """
        request = Request("GET", "/api/jobs/events", {"ids": ",".join(str(each) for each in job_ids)})
        left = {str(each).lower() for each in job_ids}
        seen: dict[str, Job] = {}
        async for event in self._events(request):
            if event.kind == "not_found":
                left -= {str(each) for each in decoded(event.data, Ids).ids}
            elif event.kind in ("gone", "job"):
                job = listed_job(msgspec.Raw(event.data)) if event.kind == "job" else None
                if isinstance(job, Job):
                    if seen.get(job.id) != job:
                        yield job
                    seen[job.id] = job
                if not isinstance(job, Job) or job.done:
                    left.discard(str(decoded(event.data, Id).id))
            if not left:
                return

    async def _events(self, request: Request) -> AsyncIterator[Event]:
        """Yield the events of a stream, which is taken up again where it ends, for as long as they are asked for."""
        request = request._replace(headers={hdrs.ACCEPT: "text/event-stream"})
        backoff = Backoff()
        while True:
            at_least_s: float | None = None
            try:
                async with self._transport.stream(request) as pieces:
                    async for event in events_in(pieces):
                        backoff = Backoff()
                        if event.retry_s is not None:
                            at_least_s = event.retry_s
                        yield event
            except (Unreachable, Unavailable, RateLimited) as error:
                if backoff.tries >= transport.TRIES:
                    raise
                if not isinstance(error, Unreachable):
                    at_least_s = error.retry_after_s
            await transport.sleep(backoff.pause_s(at_least_s))

    async def list(
        self,
        *,
        status: JobStatus | str | None = None,
        type: str | None = None,  # noqa: A002 - its name in the contract
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        error_contains: str | None = None,
        fingerprint: str | None = None,
        retryable: bool | None = None,
        retried_fewer_than: RetriedFewerThan | None = None,
        page_size: int = 50,
    ) -> AsyncIterator[Job | UnreadableJob]:
        """Yield the project's jobs, newest first, page after page for as long as they are asked for.

        The four filters from `error_contains` on need the status `failed`; they look at the newest 10,000 failed jobs
        that the other filters leave. `status` may be a word of the control plane's own. For a job whose row the server
        cannot show there is an UnreadableJob.
        """
        query = {
            "status": status,
            "type": type,
            "created_after": text_of(created_after),
            "created_before": text_of(created_before),
            "error_contains": error_contains,
            "fingerprint": fingerprint,
            "retryable": None if retryable is None else str(retryable).lower(),
            "retried_fewer_than": None
            if retried_fewer_than is None
            else f"{retried_fewer_than.times}/{retried_fewer_than.within_seconds}",
            "limit": str(page_size),
        }
        async for row in self._listed("/api/jobs", query, Page[msgspec.Raw]):
            yield listed_job(row)

    async def get_many(self, job_ids: Sequence[JobId]) -> Found:
        """The jobs behind any number of ids, in the order asked."""
        jobs: tuple[Job, ...] = ()
        not_found: tuple[str, ...] = ()
        unreadable: tuple[str, ...] = ()
        for start in range(0, len(job_ids), IDS_AT_ONCE):
            ids = ",".join(str(each) for each in job_ids[start : start + IDS_AT_ONCE])
            found = decoded((await self._answer(Request("GET", "/api/jobs", {"ids": ids}))).body, FoundBody)
            rows = [listed_job(row) for row in found.data]
            jobs += tuple(row for row in rows if isinstance(row, Job))
            unreadable += tuple(row.id for row in rows if isinstance(row, UnreadableJob))
            not_found += tuple(found.not_found)
        return Found(jobs, not_found, unreadable)

    async def stats(self, *, type: str | None = None) -> Stats:  # noqa: A002 - its name in the contract
        """How many of the project's jobs stand where; of one type, if it is given."""
        query = given({"type": type})
        counted = decoded((await self._answer(Request("GET", "/api/jobs/stats", query))).body, Counted[Stats])
        return msgspec.structs.replace(counted.data, as_of=counted.as_of)

    async def types(self) -> Types:
        """The types of the project's newest 10,000 jobs."""
        return decoded((await self._answer(Request("GET", "/api/jobs/types"))).body, Types)

    async def series(
        self,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        by: Literal["1m", "5m", "15m", "1h", "6h", "1d"] | None = None,
        type: str | None = None,  # noqa: A002 - its name in the contract
    ) -> Series:
        """How many jobs were made when, by status; the last 24 hours by `15m` where nothing else is asked.

        At most 96 buckets. Raises BadRequest for more.
        """
        query = given({"from": text_of(start), "to": text_of(end), "by": by, "type": type})
        return decoded((await self._answer(Request("GET", "/api/jobs/series", query))).body, Series)

    async def failures(
        self,
        *,
        type: str | None = None,  # noqa: A002 - its name in the contract
        created_after: datetime | None = None,
        created_before: datetime | None = None,
    ) -> Failures:
        """The newest failed jobs in groups of one type and one error."""
        query = given(
            {"type": type, "created_after": text_of(created_after), "created_before": text_of(created_before)}
        )
        return decoded((await self._answer(Request("GET", "/api/failures", query))).body, Failures)

    async def me(self) -> Me:
        """What the token is good for, as the server has understood it."""
        return decoded((await self._answer(Request("GET", "/api/me"))).body, Envelope[Me]).data

    # -- retries

    @overload
    async def retry(
        self,
        job_id: JobId,
        *,
        reason: str | None = None,
        delay_seconds: int = 0,
        extra_attempts: int | None = None,
        if_match: str | None = None,
        idempotency_key: str | None = None,
        dry_run: Literal[False] = False,
    ) -> Accepted: ...

    @overload
    async def retry(
        self,
        job_id: JobId,
        *,
        reason: str | None = None,
        delay_seconds: int = 0,
        extra_attempts: int | None = None,
        if_match: str | None = None,
        idempotency_key: str | None = None,
        dry_run: Literal[True],
    ) -> DryRun: ...

    async def retry(
        self,
        job_id: JobId,
        *,
        reason: str | None = None,
        delay_seconds: int = 0,
        extra_attempts: int | None = None,
        if_match: str | None = None,
        idempotency_key: str | None = None,
        dry_run: bool = False,
    ) -> Accepted | DryRun:
        """Ask for a failed job to be put back; what is accepted is looked at again when it is applied.

        `extra_attempts` raises the job's cap so that so many more are left; `if_match` is the `etag` of the job as it
        was seen. Sent again after a loss under the same key, so it takes effect once. With `dry_run`, only says what
        would be answered.

        Raises NotFound, Conflict (`job-not-failed`, `attempts-exhausted`), PreconditionFailed, KeyReused.
        """
        body = body_of(reason=reason, delay_seconds=delay_seconds, extra_attempts=extra_attempts)
        headers = given({hdrs.IF_MATCH: if_match})
        path = f"{job_at(job_id).path}/retry"
        if dry_run:
            answer = await self._answer(Request("POST", path, {"dry_run": "true"}, headers, body))
            return decoded(answer.body, Envelope[DryRun]).data
        headers |= {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        answer = await self._answer(Request("POST", path, {}, headers, body))
        accepted = decoded(answer.body, AcceptedBody)
        return Accepted(accepted.data, accepted.deduplicated, _is_replayed(answer))

    async def retry_and_wait(
        self,
        job_id: JobId,
        *,
        timeout_s: float,
        reason: str | None = None,
        delay_seconds: int = 0,
        extra_attempts: int | None = None,
        if_match: str | None = None,
        idempotency_key: str | None = None,
    ) -> Retried:
        """Retry a job and wait until it is done again; where the retry was not applied, only for that.

        Raises as `retry` does, and WaitTimeout, with the retry or the job as it was last seen.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        accepted = await self.retry(
            job_id,
            reason=reason,
            delay_seconds=delay_seconds,
            extra_attempts=extra_attempts,
            if_match=if_match,
            idempotency_key=idempotency_key,
        )
        retry = await self.wait_retry(accepted.retry.id, timeout_s=deadline - asyncio.get_running_loop().time())
        if retry.state is not RetryState.APPLIED:
            return Retried(retry, None)
        # Fresh: a replica that is behind would show the failure from before the retry.
        resource = job_at(retry.job_id, fresh=True)
        job = await wait_until_done(self._transport, resource, timeout_s=deadline - asyncio.get_running_loop().time())
        return Retried(retry, job)

    async def get_retry(self, retry_id: UUID | str) -> Retry:
        """What became of a retry. Raises NotFound."""
        resource = retry_at(retry_id)
        return resource.read(await self._answer(Request("GET", resource.path)))

    async def wait_retry(self, retry_id: UUID | str, *, timeout_s: float) -> Retry:
        """The retry once it is settled, whatever came of it. Raises WaitTimeout, with the retry as it was last seen."""
        return await wait_until_done(self._transport, retry_at(retry_id), timeout_s=timeout_s)

    async def cancel(self, retry_id: UUID | str) -> Retry:
        """Cancel a queued retry; returns it, too, where it was cancelled before.

        Raises NotFound, and Conflict when it has been settled otherwise.
        """
        resource = retry_at(retry_id)
        try:
            return resource.read(await self._answer(Request("DELETE", resource.path)))
        except Conflict:
            # It may be our own cancellation whose answer was lost: here, or in aiohttp, which repeats a DELETE itself.
            if (retry := await self.get_retry(retry_id)).state is RetryState.CANCELLED:
                return retry
            raise

    async def redrive(self, retry_id: UUID | str) -> Retry:
        """Queue a dead-lettered retry again; returns it, too, where it was redriven before and is still queued.

        It may still be rejected: it holds for the job as it was then.

        Raises NotFound, Conflict (`retry-not-dead-lettered`, `retry-queued`).
        """
        try:
            answer = await self._answer(Request("POST", f"{retry_at(retry_id).path}/redrive"))
        except Conflict as error:
            # It may be our own redrive, sent again after its answer was lost.
            if error.code == "retry-not-dead-lettered":
                retry = await self.get_retry(retry_id)
                if retry.state is RetryState.QUEUED and retry.redriven_at is not None:
                    return retry
            raise
        return decoded(answer.body, Envelope[Retry]).data

    async def list_retries(
        self,
        *,
        state: RetryState | str | None = None,
        job_id: JobId | None = None,
        batch_id: UUID | str | None = None,
        actor: str | None = None,
        page_size: int = 50,
    ) -> AsyncIterator[Retry]:
        """Yield the project's retries, newest first: its audit trail."""
        query = {
            "state": state,
            "job_id": None if job_id is None else str(job_id),
            "batch_id": None if batch_id is None else str(batch_id),
            "actor": actor,
            "limit": str(page_size),
        }
        async for retry in self._listed("/api/retries", query, Page[Retry]):
            yield retry

    async def retry_stats(self) -> RetryStats:
        """How the project's retries go: what waits, and what the last hour brought."""
        counted = decoded((await self._answer(Request("GET", "/api/retries/stats"))).body, Counted[RetryStats])
        return msgspec.structs.replace(counted.data, as_of=counted.as_of)

    # -- many at once

    async def preview(self, chosen: Sequence[JobId] | FailedFilter, *, extra_attempts: int | None = None) -> BulkDryRun:
        """What `retry_many` would do now; nothing is written."""
        # The server requires both with a filter; in a dry run neither has an effect.
        beside = {"max": MAX_MATCHES, "reason": "dry run"} if isinstance(chosen, FailedFilter) else {}
        body = body_of(**chosen_in_body(chosen), **beside, extra_attempts=extra_attempts)
        answer = await self._answer(Request("POST", "/api/jobs/retry", {"dry_run": "true"}, {}, body))
        return decoded(answer.body, Envelope[BulkDryRun]).data

    async def retry_many(
        self,
        chosen: Sequence[JobId] | FailedFilter,
        *,
        max: int | None = None,  # noqa: A002 - its name in the contract
        reason: str | None = None,
        delay_seconds: int = 0,
        extra_attempts: int | None = None,
        spread_seconds: int = 0,
        idempotency_key: str | None = None,
    ) -> AcceptedBatch:
        """Retry up to a thousand jobs by their ids, or those that a filter matches.

        What can be retried is; what cannot is listed. A filter needs `max` and `reason` beside it.

        Raises Conflict (`too-many-matches`: nothing was written), InvalidBody, KeyReused.
        """
        body = body_of(
            **chosen_in_body(chosen),
            max=max,
            reason=reason,
            delay_seconds=delay_seconds,
            extra_attempts=extra_attempts,
            spread_seconds=spread_seconds,
        )
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        answer = await self._answer(Request("POST", "/api/jobs/retry", {"dry_run": "false"}, headers, body))
        accepted = decoded(answer.body, Envelope[AcceptedBatchBody]).data
        return AcceptedBatch(accepted.batch_id, accepted.accepted, accepted.skipped, _is_replayed(answer))

    async def get_batch(self, batch_id: UUID | str) -> Batch:
        """How a bulk retry stands. Raises NotFound."""
        resource = batch_at(batch_id)
        return resource.read(await self._answer(Request("GET", resource.path)))

    async def list_batches(self, *, actor: str | None = None, page_size: int = 50) -> AsyncIterator[Batch]:
        """Yield the project's bulk retries, newest first; only those that one actor asked for, if it is given."""
        async for batch in self._listed("/api/retry-batches", {"actor": actor, "limit": str(page_size)}, Page[Batch]):
            yield batch

    async def cancel_batch(self, batch_id: UUID | str) -> Batch:
        """Cancel what is still queued of a bulk retry; the batch as it is then. Raises NotFound.

        Sent again after a loss: what is cancelled or settled already stays as it is.
        """
        resource = batch_at(batch_id)
        return resource.read(await self._answer(Request("DELETE", resource.path)))

    async def wait_batch(self, batch_id: UUID | str, *, timeout_s: float) -> Batch:
        """The batch once all of its requests are settled. Raises WaitTimeout, with the batch as it was last seen."""
        return await wait_until_done(self._transport, batch_at(batch_id), timeout_s=timeout_s)

    async def watch_batch(self, batch_id: UUID | str, *, timeout_s: float) -> AsyncIterator[Batch]:
        """Yield the batch as it is, then at each change, until all of it is settled. Raises WaitTimeout."""
        async for batch in changes(self._transport, batch_at(batch_id), timeout_s=timeout_s, each=True):
            yield batch

    # -- beneath

    async def _answer(self, request: Request) -> Answer:
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        return await self._transport.answer(request, deadline=deadline)

    async def _listed(self, path: str, query: Mapping[str, str | None], page: type[Page[T]]) -> AsyncIterator[T]:
        wanted = given(query)
        while True:
            read = decoded((await self._answer(Request("GET", path, wanted))).body, page)
            for each in read.data:
                yield each
            if read.next_cursor is None:
                return
            wanted = {**wanted, "cursor": read.next_cursor}


def _is_replayed(answer: Answer) -> bool:
    return answer.headers.get("Idempotent-Replayed") == "true"
