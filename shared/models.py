"""Job, Retry and their states: the words that everything else speaks.

A job is somebody else's: we read it, and put it back when asked. A retry is ours: one row of the ledger.
`version` is a hash of what is shown of the job's row, 16 hexadecimal digits (`redrive.job_version`). It says whether
two readers have seen the same job; it is the `ETag`, and what a retry request is bound to. What is not shown, such as a
heartbeat, does not change it.
"""

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, NewType
from uuid import UUID

import msgspec

JobId = NewType("JobId", UUID)
ProjectId = NewType("ProjectId", str)
RetryId = NewType("RetryId", UUID)
BatchId = NewType("BatchId", UUID)
Version = NewType("Version", str)

FINAL_STATUSES = frozenset({"cancelled"})
"""The owner's own words that stand for an end, where the settings name no others."""

MAX_ERROR = 65_536
"""So many characters of an error are shown where one thing is asked for by its id."""

MAX_LISTED_ERROR = 2_000
"""So many are shown everywhere else, and held for those who wait."""


class JobStatus(StrEnum):
    """Where the control plane says a job stands."""

    PENDING = "pending"
    RUNNING = "running"
    FAILED = "failed"
    COMPLETED = "completed"


class RetryBlock(StrEnum):
    """Why a job cannot be retried as it stands."""

    NOT_FAILED = "not_failed"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    RETRY_QUEUED = "retry_queued"


class RetryState(StrEnum):
    """Where a retry request stands. Only `queued` ever changes by itself."""

    QUEUED = "queued"
    APPLIED = "applied"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    DEAD_LETTERED = "dead_lettered"


class Outcome(StrEnum):
    """What became of a retry request once it was settled."""

    APPLIED = "applied"
    JOB_NOT_FOUND = "job_not_found"
    JOB_NOT_FAILED = "job_not_failed"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    SUPERSEDED = "superseded"
    BLOCKED = "blocked"
    CANCELLED = "cancelled"
    POISON = "poison"


class JobKey(NamedTuple):
    """Whose job: ownership is part of the key, so a foreign job is simply not there."""

    id: JobId
    project_id: ProjectId
    with_payload: bool = False


class Position(NamedTuple):
    """A row's position in a list that runs from new to old: what a page continues after.

    `at` is a datetime, or microseconds since 2000 as PostgreSQL has them, because no datetime holds infinity; None for
    a row without a time, which comes last.
    """

    at: datetime | int | None
    id: UUID


class PendingRetry(msgspec.Struct, frozen=True):
    """The retry request that is queued for a job."""

    id: RetryId
    requested_at: datetime


class Payload(msgspec.Struct, frozen=True):
    """A job's payload as it is stored: a hash of it (16 hexadecimal digits), its size in bytes, and perhaps its JSON.

    `json` is unparsed, and None where only the hash was read.
    """

    hash: str
    bytes: int
    json: msgspec.Raw | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `control_plane.jobs` as one query saw it, with the retry that is queued for it.

    `status` is one of the four, or a word of the owner's own: such a job is not to be retried, and done where the
    settings call the word final, which is what `final` says. `last_error` is cut where `last_error_truncated` says so.
    `payload` is None where it was not asked for; `version` is empty in a list.
    """

    id: JobId
    project_id: ProjectId
    type: str
    status: JobStatus | str
    attempts: int
    max_attempts: int
    last_error: str | None
    last_error_truncated: bool = False
    scheduled_at: datetime | None
    started_at: datetime | None
    completed_at: datetime | None
    created_at: datetime
    version: Version
    pending_retry: PendingRetry | None = None
    payload: Payload | None = None
    final: bool = False

    @property
    def retry_blocked_by(self) -> RetryBlock | None:
        """What a plain retry would be refused for; None when it would be accepted."""
        if self.status is not JobStatus.FAILED:
            return RetryBlock.NOT_FAILED
        if self.pending_retry is not None:
            return RetryBlock.RETRY_QUEUED
        if self.attempts >= self.max_attempts:
            return RetryBlock.ATTEMPTS_EXHAUSTED
        return None

    @property
    def done(self) -> bool:
        """Whether nothing more happens to the job by itself: it has ended, and no retry is queued for it."""
        if self.status is JobStatus.FAILED:
            return self.pending_retry is None
        return self.final or self.status is JobStatus.COMPLETED

    @property
    def whole(self) -> bool:
        """Whether all is here that is shown of the one job; else the error is shorter, or the payload left out."""
        if self.last_error_truncated and len(self.last_error or "") < MAX_ERROR:
            return False
        return self.payload is None or self.payload.json is not None


class UnreadableJob(NamedTuple):
    """A row of a list that cannot be shown."""

    id: JobId


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the ledger: an accepted retry request, and what became of it.

    `…_before` is what it found, or cleared from the job; of a long error the beginning, as `error_before_truncated`
    says.
    """

    id: RetryId
    project_id: ProjectId
    job_id: JobId
    batch_id: BatchId | None
    state: RetryState
    outcome: Outcome | None
    actor: str
    cancelled_by: str | None = None
    redriven_by: str | None = None
    redriven_at: datetime | None = None
    reason: str | None
    delay_seconds: int
    extra_attempts: int
    requested_at: datetime
    processed_at: datetime | None = None
    attempts_before: int | None = None
    max_attempts_before: int | None = None
    started_at_before: datetime | None = None
    completed_at_before: datetime | None = None
    error_before: str | None = None
    error_before_truncated: bool = False

    @property
    def done(self) -> bool:
        """Whether the request is settled: nothing more becomes of it by itself."""
        return self.state is not RetryState.QUEUED
