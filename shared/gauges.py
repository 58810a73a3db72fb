"""What both programs show of the database as gauges: the backlog, missing migrations, refused calls, a replica's lag.

Every process looks for itself, every five seconds, so that the api shows what waits while no worker runs. While
a database is away, the gauges that need it keep their last values.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Final, NamedTuple

from prometheus_client import Gauge
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.backoff import wait_for_any
from shared.errors import DatabaseUnavailable
from shared.migrations import missing_from
from shared.sql import statements

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from shared.database import Database

_SQL: Final = statements("gauges")

EVERY_S: Final = 5.0
_MIGRATIONS_EVERY: Final = 12  # looks


class Backlog(NamedTuple):
    """How many requests are queued, counted up to a thousand, and how long the oldest has waited."""

    requests: int
    oldest_s: float


async def backlog(database: "Database") -> Backlog:
    """How many requests wait, and for how long. Raises DatabaseUnavailable."""
    ((requests, oldest_s),) = await database.fetch(_SQL["backlog"])
    return Backlog(requests, oldest_s)


async def written(primary: "Database") -> int | None:
    """How far a primary has written its log, in bytes; None for a standby. Raises DatabaseUnavailable."""
    ((position,),) = await primary.fetch(_SQL["written"])
    return None if position is None else int(position)


async def replayed(standby: "Database") -> int | None:
    """How far a standby has replayed its primary's log, in bytes; None for any other server. Raises as `written`."""
    ((position,),) = await standby.fetch(_SQL["replayed"])
    return None if position is None else int(position)


class ReplicaLag:
    """How long ago a primary wrote the oldest of what its standby has not replayed, as seen at each look."""

    def __init__(self) -> None:
        self._written: deque[tuple[float, int]] = deque(maxlen=17_280)  # a day of looks

    def seconds(self, *, written: int, replayed: int, now: float) -> float:
        """The lag, given the positions that were just read, the primary's first; as exact as looks are frequent."""
        if not self._written or written > self._written[-1][1]:
            self._written.append((now, written))
        while self._written and self._written[0][1] <= replayed:
            self._written.popleft()
        return now - self._written[0][0] if self._written else 0.0


class _Refused(Collector):
    """Calls that got no slot, counted by the Database itself."""

    def __init__(self) -> None:
        self.databases: tuple[Database, ...] = ()

    def collect(self) -> Iterator[Metric]:
        """The one family."""
        refused = sum(database.refused for database in self.databases)
        yield CounterMetricFamily(
            "redrive_database_calls_refused", "Calls refused because too many waited for a connection.", value=refused
        )


class DatabaseGauges:
    """The metrics, registered once; `run` sets them."""

    def __init__(self, registry: "CollectorRegistry") -> None:
        self._requests = Gauge(
            "redrive_backlog_requests", "Requests that wait to be settled, counted up to 1000.", registry=registry
        )
        self._oldest = Gauge(
            "redrive_backlog_oldest_seconds", "How long the oldest request has waited.", registry=registry
        )
        self._missing = Gauge(
            "redrive_migrations_missing", "Migrations that this program has and the database lacks.", registry=registry
        )
        self._lag = Gauge(
            "redrive_replica_lag_seconds", "How far the replica for reading is behind its primary.", registry=registry
        )
        self._refused = _Refused()
        registry.register(self._refused)

    async def run(self, database: "Database", replica: "Database | None" = None, *, stop: asyncio.Event) -> None:
        """Look until `stop` is set."""
        self._refused.databases = (database,) if replica is None else (database, replica)
        lag = ReplicaLag()
        for look in count():
            if stop.is_set():
                return
            # Each by itself: one database may be away without the other. The programs log it where they need it.
            with suppress(DatabaseUnavailable):
                await self._show_backlog(database)
            if look % _MIGRATIONS_EVERY == 0:
                with suppress(DatabaseUnavailable):
                    self._missing.set(len(await missing_from(database)))
            if replica is not None:
                with suppress(DatabaseUnavailable):
                    await self._show_lag(lag, database, replica)
            await wait_for_any(stop, timeout_s=EVERY_S)

    async def _show_backlog(self, database: "Database") -> None:
        requests, oldest_s = await backlog(database)
        self._requests.set(requests)
        self._oldest.set(oldest_s)

    async def _show_lag(self, lag: ReplicaLag, primary: "Database", standby: "Database") -> None:
        ahead, behind = await written(primary), await replayed(standby)
        if ahead is not None and behind is not None:
            self._lag.set(lag.seconds(written=ahead, replayed=behind, now=time.monotonic()))
