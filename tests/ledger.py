"""The three sides of the ledger together, for tests that follow a request through all of them."""

from typing import TYPE_CHECKING

from shared.job_ids import UuidIds
from shared.jobs import Jobs
from shared.outbox import Leased, Outbox
from shared.retries import Retries
from shared.settlement import Settlement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shared.database import Database
    from shared.outbox import Publisher


class Ledger:
    """The api's `retries`, the relay's `outbox` and the worker's `settlement`, and their database."""

    def __init__(self, database: "Database", publisher: "Publisher | None" = None) -> None:
        ids = UuidIds()
        self.database = database
        self.retries = Retries(database, Jobs(database, ids), ids, publisher)
        self.outbox = Outbox(database, ids)
        self.settlement = Settlement(database, ids)


class Taken:
    """A publisher that only keeps what it is given, with leases of `lease_s`."""

    def __init__(self, *, lease_s: float) -> None:
        self.lease_s = lease_s
        self.requests: list[Leased] = []

    def take(self, requests: "Sequence[Leased]") -> None:
        """Keep these."""
        self.requests += requests

    def poke(self) -> None:
        """Raise AssertionError: it takes all that is accepted."""
        raise AssertionError
