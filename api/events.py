"""A job's events, as a stream (`text/event-stream`, https://html.spec.whatwg.org/#server-sent-events).

    event: job
    id: 5f0c2d9e71b841a7
    data: {"id": …}

The stream has an event for the job as it is, and one for each change. Of several changes within one tick only the last
is sent. When the row is deleted, the last event is `gone`, with the id; when it cannot be shown any more, it is
`{"id": …, "unreadable": true}`.

An EventSource connects again after each end, for ever. If the job is done and the client has its last event
(`Last-Event-ID`), the answer is 204, which stops it.

A stream takes one waiter's place for as long as it lasts. When all places are taken, it has one event only, with the
time after which an EventSource connects again:

    retry: 10000
    event: job
    …
"""

import asyncio
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web
from multidict import istr

from api.answers import Answer
from api.door import PASSAGE
from api.job_view import JobView
from shared.database import in_time
from shared.errors import JobNotFound, JobUnreadable, RedriveError
from shared.models import Job, JobId, JobKey, UnreadableJob

if TYPE_CHECKING:
    from api.door import Call
    from api.watch import Watch
    from shared.job_ids import JobIds
    from shared.jobs import Jobs

KEEP_ALIVE_S: Final = 15.0
WRITE_TIMEOUT_S: Final = 10.0
COME_BACK_S: Final = 10
LAST_EVENT_ID: Final = istr("Last-Event-ID")
KEEP_ALIVE: Final = b": keep-alive\n\n"
COME_BACK: Final = b"retry: %d\n" % (1000 * COME_BACK_S)
_view: Final = JobView()


class EventResource:
    """`/api/jobs/{id}/events`."""

    def __init__(self, store: "Jobs", ids: "JobIds", watch: "Watch[JobKey, Job]") -> None:
        self._store = store
        self._ids = ids
        self._watch = watch

    async def get_events(self, call: "Call") -> web.StreamResponse:
        """Stream until the job is done, the token expires, the client leaves, or the api stops; or 204.

        A client that does not read is cut off after 10 s; until then it costs the socket's buffers only.
        """
        key = JobKey(self._ids.parse(call.request.match_info["id"]), call.project_id)
        if not call.may_see(key.id):
            raise JobNotFound
        request = call.request
        async with in_time():
            job = await self._store.get(key)
            if job.done and request.headers.get(LAST_EVENT_ID) == _event_id_of(job):
                return Answer(None, status=204)
            first = await self._event_of(key, job)  # before the headers: what it raises can still be answered
        stream = event_stream(request)
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + call.principal.accepted_until - time.time()
        try:
            with self._watch.place() as placed:
                await send(stream.prepare(request))
                come_back = b"" if placed or job.done else COME_BACK
                await send(stream.write(come_back + first))
                if placed and not job.done:
                    await self._send_changes(stream, request, key, job, ends_at)
                await send(stream.write_eof())
        except (ConnectionError, TimeoutError, RedriveError):  # the client connects again
            if request.transport is not None:
                request.transport.abort()
        return stream

    async def _send_changes(
        self, stream: web.StreamResponse, request: web.Request, key: JobKey, job: Job, ends_at: float
    ) -> None:
        """Send each change until the job is done, or gone, or cannot be shown, or the stream must end."""
        try:
            while not job.done:
                changed = await self._next(stream, request, key, job, ends_at)
                if changed is None:
                    return
                job = changed
                await send(stream.write(await self._event_of(key, job)))
        except JobNotFound:
            await send(stream.write(event(b"gone", gone_item(key.id))))
        except JobUnreadable:
            await send(stream.write(event(b"job", _view.item(UnreadableJob(key.id)))))

    async def _event_of(self, key: JobKey, job: Job) -> bytes:
        """The whole job as one event; between events only a light one is kept. Raises as Jobs.get does."""
        if (rest := self._store.rest_of(key, job)) is None:
            return _event_of(job)
        async with rest as whole:
            return _event_of(whole)

    async def _next(
        self, stream: web.StreamResponse, request: web.Request, key: JobKey, job: Job, ends_at: float
    ) -> Job | None:
        """The job when it has changed, with keep-alives until then; None when the stream must end.

        Raises JobNotFound when it is gone, JobUnreadable when it cannot be shown any more, and DatabaseUnavailable.
        """
        loop = asyncio.get_running_loop()
        etag = _view.etag(job)
        while loop.time() < ends_at:
            seen = await self._watch.wait_for_change(
                key,
                job,
                until=min(ends_at, loop.time() + KEEP_ALIVE_S),
                enough=lambda now: _view.etag(now) != etag,
                alive=lambda: request.transport is not None,
            )
            if seen is None:  # to a watch, a job that cannot be shown is gone
                seen = await self._store.get(key)
            if _view.etag(seen) != etag:
                return seen
            if self._watch.closed or request.transport is None:
                return None
            if loop.time() < ends_at:
                await send(stream.write(KEEP_ALIVE))
        return None


def event_stream(request: web.Request) -> web.StreamResponse:
    """A stream of events with its headers, not yet sent."""
    stream = web.StreamResponse()
    request[PASSAGE].complete(stream.headers)
    stream.content_type = "text/event-stream"
    stream.headers["X-Accel-Buffering"] = "no"  # nginx would buffer events
    return stream


async def send(writing: Awaitable[object]) -> None:
    """Await a write, for WRITE_TIMEOUT_S at most. Raises TimeoutError."""
    async with asyncio.timeout(WRITE_TIMEOUT_S):
        await writing


def event(kind: bytes, data: bytes, event_id: str = "") -> bytes:
    """One event of a stream. `data` is JSON, which has no line breaks, so one `data` line holds it."""
    return b"event: %b\n%bdata: %b\n\n" % (kind, f"id: {event_id}\n".encode() if event_id else b"", data)


def gone_item(job_id: JobId) -> bytes:
    """What stands in place of a job that is not there any more, as JSON."""
    return msgspec.json.encode({"id": str(job_id)})


def _event_id_of(job: Job) -> str:
    """The text of the job's tag."""
    return _view.etag(job)[1:-1]


def _event_of(job: Job) -> bytes:
    return event(b"job", _view.item(job), _event_id_of(job))
