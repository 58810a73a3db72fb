"""StatusWatch: one batched look per tick serves everybody who waits, however many they are.

Nothing is installed in the database: no trigger, no LISTEN, no write right. Once a tick, one query compares what the
waiters have seen with what there is; whole rows are loaded only where something changed. With nobody waiting there is
no tick.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from enum import Enum
from typing import Final, Generic, TypeVar

import structlog

from shared.errors import DatabaseUnavailable

log = structlog.stdlib.get_logger(__name__)

_WOKEN_AT_ONCE: Final = 200
"""Then the event loop gets a turn: all of ten thousand at once would hold up everybody else for half a second."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Waiters:
    """How many wait, over all watches of this process, and how many may."""

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self.count = 0

    @property
    def full(self) -> bool:
        """Whether nobody more may wait."""
        return self.count >= self._maximum

    @contextmanager
    def place(self) -> Iterator[bool]:
        """A place among those who wait, until the block ends; False where all are taken."""
        if self.full:
            yield False
            return
        self.count += 1
        try:
            yield True
        finally:
            self.count -= 1


class _End(Enum):
    """Why somebody is woken without news."""

    LET_GO = "the time is up, the client has left, or we stop"
    GONE = "there is nothing behind the key any more"


class _Waiter(Generic[V]):
    """One who waits since the `since`th look; `woken` gets the new value, or why there is none."""

    __slots__ = ("alive", "since", "woken")

    def __init__(self, woken: "asyncio.Future[V | _End]", alive: Callable[[], bool], since: int) -> None:
        self.woken = woken
        self.alive = alive
        self.since = since

    def wake(self, news: V | _End) -> None:
        if not self.woken.done():
            self.woken.set_result(news)


class _Watched(Generic[V]):
    """What somebody has seen last of one key, and all who wait for more.

    `disputed`: they have seen different things. Whose is out of date, the next look tells all.
    """

    __slots__ = ("disputed", "seen", "waiters")

    def __init__(self, seen: V) -> None:
        self.seen = seen
        self.disputed = False
        self.waiters: set[_Waiter[V]] = set()


class StatusWatch(Generic[K, V]):
    """Watches values by key.

    `changed` answers which keys are no longer as seen (a deleted one is not); `load` reads values anew, without those
    that are gone. Both get 1..n distinct keys, and may raise DatabaseUnavailable: then the next tick tries again.
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
        self._trouble: type[Exception] | None = None
        self.closed = False

    @property
    def full(self) -> bool:
        """Whether nobody more may wait, here or in the watches that share our count."""
        return self._waiters.full

    def place(self) -> AbstractContextManager[bool]:
        """A place among those who wait, here or there, to `hold` in, once or again and again; False without one."""
        return self._waiters.place()

    async def hold(
        self, key: K, seen: V, *, until: float, enough: Callable[[V], bool], alive: Callable[[], bool]
    ) -> V | None:
        """Wait until the value behind `key` is `enough`; answers the last value seen, enough or not; None if gone.

        `seen` is what the caller has just read. Ends early at `until` (the event loop's time), at close, and soon after
        `alive` turns false. To be called within a `place`.
        """
        loop = asyncio.get_running_loop()
        value = seen
        while not (enough(value) or self.closed or loop.time() >= until):
            news = await self._next_change(loop, key, value, until, alive)
            if news is _End.GONE:
                return None
            if news is _End.LET_GO:
                break
            value = news
        return value

    def close(self) -> None:
        """Wake everybody, now; nobody waits from here on."""
        self.closed = True
        if self._ticking is not None:
            self._ticking.cancel()
        for watched in self._watched.values():
            for waiter in watched.waiters:
                waiter.wake(_End.LET_GO)

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
        timer = loop.call_at(until, waiter.wake, _End.LET_GO)
        try:
            return await waiter.woken
        finally:
            timer.cancel()
            watched.waiters.discard(waiter)
            if not watched.waiters and self._watched.get(key) is watched:
                del self._watched[key]

    async def _tick(self) -> None:
        while self._watched:
            await asyncio.sleep(self._interval_s)
            try:
                self._let_go_of_the_gone()
                await self._look()
            except Exception as error:  # whatever it is: nobody else would look for those who wait
                if type(error) is not self._trouble:
                    # A database that is away is no news of ours; anything else is a mistake of ours, with its trace.
                    trace = not isinstance(error, DatabaseUnavailable)
                    log.warning("watch could not look", error=str(error), watched=len(self._watched), exc_info=trace)
                self._trouble = type(error)
            else:
                self._trouble = None

    def _let_go_of_the_gone(self) -> None:
        for watched in self._watched.values():
            for waiter in watched.waiters:
                if not waiter.alive():
                    waiter.wake(_End.LET_GO)

    async def _look(self) -> None:
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
                else:  # came while we were looking, and may have seen what is newer than what we have
                    watched.disputed = True
