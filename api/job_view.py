"""How a job is shown: its entity tag, its Retry-After and its JSON.

The tag is the job's version, the queued retry's id if there is one, and a hash of the payload if that is shown:

    "5f0c…41a7"   "5f0c…41a7-0193c9a8-…"   "5f0c…41a7+3f9c01ab77d2e410"

The body shows nothing else, so two bodies are equal exactly when their tags are.
"""

import math
import re
from datetime import datetime
from typing import Final

import msgspec

from api.answers import Enveloped
from api.conditional import guessed_wait_s, tags_in
from shared.models import Job, JobId, JobStatus, PendingRetry, RetryBlock, UnreadableJob, Version

MAX_SCHEDULED_WAIT_S: Final = 300
_VERSION: Final = re.compile(r"([0-9a-f]{16})(?:-[0-9a-f-]{36})?(?:\+[0-9a-f]{16})?")


class _Links(msgspec.Struct, frozen=True):
    self: str
    retry: str
    retries: str
    events: str


class _JobBody(msgspec.Struct, frozen=True):
    id: JobId
    type: str
    status: JobStatus | str
    attempts: int
    max_attempts: int
    last_error: str | None
    last_error_truncated: bool
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


class _Unreadable(msgspec.Struct, frozen=True):
    """A list's entry for a row that cannot be shown."""

    id: JobId
    unreadable: bool = True


_encoder = msgspec.json.Encoder()


class JobView:
    """The view of a job."""

    def etag(self, job: Job) -> str:
        """The tag of the job as it was read, with or without its payload."""
        pending = "" if job.pending_retry is None else f"-{job.pending_retry.id}"
        return f'"{job.version}{pending}{"" if job.payload is None else f"+{job.payload.hash}"}"'

    def retry_after(self, job: Job, now: datetime) -> int | None:
        """In how many seconds to look again; None when the job is done."""
        if job.done:
            return None
        if job.status is JobStatus.PENDING and job.scheduled_at is not None and job.scheduled_at > now:
            return min(MAX_SCHEDULED_WAIT_S, math.ceil((job.scheduled_at - now).total_seconds()))
        changed_at = job.created_at
        requested_at = None if job.pending_retry is None else job.pending_retry.requested_at
        for at in (job.scheduled_at, job.started_at, job.completed_at, requested_at, job.redriven_at):
            if at is not None and changed_at < at <= now:
                changed_at = at
        return guessed_wait_s(changed_at, now)

    def body(self, job: Job) -> bytes:
        """The job as `{"data": …}`. It does not depend on the clock: equal jobs are equal bytes."""
        return _encoder.encode(Enveloped(_body_of(job)))

    def item(self, job: Job | UnreadableJob) -> bytes:
        """The job alone, as lists and events carry it."""
        return _encoder.encode(_body_of(job) if isinstance(job, Job) else _Unreadable(job.id))


def versions_of(if_match: str | None) -> frozenset[Version] | None:
    """The job versions that an `If-Match` names; None where it sets no condition. See `tags_in`."""
    if if_match is None or if_match.strip() == "*":
        return None
    return frozenset(Version(found[1]) for tag in tags_in(if_match) if (found := _VERSION.fullmatch(tag)))


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
        job.last_error_truncated,
        job.scheduled_at,
        job.started_at,
        job.completed_at,
        job.created_at,
        job.done,
        blocked_by is None,
        blocked_by,
        job.pending_retry,
        _Links(path, f"{path}/retry", f"{path}/retries", f"{path}/events"),
        msgspec.UNSET if job.payload is None or job.payload.json is None else job.payload.json,
    )
