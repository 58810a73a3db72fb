"""How late this machine is, so that a bound on the program's time does not measure the machine."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_EVERY_S = 0.02
_USUAL_S = 0.01


class Lateness:
    """By how many seconds the event loop came too late to what was due, in all."""

    def __init__(self) -> None:
        self.seconds = 0.0

    async def measure(self) -> None:
        """Add to `seconds` until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            began_at = loop.time()
            await asyncio.sleep(_EVERY_S)
            late_s = loop.time() - began_at - _EVERY_S
            if late_s > _USUAL_S:
                self.seconds += late_s


@asynccontextmanager
async def lateness() -> AsyncIterator[Lateness]:
    """Measure while the block lasts."""
    found = Lateness()
    measuring = asyncio.ensure_future(found.measure())
    try:
        yield found
    finally:
        measuring.cancel()
