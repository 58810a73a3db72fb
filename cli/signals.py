"""SIGINT and SIGTERM: the first one ends a program in order, a second one at once.

Supervisors often signal twice by accident: Ctrl-C reaches the whole process group, and `make` passes on the signal
that it gets itself. So a signal within a second of the first counts as the same one.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from types import FrameType, TracebackType
from typing import Any, NamedTuple, Self

import structlog

from cli.errors import CommandFailed

log = structlog.stdlib.get_logger(__name__)

_SAME_SIGNAL_S = 1.0
SHARE_OF_GRACE = 0.95
"""When a process ends whatever it waits for: well before a supervisor that counts the same grace kills it."""
_WATCHED = (signal.SIGINT, signal.SIGTERM)

Program = Callable[[asyncio.Event], Coroutine[Any, Any, None]]
"""What runs until its event is set, and then ends in order."""


class _Running(NamedTuple):
    loop: asyncio.AbstractEventLoop
    stop: Callable[[], None]
    task: "asyncio.Task[Any]"


class StopSignals:
    """Both signals, from entering the block to leaving it.

    Before `run`, a signal leaves the block, as an exception that ends here: what the block has opened is closed.
    During `run`, it sets the program's event, and the second one cancels the program. Afterwards it changes nothing:
    the process is ending already.
    """

    def __init__(self) -> None:
        self._signalled_at: float | None = None
        self._running: _Running | None = None
        self._raising = True
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._on_signal) for number in _WATCHED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        return isinstance(error, _Signalled)

    def run(self, program: Program, *, grace_s: float | None = None, share: float = SHARE_OF_GRACE) -> None:
        """Run `program` until it ends, by itself or because a signal asked it to.

        With `grace_s`, this process ends within `share` of so many seconds of the signal, and with status 0. By then
        the program has finished what was in hand, and waits only for servers that do not answer when it closes
        connections.

        Raises CommandFailed after a second signal, and what the program raises.
        """
        self._raising = (
            False  # an exception would interrupt making the event loop; `_run` checks whether a signal has come
        )
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            runner.run(self._run(program, grace_s, share))

    def left_s(self, grace_s: float) -> float:
        """How much of the grace is left: all of it until the first signal, less than nothing where it is over."""
        return grace_s if self._signalled_at is None else self._signalled_at + grace_s - time.monotonic()

    async def _run(self, program: Program, grace_s: float | None, share: float) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine that runs has a task
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def request_stop() -> None:
            stop.set()
            if grace_s is not None:
                loop.call_later(grace_s * share, _exit, grace_s)

        self._running = _Running(loop, request_stop, task)
        if self._signalled_at is not None:
            request_stop()
        try:
            await program(stop)
        except asyncio.CancelledError:
            raise CommandFailed("stopped at once after a second signal: what was in hand is not finished") from None
        finally:
            self._running = None

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        first = self._signalled_at is None
        if self._signalled_at is None:
            self._signalled_at = now
        match self._running:
            case None if first and self._raising:
                raise _Signalled
            case None:
                pass
            case _Running(loop, stop, _) if first:
                loop.call_soon_threadsafe(stop)
            case _Running(loop, _, task) if now - self._signalled_at > _SAME_SIGNAL_S:
                loop.call_soon_threadsafe(task.cancel)
            case _Running():
                pass


class _Signalled(BaseException):
    """A signal came before anything ran; a BaseException, as KeyboardInterrupt is, so that nothing swallows it."""


def _exit(grace_s: float) -> None:
    log.warning("shutdown grace exceeded", within_s=grace_s)
    sys.stderr.flush()
    os._exit(0)


def _new_loop() -> asyncio.AbstractEventLoop:
    if sys.platform == "win32":
        return asyncio.new_event_loop()
    import uvloop  # noqa: PLC0415 - not available on every platform

    return uvloop.new_event_loop()
