"""Idempotency keys: for 24 hours, the same key with the same request gets the same answer, however often it is sent.

A key belongs to a project, and names a retry or a batch. It is claimed in the transaction that inserts the retry or the
batch, so there is no key without its request, and no request whose key another request can take.

`once` is the loop around it, for single and for bulk retries:

    find the key ──claimed──▶ replay the first answer
        │ free
        ▼
    attempt ──Raced──▶ find the key again
        │   ──refused──▶ find the key again: another request with it may have been accepted meanwhile ──free──▶ refuse
        ▼
    answer
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from shared.coalesce import Coalescer
from shared.errors import DatabaseUnavailable, IdempotencyKeyReused, RedriveError
from shared.models import BatchId, ProjectId, RetryId
from shared.sql import statements

if TYPE_CHECKING:
    from shared.database import Database, Row, Session

A = TypeVar("A")

_ROUNDS: Final = 10
"""How often `once` attempts; each further round needs another request that is faster."""


class IdempotencyKey(NamedTuple):
    """A client's key, and a digest of the request that it was sent with."""

    project_id: ProjectId
    text: str
    fingerprint: bytes


class Claim(NamedTuple):
    """What a key names: a retry or a batch. `deduplicated`: another request had queued the retry before."""

    retry_id: RetryId | None = None
    batch_id: BatchId | None = None
    deduplicated: bool = False


class Raced(Exception):
    """Another request was faster with the key or with the job: look again. Nothing was written."""


class _Name(NamedTuple):
    """What identifies a key."""

    project_id: ProjectId
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class _Remembered:
    """A call of `remember`. Equal calls are two: the first gets the key, the second raises Raced."""

    key: IdempotencyKey
    claim: Claim


class IdempotencyKeys:
    """Finds and claims keys; concurrent calls share queries."""

    def __init__(self, database: "Database") -> None:
        self._database = database
        self._sql = statements("idempotency")
        self._finding: Coalescer[_Name, tuple[bytes, Claim]] = Coalescer(self._find)
        self._remembering: Coalescer[_Remembered, bool] = Coalescer(self._remember, max_batch=256)

    async def once(
        self, key: IdempotencyKey | None, replay: Callable[[Claim], Awaitable[A]], attempt: Callable[[], Awaitable[A]]
    ) -> A:
        """The first answer again, by `replay`, where the key is claimed; else the answer of `attempt`.

        `attempt` raises Raced to be called again. Any other RedriveError refuses the request, unless the key has been
        claimed meanwhile. Raises IdempotencyKeyReused; DatabaseUnavailable, also after too many rounds.
        """
        for _ in range(_ROUNDS):
            if (claim := await self.find(key)) is not None:
                return await replay(claim)
            try:
                return await attempt()
            except Raced:
                continue
            except DatabaseUnavailable:
                raise
            except RedriveError:
                if (claim := await self.find(key)) is not None:
                    return await replay(claim)
                raise
        raise DatabaseUnavailable("other requests were faster, again and again")

    async def find(self, key: IdempotencyKey | None) -> Claim | None:
        """What the key names; None where it names nothing, or there is no key. Raises IdempotencyKeyReused."""
        known = None if key is None else await self._finding.get(_Name(key.project_id, key.text))
        if key is None or known is None:
            return None
        fingerprint, claim = known
        if fingerprint != key.fingerprint:
            raise IdempotencyKeyReused
        return claim

    async def claim(self, session: "Session", claims: Sequence[tuple[IdempotencyKey, Claim]]) -> None:
        """Claim distinct keys in the transaction of `session`. Raises Raced where one is claimed already.

        Waits for other transactions that are claiming one of the keys.
        """
        if len(await self._claim(session, claims)) < len(claims):
            raise Raced

    async def remember(self, key: IdempotencyKey, claim: Claim) -> None:
        """Claim the key for a request that is in the ledger already. Raises Raced where the key is claimed already."""
        if await self._remembering.get(_Remembered(key, claim)) is None:
            raise Raced

    async def _find(self, names: Sequence[_Name]) -> Mapping[_Name, tuple[bytes, Claim]]:
        """The fingerprints and claims of keys; a key that names nothing is missing."""
        projects, keys = zip(*names, strict=True)
        rows = await self._database.fetch(self._sql["find"], projects, keys)
        return {_Name(row["project_id"], row["key"]): (row["fingerprint"], _claim_of(row)) for row in rows}

    async def _claim(
        self, database: "Database | Session", claims: Sequence[tuple[IdempotencyKey, Claim]]
    ) -> set[_Name]:
        """Claim distinct keys; answers those that were free."""
        rows = await database.fetch(
            self._sql["claim"],
            [key.project_id for key, _ in claims],
            [key.text for key, _ in claims],
            [key.fingerprint for key, _ in claims],
            [claim.retry_id for _, claim in claims],
            [claim.batch_id for _, claim in claims],
            [claim.deduplicated for _, claim in claims],
        )
        return {_Name(row["project_id"], row["key"]) for row in rows}

    async def _remember(self, calls: Sequence[_Remembered]) -> Mapping[_Remembered, bool]:
        """Claim a key for the first call of each; the other calls are missing in the answer."""
        first = {_Name(call.key.project_id, call.key.text): call for call in reversed(calls)}
        claimed = await self._claim(self._database, [(call.key, call.claim) for call in first.values()])
        return {call: True for name, call in first.items() if name in claimed}


def _claim_of(row: "Row") -> Claim:
    retry_id, batch_id = row["retry_id"], row["batch_id"]
    return Claim(
        None if retry_id is None else RetryId(retry_id),
        None if batch_id is None else BatchId(batch_id),
        row["deduplicated"],
    )
