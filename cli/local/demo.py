"""A demo project for `redrive up`: its jobs, and a stand-in for the control plane that runs them.

The stand-in keeps nothing in memory: it reads from the rows what is due and what is over. So it can be killed and
started again at any time. It runs the jobs of every project, because on this machine no other program does.
"""

import asyncio
from contextlib import suppress
from uuid import UUID

import structlog
from uuid_utils.compat import uuid7

from shared.database import Database
from shared.errors import DatabaseUnavailable
from shared.sql import statements

PROJECT = "demo"
_OPERATOR = "night-shift@example.com"
_TICK_S = 0.25
_AT_A_TIME = 20

log = structlog.stdlib.get_logger(__name__)


class Demo:
    """The demo project on one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = statements("demo", "cli.local")

    async def seed(self) -> int:
        """Put the project's jobs there, unless it has some; returns how many were new. Raises DatabaseUnavailable."""
        async with self._database.transaction() as session:
            jobs = [row["id"] for row in await session.fetch(self._sql["seed"], PROJECT)]
            if jobs:
                await session.fetch(self._sql["seed_history"], jobs, _OPERATOR, [uuid7() for _ in jobs], PROJECT)
        return len(jobs)

    async def retryable(self) -> UUID:
        """A failed job that a retry will bring through; made, if all have been retried. Raises DatabaseUnavailable."""
        rows = await self._database.fetch(self._sql["retryable"], PROJECT)
        rows = rows or await self._database.fetch(self._sql["add_retryable"], PROJECT)
        job_id: UUID = rows[0]["id"]
        return job_id

    async def run_jobs(self, *, stop: asyncio.Event) -> None:
        """Run jobs in place of a control plane until `stop` is set; while the database is away, try again."""
        while not stop.is_set():
            try:
                await self._database.fetch(self._sql["finish"])
                await self._database.fetch(self._sql["start"], _AT_A_TIME)
            except DatabaseUnavailable as error:
                log.warning("demo control plane found no database", error=str(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await stop.wait()
