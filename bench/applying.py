"""Single retries from the POST until the last job is put back: how many a second, and what each process spends on one.

A deployment is `redrive api` and workers on a database and a virtual host of their own. How many batches there were is
read from the ledger, where the rows of one transaction have one time; the api counts those that it publishes.
"""

import re
import resource
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from bench import jobs
from bench.capacity import Batches, Cost
from bench.client import ask, post, request, until_true
from bench.part import Stage
from bench.processor import Machine, machine_s, processor_s
from bench.programs import OWN, Program, Version, bearer, redrive_api, redrive_worker
from tests.servers.processes import ServerFailed

if TYPE_CHECKING:
    from bench.jobs import Connection

_WITHIN_S: Final = 300
_LOOK_S: Final = 0.01
_BATCHES: Final = """
SELECT
    count(DISTINCT requested_at) AS accepted, count(DISTINCT processed_at) AS settled,
    count(*) FILTER (WHERE state <> 'applied') AS not_applied
FROM redrive.retry_requests
"""


@dataclass(frozen=True, slots=True)
class Applied:
    """One round. `per_s`: from the first POST until the last job was put back. `cost`: None where it cannot be seen.

    `settling_s`: how long a worker's transaction took, with all that belongs to it.
    """

    per_s: float
    batches: Batches
    settling_s: float
    cost: Cost | None
    use: "Use | None"


class Use(NamedTuple):
    """Of the machine's cores: how many were idle, and how many other programs had, while something was measured."""

    idle: float
    others: float


class _Settled(NamedTuple):
    seconds: float
    batches: float


@dataclass(frozen=True, slots=True)
class Deployment:
    """Programs that run, and a connection to look on."""

    stage: Stage
    api: Program
    workers: Sequence[Program]
    database: "Connection"

    @classmethod
    @asynccontextmanager
    async def running(
        cls, stage: Stage, *, apis: int = 1, workers: int = 1, with_broker: bool = True, version: Version = OWN
    ) -> AsyncIterator["Deployment"]:
        """So many of each, ready."""
        async with AsyncExitStack() as stack:
            database_url = await stack.enter_async_context(stage.postgres.database(migrated=version is OWN))
            if version is not OWN:
                await version.migrate(database_url)
            amqp_url = None
            if with_broker:
                assert stage.rabbitmq is not None
                amqp_url = await stack.enter_async_context(stage.rabbitmq.vhost())
            database = await stack.enter_async_context(jobs.connected(database_url))
            api = await stack.enter_async_context(redrive_api(stage.folder, database_url, amqp_url, apis, version))
            started = [
                await stack.enter_async_context(redrive_worker(stage.folder, database_url, amqp_url, version))
                for _ in range(workers)
            ]
            yield cls(stage, api, started, database)

    async def apply(self, retries: int, *, clients: int) -> Applied:
        """Retry so many failed jobs, each by a POST of its own. Raises ServerFailed, TimeoutError."""
        await jobs.clear(self.database)
        ids = await jobs.make(self.database, retries, status="failed")
        await jobs.settle(self.database)
        requests = iter([request("POST", f"/api/jobs/{job_id}/retry", bearer()) for job_id in ids])

        async def finished() -> bool:
            return await jobs.all_settled(self.database)

        settled_before, published_before = await self._settled(), await self._published()
        before, machine_before = self._spent(), machine_s()
        began_at = time.perf_counter()
        load = await post(self.api.port, requests, clients=clients, until=began_at + _WITHIN_S)
        await until_true(finished, every_s=_LOOK_S, within_s=_WITHIN_S)
        seconds = time.perf_counter() - began_at
        after, machine_after = self._spent(), machine_s()
        settled = await self._settled()
        counted = await self.database.fetchrow(_BATCHES)
        assert counted is not None
        if load.errors or counted["not_applied"]:
            raise ServerFailed(f"of {retries} retries {load.errors} were refused, {counted['not_applied']} not applied")
        return Applied(
            retries / seconds,
            Batches(
                accepted=counted["accepted"] / retries,
                published=(await self._published() - published_before) / retries,
                settled=counted["settled"] / retries,
            ),
            (settled.seconds - settled_before.seconds) / (settled.batches - settled_before.batches),
            None if before is None or after is None else per_request(before, after, retries),
            None if before is None or after is None else use_of(machine_before, machine_after, before, after, seconds),
        )

    async def _settled(self) -> "_Settled":
        """What the workers count of their batches, since they started."""
        seconds, batches = 0.0, 0.0
        for worker in self.workers:
            said = (await ask(worker.port, request("GET", "/metrics", {}))).body.decode()
            found = dict(re.findall(r"^redrive_batch_seconds_(sum|count) (\S+)$", said, re.MULTILINE))
            seconds += float(found["sum"])
            batches += float(found["count"])
        return _Settled(seconds, batches)

    async def _published(self) -> float:
        """Batches that the relays of all api processes have published, since they started."""
        said = (await ask(self.api.ops_port, request("GET", "/metrics", {}))).body.decode()
        return sum(float(count) for count in re.findall(r"^redrive_relay_batches_total\S* (\S+)$", said, re.MULTILINE))

    def _spent(self) -> Cost | None:
        """Milliseconds of processor time so far; None where a server is not a process of this machine."""
        return spent(self.stage, self.api, self.workers)


def spent(stage: Stage, api: Program, workers: Sequence[Program] = ()) -> Cost | None:
    """Milliseconds of processor time so far, the servers' included, and of the bench itself with its load generators.

    None where a server is not a process of this machine.
    """
    if stage.postgres_pid is None or (stage.rabbitmq is not None and stage.rabbitmq_pid is None):
        return None
    own, ended = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return Cost(
        api=api.cpu_s() * 1_000,
        worker=sum(worker.cpu_s() for worker in workers) * 1_000,
        postgresql=processor_s(stage.postgres_pid) * 1_000,
        rabbitmq=0.0 if stage.rabbitmq_pid is None else processor_s(stage.rabbitmq_pid) * 1_000,
        client=sum(each.ru_utime + each.ru_stime for each in (own, ended)) * 1_000,
    )


def per_request(before: Cost, after: Cost, requests: int) -> Cost:
    """What was spent between two looks, for each of so many requests."""
    return Cost(
        api=(after.api - before.api) / requests,
        worker=(after.worker - before.worker) / requests,
        postgresql=(after.postgresql - before.postgresql) / requests,
        rabbitmq=(after.rabbitmq - before.rabbitmq) / requests,
        client=(after.client - before.client) / requests,
    )


def use_of(machine_before: Machine, machine_after: Machine, before: Cost, after: Cost, seconds: float) -> Use:
    """How the cores were used between two looks."""
    busy = machine_after.busy - machine_before.busy
    own = (after.total - before.total) / 1_000
    return Use((machine_after.idle - machine_before.idle) / seconds, max(0.0, busy - own) / seconds)
