"""Which sessions are on probation."""

from contextlib import suppress

import pytest

from shared.errors import BrokerUnavailable, DatabaseUnavailable
from worker.probation import Probation


def run(probation: Probation, error: Exception | None = None) -> bool:
    """Whether the session, which ends with `error`, was on probation."""
    seen: list[bool] = []
    with suppress(BrokerUnavailable, DatabaseUnavailable, RuntimeError), probation.session() as on_probation:
        seen.append(on_probation)
        if error is not None:
            raise error
    return seen == [True]


@pytest.mark.parametrize("lost", [BrokerUnavailable("lost"), RuntimeError("a mistake of ours")])
def test_sessions_are_on_probation_after_a_lost_one_until_one_ends_well(lost: Exception) -> None:
    probation = Probation()
    assert [run(probation, each) for each in (None, lost, lost, None, None)] == [False, False, True, True, False]


def test_a_database_that_is_away_neither_begins_nor_ends_probation() -> None:
    probation, lost, away = Probation(), BrokerUnavailable("lost"), DatabaseUnavailable()
    assert [run(probation, each) for each in (away, lost, away, None, None)] == [False, False, True, True, False]
