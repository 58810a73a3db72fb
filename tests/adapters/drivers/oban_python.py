"""Oban for Python, which wants Python 3.12 or newer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from oban import Oban, worker
from oban.schema import install as install_tables

from tests.adapters.drivers.jobs import QUEUE, AskedJob, run_job

_MODE: dict[str, str] = {}


_charge: Any = worker(queue=QUEUE, max_attempts=1)


@_charge
class Charge:
    """The job."""

    async def process(self, job: Any) -> None:  # noqa: ANN401 - its own type is in a library that may not be there
        await run_job(job.args["do"], _MODE["mode"])


@asynccontextmanager
async def _oban(url: str, **settings: object) -> AsyncIterator[Any]:
    pool = await Oban.create_pool(url)
    try:
        yield Oban(pool=pool, **settings)
    finally:
        await pool.close()


async def install(url: str, jobs: list[AskedJob]) -> list[str]:
    async with _oban(url) as oban:
        await install_tables(oban._query._pool)
        job_of: Any = Charge
        ids = []
        for job in jobs:
            delay = {"scheduled_in": job["delay_s"]} if job.get("delay_s") else {}
            ids.append(str((await oban.enqueue(job_of.new({"do": job["do"]}, **delay))).id))
    return ids


async def work(url: str, mode: str) -> None:
    _MODE["mode"] = mode
    async with _oban(url, queues={QUEUE: 40}) as oban, oban:
        print("up", flush=True)  # noqa: T201 - the test waits for it
        await asyncio.Event().wait()


async def prune(url: str) -> None:
    async with _oban(url) as oban:
        await oban._query.prune_jobs(86_400, 20_000)
