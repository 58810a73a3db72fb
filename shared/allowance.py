"""An Allowance: so much of something may be in hand at a time, over all that share it.

A semaphore counts holders; this counts what they hold. First come, first served: a large one is not starved by small
ones that would still fit.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Allowance:
    """`total` units; one that asks for more than there are at all gets all of them, alone."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._free = total
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def taken(self, amount: int) -> AsyncIterator[None]:
        """Hold `amount` until the block ends; wait in line for it."""
        amount = min(amount, self._total)
        if self._line or amount > self._free:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._line.append((amount, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # it came together with its turn
                    self._give_back(amount)
                elif (amount, turn) in self._line:
                    self._line.remove((amount, turn))
                    self._give_back(0)  # perhaps the next one fits
                raise
        else:
            self._free -= amount
        try:
            yield
        finally:
            self._give_back(amount)

    def _give_back(self, amount: int) -> None:
        self._free += amount
        while self._line and self._line[0][0] <= self._free:
            next_amount, turn = self._line.popleft()
            if not turn.done():
                self._free -= next_amount
                turn.set_result(None)
