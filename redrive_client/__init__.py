"""A client of Redrive's API that knows the protocol, so that callers don't have to.

    async with Redrive("https://redrive.example.com", token=my_token) as redrive:
        job = await redrive.wait(job_id, timeout_s=600)
        if job.status is JobStatus.FAILED and job.retryable:
            await redrive.retry_and_wait(job.id, reason="the renderer is back", if_match=job.etag)

Waiting is one request that the server holds, not a loop of many. What is repeated after a lost connection, a 429 or a
503 is only what has no second effect; a retry carries an idempotency key for that, made here if the caller gives none.
"""

from redrive_client.client import Redrive
from redrive_client.models import (
    Accepted,
    AcceptedBatch,
    Batch,
    FailedFilter,
    Forecast,
    Found,
    Job,
    JobStatus,
    Outcome,
    PendingRetry,
    Preview,
    Retried,
    Retry,
    RetryBlock,
    RetryState,
    Skipped,
    Stats,
    StatusStats,
    UnreadableJob,
)
from redrive_client.problems import (
    BadRequest,
    Conflict,
    Fault,
    Forbidden,
    InvalidBody,
    KeyReused,
    NotFound,
    PreconditionFailed,
    RateLimited,
    RedriveError,
    RedriveProblem,
    ServerFault,
    Unauthenticated,
    Unavailable,
    UnexpectedAnswer,
    Unreachable,
    WaitTimeout,
)

__all__ = [
    "Accepted",
    "AcceptedBatch",
    "BadRequest",
    "Batch",
    "Conflict",
    "FailedFilter",
    "Fault",
    "Forbidden",
    "Forecast",
    "Found",
    "InvalidBody",
    "Job",
    "JobStatus",
    "KeyReused",
    "NotFound",
    "Outcome",
    "PendingRetry",
    "PreconditionFailed",
    "Preview",
    "RateLimited",
    "Redrive",
    "RedriveError",
    "RedriveProblem",
    "Retried",
    "Retry",
    "RetryBlock",
    "RetryState",
    "ServerFault",
    "Skipped",
    "Stats",
    "StatusStats",
    "Unauthenticated",
    "Unavailable",
    "UnexpectedAnswer",
    "Unreachable",
    "UnreadableJob",
    "WaitTimeout",
]
