"""Inbox: what has been delivered and waits to be taken, a batch at a time.

A callback puts in, one loop takes out. Nothing here waits inside an iterator, so a time limit never breaks one.
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
        """Nothing more comes: the reader gets what is here, then the end."""
        self._closed = True
        self._news.set()

    def fail(self, error: Exception) -> None:
        """What is here is worth nothing any more: the reader gets `error` at once. The first failure counts."""
        self._error = self._error or error
        self._news.set()

    async def batch(self, *, max_size: int, max_wait_s: float, patience_s: float) -> list[T]:
        """The next 1..`max_size` items; empty at the end.

        Waits at most `patience_s` for the first, then at most `max_wait_s` for the rest.

        Raises TimeoutError when nothing came, and whatever `fail` was given.
        """
        async with asyncio.timeout(patience_s):
            await self._until_holding(1)
        with suppress(TimeoutError):
            async with asyncio.timeout(max_wait_s):
                await self._until_holding(max_size)
        if self._error is not None:
            raise self._error
        return [self._items.popleft() for _ in range(min(max_size, len(self._items)))]

    async def _until_holding(self, wanted: int) -> None:
        self._wanted = wanted  # so that a batch costs a wake-up or two, not one for each item
        while len(self._items) < wanted and not self._closed and self._error is None:
            self._news.clear()
            await self._news.wait()
