"""PgQueuer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from tests.adapters.drivers.jobs import AskedJob, run_job


@asynccontextmanager
async def _driver(url: str) -> AsyncIterator[AsyncpgDriver]:
    connection = await asyncpg.connect(url)
    try:
        yield AsyncpgDriver(connection)
    finally:
        await connection.close()


async def install(url: str, jobs: list[AskedJob]) -> list[str]:
    async with _driver(url) as driver:
        queries = Queries(driver)
        await queries.install()
        ids = await queries.enqueue(
            ["charge"] * len(jobs),
            [job["do"].encode() for job in jobs],
            [0] * len(jobs),
            [timedelta(seconds=job.get("delay_s", 0)) for job in jobs],
        )
    return [str(each) for each in ids]


async def work(url: str, mode: str) -> None:
    async with _driver(url) as driver:
        pgq = PgQueuer(driver)

        @pgq.entrypoint("charge", on_failure="hold")
        async def charge(job: Job) -> None:
            await run_job((job.payload or b"").decode(), mode)

        print("up", flush=True)  # noqa: T201 - the test waits for it
        await pgq.run(dequeue_timeout=timedelta(seconds=30), batch_size=10)


async def prune(url: str) -> None:
    """Nothing of it removes jobs that wait or are held; what it has clears the log."""
    async with _driver(url) as driver:
        await Queries(driver).clear_queue_log()
