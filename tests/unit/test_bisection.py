"""Bisection finds what fails a batch, and nothing else."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.bisection import bisect
from shared.errors import DatabaseUnavailable, RedriveError, StatementRefused


class Attempts:
    """Doubles numbers, unless there is one of the `bad` among them; keeps the batches."""

    def __init__(self, bad: set[int]) -> None:
        self.bad = bad
        self.batches: list[list[int]] = []

    async def __call__(self, numbers: Sequence[int]) -> dict[int, int] | RedriveError:
        self.batches.append(list(numbers))
        if not self.bad.isdisjoint(numbers):
            return StatementRefused("23514")
        return {number: 2 * number for number in numbers}


@given(size=st.integers(0, 60), bad=st.sets(st.integers(0, 59)))
async def test_exactly_the_items_that_fail_alone_are_at_fault(size: int, bad: set[int]) -> None:
    attempts = Attempts(bad)
    results, faults = await bisect(range(size), attempts)
    assert results == {number: 2 * number for number in range(size) if number not in bad}
    assert [item for item, _ in faults] == [number for number in range(size) if number in bad]
    assert all(attempts.batches)


async def test_a_batch_without_a_bad_item_is_one_attempt_and_one_bad_item_costs_few_more() -> None:
    attempts = Attempts({77})
    await bisect(range(77), attempts)
    assert len(attempts.batches) == 1
    await bisect(range(200), attempts)
    assert len(attempts.batches) <= 1 + 1 + 2 * 8


async def test_an_error_that_is_raised_ends_the_bisection() -> None:
    attempts = 0

    async def attempt(_: Sequence[int]) -> dict[int, int] | RedriveError:
        nonlocal attempts
        attempts += 1
        if attempts == 2:
            raise DatabaseUnavailable
        return StatementRefused("23514")

    with pytest.raises(DatabaseUnavailable):
        await bisect(range(8), attempt)
    assert attempts == 2
