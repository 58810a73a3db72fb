"""Coalescer: concurrent calls for single keys become a few queries for many keys.

A store makes one for each kind of look-up (shared/jobs.py, shared/retries.py), and calls `get` for each request.

1. `get(key)` puts the key into `_waiting`, with a future for its caller. Calls for the same key share a place there.
2. An idle Coalescer takes all waiting keys at the end of the event loop's current iteration, and loads them in one
   query: it does not wait for more callers. Keys that arrive while the query runs wait for the next one. So a caller
   never gets the result of a query that began before its call: it reads its own writes.
3. At most `max_in_flight` queries run at once. With `overlap_after_s`, a query starts beside another one only when that
   one has taken so long: fewer and larger queries cost less, and only a slow query is a reason not to wait for its end.
4. When the query ends, each future gets its key's value, None for a key that matches nothing, or an error. A caller
   waits for at most `deadline_s`, in line and in the query together.
5. The database may refuse a query because of one key. Then the Splitter halves the batch until that key stands alone.
   The other keys get their values. The refused key becomes a suspect, and is loaded apart from the others until it
   loads.
6. Where the store has given a `probe`, the Splitter runs it before it halves a batch: the same query for no key. If
   that is refused, too, no key is at fault: a column or a right is missing, say. The batch is not halved, and every
   caller gets the probe's error.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from contextvars import Context
from typing import Final, Generic, NamedTuple, TypeVar

from shared.bisection import bisect
from shared.errors import DatabaseUnavailable, DatabaseUnfit, RedriveError, StatementRefused

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

SUSPECTS: Final = 1_000
"""How many refused keys are remembered, to be loaded apart; the oldest is forgotten first."""

_SUSPECTS_AT_ONCE: Final = 16
"""How many suspects are loaded in one query."""


class Splitter(Generic[K, V]):
    """Loads keys together. Where the database refuses that, finds the keys that it refuses.

    `load` gets distinct keys and returns a mapping; a value may be an error, which is that key's own. `probe` runs the
    same statement for no key: where it fails too, the statement is at fault, and no key is. Without a probe, only a
    StatementRefused is split. `refusal` makes the error of a refused key; by default it is the database's.
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
        """The value or the error of each key; a key that matches nothing is missing.

        Calls `load` once where nothing is refused; some 2 * log2(n) times more for a refused key among n. Calls
        `refused` with each refused key as soon as it is found. Raises what `load` raises that is no key's own.
        """

        # In quotes: else each call would make the type anew.
        async def attempt(part: Sequence[K]) -> "Mapping[K, V | RedriveError] | RedriveError":
            try:
                return await self._load(part)
            except StatementRefused as error:
                fault: RedriveError = error
            except DatabaseUnfit as error:
                if self._probe is None:
                    raise
                fault = error
            if self._probe is not None and len(part) == len(keys):  # once; the halves run the statement just probed
                await self._probe()
            if refused is not None and len(part) == 1:
                refused(part[0])
            return fault

        found, faults = await bisect(keys, attempt)
        if not faults:
            return found
        return {**found, **{key: fault if self._refusal is None else self._refusal() for key, fault in faults}}


class _Callers(NamedTuple, Generic[V]):
    """The callers that wait for a key, and since when the first of them waits."""

    since: float
    futures: "list[asyncio.Future[V | None]]"

    def fail(self, error: BaseException) -> None:
        """Raise the error to each: a copy, as raising adds to an exception's traceback, and hundreds may raise this."""
        for future in self.futures:
            if not future.done():
                future.set_exception(type(error)(*error.args) if isinstance(error, RedriveError) else error)


class Coalescer(Generic[K, V]):
    """Gathers keys into batches for `load`.

    `load` gets 1..`max_batch` distinct keys in order of arrival and returns a mapping; callers of a key that is missing
    there get None. A caller that has waited for `deadline_s` gets DatabaseUnavailable. An error of one key reaches the
    callers of that key; any other error of `load` reaches every caller of the batch. `probe` and `refusal` are the
    Splitter's.
    """

    def __init__(
        self,
        load: Callable[[Sequence[K]], Awaitable[Mapping[K, V | RedriveError]]],
        *,
        max_batch: int = 512,
        max_in_flight: int = 2,
        overlap_after_s: float = 0.0,
        deadline_s: float = 2.5,
        probe: Callable[[], Awaitable[object]] | None = None,
        refusal: Callable[[], RedriveError] | None = None,
    ) -> None:
        self._splitter = Splitter(load, probe=probe, refusal=refusal)
        self._max_batch = max_batch
        self._max_in_flight = max_in_flight
        self._overlap_after_s = overlap_after_s
        self._deadline_s = deadline_s
        self._waiting: dict[K, _Callers[V]] = {}
        self._scheduled: asyncio.Handle | None = None
        self._in_flight: set[asyncio.Task[Mapping[K, V | RedriveError]]] = set()
        self._suspects: dict[K, None] = {}
        self._apart: Coalescer[K, V] | None = None
        self._context = Context()  # empty: a load serves many calls, and must not log the trace of the first

    async def get(self, key: K) -> V | None:
        """The value behind `key`, read after this call began; None when there is none. Raises the key's own error."""
        if self._suspects and key in self._suspects:
            return await self._get_apart(key)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[V | None] = loop.create_future()  # of this caller alone: it may be cancelled
        if (others := self._waiting.get(key)) is not None:
            others.futures.append(future)
        else:
            self._waiting[key] = _Callers(loop.time(), [future])
            self._schedule(loop)
        return await future

    async def _get_apart(self, key: K) -> V | None:
        """The value behind a suspect, loaded without delaying the other keys.

        The Coalescer in here calls this one's Splitter, which answers refused keys with their errors. Its own Splitter
        then has nothing to split, so it needs no `probe` and no `refusal`, and it suspects no key.
        """
        if self._apart is None:
            self._apart = Coalescer(
                self._splitter.load, max_batch=_SUSPECTS_AT_ONCE, max_in_flight=1, deadline_s=self._deadline_s
            )
        value = await self._apart.get(key)
        self._suspects.pop(key, None)  # it loads again, or is gone
        return value

    def _suspect(self, key: K) -> None:
        self._suspects[key] = None
        if len(self._suspects) > SUSPECTS:
            del self._suspects[next(iter(self._suspects))]

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._waiting or self._scheduled is not None or len(self._in_flight) >= self._max_in_flight:
            return
        if self._in_flight and self._overlap_after_s:
            self._scheduled = loop.call_later(self._overlap_after_s, self._start, loop, context=self._context)
        else:
            self._scheduled = loop.call_soon(self._start, loop, context=self._context)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._scheduled = None
        if len(self._waiting) <= self._max_batch:
            batch, self._waiting = self._waiting, {}
        else:
            batch = {key: self._waiting.pop(key) for key in list(self._waiting)[: self._max_batch]}
        longest = next(iter(batch.values()))
        task = loop.create_task(self._load(list(batch), longest.since + self._deadline_s))
        self._in_flight.add(task)
        task.add_done_callback(lambda task: self._deliver(batch, task))
        self._schedule(loop)

    async def _load(self, keys: list[K], deadline: float) -> Mapping[K, V | RedriveError]:
        try:
            async with asyncio.timeout_at(deadline):
                return await self._splitter.load(keys, refused=self._suspect)
        except TimeoutError as error:
            raise DatabaseUnavailable("too slow") from error

    def _deliver(self, batch: "dict[K, _Callers[V]]", task: asyncio.Task[Mapping[K, V | RedriveError]]) -> None:
        self._in_flight.discard(task)
        if self._scheduled is not None:  # the next load need not wait for `overlap_after_s` any more
            self._scheduled.cancel()
            self._scheduled = None
        self._schedule(task.get_loop())
        if task.cancelled():
            for callers in batch.values():
                for future in callers.futures:
                    future.cancel()
            return
        failure = task.exception()
        values = {} if failure is not None else task.result()
        for key, callers in batch.items():
            value = values.get(key)
            if failure is not None:
                callers.fail(failure)
            elif isinstance(value, RedriveError):
                callers.fail(value)
            else:
                for future in callers.futures:
                    if not future.done():  # done: its caller was cancelled
                        future.set_result(value)
