"""Idempotency keys: the same key with the same request is the same request, for 24 hours, however often it is sent.

A key belongs to a project. It stands for a retry or for a batch, which is claimed in the transaction that writes it
down, so there is never a key without its request, nor a request whose key another may take.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from shared.coalesce import Coalescer
from shared.errors import IdempotencyKeyReused
from shared.models import BatchId, ProjectId, RetryId
from shared.sql import statements

if TYPE_CHECKING:
    from shared.database import Database, Row, Session


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


class _Name(NamedTuple):
    """What a key is found by."""

    project_id: ProjectId
    key: str


class _Known(NamedTuple):
    """What the database has of a key."""

    fingerprint: bytes
    claim: Claim


@dataclass(frozen=True, slots=True, eq=False)
class _Wish:
    """What one caller wants a key to stand for. Of two callers who want the same, one has the key, and one is late."""

    key: IdempotencyKey
    claim: Claim


class IdempotencyKeys:
    """Claims and finds keys. However many clients ask at once, the database is asked a few times."""

    def __init__(self, database: "Database") -> None:
        self._database = database
        self._sql = statements("idempotency")
        self._finding: Coalescer[_Name, _Known] = Coalescer(self._found)
        self._remembering: Coalescer[_Wish, bool] = Coalescer(self._remembered, max_batch=256)

    async def find(self, key: IdempotencyKey) -> Claim | None:
        """What the key stands for; None for nothing yet. Raises IdempotencyKeyReused for another request."""
        known = await self._finding.get(_Name(key.project_id, key.key))
        if known is None:
            return None
        if known.fingerprint != key.fingerprint:
            raise IdempotencyKeyReused
        return known.claim

    async def _found(self, names: Sequence[_Name]) -> Mapping[_Name, _Known]:
        projects, keys = zip(*names, strict=True)
        rows = await self._database.fetch(self._sql["find_keys"], projects, keys)
        return {_Name(row["project_id"], row["key"]): _Known(row["fingerprint"], _claim_of(row)) for row in rows}

    async def claim(self, database: "Database | Session", claims: Sequence[tuple[IdempotencyKey, Claim]]) -> set[_Name]:
        """Let distinct keys stand for requests; answers which do now. The others were claimed before.

        Waits for whoever is claiming one of them at this moment.
        """
        rows = await database.fetch(
            self._sql["claim_keys"],
            [key.project_id for key, _ in claims],
            [key.key for key, _ in claims],
            [key.fingerprint for key, _ in claims],
            [claim.retry_id for _, claim in claims],
            [claim.batch_id for _, claim in claims],
            [claim.deduplicated for _, claim in claims],
        )
        return {_Name(row["project_id"], row["key"]) for row in rows}

    async def remember(self, key: IdempotencyKey, claim: Claim) -> bool:
        """Let the key stand for what is written down already; False when it stands for something by now."""
        return await self._remembering.get(_Wish(key, claim)) is not None

    async def _remembered(self, wishes: Sequence[_Wish]) -> Mapping[_Wish, bool]:
        first = {_Name(wish.key.project_id, wish.key.key): wish for wish in reversed(wishes)}
        claimed = await self.claim(self._database, [(wish.key, wish.claim) for wish in first.values()])
        return {wish: True for name, wish in first.items() if name in claimed}


def _claim_of(row: "Row") -> Claim:
    retry_id, batch_id = row["retry_id"], row["batch_id"]
    return Claim(
        None if retry_id is None else RetryId(retry_id),
        None if batch_id is None else BatchId(batch_id),
        row["deduplicated"],
    )
