"""Chancy."""

import os
from datetime import UTC, datetime, timedelta
from uuid import UUID

from chancy import Chancy, Queue, Worker, job
from chancy.plugins.leadership import ImmediateLeadership
from chancy.plugins.pruner import Pruner
from psycopg.rows import dict_row

from tests.adapters.drivers.jobs import QUEUE, AskedJob, run_job

_SELDOM_S = 30
"""So that a job which comes sooner shows that the worker was told of it."""
_OFTEN_S = 1
"""Told once, a worker takes as many jobs as it runs at once, and more only when it looks again."""


def _queue(looks_every_s: int) -> Queue:
    return Queue(QUEUE, concurrency=50, executor=Chancy.Executor.Async, polling_interval=looks_every_s)


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
        await chancy.declare(_queue(_SELDOM_S))
        return [str(UUID(str(each.identifier))) async for part in chancy.push_many(wanted) for each in part]


async def work(url: str, mode: str) -> None:
    os.environ["ADAPTER_MODE"] = mode
    async with Chancy(url, plugins=[]) as chancy:
        await chancy.declare(_queue(_OFTEN_S if mode == "fail" else _SELDOM_S), upsert=True)
        async with Worker(chancy, shutdown_timeout=1) as worker:
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
