"""How far behind a queue is: what is older than that is held up, and not only late."""

from shared.models import Outcome
from shared.settlement import Settled
from tests.clocks import Clock
from worker.bypass import HELD_UP_S, Lag


def test_a_queue_that_is_only_long_is_behind_and_one_that_is_silent_is_not() -> None:
    clock = Clock()
    lag = Lag(clock=clock.time)

    with lag.settling():
        lag.note([Settled(Outcome.APPLIED, 40.0), Settled(Outcome.APPLIED, 30.0), Settled(Outcome.APPLIED, None)])
        clock.now += 60  # a slow batch
        seen = [lag.seconds]
    clock.now += HELD_UP_S - 0.1
    seen.append(lag.seconds)
    clock.now += 0.2
    seen.append(lag.seconds)

    assert seen == [30.0, 30.0, 0.0]


def test_nothing_is_known_before_the_queue_had_time_to_deliver() -> None:
    clock = Clock()
    lag = Lag(clock=clock.time)
    seen = [lag.seconds]
    clock.now += HELD_UP_S
    seen.append(lag.seconds)

    assert seen == [None, 0.0]


def test_the_time_in_which_nothing_could_be_settled_does_not_count() -> None:
    clock = Clock()
    lag = Lag(clock=clock.time)
    with lag.settling():
        lag.note([Settled(Outcome.APPLIED, 5.0)])
    clock.now += 60  # the database was away
    lag.restart()
    seen = [lag.seconds]
    clock.now += HELD_UP_S
    seen.append(lag.seconds)

    assert seen == [5.0, 0.0]


def test_what_a_queue_has_passed_by_is_as_old_as_what_it_delivered_last_and_grows_older() -> None:
    clock = Clock()
    lag = Lag(clock=clock.time)
    seen = [lag.passed_s]
    with lag.settling():
        clock.now += 100  # a slow batch
        lag.note([Settled(Outcome.APPLIED, 40.0), Settled(Outcome.APPLIED, 30.0)])
        seen.append(lag.passed_s)
    clock.now += 60
    lag.restart()
    with lag.settling():
        lag.note([Settled(Outcome.APPLIED, None)])
    seen.append(lag.passed_s)

    assert seen == [None, 130.0, 190.0]
