"""Keeping a source going: one session after another, a clean one after any loss, with pauses that grow.

This is where failures end. A session raises; what it raised is counted, and logged once: an outage is two lines, its
beginning and the `consuming` or `database back` that ends it, however often it was tried in between.
"""

import asyncio
import random
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from shared.errors import BrokerUnavailable, DatabaseUnavailable
from worker.metrics import SessionEnd

if TYPE_CHECKING:
    from worker.metrics import Metrics
    from worker.sources import Source

log = structlog.stdlib.get_logger(__name__)

FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 5.0
HEALTHY_S: Final = 10.0
"""A session that lasted so long was a good one: the next follows soon."""


async def keep(source: "Source", metrics: "Metrics", *, stop: asyncio.Event) -> None:
    """Run sessions with `source` until `stop` is set; returns within the time that a batch takes.

    No session begins before the database answers, and has settled what it was away for.
    """
    loop = asyncio.get_running_loop()
    pause_s = FIRST_PAUSE_S
    trouble: SessionEnd | None = None
    while not stop.is_set():
        began_at = loop.time()
        error: Exception | None = None
        try:
            await source.settler.catch_up()
            if trouble is SessionEnd.DATABASE_UNAVAILABLE:
                log.info("database back", source=source.name)
                trouble = None
            await source.session(stop)
            end = SessionEnd.STOPPED if stop.is_set() else SessionEnd.RENEWED
        except DatabaseUnavailable as lost:
            end, error = SessionEnd.DATABASE_UNAVAILABLE, lost
        except BrokerUnavailable as lost:
            end, error = SessionEnd.BROKER_UNAVAILABLE, lost
        except Exception as unexpected:  # noqa: BLE001 - whatever it is, the next session may not meet it
            end, error = SessionEnd.FAILED, unexpected
        metrics.session_ended(end)
        if error is None:
            pause_s, trouble = FIRST_PAUSE_S, None
            continue
        if loop.time() - began_at >= HEALTHY_S:
            pause_s, trouble = FIRST_PAUSE_S, None
        if end is not trouble:
            trace = error if end is SessionEnd.FAILED else None
            log.warning("session lost", source=source.name, end=end.value, reason=str(error), exc_info=trace)
        trouble = end
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s * random.uniform(0.5, 1.0)):  # noqa: S311 - spreading, not secrecy
                await stop.wait()
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
