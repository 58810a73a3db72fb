"""The ledger's side of dead letters: finds requests whose message may be dead, and queues dead ones again.

queued ──its message died──▶ dead_lettered ──redrive──▶ queued ──apply──▶ applied | rejected
"""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from shared.errors import DatabaseUnavailable, StatementRefused
from shared.messages import RetryMessage, message_of
from shared.models import RetryId, RetryState
from shared.outbox import Lease
from shared.sql import statements

if TYPE_CHECKING:
    from shared.database import Database
    from shared.job_ids import JobIds

_ROUNDS: Final = 5


class RequestStatus(NamedTuple):
    """The state of a request. `bulk`: it belongs to a batch. `job_is_queued`: another request is queued for its job."""

    state: RetryState
    bulk: bool
    job_is_queued: bool


class DeadRequest(NamedTuple):
    """A dead-lettered request, as a message would carry it, and when it was dead-lettered."""

    message: RetryMessage
    died_at: datetime


class DeadLetters:
    """Reads requests, and queues them again. Every method raises DatabaseUnavailable."""

    def __init__(self, database: "Database", ids: "JobIds") -> None:
        self._database = database
        self._ids = ids
        self._sql = statements("dead_letters")

    async def any_overdue(self, age_s: float) -> bool:
        """Whether a request was published more than `age_s` ago and is still queued: it is overdue."""
        ((found,),) = await self._database.fetch(self._sql["any_overdue"], timedelta(seconds=age_s))
        return bool(found)

    async def overdue_among(self, ids: Sequence[RetryId], age_s: float) -> list[RetryId]:
        """Which of these requests are overdue."""
        rows = await self._database.fetch(self._sql["overdue_among"], ids, timedelta(seconds=age_s))
        return [RetryId(row["id"]) for row in rows]

    async def republish(self, ids: Sequence[RetryId], *, alone: Collection[RetryId] = ()) -> set[RetryId]:
        """Have the relay publish these requests again, where they are queued; returns their ids.

        Those of `alone` travel in a message of their own from now on.
        """
        return {RetryId(row["id"]) for row in await self._database.fetch(self._sql["republish"], ids, list(alone))}

    async def statuses(self, ids: Sequence[RetryId]) -> dict[RetryId, RequestStatus]:
        """The status of each request; one that the ledger does not know is missing."""
        rows = await self._database.fetch(self._sql["statuses"], ids)
        return {
            RetryId(row["id"]): RequestStatus(RetryState(row["state"]), row["bulk"], row["job_is_queued"])
            for row in rows
        }

    async def dead_lettered(self, limit: int) -> list[DeadRequest]:
        """Up to `limit` dead-lettered requests of all projects, the longest dead first."""
        rows = await self._database.fetch(self._sql["dead_lettered"], limit)
        return [DeadRequest(message_of(row, self._ids), row["processed_at"]) for row in rows]

    async def redrive(self, ids: Sequence[RetryId], *, actor: str, lease_s: float) -> dict[RetryId, Lease]:
        """Queue these requests again, in the name of `actor`; returns those that are queued now, each with its lease.

        The others are not dead-lettered, or another request is queued for their job. The caller publishes them; for
        `lease_s` the relay does not. Raises StatementRefused where the database does not take it.
        """
        for _ in range(_ROUNDS):
            try:
                rows = await self._database.fetch(self._sql["redrive"], ids, timedelta(seconds=lease_s), actor)
            except StatementRefused as error:
                if error.by_unique_index:
                    continue  # a retry was queued for one of the jobs a moment ago; the next attempt sees it
                raise
            return {RetryId(row["id"]): Lease(RetryId(row["id"]), row["publish_lease_until"]) for row in rows}
        raise DatabaseUnavailable("other requests were faster, again and again")
