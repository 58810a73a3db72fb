"""Procrastinate's worker in the demo: how it is ended."""

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from cli.errors import CommandFailed
from cli.local.procrastinate_demo import ProcrastinateDemo

if TYPE_CHECKING:
    import procrastinate

    from shared.database import Database


class App:
    """An app whose worker runs until it is cancelled, or fails at once."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.running = asyncio.Event()
        self.ended = False
        self._failure = failure

    async def run_worker_async(self, **_options: object) -> None:
        self.running.set()
        if self._failure is not None:
            raise self._failure
        try:
            await asyncio.Event().wait()
        finally:
            self.ended = True


def demo_of(app: App) -> ProcrastinateDemo:
    return ProcrastinateDemo(cast("procrastinate.App", app), cast("Database", None))  # the jobs are not asked for


async def test_a_demo_that_is_cancelled_leaves_no_worker() -> None:
    app = App()
    running = asyncio.create_task(demo_of(app).run_jobs(stop=asyncio.Event()))
    await app.running.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert app.ended


async def test_a_demo_that_is_stopped_ends_its_worker() -> None:
    app, stop = App(), asyncio.Event()
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(demo_of(app).run_jobs(stop=stop))
        await app.running.wait()
        stop.set()

    assert app.ended


async def test_a_worker_that_ends_by_itself_is_said() -> None:
    with pytest.raises(CommandFailed, match="ended by itself: no table"):
        await demo_of(App(ValueError("no table"))).run_jobs(stop=asyncio.Event())
