"""How a retry request is shown: its entity tag, its Retry-After and its JSON."""

from datetime import datetime
from uuid import UUID

import msgspec

from api.answers import Enveloped
from api.conditional import guessed_wait_s
from shared.models import JobId, Outcome, Retry, RetryId, RetryState


class _Links(msgspec.Struct, frozen=True):
    self: str
    job: str


class _RetryBody(msgspec.Struct, frozen=True):
    id: UUID
    job_id: JobId
    batch_id: UUID | None
    state: RetryState
    outcome: Outcome | None
    actor: str
    cancelled_by: str | None
    redriven_by: str | None
    redriven_at: datetime | None
    reason: str | None
    delay_seconds: int
    extra_attempts: int
    requested_at: datetime
    processed_at: datetime | None
    attempts_before: int | None
    max_attempts_before: int | None
    started_at_before: datetime | None
    completed_at_before: datetime | None
    error_before: str | None
    error_before_truncated: bool
    done: bool
    links: _Links


_encoder = msgspec.json.Encoder()


class RetryView:
    """The view of a retry request."""

    def etag(self, retry: Retry) -> str:
        """The tag: the state, when it was redriven last, and when it was settled."""
        times = (at for at in (retry.redriven_at, retry.processed_at) if at is not None)
        return f'"{retry.state}{"".join(f"-{int(at.timestamp() * 1_000_000)}" for at in times)}"'

    def retry_after(self, retry: Retry, now: datetime) -> int | None:
        """In how many seconds to look again; None when the retry is settled."""
        return None if retry.done else guessed_wait_s(retry.redriven_at or retry.requested_at, now)

    def body(self, retry: Retry) -> bytes:
        """The retry as `{"data": …}`."""
        return _encoder.encode(Enveloped(_body_of(retry)))

    def item(self, retry: Retry) -> bytes:
        """The retry alone, as lists carry it."""
        return _encoder.encode(_body_of(retry))


def path_of(retry_id: RetryId) -> str:
    """Where the retry is read."""
    return f"/api/retries/{retry_id}"


def _body_of(retry: Retry) -> _RetryBody:
    return _RetryBody(
        id=retry.id,
        job_id=retry.job_id,
        batch_id=retry.batch_id,
        state=retry.state,
        outcome=retry.outcome,
        actor=retry.actor,
        cancelled_by=retry.cancelled_by,
        redriven_by=retry.redriven_by,
        redriven_at=retry.redriven_at,
        reason=retry.reason,
        delay_seconds=retry.delay_seconds,
        extra_attempts=retry.extra_attempts,
        requested_at=retry.requested_at,
        processed_at=retry.processed_at,
        attempts_before=retry.attempts_before,
        max_attempts_before=retry.max_attempts_before,
        started_at_before=retry.started_at_before,
        completed_at_before=retry.completed_at_before,
        error_before=retry.error_before,
        error_before_truncated=retry.error_before_truncated,
        done=retry.done,
        links=_Links(path_of(retry.id), f"/api/jobs/{retry.job_id}?fresh=true"),
    )
