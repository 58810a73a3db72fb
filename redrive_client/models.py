"""What the API answers with, as frozen data. A field that a later server adds is ignored.

Times are aware, in UTC. `etag` is not part of a body: it is the version that was read, for `retry(if_match=…)`, and
None for what came in a list. A job's id is text: a UUID, or decimal digits where the server's ids are bigint.
"""

from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

import msgspec

JobId = UUID | int | str
"""A job's id as methods take it."""


class JobStatus(StrEnum):
    """Where the control plane says a job stands; it may have other words of its own."""

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
    """Where a retry stands; all but `queued` are final."""

    QUEUED = "queued"
    APPLIED = "applied"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    DEAD_LETTERED = "dead_lettered"


class Outcome(StrEnum):
    """What became of a retry once it was settled."""

    APPLIED = "applied"
    JOB_NOT_FOUND = "job_not_found"
    JOB_NOT_FAILED = "job_not_failed"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    SUPERSEDED = "superseded"
    BLOCKED = "blocked"
    CANCELLED = "cancelled"
    POISON = "poison"


class PendingRetry(msgspec.Struct, frozen=True):
    """The retry that is queued for a job."""

    id: UUID
    requested_at: datetime


_STATUSES: Final[dict[str, JobStatus]] = {str(status): status for status in JobStatus}


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """How a job stands. `payload` is decoded JSON; None where it was not asked for.

    `status` is a JobStatus, or another word, as text, where the control plane has one. `last_error_truncated` says
    whether the error is longer than what the server shows of it.
    """

    id: str
    type: str
    status: str
    attempts: int
    max_attempts: int
    last_error: str | None
    last_error_truncated: bool = False
    scheduled_at: datetime | None
    started_at: datetime | None
    completed_at: datetime | None
    created_at: datetime
    done: bool
    retryable: bool
    retry_blocked_by: RetryBlock | None
    pending_retry: PendingRetry | None
    payload: object = None
    etag: str | None = None

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "status", _STATUSES.get(self.status, self.status))


class UnreadableJob(msgspec.Struct, frozen=True):
    """What stands in a list for a job whose row the server cannot show; `get` of it raises Conflict."""

    id: str
    unreadable: bool


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """A retry request, and what became of it. `…_before` is what it found, or cleared from the job.

    `cancelled_by` took it back; `redriven_by` was the last to queue it again after it was dead-lettered.
    """

    id: UUID
    job_id: str
    batch_id: UUID | None
    state: RetryState
    outcome: Outcome | None
    actor: str
    reason: str | None
    delay_seconds: int
    extra_attempts: int
    requested_at: datetime
    processed_at: datetime | None
    attempts_before: int | None
    error_before: str | None
    done: bool
    cancelled_by: str | None = None
    redriven_by: str | None = None
    redriven_at: datetime | None = None
    max_attempts_before: int | None = None
    started_at_before: datetime | None = None
    completed_at_before: datetime | None = None
    error_before_truncated: bool = False
    etag: str | None = None


class Accepted(msgspec.Struct, frozen=True):
    """The answer to a retry: accepted, not yet applied.

    `deduplicated`: a retry was queued for the job already, and this is it. `replayed`: the idempotency key had
    been used for this request before, and this is the first answer again.
    """

    retry: Retry
    deduplicated: bool
    replayed: bool


class Retried(msgspec.Struct, frozen=True):
    """A retry that has been settled, and the job behind it; `job` is None unless the retry was applied."""

    retry: Retry
    job: Job | None


class DryRun(msgspec.Struct, frozen=True):
    """What a retry would be answered; nothing was written."""

    would_retry: bool
    blocked_by: RetryBlock | None


class RetriedFewerThan(msgspec.Struct, frozen=True):
    """Jobs whose retries were applied fewer than `times` times, 1 to 100, within the last so many seconds."""

    times: int
    within_seconds: int


class FailedFilter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which failed jobs; None leaves a question open. The times are exclusive, and must be aware.

    `fingerprint` is that of a FailureGroup. It, `error_contains` and `retried_fewer_than` look at the newest 10,000
    failed jobs that the others leave.
    """

    type: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    error_contains: str | None = None
    fingerprint: str | None = None
    retried_fewer_than: RetriedFewerThan | None = None


class BulkDryRun(msgspec.Struct, frozen=True):
    """What a bulk retry would do: counts of jobs, by what stands against retrying them, and some that would be.

    `truncated`: more jobs match than were counted.
    """

    matched: int
    retryable: int
    skipped: dict[str, int]
    sample: tuple[str, ...]
    truncated: bool = False


class Skipped(msgspec.Struct, frozen=True):
    """A job that a bulk retry left out; `code` is what a retry of it alone would be refused with."""

    job_id: str
    code: str


class AcceptedBatch(msgspec.Struct, frozen=True):
    """The answer to a bulk retry: how many jobs' retries were accepted, and which were left out."""

    batch_id: UUID
    accepted: int
    skipped: tuple[Skipped, ...]
    replayed: bool = False


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A bulk retry, and how its requests stand.

    The counts add up to `total`, until settled requests are pruned. `filter` is what was asked with, its times as text;
    None where the jobs were chosen by their ids.
    """

    id: UUID
    actor: str
    reason: str | None
    filter: dict[str, object] | None = None
    requested_at: datetime
    total: int
    queued: int
    applied: int
    rejected: int
    cancelled: int
    dead_lettered: int
    done: bool
    etag: str | None = None


class StatusStats(msgspec.Struct, frozen=True, kw_only=True):
    """How many jobs have a status; `capped`: there are more, counting stopped. The last two are for `failed` only."""

    count: int
    capped: bool
    oldest_at: datetime | None
    retryable: int | None = None
    exhausted: int | None = None


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """How many jobs stand where."""

    pending: StatusStats
    running: StatusStats
    failed: StatusStats
    completed: StatusStats
    other: StatusStats = StatusStats(count=0, capped=False, oldest_at=None)
    as_of: datetime | None = None


class TypeCount(msgspec.Struct, frozen=True):
    """A type, and how many of the jobs looked at have it."""

    type: str
    jobs: int


class Types(msgspec.Struct, frozen=True):
    """The types of the project's newest `sampled` jobs, the most frequent first; `truncated`: there are more."""

    data: tuple[TypeCount, ...]
    sampled: int
    truncated: bool
    as_of: datetime


class Count(msgspec.Struct, frozen=True):
    """A count; `capped`: there may be more."""

    count: int
    capped: bool


class SeriesBucket(msgspec.Struct, frozen=True, kw_only=True):
    """How many jobs were made in the bucket of time that begins `at`, by status."""

    at: datetime
    pending: Count
    running: Count
    failed: Count
    completed: Count
    other: Count


class Series(msgspec.Struct, frozen=True):
    """Buckets, the oldest first, empty ones among them."""

    data: tuple[SeriesBucket, ...]
    as_of: datetime


class FailureGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Failed jobs of one type and one error; `retryable`, `exhausted` and `queued` add up to `jobs`.

    `error` is the error without what differs from one job to the next. `sample`: the newest of them.
    """

    fingerprint: str
    type: str
    error: str
    jobs: int
    retryable: int
    exhausted: int
    queued: int
    first_at: datetime | None
    last_at: datetime | None
    sample: tuple[str, ...]


class Failures(msgspec.Struct, frozen=True):
    """Groups over the newest `sampled` failed jobs of every type, the largest first; `truncated`: more have failed."""

    data: tuple[FailureGroup, ...]
    sampled: int
    truncated: bool
    as_of: datetime


class LastHour(msgspec.Struct, frozen=True, kw_only=True):
    """How many retries were settled in the last hour, by what they came to."""

    applied: Count
    rejected: Count
    cancelled: Count
    dead_lettered: Count


class Waits(msgspec.Struct, frozen=True):
    """How long retries have waited for their effect, in milliseconds: the median, and the 95th percentile."""

    p50: int
    p95: int


class RetryStats(msgspec.Struct, frozen=True, kw_only=True):
    """How a project's retries go. `wait_ms` is None where none was applied."""

    queued: Count
    oldest_requested_at: datetime | None
    last_hour: LastHour
    wait_ms: Waits | None
    as_of: datetime | None = None


class Me(msgspec.Struct, frozen=True, kw_only=True):
    """What a token is good for. `scopes` and `jobs` are None where it does not speak of them."""

    actor: str
    project_id: str
    scopes: tuple[str, ...] | None
    jobs: tuple[str, ...] | None
    expires_at: datetime
    read_only: bool
    version: str


class Found(msgspec.Struct, frozen=True):
    """The jobs that were asked for by id, in the order asked; the ids that nothing is behind; and those not shown.

    `unreadable`: the ids of jobs whose rows the server cannot show.
    """

    jobs: tuple[Job, ...]
    not_found: tuple[str, ...]
    unreadable: tuple[str, ...] = ()
