"""When deferred requests are worth a warning, and how often."""

import uuid
from typing import TYPE_CHECKING, cast

import pytest

from shared.models import RetryId
from worker import deferrals
from worker.deferrals import Deferrals

if TYPE_CHECKING:
    from shared.settlement import Settlement


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("worker.deferrals.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def deferred() -> Deferrals:
    return Deferrals(cast("Settlement", None))  # it is asked only for a warning


def test_each_reason_is_warned_of_once_a_minute(clock: list[float], deferred: Deferrals) -> None:
    claimed = [deferred.claim_warning(reason) for reason in ("locked", "locked", "slow")]
    assert claimed == [True, False, True]
    clock[0] += deferrals.WARN_EVERY_S
    assert deferred.claim_warning("locked")


def test_a_request_is_deferred_since_it_was_first_seen_until_it_is_settled(
    clock: list[float], deferred: Deferrals
) -> None:
    one, other = RetryId(uuid.uuid4()), RetryId(uuid.uuid4())
    assert deferred.note([one]) == 0
    clock[0] += 30
    assert deferred.note([one, other]) == 30
    deferred.forget([one])
    assert deferred.note([one]) == 0


def test_a_request_that_was_not_seen_for_long_was_settled_elsewhere(clock: list[float], deferred: Deferrals) -> None:
    one = RetryId(uuid.uuid4())
    deferred.note([one])
    clock[0] += deferrals.FORGET_S
    assert deferred.note([one]) == 0
