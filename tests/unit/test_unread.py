"""What clients do not read is bounded, over all their connections."""

import asyncio

from api.unread import Unread


class Slow(asyncio.Transport):
    """A connection with so much in its buffer."""

    def __init__(self, held: int) -> None:
        super().__init__()
        self.held = held
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        return self.held

    def abort(self) -> None:
        self.aborted = True


def test_the_oldest_are_cut_off_until_the_rest_fits() -> None:
    unread, slow = Unread(100), [Slow(40), Slow(10), Slow(40), Slow(40)]

    for each in slow:
        unread.add(each)

    assert [each.aborted for each in slow] == [True, False, False, False]
    assert unread.total_bytes == 90


def test_who_has_read_meanwhile_is_not_cut_off_for_what_it_held_before() -> None:
    unread, first, second = Unread(100), Slow(90), Slow(90)
    unread.add(first)
    first.held = 5

    unread.add(second)

    assert (first.aborted, second.aborted, unread.total_bytes) == (False, False, 95)


def test_one_answer_alone_may_be_larger_than_all_may_be_together() -> None:
    unread, small, large = Unread(100), Slow(10), Slow(1000)
    unread.add(small)

    unread.add(large)

    assert (small.aborted, large.aborted) == (True, False)


def test_what_was_read_or_has_left_counts_no_longer() -> None:
    unread, first, second = Unread(100), Slow(60), Slow(60)
    unread.add(first)
    unread.remove(first)
    unread.remove(first)

    unread.add(second)

    assert (first.aborted, second.aborted, unread.total_bytes) == (False, False, 60)
