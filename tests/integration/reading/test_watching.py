"""What waiting costs the database: one query a tick for all waiters, and none without waiters."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.api_server import Api, Reply
from tests.eventually import eventually
from tests.integration.reading.conftest import TICK_S
from tests.jobs import JobMaker
from tests.statements import statements_sent
from tests.tokens import token

pytestmark = pytest.mark.asyncio(loop_scope="module")


@asynccontextmanager
async def waiters(api: Api, paths: list[str]) -> AsyncIterator["list[asyncio.Task[Reply]]"]:
    """One client for each path, all of them held while the block lasts."""
    headers = {"Prefer": "wait=60"}
    tasks = [asyncio.create_task(api.get(path, headers=headers)) for path in paths]
    try:
        await eventually(lambda: api.counted("redrive_waiters") == len(paths), what="all wait")
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await eventually(lambda: api.counted("redrive_waiters") == 0)


def looks_at_jobs(api: Api) -> int:
    return api.parts.watches.jobs._looks


def all_looks(api: Api) -> dict[str, int]:
    """How often each watch has looked, by the statement that it looks with."""
    watches = api.parts.watches
    return {
        "jobs.changed": watches.jobs._looks,
        "retries.changed": watches.retries._looks,
        "batches.find_many": watches.batches._looks,
    }


async def test_a_tick_is_one_query_however_many_wait(api: Api, jobs: JobMaker) -> None:
    made = await jobs.make(60, status="pending", attempts=0)
    async with waiters(api, [f"/api/jobs/{made[number % 60].id}" for number in range(180)]):
        with statements_sent() as sent:
            before = looks_at_jobs(api)
            await eventually(lambda: looks_at_jobs(api) >= before + 8)
            looks = looks_at_jobs(api) - before

    assert sent == {"jobs.changed": looks}


async def test_what_changed_is_loaded_in_one_query_more(api: Api, jobs: JobMaker) -> None:
    made = await jobs.make(60, status="pending", attempts=0)
    async with waiters(api, [f"/api/jobs/{made[number % 60].id}" for number in range(180)]) as answers:
        with statements_sent() as sent:
            await jobs.pool.execute(
                "UPDATE control_plane.jobs SET status = 'completed' WHERE id = ANY ($1)", [job.id for job in made[:30]]
            )
            changed = [answer for number, answer in enumerate(answers) if number % 60 < 30]
            async with asyncio.timeout(30):
                assert {answer.data["status"] for answer in await asyncio.gather(*changed)} == {"completed"}
            assert sent["jobs.find"] == 1
            assert sent.keys() == {"jobs.changed", "jobs.find"}
        assert not any(answer.done() for number, answer in enumerate(answers) if number % 60 >= 30)


async def test_jobs_retries_and_batches_that_are_waited_for_are_one_query_each(api: Api, jobs: JobMaker) -> None:
    made = await jobs.many_failed(20)
    retries = [(await api.post(f"/api/jobs/{job.id}/retry")).headers["Location"] for job in made[:10]]
    batches = [
        (
            await api.post("/api/jobs/retry", {"ids": [str(job.id)]}, token=token(scope="jobs:retry:bulk"))
        ).headers["Location"]
        for job in made[10:]
    ]  # fmt: skip
    async with waiters(api, [*retries, *batches, *(f"/api/jobs/{job.id}" for job in made)]):
        with statements_sent() as sent:
            before = all_looks(api)
            await eventually(lambda: looks_at_jobs(api) >= before["jobs.changed"] + 5)
            looks = {name: count - before[name] for name, count in all_looks(api).items()}

    assert sent == looks


async def test_without_waiters_there_is_no_query(api: Api, jobs: JobMaker) -> None:
    job = await jobs.pending()
    async with waiters(api, [f"/api/jobs/{job.id}"]):
        pass
    watch = api.parts.watches.jobs
    await eventually(lambda: watch._ticking is None or watch._ticking.done())

    with statements_sent() as sent:
        await asyncio.sleep(10 * TICK_S)  # the subject: what is not done meanwhile

    assert not sent
