"""`redrive api --processes`: several processes on one port, looked after by one more."""

import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.acceptance.programs import Program
from tests.eventually import eventually
from tests.logins import Logins
from tests.servers import trees
from tests.servers.processes import free_port
from tests.tokens import SECRET, token


class Several:
    """Two api processes, and what supervises them."""

    def __init__(self, program: Program, port: int) -> None:
        self.program = program
        self.url = f"http://127.0.0.1:{port}"

    @classmethod
    @asynccontextmanager
    async def running(cls, database_url: str, **more: str) -> AsyncIterator["Several"]:
        port = free_port()
        settings = {"DATABASE_URL": database_url, "JWT_SECRET": SECRET, "PORT": str(port), "LIMIT_IP": "off", **more}
        async with Program.started("api", "--processes", "2", **settings) as program:
            several = cls(program, port)
            await eventually(several.whole, within_s=30)
            yield several

    def children(self) -> list[int]:
        """The processes that serve."""
        return trees.tree_of(self.program.pid)[1:]

    async def whole(self) -> bool:
        """Whether both processes tell of themselves."""
        if await self.program.readiness() != 200:
            return False
        metrics = await self.program.metrics()
        return all(f'process="{number}"' in metrics for number in (0, 1))

    async def status(self) -> int:
        """What a client gets, on a connection of its own."""
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {token()}"}) as session,
            session.get(f"{self.url}/api/jobs") as answer,
        ):
            return answer.status


@pytest.fixture
async def api_url(database_url: str) -> AsyncIterator[str]:
    """The database, for the api's own user."""
    async with Logins.on(database_url) as logins:
        yield (await logins.made(database_url)).api


async def test_a_process_that_dies_is_replaced(api_url: str) -> None:
    async with Several.running(api_url) as several:
        first, second = several.children()
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: len(several.children()) == 2 and first not in several.children())
        await eventually(several.whole, within_s=30)
        assert second in several.children()
        assert await several.status() == 200


async def test_both_processes_answer_on_one_port(api_url: str) -> None:
    async with Several.running(api_url) as several:

        async def both_counted() -> bool:
            assert await several.status() == 200
            metrics = await several.program.metrics()
            lines = [line for line in metrics.splitlines() if line.startswith("redrive_http_requests_total")]
            return len(lines) == 2

        await eventually(both_counted)


async def test_sigterm_ends_all_of_them(api_url: str) -> None:
    async with Several.running(api_url) as several:
        children = several.children()
        several.program.send(signal.SIGTERM)
        assert await several.program.ended() == 0
        assert not trees.any_runs(children)


async def test_a_process_that_hangs_is_killed_within_the_grace(api_url: str) -> None:
    async with Several.running(api_url, SHUTDOWN_GRACE="4") as several:
        children = several.children()
        os.kill(children[0], signal.SIGSTOP)
        began = time.monotonic()
        several.program.send(signal.SIGTERM)
        assert await several.program.ended() == 0
        assert time.monotonic() - began < 5  # a second of it is for a busy machine
        assert not trees.any_runs(children)
        assert [line["event"] for line in several.program.log if "killed" in line["event"]] == ["api process killed"]


async def test_none_is_left_behind_when_the_one_that_looks_after_them_is_killed(api_url: str) -> None:
    async with Several.running(api_url) as several:
        children = several.children()
        several.program.send(signal.SIGKILL)
        await eventually(lambda: not trees.any_runs(children), within_s=20)


async def test_exemplars_come_through_with_the_number_of_their_process(api_url: str) -> None:
    port = free_port()
    settings = {"DATABASE_URL": api_url, "JWT_SECRET": SECRET, "PORT": str(port), "LIMIT_IP": "off", "TRACING": "1"}
    async with Program.started("api", "--processes", "2", **settings) as program:
        await program.until_ready()
        several = Several(program, port)

        async def shown() -> bool:
            assert await several.status() == 200
            text = await program.metrics(accept="application/openmetrics-text")
            families = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
            (took,) = (family for family in families if family.name == "redrive_http_request_seconds")
            traced = [sample for sample in took.samples if sample.exemplar is not None]
            return any(sample.labels["process"] in "01" and sample.exemplar.labels["trace_id"] for sample in traced)

        await eventually(shown, within_s=30)
