"""SIGINT and SIGTERM, sent to this very process, in whose main thread the tests run."""

import asyncio
import os
import signal
from types import SimpleNamespace

import pytest

from cli import signals
from cli.errors import CommandFailed
from cli.signals import StopSignals

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@BOTH
def test_a_signal_asks_the_program_to_end_in_order(number: signal.Signals) -> None:
    ended = []

    async def program(stop: asyncio.Event) -> None:
        os.kill(os.getpid(), number)
        await stop.wait()
        ended.append("in order")

    with StopSignals() as stop_signals:
        stop_signals.run(program)

    assert ended == ["in order"]


@BOTH
def test_the_second_one_cuts_it_off(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_SAME_SIGNAL_S", 0)

    async def program(stop: asyncio.Event) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        os.kill(os.getpid(), number)
        await asyncio.Event().wait()

    with pytest.raises(CommandFailed, match="after a second signal"), StopSignals() as stop_signals:
        stop_signals.run(program)


def test_two_at_once_are_one_wish() -> None:
    async def program(stop: asyncio.Event) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        await asyncio.sleep(0)

    with StopSignals() as stop_signals:
        stop_signals.run(program)


@BOTH
def test_before_the_program_runs_a_signal_leaves_the_block_and_closes_what_is_open(number: signal.Signals) -> None:
    steps = []
    with StopSignals():
        try:
            os.kill(os.getpid(), number)
            steps.append("not reached")
        finally:
            steps.append("closed")

    assert steps == ["closed"]


def test_a_signal_while_the_event_loop_is_made_is_the_program_s_and_breaks_nothing_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    new_loop, ended = signals._new_loop, []

    def new_loop_and_signal() -> asyncio.AbstractEventLoop:
        os.kill(os.getpid(), signal.SIGTERM)
        return new_loop()

    async def program(stop: asyncio.Event) -> None:
        await stop.wait()
        ended.append("in order")

    monkeypatch.setattr(signals, "_new_loop", new_loop_and_signal)
    with StopSignals() as stop_signals:
        stop_signals.run(program)

    assert ended == ["in order"]


def test_while_everything_ends_a_signal_changes_nothing() -> None:
    async def program(_stop: asyncio.Event) -> None:
        pass

    with StopSignals() as stop_signals:
        stop_signals.run(program)
        os.kill(os.getpid(), signal.SIGTERM)

    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_grace_begins_with_the_first_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: now))  # the event loop's goes on
    left: list[float] = []

    async def program(stop: asyncio.Event) -> None:
        nonlocal now
        left.append(stop_signals.left_s(10))
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        now += 4
        left.append(stop_signals.left_s(10))

    with StopSignals() as stop_signals:
        stop_signals.run(program)

    now += 8
    assert [*left, stop_signals.left_s(10)] == [10, 6, -2]


def test_what_the_program_raises_goes_through() -> None:
    async def program(_stop: asyncio.Event) -> None:
        raise OSError("the port is taken")

    with pytest.raises(OSError, match="taken"), StopSignals() as stop_signals:
        stop_signals.run(program)
