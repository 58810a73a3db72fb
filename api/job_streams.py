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
from api.events import COME_BACK, KEEP_ALIVE, KEEP_ALIVE_S, LAST_EVENT_ID, event_stream, sent, unreadable_item
from api.job_view import JobView
from api.jobs import ids_of
from shared.errors import JobNotFound, JobUnreadable, RedriveError
from shared.models import Job, JobId, JobKey, UnreadableJob

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from api.door import Call
    from api.ids import JobIds
    from api.watch import StatusWatch
    from shared.jobs import Jobs

_view: Final = JobView()
_UNREADABLE: Final = "unreadable"
_GONE: Final = "gone"


class _Told:
    """What the client was sent last of each job: its tag, or a word in place of one."""

    def __init__(self) -> None:
        self._tags: dict[JobId, str] = {}

    def add(self, job: Job | UnreadableJob) -> None:
        self._tags[job.id] = _view.etag(job) if isinstance(job, Job) else _UNREADABLE

    def forget(self, job_id: JobId) -> None:
        self._tags[job_id] = _GONE

    @property
    def id(self) -> str:
        """A hash over all jobs: 16 hexadecimal digits."""
        tags = sorted((str(job_id), tag) for job_id, tag in self._tags.items())
        return blake2b(msgspec.json.encode(tags), digest_size=8).hexdigest()

    def event(self, kind: str, data: bytes) -> bytes:
        """One event. JSON has no line breaks, so the event needs one `data` line."""
        return b"event: %b\nid: %b\ndata: %b\n\n" % (kind.encode(), self.id.encode(), data)


class JobStreamResource:
    """`/api/jobs/events`."""

    def __init__(self, store: "Jobs", ids: "JobIds", watch: "StatusWatch[JobKey, Job]") -> None:
        self._store = store
        self._ids = ids
        self._watch = watch

    async def get_many_events(self, call: "Call") -> web.StreamResponse:
        """Stream until all jobs are done, the token expires, the client leaves, or the api stops; or 204.

        The stream takes one waiter's place. Raises InvalidParameter, InvalidJobId, DatabaseUnavailable.
        """
        keys = [JobKey(job_id, call.project_id) for job_id in dict.fromkeys(ids_of(call, self._ids))]
        visible = [key for key in keys if call.may_see(key.id)]
        found = await self._store.find_these(visible) if visible else {}
        all_now = _Told()
        for job in found.values():
            all_now.add(job)
        waiting = {key: job for key, job in found.items() if isinstance(job, Job) and not job.done}
        request = call.request
        if not waiting and request.headers.get(LAST_EVENT_ID) == all_now.id:
            return Answer(None, status=204)
        stream = event_stream(request)
        ends_at = asyncio.get_running_loop().time() + call.principal.expires_at - time.time()
        told = _Told()
        try:
            with self._watch.place() as placed:
                await sent(stream.prepare(request))
                if waiting and not placed:
                    await sent(stream.write(COME_BACK))
                await self._send_all(stream, told, keys, found)
                if placed:
                    await self._send_changes(stream, request, told, waiting, ends_at)
                await sent(stream.write_eof())
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
    ) -> None:
        """Send the ids that were not found, and each job as it is."""
        if missing := [str(key.id) for key in keys if key not in found]:
            await sent(stream.write(told.event("not_found", msgspec.json.encode({"ids": missing}))))
        for key in keys:
            if (job := found.get(key)) is not None:
                await self._send(stream, told, key, job)

    async def _send(self, stream: web.StreamResponse, told: _Told, key: JobKey, job: Job | UnreadableJob) -> None:
        """Send one whole job, or the word that it is gone or cannot be shown; between events only a light one is kept.

        Raises DatabaseUnavailable.
        """
        try:
            event = await self._event_of(told, key, job)
        except JobNotFound:
            await self._send_gone(stream, told, key)
            return
        except JobUnreadable:
            event = await self._event_of(told, key, UnreadableJob(key.id))
        await sent(stream.write(event))

    async def _event_of(self, told: _Told, key: JobKey, job: Job | UnreadableJob) -> bytes:
        """The event for a job. What is in hand of it is given back before a client reads. Raises as Jobs.get does."""
        if isinstance(job, UnreadableJob):
            told.add(job)
            return told.event("job", unreadable_item(job))
        if (rest := self._store.rest_of(key, job)) is None:
            told.add(job)
            return told.event("job", _view.item(job))
        async with rest as whole:
            told.add(whole)
            return told.event("job", _view.item(whole))

    async def _send_gone(self, stream: web.StreamResponse, told: _Told, key: JobKey) -> None:
        told.forget(key.id)
        await sent(stream.write(told.event("gone", msgspec.json.encode({"id": str(key.id)}))))

    async def _send_changes(
        self,
        stream: web.StreamResponse,
        request: web.Request,
        told: _Told,
        waiting: "Mapping[JobKey, Job]",
        ends_at: float,
    ) -> None:
        """Send each change, with keep-alives between them, until all jobs are done or the stream must end."""
        loop = asyncio.get_running_loop()
        watching = {
            loop.create_task(self._changed(request, key, job, ends_at)): (key, job) for key, job in waiting.items()
        }
        try:
            while watching:
                ended, _ = await asyncio.wait(watching, timeout=KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED)
                if not ended:
                    await sent(stream.write(KEEP_ALIVE))
                for task in ended:
                    key, seen = watching.pop(task)
                    job = task.result()
                    if job is None:
                        await self._send_gone(stream, told, key)
                        continue
                    if isinstance(job, Job) and _view.etag(job) == _view.etag(seen):
                        return  # the time is up, the client has left, or the api stops
                    await self._send(stream, told, key, job)
                    if isinstance(job, Job) and not job.done:
                        watching[loop.create_task(self._changed(request, key, job, ends_at))] = (key, job)
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)

    async def _changed(self, request: web.Request, key: JobKey, job: Job, ends_at: float) -> Job | UnreadableJob | None:
        """The job when it has changed, None when it is gone, `job` when the stream must end.

        Raises DatabaseUnavailable.
        """
        etag = _view.etag(job)
        while True:
            now = await self._watch.wait_for_change(
                key,
                job,
                until=ends_at,
                enough=lambda now: _view.etag(now) != etag,
                alive=lambda: request.transport is not None,
            )
            if now is not None:
                return now
            try:
                now = await self._store.get(key)
            except JobNotFound:
                return None
            except JobUnreadable:  # to a watch, a job that cannot be shown is gone
                return UnreadableJob(key.id)
            if _view.etag(now) != etag:
                return now
