"""Pruning: delete old settled requests, a bounded number of rows at a time, so that no other statement waits for long.

A request is kept for at least as long as an idempotency key may name it: its answer must be there to be repeated, and a
redelivered message must find its request settled.
"""

from datetime import timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from shared.sql import statements

if TYPE_CHECKING:
    from collections.abc import Callable

    from shared.database import Database

KEPT_AT_LEAST: Final = timedelta(hours=24)
AT_A_TIME: Final = 1_000


class Pruned(NamedTuple):
    """How many rows were deleted."""

    requests: int
    batches: int
    keys: int


async def prune(
    database: "Database",
    older_than: timedelta,
    *,
    report: "Callable[[Pruned], None]" = lambda _: None,
    at_a_time: int = AT_A_TIME,
) -> Pruned:
    """Delete what was settled longer ago than `older_than`, and expired idempotency keys, as the ledger's owner.

    Queued requests stay, however old they are. Calls `report` with the counts so far after each transaction; what was
    deleted by then stays deleted. Raises ValueError for less than KEPT_AT_LEAST, with nothing deleted;
    DatabaseUnavailable.
    """
    if older_than < KEPT_AT_LEAST:
        raise ValueError("must be at least 24 h: an idempotency key may name a younger request")
    sql = statements("prune")
    pruned = Pruned(0, 0, 0)
    # Requests first: a batch stays as long as it has one.
    for field, block, age in (
        ("requests", "prune_requests", (older_than,)),
        ("batches", "prune_batches", (older_than,)),
        ("keys", "prune_keys", ()),
    ):
        while rows := await database.fetch(sql[block], *age, at_a_time):
            pruned = pruned._replace(**{field: getattr(pruned, field) + len(rows)})
            report(pruned)
            if len(rows) < at_a_time:
                break
    return pruned
