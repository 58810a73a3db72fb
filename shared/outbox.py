"""The relay's side of the ledger: lease queued requests, publish them, mark them published.

A queued request waits in the ledger until a relay has published it. A relay takes requests on a lease. A process that
accepts a request inserts it with a lease for its own relay, if that one keeps up: so the row is written once less.

    lease ──▶ the relay publishes ──confirmed──▶ mark_published ──▶ a worker settles the request
                                  ──failed─────▶ give_back ──▶ another relay may lease it now
              the relay dies: the lease ends by itself

A request can be published twice, for example when a relay dies before `mark_published`. The second message has no
effect, because a worker settles only requests that are still queued.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple, Protocol

from shared.messages import RetryMessage, message_of
from shared.models import RetryId
from shared.sql import statements

if TYPE_CHECKING:
    from shared.database import Database
    from shared.job_ids import JobIds


class Lease(NamedTuple):
    """The right to publish a request, until `until`."""

    id: RetryId
    until: datetime


class Leased(NamedTuple):
    """A queued request, and the caller's lease on it. `alone`: it must not travel together with others."""

    message: RetryMessage
    traceparent: str | None
    lease: Lease
    alone: bool = False


class Publisher(Protocol):
    """What publishes single requests as they are accepted: the relay of this process."""

    @property
    def lease_s(self) -> float | None:
        """For how long a request that is accepted now is to be leased to it; None: it takes none now."""

    def take(self, requests: Sequence[Leased]) -> None:
        """Publish these; they were accepted with a lease of `lease_s`."""

    def poke(self) -> None:
        """Look for requests that were accepted without a lease."""


class Outbox:
    """Requests on their way to the broker. `bulk` selects the requests of batches, or else the single ones.

    Every method raises DatabaseUnavailable.
    """

    def __init__(self, database: "Database", ids: "JobIds") -> None:
        self._database = database
        self._ids = ids
        self._sql = statements("outbox")

    async def lease(self, limit: int, *, lease_s: float, bulk: bool, after: Leased | None = None) -> list[Leased]:
        """Lease up to `limit` unpublished requests for `lease_s`, the oldest first; with `after`, of those behind it.

        A transaction that began earlier may still add one before `after`.
        """
        position = (None, None) if after is None else (after.message.requested_at, after.message.id)
        rows = await self._database.fetch(self._sql["lease"], limit, timedelta(seconds=lease_s), bulk, *position)
        return [
            Leased(
                message_of(row, self._ids),
                row["traceparent"],
                Lease(RetryId(row["id"]), row["publish_lease_until"]),
                alone=row["publish_alone"],
            )
            for row in sorted(rows, key=lambda row: (row["requested_at"], row["id"]))
        ]

    async def mark_published(self, leases: Sequence[Lease]) -> None:
        """Mark requests that the broker has confirmed, except where the lease has been replaced meanwhile."""
        ids, ends = [lease.id for lease in leases], [lease.until for lease in leases]
        await self._database.fetch(self._sql["mark_published"], ids, ends)

    async def give_back(self, leases: Sequence[Lease]) -> None:
        """End these leases early, except where one has been replaced meanwhile: nothing was published."""
        ids, ends = [lease.id for lease in leases], [lease.until for lease in leases]
        await self._database.fetch(self._sql["give_back"], ids, ends)

    async def republish_stale(self, limit: int, *, age_s: float, bulk: bool, once: bool = False) -> int:
        """Let up to `limit` requests be published again that were published over `age_s` ago and are still queued.

        `once`: each alone, and none that travels alone already. Answers how many.
        """
        rows = await self._database.fetch(self._sql["republish_stale"], timedelta(seconds=age_s), limit, bulk, once)
        return len(rows)
