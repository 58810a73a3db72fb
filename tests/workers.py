"""A worker in this process, with its ops port, for as long as a block lasts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client.parser import text_string_to_metric_families

from shared import settings
from tests.eventually import eventually
from tests.ops_port import OpsPort
from tests.servers.processes import free_port
from worker.app import run


class RunningWorker(OpsPort):
    """What can be seen of a worker from outside, and the event that stops it."""

    def __init__(self, ops_port: int, stop: asyncio.Event, task: "asyncio.Task[None]") -> None:
        super().__init__(ops_port)
        self._stop = stop
        self._task = task

    async def ready(self) -> bool:
        return await self.readiness() == 200

    async def metric(self, name: str, **labels: str) -> float:
        """The value of one sample; 0 for one that is not there."""
        for family in text_string_to_metric_families(await self.metrics()):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return float(sample.value)
        return 0.0

    async def sampled(self, name: str, value: float, **labels: str) -> None:
        """Wait until a sample has this value."""

        async def look() -> bool:
            seen = await self.metric(name, **labels)
            assert seen == value, f"{name} is {seen}"
            return True

        await eventually(look, what=f"{name} {labels} is {value}")

    async def sampled_at_least(self, name: str, value: float, **labels: str) -> None:
        """Wait until a sample has reached this value."""

        async def look() -> bool:
            return await self.metric(name, **labels) >= value

        await eventually(look, within_s=30, what=f"{name} {labels} is {value} or more")

    async def stop(self) -> None:
        """Stop it in order; it must return within its grace, without an error."""
        self._stop.set()
        async with asyncio.timeout(15):
            await self._task


@asynccontextmanager
async def a_worker(
    database_url: str, amqp_url: str | None = None, *, ready: bool = True, **known: object
) -> AsyncIterator[RunningWorker]:
    """Run a worker until the block ends; `ready`: not before it can work."""
    read = settings.read(
        settings.WorkerSettings,
        **{"database_url": database_url, "amqp_url": amqp_url, "ops_port": free_port(), **known},
    )
    stop = asyncio.Event()
    task = asyncio.create_task(run(read, stop=stop))  # not in a TaskGroup, which would wrap a test's failure in its own
    worker = RunningWorker(read.ops_port, stop, task)
    try:
        if ready:
            await eventually(worker.ready, within_s=20, what="the worker is ready")
        yield worker
    finally:
        await worker.stop()
