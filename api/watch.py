"""StatusWatch: any number of clients wait for a value to change, and one query a tick serves them all.

1. A waiter names a key, and the value that it has seen. The waiters of one key share what was seen of it last.
2. Each tick has one look: a query compares what was seen with what there is, and returns the keys that differ; only
   their rows are loaded. The database needs nothing for it: no trigger, no LISTEN, no right to write.
3. The waiters of a changed key are woken with its new value. Each decides whether that is enough, or waits on.
4. A key is disputed when a new waiter has seen another value than the others: nothing says whose value is older. The
   next look loads the key without comparing, and wakes all its waiters.
5. A look does not wake a waiter that came while it was under way, because that waiter may have seen a newer value. It
   makes the key disputed, so the next look decides.
6. Without waiters there is no tick.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from enum import Enum
from typing import Final, Generic, TypeVar

import structlog

from shared.backoff import Outage
from shared.errors import DatabaseUnavailable

log = structlog.stdlib.get_logger(__name__)

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


class _End(Enum):
    """Why a waiter is woken without a new value."""

    RELEASED = "its time is up, its client has left, or the watch was closed"
    GONE = "the key has no value any more"


class _Waiter(Generic[V]):
    """Waits since the look number `since`. `woken` gets the new value, or the reason why there is none."""

    __slots__ = ("alive", "since", "woken")

    def __init__(self, woken: "asyncio.Future[V | _End]", alive: Callable[[], bool], since: int) -> None:
        self.woken = woken
        self.alive = alive
        self.since = since

    def wake(self, news: V | _End) -> None:
        if not self.woken.done():
            self.woken.set_result(news)


class _Watched(Generic[V]):
    """One key: the value seen last, and the waiters. It is disputed when they have seen different values."""

    __slots__ = ("disputed", "seen", "waiters")

    def __init__(self, seen: V) -> None:
        self.seen = seen
        self.disputed = False
        self.waiters: set[_Waiter[V]] = set()


class StatusWatch(Generic[K, V]):
    """Watches values by key.

    `changed` returns the keys whose value is no longer the one seen, or is gone; `load` reads values, and leaves out
    keys without one. Both get 1..n distinct keys. Where they raise, the next tick tries again.
    """

    def __init__(
        self,
        *,
        changed: Callable[[Mapping[K, V]], Awaitable[Sequence[K]]],
        load: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]],
        interval_s: float,
        waiters: Waiters,
    ) -> None:
        self._changed = changed
        self._load = load
        self._interval_s = interval_s
        self._waiters = waiters
        self._watched: dict[K, _Watched[V]] = {}
        self._looks = 0
        self._ticking: asyncio.Task[None] | None = None
        self._outage = Outage()
        self.closed = False

    @property
    def full(self) -> bool:
        """Whether all places are taken, by the waiters of this watch and of those that share its count."""
        return self._waiters.full

    def place(self) -> AbstractContextManager[bool]:
        """Take a place until the block ends: to call `wait_for_change`, once or often. False where all are taken."""
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
        while not (enough(value) or self.closed or loop.time() >= until):
            news = await self._next_change(loop, key, value, until, alive)
            if news is _End.GONE:
                return None
            if news is _End.RELEASED:
                break
            value = news
        return value

    def close(self) -> None:
        """Wake all waiters now; from here on `wait_for_change` returns at once."""
        self.closed = True
        if self._ticking is not None:
            self._ticking.cancel()
        for watched in self._watched.values():
            for waiter in watched.waiters:
                waiter.wake(_End.RELEASED)

    async def _next_change(
        self, loop: asyncio.AbstractEventLoop, key: K, seen: V, until: float, alive: Callable[[], bool]
    ) -> V | _End:
        waiter: _Waiter[V] = _Waiter(loop.create_future(), alive, self._looks)
        watched = self._watched.setdefault(key, _Watched(seen))
        if watched.seen is not seen and watched.seen != seen:
            watched.seen, watched.disputed = seen, True
        watched.waiters.add(waiter)
        if self._ticking is None or self._ticking.done():
            self._ticking = loop.create_task(self._tick())
        timer = loop.call_at(until, waiter.wake, _End.RELEASED)
        try:
            return await waiter.woken
        finally:
            timer.cancel()
            watched.waiters.discard(waiter)
            if not watched.waiters and self._watched.get(key) is watched:
                del self._watched[key]

    async def _tick(self) -> None:
        """Look once per interval while there are waiters."""
        while self._watched:
            await asyncio.sleep(self._interval_s)
            try:
                self._release_disconnected()
                await self._look()
            except Exception as error:  # of any kind: otherwise the waiters would wait for nothing
                if self._outage.begin(type(error)):
                    trace = not isinstance(error, DatabaseUnavailable)  # only for faults of our own
                    log.warning("watch could not look", error=str(error), watched=len(self._watched), exc_info=trace)
            else:
                self._outage.end()

    def _release_disconnected(self) -> None:
        """Wake the waiters whose clients have left."""
        for watched in self._watched.values():
            for waiter in watched.waiters:
                if not waiter.alive():
                    waiter.wake(_End.RELEASED)

    async def _look(self) -> None:
        """Wake the waiters of the keys that have changed."""
        self._looks += 1
        look = self._looks
        disputed = [key for key, watched in self._watched.items() if watched.disputed]
        agreed = {key: watched.seen for key, watched in self._watched.items() if not watched.disputed}
        keys = [*disputed, *(await self._changed(agreed) if agreed else ())]
        if not keys:
            return
        values = await self._load(keys)
        woken = 0
        for key in keys:
            if woken >= _WOKEN_AT_ONCE:
                woken = 0
                await asyncio.sleep(0)
            watched = self._watched.get(key)
            if watched is None:
                continue
            value = values.get(key)
            if value is not None:
                watched.seen = value
            watched.disputed = False
            woken += len(watched.waiters)
            for waiter in watched.waiters:
                if waiter.since < look:
                    waiter.wake(_End.GONE if value is None else value)
                else:  # it came during this look, and may have seen a newer value
                    watched.disputed = True
