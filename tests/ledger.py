"""The three sides of the ledger together, for tests that follow a request through all of them."""

from typing import TYPE_CHECKING

from shared.job_ids import UuidIds
from shared.jobs import Jobs
from shared.outbox import Outbox
from shared.retries import Retries
from shared.settlement import Settlement

if TYPE_CHECKING:
    from shared.database import Database


class Ledger:
    """The api's `retries`, the relay's `outbox` and the worker's `settlement`, and their database."""

    def __init__(self, database: "Database") -> None:
        ids = UuidIds()
        self.database = database
        self.retries = Retries(database, Jobs(database, ids), ids)
        self.outbox = Outbox(database, ids)
        self.settlement = Settlement(database, ids)
