"""Bisection: finds the items that make a batch fail, by attempting its halves.

A statement for many rows fails as a whole where the database refuses one of them. To find one bad item among n takes
some 2 * log2(n) more attempts, and all other items succeed on the way.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from shared.errors import RedriveError

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")


async def bisect(
    batch: Sequence[T], attempt: Callable[[Sequence[T]], Awaitable[Mapping[K, V] | RedriveError]]
) -> tuple[Mapping[K, V], list[tuple[T, RedriveError]]]:
    """Attempt a batch; where that fails, attempt its halves, and so on until each item that fails stands alone.

    `attempt` gets one item or more, in the order of the batch. It returns the results of these items, or the error
    where one of them may be at fault. What it raises is the fault of no item, and ends the bisection.

    Returns the results, and each item that failed alone with its error, in the order of the batch.
    """
    results: dict[K, V] = {}
    faults: list[tuple[T, RedriveError]] = []
    pending = [batch] if batch else []
    while pending:
        items = pending.pop()
        outcome = await attempt(items)
        if not isinstance(outcome, RedriveError):
            if items is batch:
                return outcome, []
            results.update(outcome)
        elif len(items) == 1:
            faults.append((items[0], outcome))
        else:
            middle = len(items) // 2
            pending += [items[middle:], items[:middle]]
    return results, faults
