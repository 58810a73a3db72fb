"""Watch, over values in memory."""

import asyncio
from collections.abc import Mapping, Sequence
from itertools import pairwise

import pytest
import structlog

from api.watch import LOOKED_AT_ONCE, Waiters, Watch
from shared.seen import Seen
from tests.eventually import eventually
from tests.logs import Log

MANY = 3_000
SOON_S = 30


class Values:
    """What is watched: numbers, which all change at once."""

    def __init__(self) -> None:
        self.now = 1

    async def changed(self, seen: Mapping[int, Seen[int]]) -> Sequence[int]:
        return [key for key, one in seen.items() if one.value != self.now]

    async def load(self, keys: Sequence[int]) -> Mapping[int, int]:
        return dict.fromkeys(keys, self.now)


async def test_others_get_their_turns_while_thousands_hear_of_a_change() -> None:
    values, loop = Values(), asyncio.get_running_loop()
    watch = Watch(changed=values.changed, load=values.load, interval_s=0.01, waiters=Waiters(MANY))
    heard = 0
    heard_by_turn: list[int] = []

    async def wait(key: int) -> None:
        nonlocal heard
        assert (
            await watch.wait_for_change(
                key, 1, until=loop.time() + 30, enough=lambda value: value == 2, alive=lambda: True
            )
            == values.now
        )
        heard += 1

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        for key in range(MANY):
            group.create_task(wait(key))
        await asyncio.sleep(0)
        values.now = 2
        while heard < MANY:
            heard_by_turn.append(heard)
            await asyncio.sleep(0)
        heard_by_turn.append(heard)

    between = [later - earlier for earlier, later in pairwise(heard_by_turn)]
    assert max(between) < MANY / 5


async def test_a_look_that_fails_is_told_of_once_and_followed_by_another(caplog: pytest.LogCaptureFixture) -> None:
    values, loop = Values(), asyncio.get_running_loop()
    looks = 0

    async def changed(seen: Mapping[int, Seen[int]]) -> Sequence[int]:
        nonlocal looks
        looks += 1
        if looks <= 3:
            raise ZeroDivisionError
        return await values.changed(seen)

    watch = Watch(changed=changed, load=values.load, interval_s=0.01, waiters=Waiters(1))
    values.now = 2
    with Log(caplog).recording() as log:
        held = watch.wait_for_change(1, 1, until=loop.time() + 10, enough=lambda value: value == 2, alive=lambda: True)
        assert await held == 2

    assert looks == 4
    assert [(line["event"], line["exc_info"]) for line in log.lines] == [("watch could not look", True)]


async def test_a_look_has_no_trace_of_the_request_that_waited_first() -> None:
    values, loop = Values(), asyncio.get_running_loop()
    values.now = 2
    bound: list[Mapping[str, object]] = []

    async def changed(seen: Mapping[int, Seen[int]]) -> Sequence[int]:
        bound.append(structlog.contextvars.get_contextvars())
        return await values.changed(seen)

    watch = Watch(changed=changed, load=values.load, interval_s=0.01, waiters=Waiters(1))
    with structlog.contextvars.bound_contextvars(trace_id="first"):
        await watch.wait_for_change(1, 1, until=loop.time() + 10, enough=lambda value: value == 2, alive=lambda: True)

    assert bound == [{}]


async def test_many_keys_are_looked_at_in_parts_and_their_one_waiter_hears_of_all() -> None:
    values = Values()
    values.now = 2
    asked: list[int] = []
    loaded: list[int] = []

    async def changed(seen: Mapping[int, Seen[int]]) -> Sequence[int]:
        asked.append(len(seen))
        return await values.changed(seen)

    async def load(keys: Sequence[int]) -> Mapping[int, int]:
        loaded.append(len(keys))
        return await values.load(keys)

    watch = Watch(changed=changed, load=load, interval_s=0, waiters=Waiters(1))
    keys = 2 * LOOKED_AT_ONCE + 7
    heard: dict[int, int | None] = {}
    with watch.waiter(lambda: True) as waiter:
        for key in range(keys):
            watch.add(waiter, key, 1)
        while waiter.keys or len(heard) < keys:
            heard |= await watch.news(waiter, until=in_time())

    assert heard == dict.fromkeys(range(keys), 2)
    assert asked == loaded == [LOOKED_AT_ONCE, LOOKED_AT_ONCE, 7]


async def test_keys_that_cannot_be_looked_at_do_not_keep_the_others_from_their_waiters(
    caplog: pytest.LogCaptureFixture,
) -> None:
    values = Values()
    values.now = 2
    bad, good, looks = 0, LOOKED_AT_ONCE, 0

    async def changed(seen: Mapping[int, Seen[int]]) -> Sequence[int]:
        nonlocal looks
        looks += 1
        if bad in seen:
            raise ZeroDivisionError
        return await values.changed(seen)

    watch = Watch(changed=changed, load=values.load, interval_s=0, waiters=Waiters(1))
    with Log(caplog).recording() as log, watch.waiter(lambda: True) as waiter:
        for key in range(LOOKED_AT_ONCE + 1):
            watch.add(waiter, key, 1)
        news = await watch.news(waiter, until=in_time())
        before = looks
        await eventually(lambda: looks > before + 2)

    assert news == {good: 2}
    assert [line["event"] for line in log.lines] == ["watch could not look"]


async def test_a_waiter_gets_what_changed_since_it_asked_last_and_waits_for_that_no_more() -> None:
    now = {"a": 1, "b": 1, "c": 1}
    watch = watching(now)
    with watch.waiter(lambda: True) as waiter:
        for key in now:
            watch.add(waiter, key, 1)
        now.update(a=2, b=2)
        await eventually(lambda: waiter.keys == {"c"})
        del now["c"]
        await eventually(lambda: not waiter.keys)

        assert await watch.news(waiter, until=in_time()) == {"a": 2, "b": 2, "c": None}

        watch.add(waiter, "a", 2)
        now["a"] = 3
        assert await watch.news(waiter, until=in_time()) == {"a": 3}


async def test_of_two_waiters_for_a_key_each_hears_and_nothing_is_watched_for_those_who_have_left() -> None:
    now = {"a": 1, "b": 1}
    watch = watching(now)
    with watch.waiter(lambda: True) as first:
        with watch.waiter(lambda: True) as second:
            for waiter in (first, second):
                for key in now:
                    watch.add(waiter, key, 1)
            now["a"] = 2
            assert await watch.news(first, until=in_time()) == {"a": 2}
            assert await watch.news(second, until=in_time()) == {"a": 2}
        now["b"] = 2
        assert await watch.news(first, until=in_time()) == {"b": 2}
        watch.add(first, "a", 2)
    ticking = watch._ticking
    assert ticking is not None

    await asyncio.wait_for(ticking, SOON_S)


async def test_a_look_does_not_tell_an_older_value_to_a_waiter_that_came_while_it_was_under_way() -> None:
    now, loaded = {"a": 2}, asyncio.Event()
    looking = asyncio.Event()

    async def load(keys: Sequence[str]) -> Mapping[str, int]:
        read = {key: now[key] for key in keys}
        if not looking.is_set():
            looking.set()
            await loaded.wait()
        return read

    async def changed(seen: Mapping[str, Seen[int]]) -> Sequence[str]:
        return [key for key, one in seen.items() if one.value != now[key]]

    watch = Watch(changed=changed, load=load, interval_s=0, waiters=Waiters(2))
    with watch.waiter(lambda: True) as first, watch.waiter(lambda: True) as second:
        watch.add(first, "a", 1)
        await asyncio.wait_for(looking.wait(), SOON_S)
        now["a"] = 3
        watch.add(second, "a", 3)
        loaded.set()
        assert await watch.news(first, until=in_time()) == {"a": 2}
        now["a"] = 4
        assert await watch.news(second, until=in_time()) != {"a": 2}


@pytest.mark.parametrize("end", ["time", "client", "close"])
async def test_a_wait_that_ends_early_brings_no_news(end: str) -> None:
    here = True
    watch = watching({"a": 1})
    loop = asyncio.get_running_loop()
    with watch.waiter(lambda: here) as waiter:
        watch.add(waiter, "a", 1)
        news = asyncio.create_task(watch.news(waiter, until=loop.time() if end == "time" else in_time()))
        await asyncio.sleep(0)
        if end == "client":
            here = False
        if end == "close":
            watch.close()
        assert await asyncio.wait_for(news, SOON_S) == {}
        if end == "close":
            assert await asyncio.wait_for(watch.news(waiter, until=in_time()), SOON_S) == {}


async def test_a_mark_is_kept_as_long_as_the_value_that_it_was_made_for_and_no_longer() -> None:
    now = {"a": 1}
    marks: list[tuple[int, int | None]] = []

    async def changed(seen: Mapping[str, Seen[int]]) -> Sequence[str]:
        one = seen["a"]
        marks.append((one.value, one.mark))
        if one.value != now["a"]:
            return ["a"]
        one.mark = one.value
        return []

    async def load(keys: Sequence[str]) -> Mapping[str, int]:
        return {key: now[key] for key in keys}

    watch = Watch(changed=changed, load=load, interval_s=0, waiters=Waiters(1))
    with watch.waiter(lambda: True) as waiter:
        watch.add(waiter, "a", 1)
        await eventually(lambda: (1, 1) in marks)
        now["a"] = 2
        assert await watch.news(waiter, until=in_time()) == {"a": 2}
        watch.add(waiter, "a", 2)
        await eventually(lambda: (2, 2) in marks)

    assert all(mark in {None, value} for value, mark in marks)


def watching(now: dict[str, int]) -> Watch[str, int]:
    """A watch over these values, which looks as often as it can."""

    async def changed(seen: Mapping[str, Seen[int]]) -> Sequence[str]:
        return [key for key, one in seen.items() if one.value != now.get(key)]

    async def load(keys: Sequence[str]) -> Mapping[str, int]:
        return {key: now[key] for key in keys if key in now}

    return Watch(changed=changed, load=load, interval_s=0, waiters=Waiters(2))


def in_time() -> float:
    return asyncio.get_running_loop().time() + SOON_S
