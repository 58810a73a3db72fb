"""Many concurrent calls, one query.

Callers ask for one key each; while a query is under way, the keys of those who come later gather, and go out together
with the next one. A caller never gets an answer from a query that began before it asked, so it reads its own writes.
An idle Coalescer starts at the end of the event loop's current turn; nobody waits for others to come.

A query that the database refuses for one of its keys is split, in halves, until that key stands alone: the others are
answered, and it gets a refusal of its own. From then on it is loaded apart from the others, until it loads again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Final, Generic, NamedTuple, TypeVar

from shared.bisection import bisect
from shared.errors import DatabaseUnavailable, DatabaseUnfit, RedriveError, StatementRefused

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

SUSPECTS: Final = 1_000
"""So many refused keys are remembered, to be loaded apart; the oldest is forgotten first."""

_APART: Final = 16
"""So many of these are loaded in one query."""


class Splitter(Generic[K, V]):
    """Loads keys together, and where that is refused, finds the keys that it is refused for.

    `load` gets distinct keys and answers with a mapping; a value may be an error, which is that key's own. `probe` is
    the same statement for no key at all: where it fails too, the statement is at fault and no key is. Without a probe
    only what the database says of content (StatementRefused) is split. `refusal` makes the error of one key.
    """

    def __init__(
        self,
        load: Callable[[Sequence[K]], Awaitable[Mapping[K, V | RedriveError]]],
        *,
        probe: Callable[[], Awaitable[object]] | None = None,
        refusal: Callable[[], RedriveError] | None = None,
    ) -> None:
        self._load = load
        self._probe = probe
        self._refusal = refusal

    async def load(
        self, keys: Sequence[K], *, refused: Callable[[K], None] | None = None
    ) -> Mapping[K, V | RedriveError]:
        """What is behind the keys: for each a value, or its error; a key that matches nothing is missing.

        One call of `load` where nothing is refused; for a refused key among n, some 2 * log2(n) more. `refused` is
        called with each key as soon as it is found. Raises what `load` raises of no key in particular.
        """

        async def attempt(part: Sequence[K]) -> Mapping[K, V | RedriveError] | RedriveError:
            try:
                return await self._load(part)
            except StatementRefused as error:
                fault: RedriveError = error
            except DatabaseUnfit as error:
                if self._probe is None:
                    raise
                fault = error
            if self._probe is not None and len(part) == len(keys):
                await self._probe()
            if refused is not None and len(part) == 1:
                refused(part[0])
            return fault

        found, faults = await bisect(keys, attempt)
        if not faults:
            return found
        return {**found, **{key: fault if self._refusal is None else self._refusal() for key, fault in faults}}


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
    together, then gets DatabaseUnavailable; what `load` raises of no key in particular reaches every caller of the
    batch, and what it raises for one key, that key's callers alone. `probe` and `refusal` are the Splitter's.
    """

    def __init__(
        self,
        load: Callable[[Sequence[K]], Awaitable[Mapping[K, V | RedriveError]]],
        *,
        max_batch: int = 512,
        max_in_flight: int = 2,
        late_s: float = 0.0,
        deadline_s: float = 2.5,
        probe: Callable[[], Awaitable[object]] | None = None,
        refusal: Callable[[], RedriveError] | None = None,
    ) -> None:
        self._splitter = Splitter(load, probe=probe, refusal=refusal)
        self._max_batch = max_batch
        self._max_in_flight = max_in_flight
        self._late_s = late_s
        self._deadline_s = deadline_s
        self._waiting: dict[K, _Callers[V]] = {}
        self._scheduled: asyncio.Handle | None = None
        self._in_flight: set[asyncio.Task[Mapping[K, V | RedriveError]]] = set()
        self._suspects: dict[K, None] = {}
        self._apart: Coalescer[K, V] | None = None

    async def get(self, key: K) -> V | None:
        """The value behind `key`, read after this call began; None when there is none. Raises the key's own error."""
        if self._suspects and key in self._suspects:
            return await self._get_apart(key)
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
        if self._apart is not None:
            await self._apart.drained()

    async def _get_apart(self, key: K) -> V | None:
        """The value behind a key that was refused before, read without holding up the others."""
        if self._apart is None:
            self._apart = Coalescer(self._splitter.load, max_batch=_APART, max_in_flight=1, deadline_s=self._deadline_s)
        value = await self._apart.get(key)
        self._suspects.pop(key, None)  # it has loaded, or is gone
        return value

    def _suspect(self, key: K) -> None:
        self._suspects[key] = None
        if len(self._suspects) > SUSPECTS:
            del self._suspects[next(iter(self._suspects))]

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

    async def _loaded(self, keys: list[K], deadline: float) -> Mapping[K, V | RedriveError]:
        try:
            async with asyncio.timeout_at(deadline):
                return await self._splitter.load(keys, refused=self._suspect)
        except TimeoutError as error:
            raise DatabaseUnavailable("too slow") from error

    def _deliver(self, batch: "dict[K, _Callers[V]]", task: asyncio.Task[Mapping[K, V | RedriveError]]) -> None:
        self._in_flight.discard(task)
        if self._scheduled is not None:  # for when this one would be late
            self._scheduled.cancel()
            self._scheduled = None
        self._schedule(task.get_loop())
        failure = None if task.cancelled() else task.exception()
        for key, callers in batch.items():
            value = task.result().get(key) if failure is None and not task.cancelled() else None
            error = value if isinstance(value, RedriveError) else failure
            for future in callers.futures:
                if future.done():
                    continue  # its caller has left
                if task.cancelled():
                    future.cancel()
                elif isinstance(error, RedriveError):
                    # One each: raising adds to an exception's traceback, and hundreds may raise this one.
                    future.set_exception(type(error)(*error.args))
                elif error is not None:
                    future.set_exception(error)
                elif not isinstance(value, RedriveError):
                    future.set_result(value)
