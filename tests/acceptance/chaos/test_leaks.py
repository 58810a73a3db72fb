"""What the programs hold after a long while: P19.

Nothing is killed here: what a new process holds says nothing about the one before.
"""

import asyncio
import random
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.acceptance.chaos.processes import Member
from tests.acceptance.chaos.rig import RATE, Rig, Trial
from tests.acceptance.chaos.tally import SCALE, scaled
from tests.eventually import eventually
from tests.jobs import MadeJob
from tests.tokens import token

pytestmark = pytest.mark.asyncio(loop_scope="package")

_UNKNOWN: Final = {"process_resident_memory_bytes": 0.0, "process_open_fds": 0.0}
ROUND_S = 2.5 if SCALE == 1 else 8.0
VISITORS = 12
MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Held:
    """What one process holds, by its own metrics. Where there is no /proc, only its tasks are known."""

    memory_bytes: float
    descriptors: float
    tasks: float

    @classmethod
    async def by(cls, member: Member) -> "Held":
        assert member.program is not None
        families = text_string_to_metric_families(await member.program.metrics())
        values = {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}
        assert not values.get("redrive_waiters"), "a client that has left is still held"
        known = values if sys.platform == "linux" else {**_UNKNOWN, **values}
        return cls(known["process_resident_memory_bytes"], known["process_open_fds"], known["redrive_tasks"])

    def grown_from(self, early: "Held") -> bool:
        """Whether this is more than chance, caches and pools that fill up can explain."""
        return (
            self.memory_bytes > 1.1 * early.memory_bytes + 6 * MIB
            or self.descriptors > early.descriptors + 8
            or self.tasks > early.tasks + 3
        )

    def __sub__(self, early: "Held") -> str:
        memory_mib = (self.memory_bytes - early.memory_bytes) / MIB
        return (
            f"{memory_mib:+.1f} MiB, {self.descriptors - early.descriptors:+.0f} descriptors, "
            f"{self.tasks - early.tasks:+.0f} tasks"
        )


class Visitors:
    """Clients that wait for jobs or read streams, and mostly leave before the end, some in the middle of a request."""

    def __init__(self, urls: list[str], jobs: list[MadeJob], rng: random.Random) -> None:
        self._urls = urls
        self._jobs = jobs
        self._rng = rng
        self._stopping = False

    @asynccontextmanager
    async def coming_and_going(self) -> AsyncIterator[None]:
        """Visit while the block runs."""
        async with asyncio.TaskGroup() as visiting:
            for _ in range(VISITORS):
                visiting.create_task(self._visit())
            yield
            self._stopping = True

    async def _visit(self) -> None:
        visits = [(self._wait, 1.0), (self._wait_to_the_end, 10.0), (self._stream, 1.0), (self._break_off, 1.0)]
        while not self._stopping:
            url = f"{self._rng.choice(self._urls)}/api/jobs/{self._rng.choice(self._jobs).id}"
            # The server is in trouble now and then, and the client impatient: nothing is expected of an answer here.
            with suppress(aiohttp.ClientError, OSError, TimeoutError, asyncio.IncompleteReadError):
                visit, longest_s = self._rng.choice(visits)
                async with asyncio.timeout(longest_s * self._rng.uniform(0.1, 1.0)):
                    await visit(url)

    @asynccontextmanager
    async def _answer(self, url: str, **headers: str) -> AsyncIterator[aiohttp.ClientResponse]:
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {token()}"}) as session,
            session.get(url, headers=headers) as answer,
        ):
            yield answer

    async def _wait(self, url: str) -> None:
        async with self._answer(url, Prefer="wait=30") as answer:
            await answer.read()

    async def _wait_to_the_end(self, url: str) -> None:
        async with self._answer(url, Prefer="wait=1") as answer:
            await answer.read()

    async def _stream(self, url: str) -> None:
        async with self._answer(f"{url}/events") as answer:
            async for _ in answer.content:
                pass

    async def _break_off(self, url: str) -> None:
        parts = urlsplit(url)
        _, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(
            f"POST {parts.path}/retry HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token()}\r\n"
            "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{".encode()
        )
        await writer.drain()
        writer.close()
        await writer.wait_closed()


async def test_p19_nothing_leaks_over_time(rig: Rig) -> None:
    rounds = scaled(3, full=56)
    warm = max(1, rounds // 5)
    async with rig.trial("P19 nothing leaks over time") as trial:
        unfinished = await rig.jobs.make(100, status="running")
        processes = [member.program for member in rig.members]
        early: list[Held] = []
        for number in range(rounds):
            load = await trial.load(count=int(RATE * ROUND_S * 3), reads=30)
            visitors = Visitors(rig.urls, unfinished, random.Random(trial.rng.random()))
            async with load.flowing(), visitors.coming_and_going():
                await eventually(lambda: _a_client_waits(rig), within_s=10, every_s=0.05)
                await _break_something(rig, trial, number)
            if number + 1 == warm:
                early = await _quiet(rig, trial)

        async def flat() -> list[Held]:
            late = await _quiet(rig, trial)
            for member, before, after in zip(rig.members, early, late, strict=True):
                assert not after.grown_from(before), f"{member.command}: {after - before}, {before} before"
            return late

        late = await eventually(flat, within_s=40, every_s=1)
        assert processes == [member.program for member in rig.members]
        for member, before, after in zip(rig.members, early, late, strict=True):
            if member in {rig.apis[0], rig.workers[0]}:
                trial.tally.notes[member.command] = f"({after - before})"


async def _break_something(rig: Rig, trial: Trial, number: int) -> None:
    """Let clients have their way, then something break for a moment, then clients again."""
    await trial.pause(0.4 * ROUND_S, 0.5 * ROUND_S)
    trouble = ["database cut", "broker cut", "database stalled", "jobs locked", "broker refused"][number % 5]
    match trouble:
        case "database cut" | "broker cut":
            cut = await (rig.database if trouble == "database cut" else rig.broker).reset()
            assert cut, "there was nothing to cut"
        case "database stalled":
            await rig.database.stall()
        case "jobs locked":
            async with rig.jobs.locked():
                await trial.pause(0.3, 0.6)
        case _:
            await rig.broker.refuse()
            await rig.broker.reset()
    trial.broken()
    await trial.pause(0.3, 0.6)
    await rig.database.heal()
    await rig.broker.heal()
    await trial.pause(0.4 * ROUND_S, 0.5 * ROUND_S)


async def _a_client_waits(rig: Rig) -> bool:
    """Whether clients are held, by the apis' own word."""
    for api in rig.apis:
        assert api.program is not None
        if re.search(r"^redrive_waiters [1-9]", await api.program.metrics(), re.MULTILINE):
            return True
    return False


async def _quiet(rig: Rig, trial: Trial) -> list[Held]:
    """What each process holds once everything is settled, and all clients have left."""

    async def held() -> list[Held]:
        assert await trial.unsettled() == 0
        return [await Held.by(member) for member in rig.members]

    await rig.all_well()
    return await eventually(held, within_s=30, every_s=0.1)
