"""Inbox: deliveries that wait for a batch. Each has a size; a batch is bounded in the sum of them.

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
        self._items: deque[tuple[T, int]] = deque()
        self._size = 0  # of all items
        self._wanted = 1
        self._news = asyncio.Event()
        self._closed = False
        self._error: Exception | None = None

    def put(self, item: T, *, size: int = 1) -> None:
        """Add an item."""
        self._items.append((item, size))
        self._size += size
        if self._size >= self._wanted:
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
        """Take the next items, up to `max_size` together, but at least one; empty at the end.

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
        batch: list[T] = []
        room = max_size
        while self._items and (not batch or self._items[0][1] <= room):
            item, size = self._items.popleft()
            self._size -= size
            room -= size
            batch.append(item)
        return batch

    async def _wait_for(self, wanted: int) -> None:
        self._wanted = wanted  # so that a batch costs one or two wake-ups, and not one for each item
        while self._size < wanted and not self._closed and self._error is None:
            self._news.clear()
            await self._news.wait()
