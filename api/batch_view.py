"""How a bulk retry is shown: its entity tag, its Retry-After and its JSON."""

from datetime import datetime
from uuid import UUID

import msgspec

from api.answers import Enveloped
from api.conditional import guessed_wait_s
from shared.batches import Batch


class _BatchBody(msgspec.Struct, frozen=True):
    id: UUID
    actor: str
    reason: str | None
    filter: msgspec.Raw | None
    requested_at: datetime
    total: int
    queued: int
    applied: int
    rejected: int
    cancelled: int
    dead_lettered: int
    done: bool


_encoder = msgspec.json.Encoder()


class BatchView:
    """The view of a bulk retry."""

    def etag(self, batch: Batch) -> str:
        """The tag: how many of its requests are in each state. Of those that are settled, some may be pruned."""
        return f'"{batch.queued}-{batch.applied}-{batch.rejected}-{batch.cancelled}-{batch.dead_lettered}"'

    def retry_after(self, batch: Batch, now: datetime) -> int | None:
        """In how many seconds to look again; None when all of its requests are settled."""
        return None if batch.done else guessed_wait_s(batch.requested_at, now)

    def body(self, batch: Batch) -> bytes:
        """The batch as `{"data": …}`."""
        return _encoder.encode(Enveloped(_body_of(batch)))

    def item(self, batch: Batch) -> bytes:
        """The batch alone, as lists carry it."""
        return _encoder.encode(_body_of(batch))


def _body_of(batch: Batch) -> _BatchBody:
    return _BatchBody(
        id=batch.id,
        actor=batch.actor,
        reason=batch.reason,
        filter=batch.filter,
        requested_at=batch.requested_at,
        total=batch.total,
        queued=batch.queued,
        applied=batch.applied,
        rejected=batch.rejected,
        cancelled=batch.cancelled,
        dead_lettered=batch.dead_lettered,
        done=batch.done,
    )
