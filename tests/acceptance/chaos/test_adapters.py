"""Other systems' jobs tables behind their adapters, while programs and the database are lost: P26.

A system and its own worker have a database on the rig's server, and programs of Redrive beside them: of the rig itself
they use the servers alone. `make test` tries one system, and lets one worker die.
"""

import asyncio
import random
import signal
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Final
from uuid import UUID

import pytest

from shared.models import JobId, ProjectId, Version
from tests.acceptance.chaos.load import Load
from tests.acceptance.chaos.processes import Member
from tests.acceptance.chaos.rig import SETTLED_WITHIN_S, WELL_WITHIN_S, Rig
from tests.acceptance.chaos.tally import SCALE, Tally, scaled
from tests.acceptance.chaos.test_crashes import OF_WORKERS
from tests.adapters.rig import FAILED, discard, prepare
from tests.adapters.rig import Rig as SystemRig
from tests.adapters.systems import IN_SHORT, SYSTEMS, System
from tests.eventually import eventually
from tests.jobs import MadeJob, a_message_for
from tests.logins import broker_users
from tests.queues import Queues
from tests.servers.processes import free_port

pytestmark = pytest.mark.asyncio(loop_scope="package")

NAMES: Final = [IN_SHORT] if SCALE == 1 else list(SYSTEMS)
WORKERS: Final = 2
RATE: Final = 20.0
JOBS_A_LOSS: Final = 200
"""Ten seconds of the load; a loss, and what follows it, takes about six."""
COPIES: Final = 10
POSTS: Final = 20
RESTART_EVERY_S: Final = 10.0
GRACE_S: Final = 5.0
LEFT_RUNNING: Final = 0.25
"""A worker that loses the database, or is killed, leaves what it had in hand: here nothing takes that up again."""
_UNSETTLED: Final = """
SELECT count(*) FROM unnest($1::uuid[]) AS acked (id)
LEFT JOIN redrive.retry_requests AS r USING (id)
WHERE coalesce(r.state, 'queued') = 'queued'
"""


@dataclass(frozen=True, slots=True)
class Beside:
    """A system with failed jobs, and the programs of Redrive beside it."""

    system: SystemRig
    api: Member
    workers: Sequence[Member]
    url: str
    amqp_url: str
    jobs: Sequence[MadeJob]
    """Their versions are not known."""

    @property
    def members(self) -> list[Member]:
        return [self.api, *self.workers]

    def load(self, jobs: Sequence[MadeJob], rng: random.Random) -> Load:
        """A load of single retries of these jobs."""
        return Load([self.url], jobs, random.Random(rng.random()), RATE, 0.0, bulk=0.0)

    async def until_well(self) -> None:
        async def are_ready() -> bool:
            return all([await member.ready() for member in self.members])

        await eventually(are_ready, within_s=WELL_WITHIN_S, every_s=0.1)


@pytest.mark.parametrize("name", NAMES)
async def test_p26_an_adapter_keeps_the_promises_for_the_system_behind_it(rig: Rig, name: str) -> None:
    often, count = scaled(5, full=50), scaled(1, full=12)
    losses = [("worker", "database", "api")[number % 3] for number in range(count)]
    tally = Tally.of(f"P26 adapter for {name}")
    rng = tally.rng
    rng.shuffle(losses)
    wrong: list[str] = []
    async with _redrive_beside(rig, SYSTEMS[name], jobs=2 * often + JOBS_A_LOSS * (count + 1)) as beside:
        with rig.reporting(tally, beside.members):
            by_message = beside.jobs[:often]
            by_key = beside.load(beside.jobs[often : 2 * often], rng)
            load = beside.load(beside.jobs[2 * often :], rng)
            published = await _ask_again_and_again(beside, by_message, by_key)
            tally.kills = often * COPIES + often * (POSTS - 1) + losses.count("database")
            async with _failing_again(beside.system):
                async with load.flowing():
                    for loss in losses:
                        await asyncio.sleep(rng.uniform(0.5, 2))
                        await _lose(rig, beside, loss, rng)
                        await beside.until_well()
                _count_deaths(tally, beside)
                acked = published | by_key.acked | load.acked
                try:
                    await _until_settled(beside, acked)
                    await eventually(
                        partial(_have_failed_again, beside.system, load.acked.values(), left_running=LEFT_RUNNING),
                        within_s=SETTLED_WITHIN_S,
                        every_s=0.1,
                    )
                finally:
                    wrong += await _count(tally, beside.system, acked)
            wrong += by_key.wrong + load.wrong + [death for member in beside.members for death in member.deaths]
    assert not wrong, wrong[:10]
    assert tally.faultless, str(tally)
    assert not tally.parked, str(tally)


@asynccontextmanager
async def _redrive_beside(rig: Rig, system: System, *, jobs: int) -> AsyncIterator[Beside]:
    """Install a system, let its own worker fail jobs, and start Redrive beside it under logins of its own."""
    await rig.heal()
    prepared = await prepare(system, rig.postgres.postgres, f"p26_{uuid.uuid4().hex[:8]}")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(discard, prepared)
        its = await stack.enter_async_context(SystemRig.on(prepared))
        stack.push_async_callback(rig.postgres.recover)  # what follows drops the databases
        await its.fill(jobs - FAILED)
        amqp_url = await stack.enter_async_context(rig.rabbitmq.rabbitmq.vhost())
        users = await stack.enter_async_context(broker_users(rig.rabbitmq.rabbitmq, amqp_url))
        ids = {setting.upper(): str(value) for setting, value in system.settings.items()}
        port = str(free_port())
        of_api = {"DATABASE_URL": its.api_url, "AMQP_URL": users.api, "PORT": port} | ids
        of_worker = {"DATABASE_URL": its.worker_url, "AMQP_URL": users.worker} | ids
        api = await stack.enter_async_context(rig.another("api", rig.apis[0].settings | of_api))
        workers = [
            await stack.enter_async_context(rig.another("worker", rig.workers[0].settings | of_worker))
            for _ in range(WORKERS)
        ]
        rows = await its.pool.fetch("SELECT id::text, project_id FROM control_plane.jobs WHERE status = 'failed'")
        failed = [MadeJob(JobId(row["id"]), ProjectId(row["project_id"]), Version("")) for row in rows]
        assert len(failed) == jobs
        beside = Beside(its, api, workers, f"http://127.0.0.1:{port}", amqp_url, failed)
        await beside.until_well()
        yield beside


async def _ask_again_and_again(beside: Beside, by_message: Sequence[MadeJob], by_key: Load) -> dict[UUID, MadeJob]:
    """Ask ten times for each of the first jobs, by copies of one message, and twenty times for the load's, by one key.

    Half of it comes once these jobs have had their effect and have failed again: then a second effect is possible.
    Returns the requests that were published.
    """
    system = beside.system
    seen = [replace(job, version=Version(await system.version(job.id))) for job in by_message]
    # Half of them are of any version: there only the ledger prevents a second effect.
    messages = [a_message_for(job, any_version=number % 2 == 0) for number, job in enumerate(seen)]

    jobs = [*by_message, *by_key.jobs]
    async with Queues.on(beside.amqp_url) as queues, system.working("fail"), by_key.opened():
        for _ in range(2):
            await queues.publish_all(messages * (COPIES // 2))
            for job in by_key.jobs:
                await asyncio.gather(*(by_key.post(job, f"key-of-{job.id}") for _ in range(POSTS // 2)))
            await eventually(partial(_have_failed_again, system, jobs), within_s=SETTLED_WITHIN_S, every_s=0.1)
    return {message.id: job for message, job in zip(messages, by_message, strict=True)}


async def _have_failed_again(system: SystemRig, jobs: Collection[MadeJob], *, left_running: float = 0) -> bool:
    """Whether these jobs have failed since they had their effect, so that a second effect was possible.

    A share of them, `left_running` at most, may be what the system's own workers had in hand at their end.
    """
    effects, statuses = await system.effects(), await system.statuses()
    found = [statuses.get(job.id, "gone") if job.id in effects else "as it was" for job in jobs]
    others = Counter(status for status in found if status != "failed")
    assert others["running"] <= left_running * len(found), f"not failed again: {dict(others)}"
    assert not others.keys() - {"running"}, f"not failed again: {dict(others)}"
    return True


@asynccontextmanager
async def _failing_again(system: SystemRig) -> AsyncIterator[None]:
    """Let the system's own worker fail what is put back, so that a second effect is possible, while the block runs.

    It is started anew now and then: some do not outlive the loss of their database.
    """

    async def work() -> None:
        while True:
            with suppress(AssertionError, TimeoutError):  # it does not start while the database is away
                async with system.working("fail", grace_s=GRACE_S):
                    await asyncio.sleep(RESTART_EVERY_S)

    working = asyncio.create_task(work())
    try:
        yield
    finally:
        working.cancel()
        await asyncio.wait([working])
    if not working.cancelled():
        working.result()  # raises what has ended it


async def _lose(rig: Rig, beside: Beside, loss: str, rng: random.Random) -> None:
    """Kill a program, or the database, and have it back. A worker dies twice: at any moment, and at a failpoint."""
    match loss:
        case "database":
            await (rig.postgres.kill() if rng.random() < 0.5 else rig.postgres.stop_immediate())
            await asyncio.sleep(rng.uniform(0, 0.5))
            await rig.postgres.start()
        case "api":
            await beside.api.replaced(signal.SIGKILL)
        case _:
            worker = rng.choice(beside.workers)
            worker.fail_at([str(rng.choice(OF_WORKERS))])
            await eventually(lambda: not worker.failing, within_s=30, every_s=0.1)


def _count_deaths(tally: Tally, beside: Beside) -> None:
    """Count the processes that have died by SIGKILL, and at which failpoints."""
    ends = [end for member in beside.members for end in member.ends]
    tally.kills += sum(end.killed for end in ends)
    tally.notes["at_failpoints"] = dict(sorted(Counter(end.failpoint for end in ends if end.failpoint).items()))


async def _until_settled(beside: Beside, acked: Collection[UUID]) -> None:
    async with Queues.on(beside.amqp_url) as queues:

        async def settled() -> bool:
            if unsettled := await beside.system.pool.fetchval(_UNSETTLED, list(acked)):
                raise AssertionError(f"{unsettled} of {len(acked)} accepted requests are not settled")
            return await queues.drained()

        await eventually(settled, within_s=SETTLED_WITHIN_S, every_s=0.1)


async def _count(tally: Tally, system: SystemRig, acked: Mapping[UUID, MadeJob]) -> list[str]:
    """Count effects in the system's own table. Returns what the ledger has that no client was told of."""
    ids = system.system.ids
    rows = await system.pool.fetch("SELECT id, job_id, state FROM redrive.retry_requests")
    tally.count(
        Counter(job.id for job in acked.values()),
        Counter({JobId(job_id): times for job_id, times in (await system.effects()).items()}),
        Counter(ids.shown(row["job_id"]) for row in rows if row["state"] not in {"applied", "queued"}),
    )
    return [f"written down, and no client was told: {dict(row)}" for row in rows if row["id"] not in acked]
