"""Idempotency keys: the same key with the same request is the same request, for 24 hours, however often it is sent.

A key belongs to a project. It stands for a retry or for a batch, which is claimed in the transaction that writes it
down, so there is never a key without its request, nor a request whose key another may take.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from shared.errors import IdempotencyKeyReused
from shared.models import BatchId, ProjectId, RetryId
from shared.sql import statements

if TYPE_CHECKING:
    from shared.database import Database, Session


class IdempotencyKey(NamedTuple):
    """A client's key, and a digest of the request that it was sent with."""

    project_id: ProjectId
    key: str
    fingerprint: bytes


class Claim(NamedTuple):
    """What a key stands for: a retry or a batch. `deduplicated`: the retry was queued before, by somebody else."""

    retry_id: RetryId | None = None
    batch_id: BatchId | None = None
    deduplicated: bool = False


class IdempotencyKeys:
    """Claims and finds keys."""

    def __init__(self, database: "Database") -> None:
        self._database = database
        self._sql = statements("idempotency")

    async def find(self, key: IdempotencyKey) -> Claim | None:
        """What the key stands for; None for nothing yet. Raises IdempotencyKeyReused for another request."""
        rows = await self._database.fetch(self._sql["find_key"], key.project_id, key.key)
        if not rows:
            return None
        (row,) = rows
        if row["fingerprint"] != key.fingerprint:
            raise IdempotencyKeyReused
        retry_id, batch_id = row["retry_id"], row["batch_id"]
        return Claim(
            None if retry_id is None else RetryId(retry_id),
            None if batch_id is None else BatchId(batch_id),
            row["deduplicated"],
        )

    async def claim(self, session: "Session", claims: Sequence[tuple[IdempotencyKey, Claim]]) -> int:
        """Let distinct keys stand for requests; answers how many do now. The others were claimed before.

        Waits for whoever is claiming one of them at this moment.
        """
        rows = await session.fetch(
            self._sql["claim_keys"],
            [key.project_id for key, _ in claims],
            [key.key for key, _ in claims],
            [key.fingerprint for key, _ in claims],
            [claim.retry_id for _, claim in claims],
            [claim.batch_id for _, claim in claims],
            [claim.deduplicated for _, claim in claims],
        )
        return len(rows)
