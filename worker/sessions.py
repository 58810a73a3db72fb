"""Supervising a source: one session after another, a clean one after any loss, with pauses that grow.

This is where failures end. A session raises; the failure is counted, and an outage is two log lines: its beginning, and
the `consuming` or `database back` that ends it, however many sessions failed in between.
"""

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from shared.backoff import Backoff, Outage
from shared.errors import BrokerUnavailable, DatabaseUnavailable
from worker.metrics import SessionEnd

if TYPE_CHECKING:
    from worker.metrics import Metrics
    from worker.sources import Source

log = structlog.stdlib.get_logger(__name__)

FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 2.0
"""A server that is back is used again within it, and an attempt costs it next to nothing."""
HEALTHY_S: Final = 10.0
"""After a session that lasted so long, the next one follows soon."""


async def supervise(source: "Source", metrics: "Metrics", *, stop: asyncio.Event) -> None:
    """Run sessions with `source` until `stop` is set; return within the time that a batch takes.

    Before each session the source's settler catches up: the database must answer, and the batch that it was away for
    must be settled.
    """
    loop = asyncio.get_running_loop()
    backoff = Backoff(first_s=FIRST_PAUSE_S, longest_s=LONGEST_PAUSE_S)
    outage = Outage()
    while not stop.is_set():
        began_at = loop.time()
        error: Exception | None = None
        try:
            await source.settler.catch_up()
            if outage.kind is SessionEnd.DATABASE_UNAVAILABLE:
                log.info("database back", source=source.name)
                outage.end()
            await source.session(stop)
            end = SessionEnd.STOPPED if stop.is_set() else SessionEnd.RENEWED
        except DatabaseUnavailable as lost:
            end, error = SessionEnd.DATABASE_UNAVAILABLE, lost
        except BrokerUnavailable as lost:
            end, error = SessionEnd.BROKER_UNAVAILABLE, lost
        except Exception as unexpected:  # noqa: BLE001 - the next session may not meet it
            end, error = SessionEnd.FAILED, unexpected
        metrics.count_session(end)
        if error is None or loop.time() - began_at >= HEALTHY_S:
            backoff.reset()
            outage.end()
        if error is None:
            continue
        if outage.begin(end):
            trace = error if end is SessionEnd.FAILED else None
            log.warning("session lost", source=source.name, end=end.value, reason=str(error), exc_info=trace)
        await backoff.pause(stop)
