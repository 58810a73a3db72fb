"""Batches out of an inbox: in order, bounded in size and in time."""

import asyncio

import pytest

from worker.inbox import Inbox

_LONG_S = 30.0


async def _batch(inbox: Inbox[int], *, max_size: int = 3, max_wait_s: float = 0.0, timeout_s: float = 5.0) -> list[int]:
    return await inbox.take_batch(max_size=max_size, max_wait_s=max_wait_s, timeout_s=timeout_s)


async def test_batches_come_in_order_and_no_larger_than_asked_for() -> None:
    inbox: Inbox[int] = Inbox()
    for number in range(7):
        inbox.put(number)
    inbox.close()
    assert [await _batch(inbox) for _ in range(4)] == [[0, 1, 2], [3, 4, 5], [6], []]


async def test_a_batch_is_bounded_in_the_sizes_of_its_items_and_has_at_least_one() -> None:
    inbox: Inbox[int] = Inbox()
    for size in (2, 1, 2, 5, 1, 1, 1, 1):
        inbox.put(size, size=size)
    inbox.close()
    assert [await _batch(inbox) for _ in range(6)] == [[2, 1], [2], [5], [1, 1, 1], [1], []]


async def test_a_full_batch_does_not_wait() -> None:
    inbox: Inbox[int] = Inbox()
    taking = asyncio.ensure_future(_batch(inbox, max_wait_s=_LONG_S))
    for number in range(3):
        await asyncio.sleep(0)
        inbox.put(number)
    async with asyncio.timeout(_LONG_S / 2):
        assert await taking == [0, 1, 2]


async def test_a_batch_that_does_not_fill_up_is_given_in_time() -> None:
    inbox: Inbox[int] = Inbox()
    inbox.put(1)
    async with asyncio.timeout(_LONG_S / 2):
        assert await _batch(inbox, max_wait_s=0.01) == [1]


async def test_silence_is_a_timeout_and_loses_nothing() -> None:
    inbox: Inbox[int] = Inbox()
    with pytest.raises(TimeoutError):
        await _batch(inbox, timeout_s=0.01)
    inbox.put(1)
    assert await _batch(inbox) == [1]


async def test_closing_wakes_a_reader_that_then_gets_what_is_there() -> None:
    inbox: Inbox[int] = Inbox()
    taking = asyncio.ensure_future(_batch(inbox, max_wait_s=_LONG_S))
    await asyncio.sleep(0)
    inbox.put(1)
    await asyncio.sleep(0)
    inbox.close()
    assert await taking == [1]
    assert await _batch(inbox) == []


@pytest.mark.parametrize("waiting", [0, 1, 5])
async def test_a_failure_reaches_the_reader_at_once_whatever_is_there(waiting: int) -> None:
    inbox: Inbox[int] = Inbox()
    for number in range(waiting):
        inbox.put(number)
    inbox.fail(ConnectionError("first"))
    inbox.fail(ConnectionError("second"))
    with pytest.raises(ConnectionError, match="first"):
        await _batch(inbox, max_wait_s=_LONG_S)


async def test_a_failure_wakes_a_reader_that_waits_for_more() -> None:
    inbox: Inbox[int] = Inbox()
    taking = asyncio.ensure_future(_batch(inbox, max_wait_s=_LONG_S))
    inbox.put(1)
    await asyncio.sleep(0)
    inbox.fail(ConnectionError())
    with pytest.raises(ConnectionError):
        await taking
