"""Oban and River, by hand: their libraries want another language, or a newer Python than the tests have.

The tables are written down here from what those systems document, as far as an adapter meets them, and the worker does
to a row what those workers do. So this shows that the adapter's SQL fits such tables, and nothing about those workers.
"""

import asyncio
import json
from dataclasses import dataclass

import asyncpg

from tests.adapters.drivers.jobs import QUEUE, AskedJob, Declined, run_job


@dataclass(frozen=True, slots=True)
class ByHand:
    """The SQL of one system."""

    tables: str
    insert: str
    """$1 what to do, $2 the queue, $3 seconds until it may run."""
    stage: str
    """Jobs whose time has come become available."""
    fetch: str
    """Takes one available job; answers its id and what to do."""
    complete: str
    fail: str
    """$1 the id, $2 the error as JSON."""
    prune: str

    async def install(self, url: str, jobs: list[AskedJob]) -> list[str]:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(self.tables)
            return [
                str(await connection.fetchval(self.insert, job["do"], QUEUE, float(job.get("delay_s", 0))))
                for job in jobs
            ]
        finally:
            await connection.close()

    async def work(self, url: str, mode: str) -> None:
        connection = await asyncpg.connect(url)
        print("up", flush=True)  # noqa: T201 - the test waits for it
        while True:
            await connection.execute(self.stage)
            while job := await connection.fetchrow(self.fetch):
                try:
                    await run_job(job["do"], mode)
                except Declined as error:
                    await connection.execute(self.fail, job["id"], json.dumps({"error": str(error), "attempt": 1}))
                else:
                    await connection.execute(self.complete, job["id"])
            await asyncio.sleep(0.5)

    async def prune_once(self, url: str) -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(self.prune)
        finally:
            await connection.close()
