"""Processes that are killed and started anew, as a supervisor would: `redrive api` and `redrive worker`."""

import asyncio
import re
import signal
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Self

import pytest

from tests.acceptance.chaos.forkserver import Forked, Forkserver
from tests.eventually import eventually

_KILLED = -signal.SIGKILL
_FOREVER_S = 1e6
_LAST_WORDS: Final = re.compile(r'^\{"event":"failpoint reached","failpoint":"(\w+)"\}\Z', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class End:
    """How a process ended, as its parent saw it; at which failpoint, by its own last words."""

    status: int
    failpoint: str | None

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it, a test's or its own at a failpoint."""
        return self.status == _KILLED


class Member:
    """One place among the processes: a process, and the next one when a test has ended it.

    A process that ends without having been told to, other than at a failpoint, stays ended, and is in `deaths`: nothing
    is restarted by hand but what the test itself has killed.
    """

    def __init__(self, forkserver: Forkserver, command: str, settings: dict[str, str]) -> None:
        self._forkserver = forkserver
        self.command = command
        self.settings = settings
        self._failpoints: deque[str] = deque()
        self._failing: str | None = None
        self._told: list[signal.Signals] = []
        self.program: Forked | None = None
        self.ends: list[End] = []
        self.deaths: list[str] = []
        self.logs: list[str] = []
        self.stop_seconds: list[float] = []
        self._keeping: asyncio.Task[None]

    @classmethod
    @asynccontextmanager
    async def supervised(cls, forkserver: Forkserver, command: str, settings: dict[str, str]) -> AsyncIterator[Self]:
        """Keep one going while the block runs."""
        member = cls(forkserver, command, settings)
        member._keeping = asyncio.create_task(member._keep())
        try:
            yield member
        finally:
            member._keeping.cancel()
            await asyncio.wait([member._keeping])

    def revive(self) -> None:
        """Begin again after a trial that has failed."""
        self.deaths.clear()
        self.stop_seconds.clear()
        if self._keeping.done():
            self._keeping.result()
            self._keeping = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        while (died := await self._one_process()) is None:
            pass
        self.deaths.append(died)

    async def _one_process(self) -> str | None:
        """Start a process and wait for its end; None where that is what a test wanted, else how it ended."""
        failing = self._failing = self._failpoints.popleft() if self._failpoints else None
        told: list[signal.Signals] = []
        self._told = told
        extra = {} if failing is None else {"FAILPOINT": failing}
        async with self._forkserver.started(self.command, self.settings | extra) as program:
            self.program = program
            status = await program.ended(within_s=_FOREVER_S)
            self.logs.append(program.err)
        last_words = _LAST_WORDS.search(self.logs[-1].rstrip())
        self.ends.append(End(status, last_words[1] if last_words else None))
        wanted = status == 0 if signal.SIGTERM in told else status == _KILLED and (told or failing is not None)
        return None if wanted else f"{self.command} ended with {status}: {self.logs[-1][-2000:]}"

    async def ready(self) -> bool:
        """Whether its process can work. One that has ended for good makes every wait for it fail."""
        if self._keeping.done():
            self._keeping.result()
            pytest.fail(f"{self.deaths}")
        return self.program is not None and await self.program.readiness() == 200

    @property
    def failing(self) -> bool:
        """Whether it is to die at a failpoint, now or later."""
        return self._failing is not None or bool(self._failpoints)

    def fail_at(self, failpoints: "list[str]", *, by: signal.Signals = signal.SIGKILL) -> None:
        """End it now; the processes that follow die at these failpoints, one after another; then one does not."""
        self._failpoints.extend(failpoints)
        self.send(by)

    def well_again(self) -> None:
        """Let it have no failpoint: neither those that are left nor one that was never reached."""
        self._failpoints.clear()
        if self._failing is not None:
            self.send(signal.SIGKILL)

    @property
    def runs(self) -> bool:
        """Whether there is a process, and not only the last one's remains."""
        return self.program is not None and self.program.runs

    def send(self, number: signal.Signals) -> None:
        if self.program is not None:
            self._told.append(number)
            self.program.send(number)

    def pause(self) -> None:
        """Freeze it, in whatever it is doing."""
        if self.program is not None:
            self.program.send(signal.SIGSTOP)

    def go_on(self) -> None:
        if self.program is not None:
            self.program.send(signal.SIGCONT)

    async def replaced(self, number: signal.Signals, *, within_s: float = 20) -> None:
        """End it, and return once the next process is there; it may not be ready yet."""
        before, loop = len(self.ends), asyncio.get_running_loop()
        self.send(number)
        began_at = loop.time()
        await eventually(lambda: len(self.ends) > before or self.deaths, within_s=within_s, every_s=0.01)
        self.stop_seconds.append(loop.time() - began_at)
        assert not self.deaths, self.deaths

    @property
    def log(self) -> str:
        """All that its processes have logged."""
        return "".join(self.logs) + ("" if self.program is None else self.program.err)
