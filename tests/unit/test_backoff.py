"""Pauses between attempts, on a loop whose clock is not waited for."""

import asyncio

import pytest

from shared import backoff
from shared.backoff import Backoff, Outage, wait_for_any


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses asked for, none of which takes time; each cut by half where it is jittered."""
    asked: list[float] = []

    async def wait(*_: asyncio.Event, timeout_s: float) -> bool:
        asked.append(timeout_s)
        return False

    monkeypatch.setattr(backoff, "wait_for_any", wait)
    monkeypatch.setattr("random.uniform", lambda least, _: least)
    return asked


async def test_pauses_double_up_to_the_longest_and_begin_again_after_a_reset(pauses: list[float]) -> None:
    attempts, stop = Backoff(first_s=1, longest_s=5, jittered=False), asyncio.Event()
    for _ in range(5):
        await attempts.pause(stop)
    attempts.reset()
    await attempts.pause(stop)

    assert pauses == [1, 2, 4, 5, 5, 1]


async def test_a_pause_is_cut_by_up_to_half(pauses: list[float]) -> None:
    attempts = Backoff(first_s=1, longest_s=5)
    await attempts.pause(asyncio.Event())
    await attempts.pause(asyncio.Event())

    assert pauses == [0.5, 1.0]


async def test_a_bound_of_one_pause_holds_for_the_next_one_too(pauses: list[float]) -> None:
    attempts = Backoff(first_s=4, longest_s=60, jittered=False)
    await attempts.pause(asyncio.Event(), longest_s=1)
    await attempts.pause(asyncio.Event())

    assert pauses == [1, 1]


async def test_a_pause_ends_with_the_first_of_its_events() -> None:
    stop, news = asyncio.Event(), asyncio.Event()
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(Backoff(first_s=60, longest_s=60).pause(stop, news))
        await asyncio.sleep(0)
        news.set()


async def test_waiting_for_events_says_whether_one_came_in_time() -> None:
    never, past = asyncio.Event(), asyncio.Event()
    past.set()

    assert await wait_for_any(never, past)
    assert not await wait_for_any(never, timeout_s=0.001)


def test_a_failure_is_news_once_and_so_is_its_end() -> None:
    outage = Outage()

    assert not outage.end()
    assert [outage.begin(kind) for kind in ("broker", "broker", "database", "broker")] == [True, False, True, True]
    assert outage.active
    assert [outage.end(), outage.end()] == [True, False]
    assert outage.begin("broker")
