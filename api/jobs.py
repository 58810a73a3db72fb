"""The job resource: how a job stands, and whether it can be retried."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID

import msgspec

from api.answers import Answer
from api.auth import Scope
from api.conditional import etag_of_job, matches, retry_after_of_job
from api.problems import InvalidJobId, InvalidParameter
from shared.models import Job, JobId, JobKey, JobStatus, PendingRetry, RetryBlock

if TYPE_CHECKING:
    from api.door import Call
    from shared.jobs import JobStore

MAX_PAGE: Final = 200
DEFAULT_PAGE: Final = 50


class JobIds:
    """What may stand for `{id}` in a path: a UUID of one of some versions, in its one usual spelling.

    `uuid.UUID` would also take braces, `urn:uuid:`, no dashes and digits of other scripts.
    """

    def __init__(self, versions: frozenset[int]) -> None:
        digits = "".join(str(version) for version in sorted(versions))
        self._pattern = re.compile(
            rf"[0-9a-fA-F]{{8}}-[0-9a-fA-F]{{4}}-[{digits}][0-9a-fA-F]{{3}}-[89abAB][0-9a-fA-F]{{3}}-[0-9a-fA-F]{{12}}",
            re.ASCII,
        )

    def parse(self, text: str) -> JobId:
        """The id; raises InvalidJobId."""
        if not self._pattern.fullmatch(text):
            raise InvalidJobId
        return JobId(UUID(text))


class _Links(msgspec.Struct, frozen=True):
    self: str
    retry: str
    retries: str
    events: str


class _JobBody(msgspec.Struct, frozen=True):
    id: UUID
    type: str
    status: JobStatus
    attempts: int
    max_attempts: int
    last_error: str | None
    scheduled_at: datetime | None
    started_at: datetime | None
    completed_at: datetime | None
    created_at: datetime
    done: bool
    retryable: bool
    retry_blocked_by: RetryBlock | None
    pending_retry: PendingRetry | None
    links: _Links
    payload: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Envelope(msgspec.Struct, frozen=True):
    data: _JobBody


class _Page(msgspec.Struct, frozen=True):
    data: list[_JobBody]
    next_cursor: str | None


_encoder = msgspec.json.Encoder()


def _body_of(job: Job) -> _JobBody:
    path = f"/api/jobs/{job.id}"
    blocked_by = job.retry_blocked_by
    return _JobBody(
        job.id,
        job.type,
        job.status,
        job.attempts,
        job.max_attempts,
        job.last_error,
        job.scheduled_at,
        job.started_at,
        job.completed_at,
        job.created_at,
        job.done,
        blocked_by is None,
        blocked_by,
        job.pending_retry,
        _Links(path, f"{path}/retry", f"{path}/retries", f"{path}/events"),
        msgspec.UNSET if job.payload is None else job.payload,
    )


def encoded(job: Job) -> bytes:
    """The job as `{"data": …}`. Nothing in it depends on the clock: equal jobs are equal bytes."""
    return _encoder.encode(_Envelope(_body_of(job)))


def encoded_page(jobs: Sequence[Job]) -> bytes:
    """Several jobs as `{"data": […], "next_cursor": null}`."""
    return _encoder.encode(_Page([_body_of(job) for job in jobs], None))


def limit_of(parameters: dict[str, str]) -> int:
    """How many to answer with: `limit`, 1 to 200. Raises InvalidParameter."""
    text = parameters.get("limit")
    if text is None:
        return DEFAULT_PAGE
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= MAX_PAGE):
        raise InvalidParameter
    return int(text)


class JobResource:
    """`/api/jobs`."""

    def __init__(self, store: "JobStore", ids: JobIds) -> None:
        self._store = store
        self._ids = ids

    async def get_job(self, call: "Call") -> Answer:
        """How one job stands: 200, or 304 where the client has it already.

        Raises InvalidJobId before any query, and JobNotFound for unknown and foreign jobs alike.
        """
        with_payload = _includes_payload(call)
        job_id = self._ids.parse(call.request.match_info["id"])
        job = await self._store.get(JobKey(job_id, call.project_id, with_payload))
        etag = etag_of_job(job)
        headers = {"ETag": etag}
        if (retry_after_s := retry_after_of_job(job, datetime.now(UTC))) is not None:
            headers["Retry-After"] = str(retry_after_s)
        if matches(call.request.headers.get("If-None-Match"), etag):
            return Answer(None, status=304, headers=headers)
        return Answer(encoded(job), headers=headers)

    async def get_jobs(self, call: "Call") -> Answer:
        """The project's newest jobs, of one status or of all. Raises InvalidParameter."""
        limit = limit_of(call.parameters)
        jobs = await self._store.newest(call.project_id, status=_status_of(call.parameters), limit=limit)
        return Answer(encoded_page(jobs))


def _status_of(parameters: dict[str, str]) -> JobStatus | None:
    text = parameters.get("status")
    try:
        return None if text is None else JobStatus(text)
    except ValueError as error:
        raise InvalidParameter from error


def _includes_payload(call: "Call") -> bool:
    include = call.parameters.get("include")
    if include is None:
        return False
    if include != "payload":
        raise InvalidParameter
    call.principal.require(Scope.PAYLOAD)
    return True
