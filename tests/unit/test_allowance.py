"""So much in hand at a time: no waiter is starved, and one that leaves the line holds nothing."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from shared.allowance import Allowance


async def held(allowance: Allowance, amount: int) -> asyncio.Task[AsyncExitStack]:
    """One that waits for `amount`, and then holds it until its stack is closed."""

    async def take() -> AsyncExitStack:
        stack = AsyncExitStack()
        await stack.enter_async_context(allowance.take(amount))
        return stack

    task = asyncio.create_task(take())
    for _ in range(5):
        await asyncio.sleep(0)
    return task


async def test_as_much_is_in_hand_as_there_is_and_the_rest_waits_in_line() -> None:
    allowance = Allowance(10)
    first, second, third = [await held(allowance, amount) for amount in (6, 4, 1)]
    assert (first.done(), second.done(), third.done()) == (True, True, False)

    await first.result().aclose()

    await asyncio.wait_for(third, 1)


async def test_a_large_one_is_not_starved_by_small_ones_that_would_fit() -> None:
    allowance = Allowance(10)
    first, large, small = [await held(allowance, amount) for amount in (5, 8, 1)]
    assert (large.done(), small.done()) == (False, False)

    await first.result().aclose()

    await asyncio.wait_for(large, 1)
    await asyncio.wait_for(small, 1)


async def test_one_that_is_larger_than_all_there_is_is_alone() -> None:
    allowance = Allowance(10)
    huge, small = [await held(allowance, amount) for amount in (1_000, 1)]
    assert (huge.done(), small.done()) == (True, False)

    await huge.result().aclose()

    await asyncio.wait_for(small, 1)


async def test_a_waiter_that_leaves_the_line_lets_the_next_one_in() -> None:
    allowance = Allowance(10)
    first, large, small = [await held(allowance, amount) for amount in (5, 8, 5)]

    large.cancel()
    await asyncio.wait_for(small, 1)

    await first.result().aclose()
    await small.result().aclose()
    assert (await held(allowance, 10)).done()


@pytest.mark.parametrize("turns", range(4))
async def test_a_waiter_that_leaves_as_its_turn_comes_holds_nothing(turns: int) -> None:
    allowance = Allowance(10)
    first, second = [await held(allowance, 10) for _ in range(2)]
    await first.result().aclose()
    for _ in range(turns):
        await asyncio.sleep(0)
    second.cancel()
    stacks = await asyncio.gather(second, return_exceptions=True)
    if isinstance(stacks[0], AsyncExitStack):
        await stacks[0].aclose()

    assert (await held(allowance, 10)).done()
