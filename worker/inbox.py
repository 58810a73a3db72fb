"""Inbox: deliveries that wait for a batch.

A callback puts deliveries in, and one loop takes batches out. The loop waits for an event and not inside an iterator,
so that a time limit never interrupts an iterator.
"""

import asyncio
from collections import deque
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """Items in order of arrival, for one reader."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._wanted = 1
        self._news = asyncio.Event()
        self._closed = False
        self._error: Exception | None = None

    def put(self, item: T) -> None:
        """Add an item."""
        self._items.append(item)
        if len(self._items) >= self._wanted:
            self._news.set()

    def close(self) -> None:
        """Let the reader get the items that are here, then the end: no more come."""
        self._closed = True
        self._news.set()

    def fail(self, error: Exception) -> None:
        """Let the reader get `error` at once, and none of the items. The first failure counts."""
        self._error = self._error or error
        self._news.set()

    async def take_batch(self, *, max_size: int, max_wait_s: float, timeout_s: float) -> list[T]:
        """Take the next 1..`max_size` items; empty at the end.

        Waits at most `timeout_s` for the first item, then at most `max_wait_s` for the others.

        Raises TimeoutError when no item came, and the error that `fail` was given.
        """
        async with asyncio.timeout(timeout_s):
            await self._wait_for(1)
        with suppress(TimeoutError):
            async with asyncio.timeout(max_wait_s):
                await self._wait_for(max_size)
        if self._error is not None:
            raise self._error
        return [self._items.popleft() for _ in range(min(max_size, len(self._items)))]

    async def _wait_for(self, wanted: int) -> None:
        self._wanted = wanted  # so that a batch costs one or two wake-ups, and not one for each item
        while len(self._items) < wanted and not self._closed and self._error is None:
            self._news.clear()
            await self._news.wait()
