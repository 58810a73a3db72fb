"""The order of an upgrade to messages of several requests: workers first. The other one only takes longer."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import aiohttp
import pytest

from shared import topology
from tests.acceptance.programs import Program
from tests.eventually import eventually
from tests.jobs import JobMaker, MadeJob
from tests.queues import Queues
from tests.servers.processes import free_port
from tests.tokens import SECRET, token

OLD: Final = "tests.upgrade.version_1"
NEW: Final = None


@pytest.fixture
async def jobs(database_url: str) -> AsyncIterator[JobMaker]:
    async with JobMaker.on(database_url) as maker:
        yield maker


@pytest.fixture
async def queues(amqp_url: str) -> AsyncIterator[Queues]:
    async with Queues.on(amqp_url) as declared:
        yield declared


@pytest.fixture
def settings(database_url: str, amqp_url: str) -> dict[str, str]:
    return {"DATABASE_URL": database_url, "AMQP_URL": amqp_url, "JWT_SECRET": SECRET, "PORT": str(free_port())}


@asynccontextmanager
async def running(command: str, module: str | None, settings: dict[str, str]) -> AsyncIterator[Program]:
    """A program, ready."""
    async with Program.started(command, module=module, **settings) as program:
        await program.until_ready()
        yield program


async def retry(settings: dict[str, str], failed: Sequence[MadeJob]) -> None:
    """Ask for a retry of all of these at once, so that they travel together where they may."""
    headers = {"Authorization": f"Bearer {token(scope='jobs:retry jobs:retry:bulk')}"}
    async with aiohttp.ClientSession(f"http://127.0.0.1:{settings['PORT']}", headers=headers) as client:
        body = {"ids": [str(job.id) for job in failed]}
        async with client.post("/api/jobs/retry", json=body) as answer:
            assert answer.status == 202, await answer.text()


async def all_put_back(jobs: JobMaker, failed: Sequence[MadeJob]) -> None:
    async def are_put_back() -> bool:
        return await jobs.effects(failed) == [1] * len(failed)

    await eventually(are_put_back, within_s=30, what="each job was put back once")


async def waits(queues: Queues, queue: str, count: int) -> bool:
    return await queues.waiting(queue) == count


async def test_with_the_workers_upgraded_first_every_message_is_read(
    settings: dict[str, str], jobs: JobMaker, queues: Queues
) -> None:
    failed = await jobs.many_failed(20)
    async with running("api", OLD, settings):
        await retry(settings, failed)
        await eventually(lambda: waits(queues, topology.RETRIES_BULK, 20))
        async with running("worker", NEW, settings):
            await all_put_back(jobs, failed)
    assert await queues.waiting(topology.RETRIES_DEAD) == 0


async def test_with_the_api_upgraded_first_nothing_is_lost_or_doubled_once_a_worker_is_upgraded(
    settings: dict[str, str], jobs: JobMaker, queues: Queues
) -> None:
    failed = await jobs.many_failed(20)
    async with running("api", NEW, settings), running("worker", OLD, settings):
        await retry(settings, failed)
        await eventually(lambda: waits(queues, topology.RETRIES_DEAD, 1))
        (letter,) = await queues.peek(topology.RETRIES_DEAD)
        assert (len(letter.requests), letter.reason) == (20, "unknown version")
        assert await jobs.effects(failed) == [0] * 20

        async with running("worker", NEW, settings):  # beside the old one: not all are upgraded at once
            await all_put_back(jobs, failed)
    assert await queues.waiting(topology.RETRIES_DEAD) == 0


async def test_going_back_the_api_first_leaves_workers_nothing_that_they_cannot_read(
    settings: dict[str, str], jobs: JobMaker, queues: Queues
) -> None:
    before, after = await jobs.many_failed(20), await jobs.many_failed(20)
    async with running("worker", NEW, settings):
        async with running("api", NEW, settings):
            await retry(settings, before)
            await all_put_back(jobs, before)
        await eventually(queues.drained)
        async with running("api", OLD, settings):
            await retry(settings, after)
            await all_put_back(jobs, after)
    last = await jobs.many_failed(20)
    async with running("api", OLD, settings), running("worker", OLD, settings):
        await retry(settings, last)
        await all_put_back(jobs, last)
    assert await queues.waiting(topology.RETRIES_DEAD) == 0
