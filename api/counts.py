"""Counts: answers that cost a query over many rows, shared by all callers for some seconds."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from contextvars import Context
from datetime import UTC, datetime
from functools import partial
from typing import Final, NamedTuple

from shared.errors import RedriveError

MAX_KEPT_BYTES: Final = 32 * 2**20
"""How much is kept. Where it would be more, the oldest answer is forgotten, be it younger than `every_s`."""
ENTRY_BYTES: Final = 2048
"""What an answer takes beside its own bytes, and one that is being counted: its key, and a task."""


class _Kept(NamedTuple):
    counted_at: float
    task: asyncio.Task[bytes]
    size: int = ENTRY_BYTES


class Counts:
    """Answers by key. Each is counted once in `every_s` at most, from when the counting begins, within MAX_KEPT_BYTES.

    Callers that come meanwhile wait for the same count; it goes on when a caller leaves. An error is not kept: all its
    waiting callers get it, and the next caller counts again.
    """

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()  # from old to new
        self._bytes = 0

    async def get(self, key: Hashable, count: Callable[[datetime], Awaitable[bytes]]) -> bytes:
        """The answer for `key`. `count` makes it, and is given the time that the answer shows as `as_of`."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        kept = self._kept.get(key)
        if kept is None or now - kept.counted_at >= self._every_s:
            self._forget_old(now)  # the last one for this key among them
            kept = _Kept(now, loop.create_task(_counted(count), context=Context()))  # no trace of the first caller
            self._keep(key, kept)
            kept.task.add_done_callback(partial(self._weigh, key))
        try:
            return await asyncio.shield(kept.task)
        except RedriveError as error:
            # One each: raising adds to an exception's traceback, and many callers may share this one.
            raise type(error)(*error.args) from None

    def _weigh(self, key: Hashable, task: "asyncio.Task[bytes]") -> None:
        """Add the bytes of an answer, or forget a count that has failed. Its callers may have left."""
        failed = task.cancelled() or task.exception() is not None
        kept = self._kept.get(key)
        if kept is None or kept.task is not task:
            return
        if failed:
            self._forget(key)
        else:
            self._keep(key, kept._replace(size=ENTRY_BYTES + len(task.result())))

    def _keep(self, key: Hashable, kept: _Kept) -> None:
        """Keep an answer, in its old place where it has one. A count under way that is forgotten goes on."""
        before = self._kept.get(key)
        self._bytes += kept.size - (0 if before is None else before.size)
        self._kept[key] = kept
        while self._bytes > MAX_KEPT_BYTES and len(self._kept) > 1:
            self._forget(next(iter(self._kept)))

    def _forget_old(self, now: float) -> None:
        while self._kept:
            key, oldest = next(iter(self._kept.items()))
            if now - oldest.counted_at < self._every_s:
                break
            self._forget(key)

    def _forget(self, key: Hashable) -> None:
        self._bytes -= self._kept.pop(key).size


async def _counted(count: Callable[[datetime], Awaitable[bytes]]) -> bytes:
    return await count(datetime.now(UTC))
