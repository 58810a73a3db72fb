"""Allowance: bounds an amount, such as bytes in memory, over all that share it.

A semaphore counts its holders; an Allowance counts what they hold. First come, first served: small amounts that would
fit do not starve a large one.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Allowance:
    """`total` units. A holder that needs more than `total` gets all of them, alone."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._free = total
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def take(self, amount: int) -> AsyncIterator[None]:
        """Wait in line for `amount`, and hold it until the block ends."""
        amount = min(amount, self._total)
        if self._line or amount > self._free:
            granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._line.append((amount, granted))
            try:
                await granted
            except asyncio.CancelledError:
                if not granted.cancelled():  # it was granted and cancelled at once
                    self._give_back(amount)
                elif (amount, granted) in self._line:
                    self._line.remove((amount, granted))
                    self._give_back(0)  # the next in line may fit now
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
            next_amount, granted = self._line.popleft()
            if not granted.done():
                self._free -= next_amount
                granted.set_result(None)
