"""Chancy."""

import os
from datetime import UTC, datetime, timedelta
from uuid import UUID

from chancy import Chancy, Queue, Worker, job
from chancy.plugins.leadership import ImmediateLeadership
from chancy.plugins.pruner import Pruner
from psycopg.rows import dict_row

from tests.adapters.drivers.jobs import QUEUE, AskedJob, run_job


@job(queue=QUEUE)
async def charge(*, do: str) -> None:
    await run_job(do, os.environ["ADAPTER_MODE"])


async def install(url: str, jobs: list[AskedJob]) -> list[str]:
    wanted = []
    for asked in jobs:
        one = charge.job.with_kwargs(do=asked["do"]).with_max_attempts(1)
        if asked.get("delay_s"):
            one = one.with_scheduled_at(datetime.now(UTC) + timedelta(seconds=asked["delay_s"]))
        wanted.append(one)
    async with Chancy(url, plugins=[]) as chancy:
        await chancy.migrate()
        await chancy.declare(Queue(QUEUE, concurrency=50, executor=Chancy.Executor.Async, polling_interval=30))
        return [str(UUID(str(each.identifier))) async for part in chancy.push_many(wanted) for each in part]


async def work(url: str, mode: str) -> None:
    os.environ["ADAPTER_MODE"] = mode
    async with Chancy(url, plugins=[]) as chancy, Worker(chancy, shutdown_timeout=1) as worker:
        print("up", flush=True)  # noqa: T201 - the test waits for it
        await worker.wait_for_shutdown()


async def prune(url: str) -> None:
    pruner = Pruner()
    async with (
        Chancy(url, plugins=[ImmediateLeadership(), pruner]) as chancy,
        chancy.pool.connection() as connection,
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        await pruner.prune(chancy, cursor)
