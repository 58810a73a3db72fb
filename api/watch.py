"""Watch: any number of clients wait for values to change, and one query a tick serves them all.

There is one Watch each for jobs, retries and batches (api/routes.py). Long polls and streams of one job call
`wait_for_change`; streams of many jobs call `waiter`, `add` and `news`.

1. A waiter names one key or many, and the value that it has seen of each. The waiters of one key share what was seen
   of it last.
2. Each tick looks at all keys, at most LOOKED_AT_ONCE in one look: a query compares what was seen with what there is,
   and returns the keys that differ; only their rows are loaded. The database needs nothing for it: no trigger, no
   LISTEN, no right to write.
3. The waiters of a changed key get its new value, and are woken. They wait for this key no more. Each decides whether
   that is enough, or adds the key again.
4. A key is disputed when a new waiter has seen another value than the others: nothing says whose value is older. The
   next look loads the key without comparing, and wakes all its waiters.
5. A look does not wake a waiter that came while it was under way, because that waiter may have seen a newer value. It
   makes the key disputed, so the next look decides.
6. Without waiters there is no tick.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import Context
from typing import Final, Generic, TypeVar

import structlog

from shared.backoff import Outage
from shared.errors import DatabaseUnavailable
from shared.seen import Seen

log = structlog.stdlib.get_logger(__name__)

LOOKED_AT_ONCE: Final = 5_000
"""Of how many keys a look asks the database: one statement for all keys of many streams would never be in time."""

_WOKEN_AT_ONCE: Final = 200
"""Then other tasks run: to wake ten thousand waiters at once would delay all other requests for half a second."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Waiters:
    """Counts the waiters of all watches of this process, and bounds them."""

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self.count = 0

    @property
    def full(self) -> bool:
        """Whether all places are taken."""
        return self.count >= self._maximum

    @contextmanager
    def place(self) -> Iterator[bool]:
        """Take a place until the block ends; gives False, and takes none, where all are taken."""
        if self.full:
            yield False
            return
        self.count += 1
        try:
            yield True
        finally:
            self.count -= 1


class Waiter(Generic[K, V]):
    """One client, and the keys that it waits for. Between two calls of `Watch.news`, what has changed is kept."""

    __slots__ = ("_alive", "_news", "_woken", "keys")

    def __init__(self, alive: Callable[[], bool]) -> None:
        self.keys: set[K] = set()
        self._alive = alive
        self._news: dict[K, V | None] = {}
        self._woken: asyncio.Future[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether the client is still there."""
        return self._alive()

    def tell(self, key: K, value: V | None) -> None:
        """Wake the waiter with the new value of a key, None where it is gone; it waits for this key no more."""
        self.keys.discard(key)
        self._news[key] = value
        self.wake()

    def wake(self) -> None:
        """End the wait for news."""
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    async def take(self, until: float) -> Mapping[K, V | None]:
        """What was told since the last call; nothing where the wait ended without news."""
        if not self._news:
            loop = asyncio.get_running_loop()
            self._woken = loop.create_future()
            timer = loop.call_at(until, self.wake)
            try:
                await self._woken
            finally:
                timer.cancel()
                self._woken = None
        news, self._news = self._news, {}
        return news


class _Watched(Generic[K, V]):
    """One key: the value seen last, and the waiters, each with the number of looks that had begun when it came.

    `disputed`: the waiters have seen different values. It is never reset: the next look wakes all waiters that came
    before it, and where none is left, the key is forgotten and its `_Watched` with it. Where one is left, it came
    during that look, and the key is disputed because of it (item 5 at the top).
    """

    __slots__ = ("disputed", "seen", "waiters")

    def __init__(self, seen: V) -> None:
        self.seen = Seen(seen)
        self.disputed = False
        self.waiters: dict[Waiter[K, V], int] = {}


class Watch(Generic[K, V]):
    """Watches values by key.

    `changed` returns the keys whose value is no longer the one seen, or is gone; `load` reads values, and leaves out
    keys without one. Both get 1..LOOKED_AT_ONCE distinct keys. Where they raise, the next tick tries again.
    """

    def __init__(
        self,
        *,
        changed: Callable[[Mapping[K, Seen[V]]], Awaitable[Sequence[K]]],
        load: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]],
        interval_s: float,
        waiters: Waiters,
    ) -> None:
        self._changed = changed
        self._load = load
        self._interval_s = interval_s
        self._waiters = waiters
        self._watched: dict[K, _Watched[K, V]] = {}
        self._asleep: set[Waiter[K, V]] = set()
        self._looks = 0
        self._ticking: asyncio.Task[None] | None = None
        self._outage = Outage()
        self.closed = False

    @property
    def full(self) -> bool:
        """Whether all places are taken, by the waiters of this watch and of those that share its count."""
        return self._waiters.full

    def place(self) -> AbstractContextManager[bool]:
        """Take a place until the block ends: to be one waiter at a time. False where all are taken."""
        return self._waiters.place()

    async def wait_for_change(
        self, key: K, seen: V, *, until: float, enough: Callable[[V], bool], alive: Callable[[], bool]
    ) -> V | None:
        """Wait until the value of `key` is `enough`; return the last value seen, enough or not, or None if it is gone.

        `seen` is the value that the caller has just read. The wait ends early at `until` (in the event loop's time),
        when the watch is closed, and at the next tick after `alive` turns false. Call it within a `place`.
        """
        loop = asyncio.get_running_loop()
        value = seen
        with self.waiter(alive) as waiter:
            while not (enough(value) or self.closed or loop.time() >= until):
                self.add(waiter, key, value)
                news = await self.news(waiter, until=until)
                if not news:
                    break
                changed = news[key]
                if changed is None:
                    return None
                value = changed
        return value

    @contextmanager
    def waiter(self, alive: Callable[[], bool]) -> Iterator[Waiter[K, V]]:
        """A waiter, which waits until the block ends. Call it within a `place`."""
        waiter: Waiter[K, V] = Waiter(alive)
        try:
            yield waiter
        finally:
            for key in waiter.keys:
                watched = self._watched[key]
                del watched.waiters[waiter]
                if not watched.waiters:
                    del self._watched[key]

    def add(self, waiter: Waiter[K, V], key: K, seen: V) -> None:
        """Let a waiter wait for a key from now on. `seen` is the value that the caller has just read."""
        watched = self._watched.get(key)
        if watched is None:
            watched = self._watched[key] = _Watched(seen)
        elif watched.seen.value is not seen and watched.seen.value != seen:
            watched.seen, watched.disputed = Seen(seen), True
        watched.waiters[waiter] = self._looks
        waiter.keys.add(key)
        if not self.closed and (self._ticking is None or self._ticking.done()):
            # A context of its own: it serves all waiters, and must not log the trace of the request that came first.
            self._ticking = asyncio.get_running_loop().create_task(self._tick(), context=Context())

    async def news(self, waiter: Waiter[K, V], *, until: float) -> Mapping[K, V | None]:
        """Wait until one of the waiter's keys has changed; return the new values, None for a key that is gone.

        These keys are waited for no more. Nothing is returned where the wait ends early: at `until` (in the event
        loop's time), when the watch is closed, and at the next tick after `alive` turns false.
        """
        if self.closed:
            return {}
        self._asleep.add(waiter)
        try:
            return await waiter.take(until)
        finally:
            self._asleep.discard(waiter)

    def close(self) -> None:
        """Wake all waiters now; from here on no call waits."""
        self.closed = True
        if self._ticking is not None:
            self._ticking.cancel()
        for waiter in self._asleep:
            waiter.wake()

    async def _tick(self) -> None:
        """Look at all keys once per interval while there are waiters."""
        while self._watched:
            await asyncio.sleep(self._interval_s)
            self._release_disconnected()
            keys = list(self._watched)
            failed = False
            for start in range(0, len(keys), LOOKED_AT_ONCE):
                try:
                    await self._look(keys[start : start + LOOKED_AT_ONCE])
                except Exception as error:  # of any kind: otherwise the waiters would wait for nothing
                    failed = True
                    if self._outage.begin(type(error)):
                        trace = not isinstance(error, DatabaseUnavailable)  # only for faults of our own
                        log.warning(
                            "watch could not look", error=str(error), watched=len(self._watched), exc_info=trace
                        )
            if not failed:
                self._outage.end()

    def _release_disconnected(self) -> None:
        """Wake the waiters whose clients have left."""
        for waiter in self._asleep:
            if not waiter.alive:
                waiter.wake()

    async def _look(self, some: Sequence[K]) -> None:
        """Wake the waiters of the keys that have changed."""
        self._looks += 1
        look = self._looks
        disputed: list[K] = []
        agreed: dict[K, Seen[V]] = {}
        for key in some:
            if (watched := self._watched.get(key)) is None:
                continue
            if watched.disputed:
                disputed.append(key)
            else:
                agreed[key] = watched.seen
        keys = [*disputed, *(await self._changed(agreed) if agreed else ())]
        if not keys:
            return
        values = await self._load(keys)
        woken = 0
        for key in keys:
            if woken >= _WOKEN_AT_ONCE:
                woken = 0
                await asyncio.sleep(0)
            woken += self._tell(key, values.get(key), look)

    def _tell(self, key: K, value: V | None, look: int) -> int:
        """Wake the waiters of a key that has changed; return how many."""
        watched = self._watched.get(key)
        if watched is None:
            return 0
        # The others came during this look, and may have seen a newer value.
        told = [waiter for waiter, looks_before in watched.waiters.items() if looks_before < look]
        for waiter in told:
            del watched.waiters[waiter]
            waiter.tell(key, value)
        if not watched.waiters:
            del self._watched[key]
            return len(told)
        if value is not None:
            watched.seen = Seen(value)
        watched.disputed = True
        return len(told)
