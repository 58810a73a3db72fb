"""Many concurrent calls, one query.

Callers ask for one key each; while a query is under way, the keys of those who come later gather, and go out together
with the next one. A caller never gets an answer from a query that began before it asked, so it reads its own writes.
An idle Coalescer starts at the end of the event loop's current turn; nobody waits for others to come.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from shared.errors import DatabaseUnavailable, RedriveError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Callers(NamedTuple, Generic[V]):
    """Who waits for a key, and since when the first of them does."""

    since: float
    futures: "list[asyncio.Future[V | None]]"


class Coalescer(Generic[K, V]):
    """Gathers keys into batches for `load`.

    `load` gets 1..`max_batch` distinct keys in order of arrival and answers with a mapping; a key that is missing there
    is None to its callers. At most `max_in_flight` loads run at once, and another beside one only when `late_s` have
    gone by: where a load costs its caller more than it costs to wait for the one before, fewer and larger ones are
    better, and only a slow one is a reason not to wait. A caller waits at most `deadline_s`, in line and in the load
    together, then gets DatabaseUnavailable; what `load` raises reaches every caller of the batch.
    """

    def __init__(
        self,
        load: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]],
        *,
        max_batch: int = 512,
        max_in_flight: int = 2,
        late_s: float = 0.0,
        deadline_s: float = 2.5,
    ) -> None:
        self._load = load
        self._max_batch = max_batch
        self._max_in_flight = max_in_flight
        self._late_s = late_s
        self._deadline_s = deadline_s
        self._waiting: dict[K, _Callers[V]] = {}
        self._scheduled: asyncio.Handle | None = None
        self._in_flight: set[asyncio.Task[Mapping[K, V]]] = set()

    async def get(self, key: K) -> V | None:
        """The value behind `key`, read after this call began; None when there is none."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[V | None] = loop.create_future()  # one each: a caller that is cancelled leaves alone
        if (others := self._waiting.get(key)) is not None:
            others.futures.append(future)
        else:
            self._waiting[key] = _Callers(loop.time(), [future])
            self._schedule(loop)
        return await future

    async def drained(self) -> None:
        """Return once no load is under way; loads are bounded by the deadline."""
        while self._in_flight:
            await asyncio.wait(self._in_flight)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._waiting or self._scheduled is not None or len(self._in_flight) >= self._max_in_flight:
            return
        if self._in_flight and self._late_s:
            self._scheduled = loop.call_later(self._late_s, self._start, loop)
        else:
            self._scheduled = loop.call_soon(self._start, loop)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._scheduled = None
        if len(self._waiting) <= self._max_batch:
            batch, self._waiting = self._waiting, {}
        else:
            batch = {key: self._waiting.pop(key) for key in list(self._waiting)[: self._max_batch]}
        longest = next(iter(batch.values()))
        task = loop.create_task(self._loaded(list(batch), longest.since + self._deadline_s))
        self._in_flight.add(task)
        task.add_done_callback(lambda task: self._deliver(batch, task))
        self._schedule(loop)

    async def _loaded(self, keys: list[K], deadline: float) -> Mapping[K, V]:
        try:
            async with asyncio.timeout_at(deadline):
                return await self._load(keys)
        except TimeoutError as error:
            raise DatabaseUnavailable("too slow") from error

    def _deliver(self, batch: "dict[K, _Callers[V]]", task: asyncio.Task[Mapping[K, V]]) -> None:
        self._in_flight.discard(task)
        if self._scheduled is not None:  # for when this one would be late
            self._scheduled.cancel()
            self._scheduled = None
        self._schedule(task.get_loop())
        error = None if task.cancelled() else task.exception()
        for key, callers in batch.items():
            for future in callers.futures:
                if future.done():
                    continue  # its caller has left
                if task.cancelled():
                    future.cancel()
                elif error is None:
                    future.set_result(task.result().get(key))
                elif isinstance(error, RedriveError):
                    # One each: raising adds to an exception's traceback, and hundreds may raise this one.
                    future.set_exception(type(error)(*error.args))
                else:
                    future.set_exception(error)
