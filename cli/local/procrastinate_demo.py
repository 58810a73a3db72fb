"""A demo for `redrive up --adapter procrastinate`: the real Procrastinate, its own worker, and jobs that fail at first.

The jobs are in a database of their own, where Redrive's `control_plane.jobs` is the view that `redrive adapter print
procrastinate` prints. The first run of a job fails; once it is retried, Procrastinate's worker completes it.

Procrastinate is no dependency of Redrive's: the extra `procrastinate` brings it, and nothing else imports this module.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import procrastinate
import psycopg

from cli.errors import CommandFailed
from shared import adapters
from shared.sql import statements

if TYPE_CHECKING:
    from shared.database import Database

QUEUE: Final = "demo"
DATABASE: Final = "procrastinate"
_TAKES_S: Final = 1.5
_FAILS: Final = {
    "invoice.render": "renderer-2 did not answer within 30 s",
    "email.send": "connection unexpectedly closed",
    "webhook.deliver": "503 Service Unavailable from https://hooks.example.com/orders",
}
_JOBS: Final = 8
_LATER_S: Final = 3_600
_SETUP_S: Final = 10


class Refused(Exception):
    """What a demo job fails with."""


def install(admin_url: str, url: str) -> None:
    """Make the database with Procrastinate's tables and the adapter's view, where they are missing.

    `admin_url`: the same server, as a superuser. Raises CommandFailed.
    """
    try:
        with psycopg.connect(admin_url, autocommit=True, connect_timeout=_SETUP_S) as connection:
            if connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).fetchone() is None:
                connection.execute(f'CREATE DATABASE "{DATABASE}"')
        with psycopg.connect(url, autocommit=True, connect_timeout=_SETUP_S) as connection:
            found = connection.execute("SELECT to_regclass('public.procrastinate_jobs') IS NOT NULL").fetchone()
            if found != (True,):
                connector = procrastinate.SyncPsycopgConnector(conninfo=url)
                with procrastinate.App(connector=connector).open() as app:
                    app.schema_manager.apply_schema()
            connection.execute(adapters.get("procrastinate").sql().encode())
    except psycopg.Error as error:
        raise CommandFailed(f"Procrastinate's tables could not be made: {error}") from error


class ProcrastinateDemo:
    """Procrastinate with its worker, beside a database of Redrive's where its jobs are seen."""

    def __init__(self, app: procrastinate.App, database: "Database") -> None:
        self._app = app
        self._database = database
        self._sql = statements("demo", "cli.local")

    @classmethod
    @asynccontextmanager
    async def on(cls, url: str, database: "Database") -> AsyncIterator["ProcrastinateDemo"]:
        """Open Procrastinate's own connections to the database at `url`."""
        logging.getLogger("procrastinate").setLevel(logging.CRITICAL)  # each failed job is an error with a traceback
        app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url, min_size=1, max_size=4))
        for name, error in _FAILS.items():
            _add_task(app, name, error)
        async with app.open_async():
            yield cls(app, database)

    async def seed(self) -> int:
        """Enqueue jobs, unless there are some; returns how many were new. Raises DatabaseUnavailable."""
        ((found,),) = await self._database.fetch(self._sql["has_jobs"], QUEUE)
        if found:
            return 0
        for number in range(_JOBS):
            for name in _FAILS:
                await self._defer(name, number)
        for name in _FAILS:
            await self._defer(name, _JOBS, later_s=_LATER_S)
        return (_JOBS + 1) * len(_FAILS)

    async def retryable(self) -> int:
        """The newest failed job; where all were retried, a new one, once the worker has failed it.

        Raises DatabaseUnavailable, and CommandFailed where the worker has not done so in time.
        """

        async def find() -> int | None:
            rows = await self._database.fetch(self._sql["newest_failed"], QUEUE)
            return int(rows[0]["id"]) if rows else None

        try:
            async with asyncio.timeout(_SETUP_S):
                if (found := await find()) is None and not await self._is_busy():
                    await self._defer("invoice.render", 1)
                while found is None:
                    await asyncio.sleep(0.1)
                    found = await find()
        except TimeoutError as error:
            raise CommandFailed(f"Procrastinate's worker has failed no job within {_SETUP_S} s") from error
        return found

    async def _is_busy(self) -> bool:
        ((busy,),) = await self._database.fetch(self._sql["has_due_jobs"], QUEUE)
        return bool(busy)

    async def run_jobs(self, *, stop: asyncio.Event) -> None:
        """Run Procrastinate's worker until `stop` is set, and the jobs in hand."""
        async with asyncio.TaskGroup() as tasks:  # cancelled, it leaves nothing running
            worker = tasks.create_task(self._run_worker())
            stopping = tasks.create_task(stop.wait())
            await asyncio.wait([worker, stopping], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            worker.cancel()
        if not worker.cancelled() and (error := worker.result()) is not None:
            raise CommandFailed(f"Procrastinate's worker ended by itself: {error}") from error

    async def _run_worker(self) -> Exception | None:
        """Run the worker until it is cancelled, and what it has in hand; returns what it has failed with."""
        try:
            await self._app.run_worker_async(
                queues=[QUEUE], concurrency=5, install_signal_handlers=False, shutdown_graceful_timeout=2 * _TAKES_S
            )
        except Exception as error:  # noqa: BLE001 - of any kind: the group would wrap it
            return error
        return None

    async def _defer(self, name: str, number: int, *, later_s: int = 0) -> None:
        schedule = {"seconds": later_s} if later_s else None
        await self._app.configure_task(name, queue=QUEUE, schedule_in=schedule).defer_async(number=number)


def _add_task(app: procrastinate.App, name: str, error: str) -> None:
    """A task whose first run fails, and which works once it was retried."""

    @app.task(name=name, queue=QUEUE, pass_context=True)
    async def run(context: procrastinate.JobContext, number: int) -> None:
        retried = context.job.attempts > 0
        await asyncio.sleep(_TAKES_S if retried else 0)
        if not retried and number > 0:
            raise Refused(error)
