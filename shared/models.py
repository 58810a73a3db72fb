"""Job, Retry and their states: the words of all other modules.

A job belongs to the control plane: Redrive reads it, and sets it to pending when a retry is applied. A retry is a row
of our ledger. `version` is a hash of the columns of a job that are shown, 16 hexadecimal digits
(`redrive.job_version`). It tells whether two readers have seen the same job; it is the `ETag`, and a retry request
names it. A column that is not shown, such as a heartbeat, does not change it.
"""

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, NewType
from uuid import UUID

import msgspec

JobId = NewType("JobId", str)
"""As it is shown; shared/job_ids.py converts it."""
ProjectId = NewType("ProjectId", str)
RetryId = NewType("RetryId", UUID)
BatchId = NewType("BatchId", UUID)
Version = NewType("Version", str)

FINAL_STATUSES = frozenset({"cancelled"})
"""The owner's own statuses that are final, where the settings name no others."""

MAX_ERROR = 65_536
"""How many characters of an error are shown of a job or retry that is read by its id."""

MAX_LISTED_ERROR = 2_000
"""How many are shown in lists, and kept for watched jobs."""


class JobStatus(StrEnum):
    """The statuses of the contract; a job may also have a status of its owner's own."""

    PENDING = "pending"
    RUNNING = "running"
    FAILED = "failed"
    COMPLETED = "completed"


class RetryBlock(StrEnum):
    """Why a job cannot be retried now."""

    NOT_FAILED = "not_failed"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    RETRY_QUEUED = "retry_queued"


class RetryState(StrEnum):
    """The state of a retry request. Only a queued request changes without a call."""

    QUEUED = "queued"
    APPLIED = "applied"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    DEAD_LETTERED = "dead_lettered"


class Outcome(StrEnum):
    """The result of a settled retry request."""

    APPLIED = "applied"
    JOB_NOT_FOUND = "job_not_found"
    JOB_NOT_FAILED = "job_not_failed"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    SUPERSEDED = "superseded"
    BLOCKED = "blocked"
    CANCELLED = "cancelled"
    POISON = "poison"


class JobKey(NamedTuple):
    """What a job is read by. The project is part of it, so that a foreign job is not found."""

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

    `status` is one of the four, or a status of the owner's own: such a job cannot be retried. `final`: the settings
    call that status final, so the job is done. `last_error` is cut where `last_error_truncated` says so. `redriven_at`:
    when the queued retry was redriven last. `payload` is None where it was not read; `version` is empty, and
    `redriven_at` None, in a list.
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
    redriven_at: datetime | None = None
    payload: Payload | None = None
    final: bool = False

    @property
    def retry_blocked_by(self) -> RetryBlock | None:
        """Why a retry without extra attempts would be refused; None when it would be accepted.

        In SQL, redrive.is_exhausted has the last of these rules.
        """
        if self.status is not JobStatus.FAILED:
            return RetryBlock.NOT_FAILED
        if self.pending_retry is not None:
            return RetryBlock.RETRY_QUEUED
        if self.attempts >= self.max_attempts:
            return RetryBlock.ATTEMPTS_EXHAUSTED
        return None

    @property
    def done(self) -> bool:
        """Whether the job has ended, and no retry is queued for it."""
        if self.status is JobStatus.FAILED:
            return self.pending_retry is None
        return self.final or self.status is JobStatus.COMPLETED

    @property
    def whole(self) -> bool:
        """Whether this has all of the error and the payload that a read of the one job shows."""
        if self.last_error_truncated and len(self.last_error or "") < MAX_ERROR:
            return False
        return self.payload is None or self.payload.json is not None


class UnreadableJob(NamedTuple):
    """A row of a list that cannot be shown."""

    id: JobId


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the ledger: an accepted retry request and its result.

    `…_before`: what the job had before it was retried. A long error is cut where `error_before_truncated` says so.
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
        """Whether the request is settled."""
        return self.state is not RetryState.QUEUED
