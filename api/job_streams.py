"""The events of many jobs in one stream: browsers keep no more than six connections to an origin.

    event: not_found
    id: 9f86d081884c7d65
    data: {"ids": ["…"]}

    event: job
    id: 60303ae22b998861
    data: {"id": …}

What is not there comes first; then each job as it is, and each change; `event: gone` where a row is deleted, and
`{"id": …, "unreadable": true}` in place of a job that cannot be shown. What is missing, gone or unreadable counts as
done. An `id` is a hash of the ids and tags of all jobs as they were last sent. A client that has seen all jobs at their
ends is answered 204, which stops it.
"""

import asyncio
import time
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web

from api.answers import Answer
from api.events import (
    COME_BACK,
    KEEP_ALIVE,
    KEEP_ALIVE_S,
    LAST_EVENT_ID,
    event,
    event_stream,
    gone_item,
    send,
)
from api.job_view import JobView
from api.jobs import ids_of
from shared.errors import JobNotFound, JobUnreadable, RedriveError
from shared.models import Job, JobId, JobKey, UnreadableJob

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from api.door import Call
    from api.watch import Waiter, Watch
    from shared.job_ids import JobIds
    from shared.jobs import Jobs

_view: Final = JobView()
_UNREADABLE: Final = "unreadable"
_GONE: Final = "gone"


class _Told:
    """What the client was sent last of each job: its tag, or a word in place of one."""

    def __init__(self, jobs: "Iterable[Job | UnreadableJob]" = ()) -> None:
        self._tags = {job.id: _tag_of(job) for job in jobs}

    def add(self, job: Job | UnreadableJob) -> None:
        self._tags[job.id] = _tag_of(job)

    def knows(self, job: Job | UnreadableJob) -> bool:
        """Whether this is what the client was sent last of the job."""
        return self._tags.get(job.id) == _tag_of(job)

    def forget(self, job_id: JobId) -> None:
        self._tags[job_id] = _GONE

    @property
    def id(self) -> str:
        """A hash over all jobs: 16 hexadecimal digits."""
        tags = sorted((str(job_id), tag) for job_id, tag in self._tags.items())
        return blake2b(msgspec.json.encode(tags), digest_size=8).hexdigest()

    def event(self, kind: bytes, data: bytes) -> bytes:
        return event(kind, data, self.id)


def _tag_of(job: Job | UnreadableJob) -> str:
    return _view.etag(job) if isinstance(job, Job) else _UNREADABLE


class JobStreamResource:
    """`/api/jobs/events`."""

    def __init__(self, store: "Jobs", ids: "JobIds", watch: "Watch[JobKey, Job]") -> None:
        self._store = store
        self._ids = ids
        self._watch = watch

    async def get_many_events(self, call: "Call") -> web.StreamResponse:
        """Stream until all jobs are done, the token expires, the client leaves, or the api stops; or 204.

        The stream is one waiter. Raises InvalidParameter, InvalidJobId, DatabaseUnavailable.
        """
        keys = [JobKey(job_id, call.project_id) for job_id in dict.fromkeys(ids_of(call, self._ids))]
        visible = [key for key in keys if call.may_see(key.id)]
        found = await self._store.find_these(visible) if visible else {}
        all_done = not any(isinstance(job, Job) and not job.done for job in found.values())
        request = call.request
        if all_done and request.headers.get(LAST_EVENT_ID) == _Told(found.values()).id:
            return Answer(None, status=204)
        stream = event_stream(request)
        told = _Told()
        try:
            with self._watch.place() as placed:
                await send(stream.prepare(request))
                if not (all_done or placed):
                    await send(stream.write(COME_BACK))
                waiting = await self._send_all(stream, told, keys, found)
                del keys, visible, found  # a stream may last for hours
                if placed:
                    await self._send_changes(stream, call, told, waiting)
                await send(stream.write_eof())
        except (ConnectionError, TimeoutError, RedriveError):  # the client connects again
            if request.transport is not None:
                request.transport.abort()
        return stream

    async def _send_all(
        self,
        stream: web.StreamResponse,
        told: _Told,
        keys: "Sequence[JobKey]",
        found: "Mapping[JobKey, Job | UnreadableJob]",
    ) -> dict[JobKey, Job]:
        """Send the ids that were not found, and each job as it is; return those that may change."""
        if missing := [str(key.id) for key in keys if key not in found]:
            await send(stream.write(told.event(b"not_found", msgspec.json.encode({"ids": missing}))))
        waiting: dict[JobKey, Job] = {}
        for key in keys:
            job = found.get(key)
            if job is not None and await self._send(stream, told, key, job) and isinstance(job, Job):
                waiting[key] = job
        return waiting

    async def _send(self, stream: web.StreamResponse, told: _Told, key: JobKey, job: Job | UnreadableJob) -> bool:
        """Send one whole job, or the word that it is gone or cannot be shown; return whether it may change.

        Between events only a light job is kept. Raises DatabaseUnavailable.
        """
        try:
            news, done = await self._event_of(told, key, job)
        except JobNotFound:
            await self._send_gone(stream, told, key)
            return False
        except JobUnreadable:
            news, done = await self._event_of(told, key, UnreadableJob(key.id))
        await send(stream.write(news))
        return not done

    async def _event_of(self, told: _Told, key: JobKey, job: Job | UnreadableJob) -> tuple[bytes, bool]:
        """The event for a job, and whether the job is done. Raises as Jobs.get does.

        What is in hand of the job is given back before a client reads.
        """
        rest = None if isinstance(job, UnreadableJob) else self._store.rest_of(key, job)
        if rest is None:
            told.add(job)
            return told.event(b"job", _view.item(job)), isinstance(job, UnreadableJob) or job.done
        async with rest as whole:
            told.add(whole)
            return told.event(b"job", _view.item(whole)), whole.done

    async def _send_gone(self, stream: web.StreamResponse, told: _Told, key: JobKey) -> None:
        told.forget(key.id)
        await send(stream.write(told.event(b"gone", gone_item(key.id))))

    async def _send_changes(
        self, stream: web.StreamResponse, call: "Call", told: _Told, waiting: dict[JobKey, Job]
    ) -> None:
        """Send each change, with keep-alives between them, until all jobs are done or the stream must end.

        Empties `waiting`: from here on, the watch keeps what was seen.
        """
        request = call.request
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + call.principal.accepted_until - time.time()
        keep_alive_at = loop.time() + KEEP_ALIVE_S
        with self._watch.waiter(lambda: request.transport is not None) as waiter:
            for key, job in waiting.items():
                self._watch.add(waiter, key, job)
            waiting.clear()
            while waiter.keys and waiter.alive and not self._watch.closed and loop.time() < ends_at:
                news = await self._watch.news(waiter, until=min(ends_at, keep_alive_at))
                if await self._send_news(stream, told, waiter, news):
                    keep_alive_at = loop.time() + KEEP_ALIVE_S
                elif loop.time() >= keep_alive_at:
                    await send(stream.write(KEEP_ALIVE))
                    keep_alive_at = loop.time() + KEEP_ALIVE_S

    async def _send_news(
        self,
        stream: web.StreamResponse,
        told: _Told,
        waiter: "Waiter[JobKey, Job]",
        news: "Mapping[JobKey, Job | None]",
    ) -> bool:
        """Send what has changed, and wait on for the jobs that may change; return whether anything was sent.

        Raises DatabaseUnavailable.
        """
        lost = [key for key, job in news.items() if job is None]
        read_again = dict(zip(lost, await asyncio.gather(*map(self._read, lost)), strict=True))
        any_sent = False
        for key, seen in news.items():
            job = read_again[key] if seen is None else seen
            may_change = isinstance(job, Job) and not job.done
            if job is None:
                await self._send_gone(stream, told, key)
                any_sent = True
            elif not told.knows(job):
                may_change = await self._send(stream, told, key, job)
                any_sent = True
            if may_change and isinstance(job, Job):
                self._watch.add(waiter, key, job)
        return any_sent

    async def _read(self, key: JobKey) -> Job | UnreadableJob | None:
        """A job that is gone to a watch: there, or not to be shown, or None. Raises DatabaseUnavailable."""
        try:
            return await self._store.get(key)
        except JobNotFound:
            return None
        except JobUnreadable:
            return UnreadableJob(key.id)
