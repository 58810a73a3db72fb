"""Accepting retries: Redrive, which answers once the ledger has them, beside a handler that publishes inline.

Each job is asked for once. Redrive publishes in the background meanwhile, so the time until the broker has everything
is taken, too. Each server has a database and a virtual host of its own; no worker runs.
"""

import time
from collections import defaultdict
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final, NamedTuple

from bench import jobs
from bench.client import post, request, until_true
from bench.part import Stage
from bench.programs import Program, answers, bearer, comparator, redrive_api
from bench.queues import Broker
from bench.results import Accepting, Figure, Load, Loads
from shared import topology

if TYPE_CHECKING:
    from bench.jobs import Connection

REDRIVE: Final = "Redrive"
INLINE: Final = "inline handler"
_WITHIN_S: Final = 300
_ALL_PUBLISHED: Final = """
SELECT NOT EXISTS (SELECT FROM redrive.retry_requests WHERE state = 'queued' AND published_at IS NULL)
"""


class _Rival(NamedTuple):
    program: Program
    database: "Connection"
    broker: Broker


class _Round(NamedTuple):
    load: Load
    all_published_per_s: float


async def measure(stage: Stage) -> list[Accepting]:
    """The figures. Raises ServerFailed."""
    plan = stage.plan.retrying
    assert stage.rabbitmq is not None
    rivals: dict[str, _Rival] = {}
    rounds: defaultdict[str, list[_Round]] = defaultdict(list)
    async with AsyncExitStack() as stack:
        for server in (REDRIVE, *([INLINE] if stage.has("inline") else [])):
            database_url = await stack.enter_async_context(stage.postgres.database())
            amqp_url = await stack.enter_async_context(stage.rabbitmq.vhost())
            broker = await stack.enter_async_context(Broker.on(amqp_url))
            await broker.declare()
            if server == REDRIVE:
                program = await stack.enter_async_context(redrive_api(stage.folder, database_url, amqp_url))
            else:
                env = {"BENCH_DATABASE_URL": database_url, "BENCH_AMQP_URL": amqp_url}
                program = await stack.enter_async_context(comparator(stage.folder, "inline", env))
                await answers(program, "/ready")
            database = await stack.enter_async_context(jobs.connected(database_url))
            rivals[server] = _Rival(program, database, broker)
            await _round(rivals[server], clients=plan.clients, posts=min(500, plan.posts))  # to warm up
        for number in range(plan.rounds):
            for server, rival in rivals.items():
                rounds[server].append(await _round(rival, clients=plan.clients, posts=plan.posts))
            stage.say(f"accepting: round {number + 1} of {plan.rounds}")
    return [
        Accepting(
            server,
            Loads.of([each.load for each in of_server]),
            Figure.of([each.all_published_per_s for each in of_server]),
        )
        for server, of_server in rounds.items()
    ]


async def _round(rival: _Rival, *, clients: int, posts: int) -> _Round:
    await rival.broker.purge()
    await jobs.clear(rival.database)
    ids = await jobs.make(rival.database, posts, status="failed")
    await jobs.settle(rival.database)
    requests = iter([request("POST", f"/api/jobs/{job_id}/retry", bearer()) for job_id in ids])
    began_at = time.perf_counter()
    load = await post(rival.program.port, requests, clients=clients, until=began_at + _WITHIN_S)
    wanted = load.requests - load.errors

    async def all_published() -> bool:  # a message of Redrive's has many requests; the inline handler marks none
        if await rival.database.fetchval(_ALL_PUBLISHED):
            return True
        return await rival.broker.waiting(topology.RETRIES) >= wanted

    await until_true(all_published, every_s=0.02, within_s=120)
    return _Round(load, wanted / (time.perf_counter() - began_at))
