"""Counts: what is counted over many rows, at most once in a while for each key, and once for all who ask meanwhile."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from datetime import UTC, datetime
from typing import Final

MAX_KEPT: Final = 500
"""So many answers are kept; the one that was counted first is forgotten first."""


class Counts:
    """Answers by key. Each is counted at most once in `every_s`, which begins when the counting begins.

    Callers who come while it is counted wait for it together; a caller that leaves does not end it. An error is not
    kept: it reaches those who wait, and the next caller counts anew.
    """

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._kept: OrderedDict[Hashable, tuple[float, asyncio.Task[bytes]]] = OrderedDict()

    async def get(self, key: Hashable, count: Callable[[datetime], Awaitable[bytes]]) -> bytes:
        """The answer for `key`; `count` makes it, and is given the time that it holds for."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        kept = self._kept.get(key)
        if kept is None or now - kept[0] >= self._every_s:
            self._forget(now)
            kept = (now, loop.create_task(_counted(count)))
            self._kept[key] = kept
        task = kept[1]
        try:
            return await asyncio.shield(task)
        except Exception:
            if self._kept.get(key) is kept:
                del self._kept[key]
            raise

    def _forget(self, now: float) -> None:
        """Forget what is too old, and what is too much. A task that is under way ends by itself."""
        while self._kept:
            key, (counted_at, _) = next(iter(self._kept.items()))
            if len(self._kept) < MAX_KEPT and now - counted_at < self._every_s:
                break
            del self._kept[key]


async def _counted(count: Callable[[datetime], Awaitable[bytes]]) -> bytes:
    return await count(datetime.now(UTC))
