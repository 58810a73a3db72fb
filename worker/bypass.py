"""Bypass: settles, from the ledger, requests whose messages a cluster of RabbitMQ holds up. worker/app.py builds it.

1. A queue stops when the node of its leader is frozen, or cut off from the others, for as long as RabbitMQ needs to
   notice: about ten seconds for another leader, and up to 75 seconds until publishers find the new one. What a lost
   node has given to its consumers is delivered again only then, too.
2. Such a request is still queued in the ledger, as every accepted one is. Once a second a worker looks for requests
   that have waited three seconds longer than those that its queue delivers, and settles them. A queue that is only
   long delivers its oldest requests, so that none is older by so much.
3. It leases them first, in a transaction of its own, and marks them to be published alone. If the worker dies with
   them, the lease ends, and the relay publishes each of them; none is taken here a second time. So a request that
   kills its worker does so once more by this way, and no more.
4. Their messages are delivered later, and change nothing: the requests are settled.
5. A request that can be neither applied nor rejected is left queued: nothing is put aside from here. Its lease ends,
   the relay publishes it alone, and the worker that gets that message dead-letters it.

With a single node there is no bypass: requests then wait until RabbitMQ is back.
"""

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import structlog

from shared.backoff import wait_for_any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Iterator

    from shared.settlement import Settled, Settlement
    from worker.metrics import Metrics
    from worker.settling import Settler

log = structlog.stdlib.get_logger(__name__)

LOOK_S: Final = 1.0
HELD_UP_S: Final = 3.0
LEASE_S: Final = 10.0
WARN_EVERY_S: Final = 60.0


class Lag:
    """How far behind a queue is, as one worker sees it: how long the youngest request of its last batch had waited.

    A queue that has delivered nothing for HELD_UP_S has no backlog to be behind with: then a request that has waited
    for longer is held up.
    """

    def __init__(self, *, clock: "Callable[[], float]" = time.monotonic) -> None:
        self._clock = clock
        self._s: float | None = None
        self._began_at = self._measured_at = self._noted_at = clock()
        self._settling = False

    @contextmanager
    def settling(self) -> "Iterator[None]":
        """Settle a batch in the block: meanwhile the queue delivers, however long that takes."""
        self._settling = True
        self._began_at = self._clock()
        try:
            yield
        finally:
            self._settling = False
            self._noted_at = self._clock()

    def restart(self) -> None:
        """Count the time without a delivery from now on: before, none could be settled."""
        self._noted_at = self._clock()

    def note(self, settled: "Iterable[Settled]") -> None:
        """Note the requests of a batch that were in the ledger before: since when others wait, nothing says."""
        waits = [waited_s for _, waited_s in settled if waited_s is not None]
        if waits:
            self._s = max(0.0, min(waits))  # the clock of another program may be ahead
            self._measured_at = self._began_at  # what had waited so long was settled since then, or just then

    @property
    def seconds(self) -> float | None:
        """The lag; None where it is not known yet."""
        if self._settling or self._clock() - self._noted_at < HELD_UP_S:
            return self._s
        return 0.0

    @property
    def passed_s(self) -> float | None:
        """What was published more seconds ago than this, the queue has delivered; None where nothing says so.

        A queue delivers in order, and what it delivered last was published when it was requested, or later.
        """
        return None if self._s is None else self._s + self._clock() - self._measured_at


class Bypass:
    """Takes requests of one queue that are held up from the ledger: a source for `sessions.supervise`."""

    def __init__(
        self,
        queue: str,
        lag: Lag,
        settlement: "Settlement",
        settler: "Settler",
        metrics: "Metrics",
        *,
        bulk: bool,
        batch_size: int,
    ) -> None:
        self.name = f"{queue}, held up"
        self.settler = settler
        self._lag = lag
        self._settlement = settlement
        self._metrics = metrics
        self._bulk = bulk
        self._batch_size = batch_size
        self._warned_at = 0.0

    @property
    def is_ready(self) -> bool:
        """Always: the worker checks the database by itself."""
        return True

    async def session(self, stop: "asyncio.Event") -> None:
        """Look once a second until `stop` is set, and again at once after a full batch. Raises DatabaseUnavailable."""
        self._lag.restart()
        while not stop.is_set():
            if await self._settle_held_up() < self._batch_size:
                await wait_for_any(stop, timeout_s=LOOK_S)

    async def drain(self) -> None:
        """Do nothing: no request is taken before its batch."""

    async def _settle_held_up(self) -> int:
        """Settle a batch of what is held up; return how many requests it had."""
        lag_s = self._lag.seconds
        if lag_s is None:
            return 0
        taken = await self._settlement.lease_held_up(
            self._batch_size, bulk=self._bulk, older_than_s=lag_s + HELD_UP_S, held_up_s=HELD_UP_S, lease_s=LEASE_S
        )
        if not taken:
            return 0
        now = time.monotonic()
        if not self._warned_at or now - self._warned_at >= WARN_EVERY_S:
            self._warned_at = now
            log.warning("requests taken from the ledger", queue=self.name.partition(",")[0], requests=len(taken))
        self._metrics.bypassed.inc(len(taken))
        await self.settler.settle(taken)
        return len(taken)
