"""When requests that are held are told of, and how often."""

import uuid

import pytest

from shared.models import RetryId
from worker import holding
from worker.holding import Holding


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("worker.holding.time.monotonic", lambda: now[0])
    return now


def test_a_cause_is_told_once_a_minute_and_each_by_itself(clock: list[float]) -> None:
    held = Holding()
    assert (held.is_due("locked"), held.is_due("locked"), held.is_due("slow")) == (True, False, True)
    clock[0] += holding.TELL_EVERY_S
    assert held.is_due("locked")


def test_a_request_is_held_since_it_was_first_seen_until_it_is_settled(clock: list[float]) -> None:
    held, one, other = Holding(), RetryId(uuid.uuid4()), RetryId(uuid.uuid4())
    assert held.note([one]) == 0
    clock[0] += 30
    assert held.note([one, other]) == 30
    held.forget([one])
    assert held.note([one]) == 0


def test_one_that_was_not_seen_for_long_was_settled_elsewhere(clock: list[float]) -> None:
    held, one = Holding(), RetryId(uuid.uuid4())
    held.note([one])
    clock[0] += holding.FORGET_S
    assert held.note([one]) == 0
