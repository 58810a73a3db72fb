"""Settling a backlog: Redrive's worker, with and without a broker, beside a bare consumer and Celery.

Consumers are started, frozen with nothing to do, and let loose when the whole backlog is there: what is measured is
neither their start nor the publishing. Every round has a database and a virtual host of its own.

What marks the end: nothing is queued in the ledger (Redrive), no job is failed any more (Celery), the bare consumer has
acknowledged every message and says so.
"""

import asyncio
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from bench import jobs
from bench.client import until_true
from bench.part import Stage
from bench.programs import ROOT, Program, comparator, redrive_worker
from bench.queues import Broker
from bench.results import Figure, Settling
from shared import topology
from shared.messages import RetryMessage, encoded
from tests.servers.processes import ServerFailed

if TYPE_CHECKING:
    from bench.jobs import Connection

WORKER: Final = "Redrive worker"
WITHOUT_BROKER: Final = "Redrive worker, no broker"
ACK_ONLY: Final = "bare consumer, acks only"
CELERY: Final = "Celery, prefork 2"

_PREFETCH: Final = 400  # the worker's: two batches
_CELERY_QUEUE: Final = "celery"
_WITHIN_S: Final = 300
_LOOK_S: Final = 0.02
_PATIENT: Final = "?heartbeat=600"  # a frozen consumer must not be taken for a dead one

# `published_at` as if the relay had been there: the messages are published here.
_QUEUE_UP: Final = """
INSERT INTO redrive.retry_requests (id, project_id, job_id, job_version, actor, published_at)
SELECT gen_random_uuid(), project_id, id, redrive.job_version(
    type, status, attempts, max_attempts, last_error, scheduled_at, started_at, completed_at, created_at
), 'bench', now() FROM control_plane.jobs
RETURNING id, job_id, project_id
"""
_NONE_FAILED: Final = "SELECT NOT EXISTS (SELECT FROM control_plane.jobs WHERE status = 'failed')"


@dataclass(frozen=True, slots=True)
class _Round:
    """What one round runs on."""

    stage: Stage
    stack: AsyncExitStack
    database_url: str
    amqp_url: str
    database: "Connection"
    broker: Broker
    messages: int


class _Consumers(NamedTuple):
    """Processes that wait for work; `hand_over` makes the backlog of failed jobs, given their ids."""

    programs: Sequence[Program]
    hand_over: Callable[[Sequence[str]], Awaitable[None]]
    finished: Callable[[], Awaitable[bool]]


class _Entrant(NamedTuple):
    consumer: str
    processes: int
    messages: int


_Start = Callable[[_Round], Awaitable[_Consumers]]


async def measure(stage: Stage) -> list[Settling]:
    """The figures. Raises ServerFailed, TimeoutError."""
    plan = stage.plan.retrying
    entrants: dict[_Entrant, _Start] = {}
    for count in plan.workers:
        entrants[_Entrant(WORKER, count, plan.backlog)] = _workers(count, with_broker=True)
        entrants[_Entrant(WITHOUT_BROKER, count, plan.backlog)] = _workers(count, with_broker=False)
    if stage.has("ack_only"):
        entrants[_Entrant(ACK_ONLY, 1, plan.backlog)] = _ack_only
    if stage.has("celery"):
        entrants[_Entrant(CELERY, 1, plan.celery_backlog)] = _celery
    rounds: defaultdict[_Entrant, list[float]] = defaultdict(list)
    for number in range(plan.rounds):
        for entrant, start in entrants.items():
            rounds[entrant].append(entrant.messages / await _seconds(stage, start, entrant.messages))
        stage.say(f"settling: round {number + 1} of {plan.rounds}")
    return [Settling(*entrant, Figure.of(per_s)) for entrant, per_s in rounds.items()]


async def _seconds(stage: Stage, start: _Start, messages: int) -> float:
    """How long one backlog takes."""
    assert stage.rabbitmq is not None
    async with AsyncExitStack() as stack:
        database_url = await stack.enter_async_context(stage.postgres.database())
        amqp_url = await stack.enter_async_context(stage.rabbitmq.vhost())
        database = await stack.enter_async_context(jobs.connected(database_url))
        broker = await stack.enter_async_context(Broker.on(amqp_url))
        await broker.declare()
        consumers = await start(_Round(stage, stack, database_url, amqp_url, database, broker, messages))
        for program in consumers.programs:
            program.freeze()
        await consumers.hand_over(await jobs.make(database, messages, status="failed"))
        await jobs.settle(database)
        began_at = time.perf_counter()
        for program in consumers.programs:
            program.thaw()
        await until_true(consumers.finished, every_s=_LOOK_S, within_s=_WITHIN_S)
        return time.perf_counter() - began_at


def _workers(count: int, *, with_broker: bool) -> _Start:
    async def start(on: _Round) -> _Consumers:
        url = f"{on.amqp_url}{_PATIENT}" if with_broker else None
        programs = [
            await on.stack.enter_async_context(redrive_worker(on.stage.folder, on.database_url, url))
            for _ in range(count)
        ]

        async def hand_over(_ids: Sequence[str]) -> None:
            bodies = await _queued_up(on)
            if with_broker:
                await on.broker.fill(bodies)

        async def finished() -> bool:
            return await jobs.all_settled(on.database)

        return _Consumers(programs, hand_over, finished)

    return start


async def _ack_only(on: _Round) -> _Consumers:
    done = on.stage.folder / "acked"
    done.unlink(missing_ok=True)
    env = {
        "BENCH_AMQP_URL": f"{on.amqp_url}{_PATIENT}",
        "BENCH_QUEUE": topology.RETRIES,
        "BENCH_PREFETCH": str(_PREFETCH),
        "BENCH_MESSAGES": str(on.messages),
        "BENCH_DONE": str(done),
    }
    program = await on.stack.enter_async_context(comparator(on.stage.folder, "ack_only", env))
    await on.broker.consumed(topology.RETRIES, by=1)

    async def hand_over(_ids: Sequence[str]) -> None:
        await on.broker.fill(await _queued_up(on))

    async def finished() -> bool:
        return done.exists()

    return _Consumers([program], hand_over, finished)


async def _celery(on: _Round) -> _Consumers:
    env = {"BENCH_DATABASE_URL": on.database_url, "BENCH_AMQP_URL": on.amqp_url}
    program = await on.stack.enter_async_context(comparator(on.stage.folder, "celery_jobs", env))
    await on.broker.consumed(_CELERY_QUEUE, by=1)

    async def hand_over(ids: Sequence[str]) -> None:
        publisher = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.comparators.celery_jobs", "publish"),
            cwd=ROOT,
            env={"PATH": "", **env},
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        async with asyncio.timeout(_WITHIN_S):
            await publisher.communicate("\n".join(ids).encode())
        if publisher.returncode != 0:
            raise ServerFailed("Celery's tasks could not be published")

    async def finished() -> bool:
        return bool(await on.database.fetchval(_NONE_FAILED))

    return _Consumers([program], hand_over, finished)


async def _queued_up(on: _Round) -> list[bytes]:
    """Write the requests into the ledger; answers their messages."""
    rows = await on.database.fetch(_QUEUE_UP)
    return [
        encoded(RetryMessage(request_id=row["id"], job_id=row["job_id"], project_id=row["project_id"])) for row in rows
    ]
