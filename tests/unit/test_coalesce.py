"""Many calls, one load: who is in it, what each gets, and that no call waits for ever."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.coalesce import SUSPECTS, Coalescer
from shared.errors import DatabaseUnavailable, DatabaseUnfit, JobUnreadable, RedriveError, StatementRefused
from tests.lateness import lateness


class Loads:
    """A load that ends when it is told to, and says what it was asked."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.running = 0
        self.most_running = 0
        self.gates: list[asyncio.Future[None]] = []
        self.began = asyncio.Event()
        self.versions: dict[str, int] = {}

    async def load(self, keys: Sequence[str]) -> Mapping[str, int]:
        self.batches.append(list(keys))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        answer = {key: self.versions.get(key, 0) for key in keys if key != "missing"}
        gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gates.append(gate)
        self.began.set()
        try:
            await gate
        finally:
            self.running -= 1
        return answer

    async def begun(self, count: int) -> None:
        """Return once so many loads have begun."""
        async with asyncio.timeout(30):
            while len(self.gates) < count:
                self.began.clear()
                await self.began.wait()

    def end(self, number: int, error: BaseException | None = None) -> None:
        if error is None:
            self.gates[number].set_result(None)
        else:
            self.gates[number].set_exception(error)


@pytest.fixture
def loads() -> Loads:
    return Loads()


async def many(coalescer: Coalescer[str, int], *keys: str) -> list[asyncio.Task[int | None]]:
    """Calls that have all asked by the time this returns."""
    tasks = [asyncio.create_task(coalescer.get(key)) for key in keys]
    await asyncio.sleep(0)
    return tasks


async def test_calls_of_one_turn_are_one_load_of_distinct_keys_in_order(loads: Loads) -> None:
    calls = await many(Coalescer(loads.load), "b", "a", "b", "c", "b")
    await loads.begun(1)
    loads.end(0)

    assert await asyncio.gather(*calls) == [0] * 5
    assert loads.batches == [["b", "a", "c"]]


async def test_a_key_that_is_missing_from_the_answer_is_none(loads: Loads) -> None:
    calls = await many(Coalescer(loads.load), "missing", "a")
    await loads.begun(1)
    loads.end(0)

    assert await asyncio.gather(*calls) == [None, 0]


async def test_no_call_gets_an_answer_from_a_load_that_began_before_it(loads: Loads) -> None:
    coalescer = Coalescer(loads.load)
    early = await many(coalescer, "a")
    await loads.begun(1)
    loads.versions["a"] = 1
    late = await many(coalescer, "a")
    await loads.begun(2)
    loads.end(1)
    loads.end(0)

    assert await asyncio.gather(*early, *late) == [0, 1]


async def test_a_load_has_no_trace_of_the_call_that_began_it() -> None:
    bound: list[Mapping[str, object]] = []
    second = asyncio.Event()

    async def load(keys: Sequence[str]) -> Mapping[str, int]:
        bound.append(structlog.contextvars.get_contextvars())
        if len(bound) == 2:
            second.set()
        await second.wait()
        return dict.fromkeys(keys, 0)

    coalescer = Coalescer(load, max_in_flight=2, overlap_after_s=0.001)
    with structlog.contextvars.bound_contextvars(trace_id="first"):
        calls = await many(coalescer, "a")  # at once
        calls += await many(coalescer, "b")  # once the first is late
        await asyncio.gather(*calls)

    assert bound == [{}, {}]


async def test_while_loads_are_under_way_the_rest_gathers(loads: Loads) -> None:
    coalescer = Coalescer(loads.load, max_in_flight=1)
    calls = await many(coalescer, "a")
    await loads.begun(1)
    for key in "bcbd":
        calls += await many(coalescer, key)
    loads.end(0)
    await loads.begun(2)
    loads.end(1)

    await asyncio.gather(*calls)
    assert loads.batches == [["a"], ["b", "c", "d"]]


async def test_the_rest_gathers_until_a_load_is_late_and_waits_for_it_no_longer(loads: Loads) -> None:
    coalescer = Coalescer(loads.load, max_in_flight=2, overlap_after_s=0.05)
    calls = await many(coalescer, "a")
    await loads.begun(1)
    for key in "bcb":
        calls += await many(coalescer, key)
    assert loads.batches == [["a"]]
    await loads.begun(2)  # though the first has not ended
    calls += await many(coalescer, "d")
    loads.end(1)
    await loads.begun(3)
    loads.end(2)
    loads.end(0)

    await asyncio.gather(*calls)
    assert loads.batches == [["a"], ["b", "c"], ["d"]]
    assert loads.most_running == 2


async def test_a_load_that_ends_in_time_is_followed_at_once(loads: Loads) -> None:
    coalescer = Coalescer(loads.load, overlap_after_s=30)
    calls = await many(coalescer, "a")
    await loads.begun(1)
    calls += await many(coalescer, "b")
    loads.end(0)
    await loads.begun(2)
    loads.end(1)

    await asyncio.gather(*calls)
    assert loads.most_running == 1


async def test_no_more_loads_run_at_once_and_no_batch_is_larger_than_allowed(loads: Loads) -> None:
    coalescer = Coalescer(loads.load, max_in_flight=2, max_batch=10)
    calls = await many(coalescer, *map(str, range(95)))
    for number in range(10):
        await loads.begun(number + 1)
        loads.end(number)

    await asyncio.gather(*calls)
    assert loads.most_running == 2
    assert [len(batch) for batch in loads.batches] == [10] * 9 + [5]
    assert [key for batch in loads.batches for key in batch] == list(map(str, range(95)))


async def test_a_caller_that_is_cancelled_leaves_the_others_alone(loads: Loads) -> None:
    waiting, *others = await many(Coalescer(loads.load), "a", "a", "b")
    await loads.begun(1)
    waiting.cancel()
    await asyncio.sleep(0)
    loads.end(0)

    assert await asyncio.gather(*others) == [0, 0]
    assert waiting.cancelled()


async def test_a_caller_that_is_cancelled_in_line_leaves_the_others_alone(loads: Loads) -> None:
    coalescer = Coalescer(loads.load, max_in_flight=1)
    first = await many(coalescer, "a")
    await loads.begun(1)
    waiting, *others = await many(coalescer, "b", "b")
    waiting.cancel()
    loads.end(0)
    await loads.begun(2)
    loads.end(1)

    assert await asyncio.gather(*first, *others) == [0, 0]


async def test_a_load_that_fails_fails_for_each_of_its_callers_and_no_other(loads: Loads) -> None:
    coalescer = Coalescer(loads.load)
    failing = await many(coalescer, "a", "a", "b")
    await loads.begun(1)
    good = await many(coalescer, "a")
    await loads.begun(2)
    loads.end(0, DatabaseUnavailable("gone"))
    loads.end(1)

    errors = await asyncio.gather(*failing, return_exceptions=True)
    assert [str(error) for error in errors if isinstance(error, DatabaseUnavailable)] == ["gone"] * 3
    assert len({id(error) for error in errors}) == 3  # one each, or their tracebacks grow together
    assert await asyncio.gather(*good) == [0]


async def test_a_mistake_in_a_load_reaches_its_callers_too(loads: Loads) -> None:
    calls = await many(Coalescer(loads.load), "a", "b")
    await loads.begun(1)
    loads.end(0, ZeroDivisionError())

    assert [type(error) for error in await asyncio.gather(*calls, return_exceptions=True)] == [ZeroDivisionError] * 2


async def test_a_load_that_takes_too_long_is_cut_off_and_the_next_one_goes_ahead(loads: Loads) -> None:
    coalescer = Coalescer(loads.load, max_in_flight=1, deadline_s=0.05)
    slow = await many(coalescer, "a")
    with pytest.raises(DatabaseUnavailable):
        await slow[0]

    next_one = await many(coalescer, "b")
    await loads.begun(2)
    loads.end(1)

    assert await asyncio.gather(*next_one) == [0]
    assert loads.running == 0


async def test_the_deadline_counts_the_time_in_line(loads: Loads) -> None:
    coalescer = Coalescer(loads.load, max_in_flight=1, deadline_s=1)
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    async with lateness() as late:
        calls = [*await many(coalescer, "a"), *await many(coalescer, "b")]
        errors = await asyncio.gather(*calls, return_exceptions=True)

    assert [type(error) for error in errors] == [DatabaseUnavailable] * 2
    assert loop.time() - started_at < 1.9 + late.seconds  # one after the other would be 2


async def test_a_line_that_never_ends_makes_no_call_late(loads: Loads, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    time, passed_s = loop.time, 0.0
    monkeypatch.setattr(loop, "time", lambda: time() + passed_s)
    coalescer = Coalescer(loads.load, max_in_flight=1, max_batch=1, deadline_s=50)
    calls = await many(coalescer, "0", "1")
    for number in range(4):
        await loads.begun(number + 1)
        passed_s += 20
        calls += await many(coalescer, str(number + 2))
        loads.end(number)
    for number in range(4, 6):
        await loads.begun(number + 1)
        loads.end(number)

    assert await asyncio.gather(*calls) == [0] * 6


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 5), max_size=8), max_size=12),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.0001, 1.0]),
)
def test_each_call_gets_what_was_true_after_it_began(
    turns: list[list[int]], max_in_flight: int, max_batch: int, overlap_after_s: float
) -> None:
    async def run() -> None:
        clock = 0

        async def load(keys: Sequence[int]) -> Mapping[int, int]:
            nonlocal clock
            clock += 1
            read_at = clock
            assert len(keys) == len(set(keys)) <= max_batch
            for _ in range(keys[0] + 1):
                await asyncio.sleep(0)
            return dict.fromkeys(keys, read_at)

        coalescer = Coalescer(load, max_in_flight=max_in_flight, max_batch=max_batch, overlap_after_s=overlap_after_s)

        async def ask(key: int) -> None:
            nonlocal clock
            clock += 1
            asked_at = clock
            read_at = await coalescer.get(key)
            assert read_at is not None
            assert read_at > asked_at

        async with asyncio.timeout(30), asyncio.TaskGroup() as callers:
            for turn in turns:
                for key in turn:
                    callers.create_task(ask(key))
                await asyncio.sleep(0)

    asyncio.run(run())


# -- one key that is refused


class Table:
    """A load that is refused for some keys, or for all; it counts what it was asked."""

    def __init__(self, *bad: str, error: type[RedriveError] = StatementRefused) -> None:
        self.bad = set(bad)
        self.error = error
        self.unfit = False
        self.batches: list[list[str]] = []

    async def load(self, keys: Sequence[str]) -> Mapping[str, int | RedriveError]:
        self.batches.append(list(keys))
        await asyncio.sleep(0)
        if self.unfit or self.bad.intersection(keys):
            raise self.error("22012")
        return {key: len(key) for key in keys if key != "missing"}

    async def probe(self) -> None:
        await self.load([])

    def coalescer(self) -> Coalescer[str, int]:
        return Coalescer(self.load, probe=self.probe, refusal=JobUnreadable)


@pytest.mark.parametrize("error", [StatementRefused, DatabaseUnfit])
@pytest.mark.parametrize("bad", [["k0"], ["k63"], ["k7", "k8"], ["k0", "k31", "k32", "k63"]], ids=str)
async def test_a_key_that_is_refused_fails_alone(bad: list[str], error: type[RedriveError]) -> None:
    table = Table(*bad, error=error)
    coalescer = table.coalescer()
    keys = [f"k{number}" for number in range(64)]

    answers = await asyncio.gather(*(coalescer.get(key) for key in [*keys, "missing"]), return_exceptions=True)

    assert [key for key, answer in zip(keys, answers, strict=False) if isinstance(answer, JobUnreadable)] == bad
    assert [answer for answer in answers if isinstance(answer, int)] == [len(key) for key in keys if key not in bad]
    assert answers[-1] is None
    assert len(table.batches) <= 2 + 14 * len(bad)


async def test_a_key_that_was_refused_does_not_hold_up_the_others_again() -> None:
    table = Table("bad")
    coalescer = table.coalescer()
    await asyncio.gather(coalescer.get("bad"), coalescer.get("good"), return_exceptions=True)
    table.batches.clear()

    answers = await asyncio.gather(coalescer.get("bad"), coalescer.get("good"), return_exceptions=True)

    assert isinstance(answers[0], JobUnreadable)
    assert answers[1] == 4
    assert ["good"] in table.batches
    assert not [batch for batch in table.batches if {"bad", "good"} <= set(batch)]


async def test_a_key_that_was_refused_is_answered_once_its_row_is_mended() -> None:
    table = Table("bad")
    coalescer = table.coalescer()
    await asyncio.gather(coalescer.get("bad"), coalescer.get("good"), return_exceptions=True)
    table.bad.clear()

    assert await coalescer.get("bad") == 3
    table.batches.clear()
    assert list(await asyncio.gather(coalescer.get("bad"), coalescer.get("good"))) == [3, 4]
    assert table.batches == [["bad", "good"]]


async def test_a_statement_that_is_unfit_is_not_taken_apart() -> None:
    table = Table(error=DatabaseUnfit)
    table.unfit = True

    answers = await asyncio.gather(*(table.coalescer().get(key) for key in "abcd"), return_exceptions=True)
    coalescer = table.coalescer()
    table.batches.clear()
    together = await asyncio.gather(*(coalescer.get(key) for key in "abcd"), return_exceptions=True)

    assert {type(answer) for answer in [*answers, *together]} == {DatabaseUnfit}
    assert table.batches == [["a", "b", "c", "d"], []]


async def test_an_error_in_place_of_a_value_is_that_key_s_alone() -> None:
    async def load(keys: Sequence[str]) -> Mapping[str, int | RedriveError]:
        return {key: JobUnreadable() if key == "bad" else 1 for key in keys}

    coalescer = Coalescer(load)
    answers = await asyncio.gather(*(coalescer.get(key) for key in ("a", "bad", "b")), return_exceptions=True)

    assert (answers[0], answers[2]) == (1, 1)
    assert isinstance(answers[1], JobUnreadable)


async def test_the_keys_that_are_remembered_as_refused_are_bounded() -> None:
    keys = [f"k{number}" for number in range(SUSPECTS + 100)]
    coalescer = Table(*keys).coalescer()

    for start in range(0, len(keys), 100):
        await asyncio.gather(*(coalescer.get(key) for key in keys[start : start + 100]), return_exceptions=True)

    assert len(coalescer._suspects) == SUSPECTS
