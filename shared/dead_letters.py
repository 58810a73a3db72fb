"""The ledger's side of dead letters: which requests may have become one, and putting them back in line.

queued ──its message died──▶ dead_lettered ──redrive──▶ queued ──apply──▶ applied | rejected
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from shared.errors import DatabaseUnavailable, StatementRefused
from shared.messages import RetryMessage, message_of
from shared.models import RetryId, RetryState
from shared.outbox import Lease
from shared.sql import statements

if TYPE_CHECKING:
    from shared.database import Database

_ROUNDS: Final = 5


class Standing(NamedTuple):
    """How a request stands. `bulk`: it is of a batch. `job_is_queued`: another request waits for its job."""

    state: RetryState
    bulk: bool
    job_is_queued: bool


class DeadRequest(NamedTuple):
    """A request that was given up, as a message would carry it, and when it was."""

    message: RetryMessage
    died_at: datetime


class DeadLetters:
    """Reads and revives requests. Every method raises DatabaseUnavailable."""

    def __init__(self, database: "Database") -> None:
        self._database = database
        self._sql = statements("dead_letters")

    async def any_overdue(self, age_s: float) -> bool:
        """Whether a request was published so long ago and is still queued."""
        ((found,),) = await self._database.fetch(self._sql["any_overdue"], timedelta(seconds=age_s))
        return bool(found)

    async def overdue_among(self, ids: Sequence[RetryId], age_s: float) -> list[RetryId]:
        """Which of these requests are overdue."""
        rows = await self._database.fetch(self._sql["overdue_among"], ids, timedelta(seconds=age_s))
        return [RetryId(row["id"]) for row in rows]

    async def republish(self, ids: Sequence[RetryId]) -> set[RetryId]:
        """Let these requests be published again, with their second chance whole; answers those that are queued."""
        return {RetryId(row["id"]) for row in await self._database.fetch(self._sql["republish"], ids)}

    async def standings(self, ids: Sequence[RetryId]) -> dict[RetryId, Standing]:
        """How these requests stand; one that the ledger does not know is missing."""
        rows = await self._database.fetch(self._sql["standings"], ids)
        return {
            RetryId(row["id"]): Standing(RetryState(row["state"]), row["bulk"], row["job_is_queued"]) for row in rows
        }

    async def dead_lettered(self, limit: int) -> list[DeadRequest]:
        """Up to `limit` requests that were given up, the longest dead first, of all projects."""
        rows = await self._database.fetch(self._sql["dead_lettered"], limit)
        return [DeadRequest(message_of(row), row["processed_at"]) for row in rows]

    async def redrive(self, ids: Sequence[RetryId], *, actor: str, lease_s: float) -> dict[RetryId, Lease]:
        """Queue these requests again, in the name of `actor`; answers those that are queued now, each with its lease.

        The others are not dead-lettered, or another request is queued for their job. For `lease_s` the relay leaves
        them to the caller, who publishes them.
        """
        for _ in range(_ROUNDS):
            try:
                rows = await self._database.fetch(self._sql["redrive"], ids, timedelta(seconds=lease_s), actor)
            except StatementRefused:
                continue  # somebody has queued a retry for one of the jobs just now; the next look sees it
            return {RetryId(row["id"]): Lease(RetryId(row["id"]), row["publish_lease_until"]) for row in rows}
        raise DatabaseUnavailable("others were faster, again and again")
