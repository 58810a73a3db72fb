"""The release before this one, on this schema and beside these programs; `make upgrade-check` says which one it is."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.acceptance.programs import Program
from tests.commands import COMMAND, Done, commanded
from tests.eventually import eventually
from tests.jobs import JobMaker, MadeJob
from tests.servers.processes import free_port
from tests.tokens import SECRET, token

BEFORE = Path(os.environ.get("REDRIVE_BEFORE", "not set: make upgrade-check"))
NOW = COMMAND


@asynccontextmanager
async def started(command: Path, *args: str, **settings: str) -> AsyncIterator[Program]:
    """A program of one of the releases, ready."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.acceptance.programs.COMMAND", command)
        starting = Program.started(*args, **settings)
        program = await starting.__aenter__()
    try:
        await program.until_ready()
        yield program
    finally:
        await starting.__aexit__(None, None, None)


async def ran(command: Path, *args: str, **settings: str) -> Done:
    """A command of one of the releases."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.commands.COMMAND", command)
        return await commanded(*args, **settings)


async def migrated(command: Path, database_url: str) -> None:
    done = await ran(command, "migrate", DATABASE_URL=database_url)
    assert done.status == 0, done.err


async def retried(port: int, jobs: Sequence[MadeJob]) -> None:
    """Ask for a retry of the first job alone, and of the others as a bulk; read one."""
    headers = {"Authorization": f"Bearer {token(scope='jobs:read jobs:retry jobs:retry:bulk')}"}
    base = f"http://127.0.0.1:{port}/api/jobs"
    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.get(f"{base}/{jobs[0].id}") as answer:
            assert answer.status == 200
        async with session.post(f"{base}/{jobs[0].id}/retry") as answer:
            assert answer.status == 202, await answer.text()
        async with session.post(f"{base}/retry", json={"ids": [str(job.id) for job in jobs[1:]]}) as answer:
            assert answer.status == 202, await answer.text()


async def put_back_once(maker: JobMaker, jobs: Sequence[MadeJob]) -> None:
    async def all_are() -> bool:
        return await maker.effects(jobs) == [1] * len(jobs)

    await eventually(all_are, within_s=30, what="each job was put back once")


@pytest.fixture(params=["ledger", "rabbitmq"])
def dispatch(request: pytest.FixtureRequest, amqp_url: str) -> dict[str, str]:
    return {"AMQP_URL": amqp_url} if request.param == "rabbitmq" else {}


async def test_the_release_before_works_on_this_schema(empty_database_url: str, dispatch: dict[str, str]) -> None:
    await migrated(NOW, empty_database_url)
    port = free_port()
    settings = {"DATABASE_URL": empty_database_url, **dispatch}
    of_api = {**settings, "JWT_SECRET": SECRET, "PORT": str(port)}
    done = await ran(BEFORE, "check", **of_api)
    assert done.status == 0, done.out
    async with (
        JobMaker.on(empty_database_url) as maker,
        started(BEFORE, "api", **of_api),
        started(BEFORE, "worker", **settings),
    ):
        jobs = await maker.many_failed(20)
        await retried(port, jobs)
        await put_back_once(maker, jobs)


async def test_an_upgrade_in_the_documented_order_loses_and_doubles_nothing(
    empty_database_url: str, dispatch: dict[str, str]
) -> None:
    await migrated(BEFORE, empty_database_url)
    port = free_port()
    settings = {"DATABASE_URL": empty_database_url, **dispatch}
    of_api = {**settings, "JWT_SECRET": SECRET, "PORT": str(port)}
    async with JobMaker.on(empty_database_url) as maker:
        asked: list[MadeJob] = []

        async def ask() -> None:
            jobs = await maker.many_failed(5)
            asked.extend(jobs)
            await retried(port, jobs)

        async with started(BEFORE, "api", **of_api):
            async with started(BEFORE, "worker", **settings):
                await ask()
                await migrated(NOW, empty_database_url)
                await ask()
            await ask()  # while there is no worker
            async with started(NOW, "worker", **settings):
                await ask()
                await put_back_once(maker, asked)
        async with started(NOW, "api", **of_api), started(NOW, "worker", **settings):
            await ask()
            await put_back_once(maker, asked)
