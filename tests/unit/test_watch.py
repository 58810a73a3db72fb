"""StatusWatch, over values in memory."""

import asyncio
from collections.abc import Mapping, Sequence
from itertools import pairwise

import pytest

from api.watch import StatusWatch, Waiters
from tests.logs import Log

MANY = 3_000


class Values:
    """What is watched: numbers, which all change at once."""

    def __init__(self) -> None:
        self.now = 1

    async def changed(self, seen: Mapping[int, int]) -> Sequence[int]:
        return [key for key, value in seen.items() if value != self.now]

    async def load(self, keys: Sequence[int]) -> Mapping[int, int]:
        return dict.fromkeys(keys, self.now)


async def test_others_get_their_turns_while_thousands_hear_of_a_change() -> None:
    values, loop = Values(), asyncio.get_running_loop()
    watch = StatusWatch(changed=values.changed, load=values.load, interval_s=0.01, waiters=Waiters(MANY))
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

    async def changed(seen: Mapping[int, int]) -> Sequence[int]:
        nonlocal looks
        looks += 1
        if looks <= 3:
            raise ZeroDivisionError
        return await values.changed(seen)

    watch = StatusWatch(changed=changed, load=values.load, interval_s=0.01, waiters=Waiters(1))
    values.now = 2
    with Log(caplog).kept() as log:
        held = watch.wait_for_change(1, 1, until=loop.time() + 10, enough=lambda value: value == 2, alive=lambda: True)
        assert await held == 2

    assert looks == 4
    assert [(line["event"], line["exc_info"]) for line in log.lines] == [("watch could not look", True)]
