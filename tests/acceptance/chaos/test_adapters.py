"""Systems behind their adapters, each with its own worker, while servers and programs are lost: P26.

By `make chaos` only: each system is installed, and its worker fails its jobs once more after each retry.
"""

import asyncio
import random
import signal
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from typing import Final

import asyncpg
import pytest

from shared.messages import encoded
from shared.models import JobId, ProjectId, Version
from tests.acceptance.chaos.forkserver import Forkserver
from tests.acceptance.chaos.load import Load
from tests.acceptance.chaos.processes import Member
from tests.acceptance.chaos.tally import Tally, scaled
from tests.adapters.rig import FAILED, Rig, discard, prepare
from tests.adapters.systems import SYSTEMS, System
from tests.eventually import eventually
from tests.jobs import MadeJob, a_message_for
from tests.logins import broker_users
from tests.queues import Queues
from tests.servers.postgres import PrivatePostgres
from tests.servers.processes import free_port
from tests.servers.rabbitmq import PrivateRabbitmq
from tests.tokens import SECRET

pytestmark = pytest.mark.asyncio(loop_scope="package")

RATE: Final = 20.0
COPIES: Final = 10
POSTS: Final = 20
JOBS_PER_LOSS: Final = 150
"""A loss and what follows it take some six seconds."""
AGAIN_S: Final = 10.0
WELL_WITHIN_S: Final = 60.0
_AWAY: Final = (asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError, asyncpg.InterfaceError, OSError)


@pytest.mark.parametrize("system", [pytest.param(system, id=name) for name, system in SYSTEMS.items()])
async def test_p26_an_adapter_keeps_the_promises_for_the_system_behind_it(
    system: System,
    private_postgres: PrivatePostgres,
    private_rabbitmq: PrivateRabbitmq,
    record_property: Callable[[str, object], None],
) -> None:
    losses = scaled(2, full=10)
    tally = Tally.of(f"P26 {system.name}, its own worker behind it")
    jobs = JOBS_PER_LOSS * losses + 2 * COPIES
    postgres = private_postgres
    try:
        async with _redrive_beside(system, postgres, private_rabbitmq, jobs=jobs) as (rig, members, load, amqp_url):
            others, often, left = load.jobs[:COPIES], load.jobs[COPIES : 2 * COPIES], load.jobs[2 * COPIES :]
            async with Queues.on(amqp_url) as queues, load.opened():
                for number, job in enumerate(others):
                    await _ask_as_another_program(queues, rig, job, any_version=number % 2 == 0)
                await asyncio.gather(*(load.post(job, f"key-of-{job.id}") for job in often for _ in range(POSTS)))
            tally.kills = COPIES * len(others) + POSTS * len(often)
            lossy = Load(load.urls, left, tally.rng, RATE, 0.0)
            async with lossy.flowing():
                for _ in range(losses):
                    await asyncio.sleep(tally.rng.uniform(0.5, 2))
                    await _lose_one(postgres, members, tally.rng)
                    tally.kills += 1
                    await _until_well(members)
            await _until_settled(rig)
            await _count(tally, rig, [*others, *load.acked.values(), *lossy.acked.values()])
            wrong = [*load.wrong, *lossy.wrong, *(death for member in members for death in member.deaths)]
    finally:
        await postgres.recover()
        tally.end()
        record_property("tally", str(tally))
        print(tally)  # noqa: T201 - a test that fails shows it
    assert not wrong, wrong[:10]
    assert tally.faultless, str(tally)
    assert tally.applied == tally.acked, str(tally)


@asynccontextmanager
async def _redrive_beside(
    system: System, postgres: PrivatePostgres, rabbitmq: PrivateRabbitmq, *, jobs: int
) -> AsyncIterator[tuple[Rig, list[Member], Load, str]]:
    """A system with its own worker, which lets what was put back fail again, and Redrive's programs beside it."""
    await asyncio.gather(postgres.recover(), rabbitmq.recover())
    prepared = await prepare(system, postgres.postgres, f"{system.name.replace('-', '_')}_{uuid.uuid4().hex[:6]}")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(discard, prepared)
        stack.push_async_callback(postgres.recover)
        rig = await stack.enter_async_context(Rig.on(prepared))
        await rig.fill(jobs - FAILED)
        amqp_url = await stack.enter_async_context(rabbitmq.rabbitmq.vhost())
        logins = await stack.enter_async_context(broker_users(rabbitmq.rabbitmq, amqp_url))
        forkserver = await stack.enter_async_context(Forkserver.opened())
        common = {name.upper(): str(value) for name, value in system.settings.items()}
        limits = dict.fromkeys(("LIMIT_IP", "LIMIT_READ", "LIMIT_RETRY", "LIMIT_BULK"), "off")
        ports = [free_port(), free_port()]
        settings = [
            (
                "api",
                {
                    "DATABASE_URL": rig.api_url,
                    "AMQP_URL": logins.api,
                    "JWT_SECRET": SECRET,
                    "PORT": str(port),
                    **limits,
                },
            )
            for port in ports
        ] + [("worker", {"DATABASE_URL": rig.worker_url, "AMQP_URL": logins.worker, "WORKER_BATCH_SIZE": "20"})] * 2
        members = [
            await stack.enter_async_context(Member.supervised(forkserver, command, common | own))
            for command, own in settings
        ]
        await _until_well(members)
        await stack.enter_async_context(_failing_again(rig))
        rows = await rig.pool.fetch("SELECT id::text, project_id FROM control_plane.jobs WHERE status = 'failed'")
        made = [MadeJob(JobId(row["id"]), ProjectId(row["project_id"]), Version("")) for row in rows]
        assert len(made) == jobs
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        yield rig, members, Load(urls, made, random.Random(0), RATE, 0.0, bulk=0.0, finite=True), amqp_url


@asynccontextmanager
async def _failing_again(rig: Rig) -> AsyncIterator[None]:
    """Let the system's own worker fail what is put back, so that a second effect is possible, until the block ends.

    It is started anew now and then: some do not outlive the loss of their database.
    """

    async def work() -> None:
        while True:
            with suppress(AssertionError, TimeoutError):
                async with rig.working("fail"):
                    await asyncio.sleep(AGAIN_S)

    working = asyncio.create_task(work())
    try:
        yield
    finally:
        working.cancel()
        await asyncio.wait([working])


async def _ask_as_another_program(queues: Queues, rig: Rig, job: MadeJob, *, any_version: bool) -> None:
    """Publish the retry of a job ten times: of its version as it is, or of any."""
    message = a_message_for(replace(job, version=Version(await rig.version(job.id))), any_version=any_version)
    await queues.publish_all([encoded(message)] * COPIES)


async def _lose_one(postgres: PrivatePostgres, members: Sequence[Member], rng: random.Random) -> None:
    """Crash the database, or kill one of the programs, and have it back."""
    lost = rng.choice([None, *members])
    if lost is not None:
        await lost.replaced(signal.SIGKILL)
        return
    await (postgres.kill() if rng.random() < 0.5 else postgres.stop_immediate())
    await postgres.start()


async def _until_well(members: Sequence[Member]) -> None:
    async def are_ready() -> bool:
        return all([await member.ready() for member in members])

    await eventually(are_ready, within_s=WELL_WITHIN_S, every_s=0.1)


async def _until_settled(rig: Rig) -> None:
    async def are_settled() -> bool:
        try:
            return not await rig.pool.fetchval("SELECT count(*) FROM redrive.retry_requests WHERE state = 'queued'")
        except _AWAY as lost:
            raise AssertionError("the database is away") from lost

    await eventually(are_settled, within_s=WELL_WITHIN_S, every_s=0.1)


async def _count(tally: Tally, rig: Rig, asked: Collection[MadeJob]) -> None:
    """Compare what was asked for, each once, with how often each job left its failed state."""
    rows = await rig.pool.fetch("SELECT job_id FROM redrive.retry_requests WHERE state <> 'applied'")
    parked = {rig.system.ids.shown(row["job_id"]) for row in rows}
    effects = Counter(await rig.effects())
    due = Counter(str(job.id) for job in asked)
    tally.acked, tally.effects, tally.parked = due.total(), effects.total(), len(parked)
    for job_id in due | effects:
        tally.applied += min(due[job_id], effects[job_id])
        tally.lost += max(0, due[job_id] - effects[job_id] - (job_id in parked))
        beyond = max(0, effects[job_id] - due[job_id])
        if due[job_id]:
            tally.doubled += beyond
        else:
            tally.unexpected += beyond
