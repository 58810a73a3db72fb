"""Counts: answers that cost a query over many rows, shared by all callers for some seconds."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from contextvars import Context
from datetime import UTC, datetime
from functools import partial
from typing import Final

from shared.errors import RedriveError

MAX_KEPT: Final = 500
"""How many answers are kept; the oldest is forgotten first."""


class Counts:
    """Answers by key. Each is counted once in `every_s` at most, from when the counting begins.

    Callers that come meanwhile wait for the same count; it goes on when a caller leaves. An error is not kept: all its
    waiting callers get it, and the next caller counts again.
    """

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._kept: OrderedDict[Hashable, tuple[float, asyncio.Task[bytes]]] = OrderedDict()

    async def get(self, key: Hashable, count: Callable[[datetime], Awaitable[bytes]]) -> bytes:
        """The answer for `key`. `count` makes it, and is given the time that the answer shows as `as_of`."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        kept = self._kept.get(key)
        if kept is None or now - kept[0] >= self._every_s:
            self._forget(now)
            kept = (now, loop.create_task(_counted(count), context=Context()))  # no trace of the first caller
            self._kept[key] = kept
            kept[1].add_done_callback(partial(self._forget_failed, key))
        try:
            return await asyncio.shield(kept[1])
        except RedriveError as error:
            # One each: raising adds to an exception's traceback, and many callers may share this one.
            raise type(error)(*error.args) from None

    def _forget_failed(self, key: Hashable, task: "asyncio.Task[bytes]") -> None:
        """Forget a count that has failed, whether or not a caller still waits for it."""
        kept = self._kept.get(key)
        if (task.cancelled() or task.exception() is not None) and kept is not None and kept[1] is task:
            del self._kept[key]

    def _forget(self, now: float) -> None:
        """Forget answers that are too old, or too many. A count that is under way goes on."""
        while self._kept:
            key, (counted_at, _) = next(iter(self._kept.items()))
            if len(self._kept) < MAX_KEPT and now - counted_at < self._every_s:
                break
            del self._kept[key]


async def _counted(count: Callable[[datetime], Awaitable[bytes]]) -> bytes:
    return await count(datetime.now(UTC))
