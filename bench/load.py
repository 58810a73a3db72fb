"""Closed-loop load on one server: so many connections, each asking again as soon as it is answered.

By wrk, which takes little of the cores for itself. Where it is left out (`--without wrk`) by the bench's own client,
which takes more: good for seeing that everything works.
"""

import asyncio
import itertools
import random
import re
import shutil
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from bench.client import HOST, Answer, drive, load_of, request
from bench.results import Load
from tests.servers import trees
from tests.servers.reaper import reaper

_SCRIPT: Final = Path(__file__).with_name("random_path.lua")
_MOST_S: Final = 600
_UNITS_MS: Final = {"us": 0.001, "ms": 1.0, "s": 1_000.0, "m": 60_000.0}


class WrkFailed(Exception):
    """What wrk printed is not what it prints when all is well."""


@dataclass(frozen=True, slots=True)
class Aim:
    """What is asked: one path, or one of many at random."""

    port: int
    paths: Sequence[str]
    headers: Mapping[str, str]


class Loader:
    """Makes load. `folder` is for what wrk has to read."""

    def __init__(self, folder: Path, *, with_wrk: bool) -> None:
        self._folder = folder
        self._with_wrk = with_wrk

    async def load(self, aim: Aim, *, connections: int, seconds: float) -> Load:
        """Ask for so long. Raises WrkFailed."""
        if self._with_wrk:
            whole_s = max(1, round(seconds))  # it knows whole seconds only
            async with self._wrk(aim, connections, whole_s) as process:
                return _load_of(await _said(process, within_s=whole_s + 60))
        return await _own(aim, connections, seconds)

    @asynccontextmanager
    async def pausing(self, aim: Aim, *, connections: int) -> AsyncIterator["PausingLoad"]:
        """A load that asks only when it is told to, and keeps its connections meanwhile if it is wrk's."""
        if self._with_wrk:
            async with self._wrk(aim, connections, _MOST_S) as process:
                yield _PausingWrk(process)
        else:
            yield _PausingClient(aim, connections)

    @asynccontextmanager
    async def _wrk(self, aim: Aim, connections: int, seconds: int) -> AsyncIterator[asyncio.subprocess.Process]:
        """Its process, which is killed in the end if it still runs."""
        program = shutil.which("wrk")
        if program is None:
            raise WrkFailed("wrk is not installed")
        arguments = ["-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "--latency"]
        for name, value in aim.headers.items():
            arguments += ["-H", f"{name}: {value}"]
        if len(aim.paths) > 1:
            paths = self._folder / "paths"
            paths.write_text("\n".join(aim.paths) + "\n")
            arguments += ["-s", str(_SCRIPT), f"http://{HOST}:{aim.port}/", str(paths)]
        else:
            arguments.append(f"http://{HOST}:{aim.port}{aim.paths[0]}")
        process = await asyncio.create_subprocess_exec(
            program,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        reaper().tell("adopt", process.pid)
        try:
            yield process
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGKILL)
                await process.wait()
            reaper().tell("release", process.pid)
            assert not trees.any_runs([process.pid])


class PausingLoad(Protocol):
    """A load that asks only when it is told to."""

    async def ask(self, seconds: float) -> None:
        """Ask for so long; what was asked last may be answered after it."""

    async def end(self) -> tuple[int, int]:
        """How many requests it has made in all, and how many errors it saw. Raises WrkFailed."""


class _PausingWrk:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        process.send_signal(signal.SIGSTOP)

    async def ask(self, seconds: float) -> None:
        self._process.send_signal(signal.SIGCONT)
        await asyncio.sleep(seconds)
        self._process.send_signal(signal.SIGSTOP)

    async def end(self) -> tuple[int, int]:
        self._process.send_signal(signal.SIGCONT)
        ending = asyncio.create_task(self._interrupt())
        try:
            load = _load_of(await _said(self._process, within_s=60))
        finally:
            ending.cancel()
        return load.requests, load.errors

    async def _interrupt(self) -> None:
        """Have it print its figures: again and again, as any thread may get the signal, and the main one must."""
        while self._process.returncode is None:
            self._process.send_signal(signal.SIGINT)
            await asyncio.sleep(0.1)


class _PausingClient:
    def __init__(self, aim: Aim, connections: int) -> None:
        self._aim = aim
        self._connections = connections
        self._loads: list[Load] = []

    async def ask(self, seconds: float) -> None:
        self._loads.append(await _own(self._aim, self._connections, seconds))

    async def end(self) -> tuple[int, int]:
        return sum(load.requests for load in self._loads), sum(load.errors for load in self._loads)


async def _said(process: asyncio.subprocess.Process, *, within_s: float) -> str:
    async with asyncio.timeout(within_s):
        said, _ = await process.communicate()
    return said.decode()


def _load_of(said: str) -> Load:
    """The figures in what `wrk --latency` prints. Raises WrkFailed."""
    totals = re.search(r"^ +(\d+) requests in ", said, re.MULTILINE)
    rate = re.search(r"^Requests/sec: +([\d.]+)", said, re.MULTILINE)
    quantiles = {
        int(share): float(value) * _UNITS_MS[unit]
        for share, value, unit in re.findall(r"^ +(50|99)% +([\d.]+)(us|ms|s|m) *$", said, re.MULTILINE)
    }
    if totals is None or rate is None or quantiles.keys() != {50, 99}:
        raise WrkFailed(said)
    refused = re.search(r"^ +Non-2xx or 3xx responses: (\d+)", said, re.MULTILINE)
    broken = re.search(r"^ +Socket errors: (.*)$", said, re.MULTILINE)
    errors = (int(refused[1]) if refused else 0) + (sum(map(int, re.findall(r"\d+", broken[1]))) if broken else 0)
    return Load(int(totals[1]), errors, float(rate[1]), quantiles[50], quantiles[99])


async def _own(aim: Aim, connections: int, seconds: float) -> Load:
    asked = [request("GET", path, aim.headers) for path in aim.paths]
    random.shuffle(asked)
    latencies: list[float] = []
    errors = 0

    def heard(sent_at: float, answer: Answer) -> None:
        nonlocal errors
        latencies.append(answer.at - sent_at)
        errors += answer.status >= 400

    began_at = time.perf_counter()
    failures = await drive(aim.port, itertools.cycle(asked), clients=connections, until=began_at + seconds, heard=heard)
    return load_of(latencies, seconds=time.perf_counter() - began_at, errors=errors + failures)
