"""How the settler finds refused requests among good ones, and what it keeps for later; the settlement is a stand-in."""

import uuid
from collections.abc import Sequence
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from shared.errors import DatabaseUnavailable, StatementRefused
from shared.messages import RetryMessage
from shared.models import JobId, Outcome, RetryId
from shared.settlement import Settled, Settlement
from worker.metrics import Metrics
from worker.settling import Settler


class _Settlement:
    """Refuses a batch that holds one of the `refused`, has no time for one of the `slow`; counts transactions."""

    def __init__(self) -> None:
        self.refused: set[RetryId] = set()
        self.slow: set[RetryId] = set()
        self.deferred: set[RetryId] = set()
        self.away = False
        self.failing_once = False
        self.settled: dict[RetryId, Settled] = {}
        self.transactions = 0

    async def apply(self, messages: Sequence[RetryMessage]) -> dict[RetryId, Settled]:
        self.transactions += 1
        if self.away:
            raise DatabaseUnavailable
        if self.failing_once:
            self.failing_once = False
            raise DatabaseUnavailable
        if any(message.id in self.refused and message.id not in self.settled for message in messages):
            raise StatementRefused("23514")
        if any(message.id in self.slow for message in messages):
            raise DatabaseUnavailable("QueryCanceledError")
        fresh = {message.id: Settled(Outcome.APPLIED, 0.1) for message in messages if message.id not in self.settled}
        self.settled |= fresh
        return {message.id: self.settled[message.id] for message in messages}

    async def block(self, message: RetryMessage) -> Settled:
        self.transactions += 1
        fresh = message.id not in self.settled
        self.settled[message.id] = Settled(Outcome.BLOCKED, 0.1)
        return Settled(Outcome.BLOCKED, 0.1 if fresh else None)

    async def probe(self) -> None:
        if self.away:
            raise DatabaseUnavailable

    async def defer(self, message: RetryMessage) -> None:
        self.deferred.add(message.id)


def _settler(settlement: _Settlement) -> Settler:
    return Settler(cast("Settlement", settlement), Metrics(CollectorRegistry()))


def _messages(count: int) -> list[RetryMessage]:
    return [
        RetryMessage(request_id=uuid.uuid4(), job_id=JobId(str(uuid.uuid4())), project_id="p1") for _ in range(count)
    ]


@settings(deadline=None)  # machines that are busy with servers
@given(size=st.integers(1, 60), data=st.data())
async def test_the_refused_are_blocked_the_slow_deferred_and_all_others_applied(size: int, data: st.DataObject) -> None:
    messages = _messages(size)
    refused = {message.id for message in messages if data.draw(st.booleans())}
    slow = {message.id for message in messages if data.draw(st.booleans())} - refused
    settlement = _Settlement()
    settlement.refused, settlement.slow = refused, slow
    settled = await _settler(settlement).settle([*messages, *messages[:3]])  # some of them twice
    assert {key for key, value in settled.items() if value.outcome is Outcome.BLOCKED} == refused
    assert {key for key, value in settled.items() if value.outcome is Outcome.APPLIED} == (
        {message.id for message in messages} - refused - slow
    )
    assert settlement.deferred == slow


async def test_one_refused_in_two_hundred_costs_few_transactions() -> None:
    messages = _messages(200)
    settlement = _Settlement()
    settlement.refused = {messages[77].id}
    await _settler(settlement).settle(messages)
    assert settlement.transactions <= 2 * 8 + 2


async def test_a_refused_request_that_is_twice_in_a_batch_is_settled_once() -> None:
    messages = _messages(3)
    settlement = _Settlement()
    settlement.refused = {messages[0].id}
    settled = await _settler(settlement).settle([*messages, messages[0]])
    assert settled[messages[0].id] == Settled(Outcome.BLOCKED, 0.1)


async def test_one_request_that_fails_once_and_then_goes_through_is_not_deferred() -> None:
    settlement = _Settlement()
    settlement.failing_once = True
    (message,) = _messages(1)
    settled = await _settler(settlement).settle([message])
    assert settled[message.id].outcome is Outcome.APPLIED
    assert not settlement.deferred


async def test_what_the_database_was_away_for_goes_through_first_when_it_is_back() -> None:
    settlement = _Settlement()
    settler = _settler(settlement)
    messages = _messages(3)
    settlement.away = True
    with pytest.raises(DatabaseUnavailable):
        await settler.settle(messages)
    with pytest.raises(DatabaseUnavailable):
        await settler.catch_up()
    settlement.away = False
    await settler.catch_up()
    assert settlement.settled.keys() == {message.id for message in messages}
    transactions = settlement.transactions
    await settler.catch_up()
    assert settlement.transactions == transactions  # nothing is left to do
