"""The release before this one, on this schema and beside these programs; `make upgrade-check` says which one it is.

Every program and command runs as the user that a deployment gives it, so that a right is missed that a migration takes
away.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from shared.migrations import names
from tests.acceptance.programs import Program
from tests.commands import COMMAND, Done, commanded
from tests.eventually import eventually
from tests.jobs import JobMaker, MadeJob
from tests.logins import Logins, Users
from tests.servers.processes import free_port
from tests.tokens import SECRET, token

BEFORE = Path(os.environ.get("REDRIVE_BEFORE", "not set: make upgrade-check"))
NOW = COMMAND


@dataclass(frozen=True, slots=True)
class Place:
    """A database that has the users of a deployment and nothing else, and settings of both programs."""

    users: Users
    api: dict[str, str]
    worker: dict[str, str]

    @property
    def port(self) -> int:
        return int(self.api["PORT"])

    async def migrate(self, command: Path) -> list[str]:
        """Migrate with one of the releases; answer the files that it has applied."""
        done = await ran(command, "migrate", DATABASE_URL=self.users.owner)
        assert done.status == 0, done.err
        *applied, last = done.out.splitlines()
        assert last == "the database is up to date"
        return [line.removeprefix("applied ") for line in applied]

    async def check(self, command: Path) -> list[Done]:
        """Have one of the releases look at all that its programs need."""
        return [await ran(command, "check", "api", **self.api), await ran(command, "check", "worker", **self.worker)]


@asynccontextmanager
async def started(
    command: Path, name: str, settings: Mapping[str, str], *, ready: bool = True
) -> AsyncIterator[Program]:
    """A program of one of the releases, ready unless told otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.acceptance.programs.COMMAND", command)
        starting = Program.started(name, **settings)
        program = await starting.__aenter__()
    try:
        if ready:
            await program.until_ready()
        yield program
    finally:
        await starting.__aexit__(None, None, None)


async def ran(command: Path, *args: str, **settings: str) -> Done:
    """A command of one of the releases."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.commands.COMMAND", command)
        return await commanded(*args, **settings)


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


@pytest.fixture
async def place(empty_database_url: str, dispatch: dict[str, str]) -> AsyncIterator[Place]:
    async with Logins.on(empty_database_url) as logins:
        users = await logins.made(empty_database_url)
        api = {"DATABASE_URL": users.api, "JWT_SECRET": SECRET, "PORT": str(free_port()), **dispatch}
        yield Place(users, api, {"DATABASE_URL": users.worker, **dispatch})


async def test_the_release_before_works_on_this_schema(place: Place) -> None:
    await place.migrate(NOW)
    assert [done.status for done in await place.check(BEFORE)] == [0, 0]
    assert await place.migrate(BEFORE) == []  # and takes nothing back
    assert (await ran(NOW, "migrate", "--check", DATABASE_URL=place.users.owner)).status == 0
    async with (
        JobMaker.on(place.users.admin) as maker,
        started(BEFORE, "api", place.api),
        started(BEFORE, "worker", place.worker),
    ):
        jobs = await maker.many_failed(20)
        await retried(place.port, jobs)
        await put_back_once(maker, jobs)


@pytest.mark.parametrize("older", ["the release before", "none"])
async def test_on_an_older_schema_says_what_is_missing_and_starts_with_it(place: Place, older: str) -> None:
    before = await place.migrate(BEFORE) if older == "the release before" else []
    new = [name for name in names() if name not in before]
    missing = await ran(NOW, "migrate", "--check", DATABASE_URL=place.users.owner)
    checks = await place.check(NOW)
    async with (
        started(NOW, "api", place.api, ready=False) as api,
        started(NOW, "worker", place.worker, ready=False) as worker,
    ):
        programs = (api, worker)
        if new:
            await eventually(lambda: all("migrations missing" in program.err for program in programs), within_s=60)
            assert await asyncio.gather(*(program.readiness() for program in programs)) == [503, 503]
        assert await place.migrate(NOW) == new
        for program in programs:
            await program.until_ready()
        assert ["migrations missing" in program.err for program in programs] == [bool(new)] * 2

    assert before == names()[: len(before)]
    assert [line for line in missing.out.splitlines() if line.startswith("missing ")] == [
        f"missing {name}" for name in new
    ]
    assert missing.status == (1 if new else 0)
    assert [done.status for done in checks] == [1 if new else 0] * 2
    said = (
        f"failed   database: {len(new)} of {len(names())} migrations are missing: run `redrive migrate`\n"
        if new
        else f"ok       database: all {len(names())} migrations applied\n"
    )
    assert all(said in done.out for done in checks), checks


async def test_an_upgrade_in_the_documented_order_loses_and_doubles_nothing(place: Place) -> None:
    await place.migrate(BEFORE)
    async with JobMaker.on(place.users.admin) as maker:
        asked: list[MadeJob] = []

        async def ask() -> None:
            jobs = await maker.many_failed(5)
            asked.extend(jobs)
            await retried(place.port, jobs)

        async with started(BEFORE, "api", place.api):
            async with started(BEFORE, "worker", place.worker):
                await ask()
                await place.migrate(NOW)
                await ask()
            await ask()  # while there is no worker
            async with started(NOW, "worker", place.worker):
                await ask()
                await put_back_once(maker, asked)
        async with started(NOW, "api", place.api), started(NOW, "worker", place.worker):
            await ask()
            await put_back_once(maker, asked)


async def test_an_upgrade_of_the_api_before_the_workers_loses_and_doubles_nothing(place: Place) -> None:
    """What a worker of before cannot read waits until one of now comes."""
    await place.migrate(NOW)
    async with JobMaker.on(place.users.admin) as maker, started(NOW, "api", place.api):
        asked: list[MadeJob] = []

        async def ask() -> None:
            jobs = await maker.many_failed(20)
            asked.extend(jobs)
            await retried(place.port, jobs)

        async with AsyncExitStack() as beside:
            async with started(BEFORE, "worker", place.worker):
                await ask()
                await beside.enter_async_context(started(NOW, "worker", place.worker))
                await ask()
                await put_back_once(maker, asked)
            await ask()  # the old worker has ended
            await put_back_once(maker, asked)
