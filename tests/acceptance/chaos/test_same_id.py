"""Jobs of other projects that have the same id: P24."""

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from uuid import UUID

import aiohttp
import pytest

from tests.acceptance.chaos.rig import RATE, Rig, Trial
from tests.acceptance.chaos.tally import scaled
from tests.acceptance.chaos.test_copies import publish
from tests.eventually import eventually
from tests.jobs import MadeJob, a_message_for
from tests.tokens import token

pytestmark = pytest.mark.asyncio(loop_scope="package")

COPIES = 3
SCOPES = "jobs:read jobs:retry jobs:retry:bulk"


@asynccontextmanager
async def keyed_by_project(rig: Rig) -> AsyncIterator[None]:
    """Let `id` alone name no job while the block runs, as in a table that is partitioned by project."""
    table = "ALTER TABLE control_plane.jobs DROP CONSTRAINT jobs_pkey"
    await rig.jobs.pool.execute(f"{table}, ADD PRIMARY KEY (project_id, id)")
    try:
        yield
    finally:
        await rig.jobs.pool.execute("DELETE FROM control_plane.jobs WHERE project_id <> 'p1'")
        await rig.jobs.pool.execute(f"{table}, ADD PRIMARY KEY (id)")


async def twins_of(rig: Rig, jobs: Sequence[MadeJob], *, project_id: str, status: str) -> list[MadeJob]:
    """A job of the same id in another project for each of these."""
    made = []
    for job in jobs:
        made += await rig.jobs.make(
            1,
            status=status,
            project_id=project_id,
            last_error="it broke" if status == "failed" else None,
            job_id=job.id,
        )
    return made


async def take_back(rig: Rig, trial: Trial, jobs: Sequence[MadeJob], *, project_id: str) -> None:
    """Ask for retries of these, singly and as one batch, and take them back before any worker has them."""
    headers = {"Authorization": f"Bearer {token(project_id=project_id, scope=SCOPES)}"}
    half = len(jobs) // 2
    async with aiohttp.ClientSession(rig.urls[0], headers=headers) as client:
        for job in jobs[:half]:
            async with client.post(f"/api/jobs/{job.id}/retry") as answer:
                retry = (await answer.json())["data"]
            trial.published[UUID(retry["id"])] = job
            async with client.delete(f"/api/retries/{retry['id']}") as answer:
                assert answer.status == 200, await answer.text()
        for job in jobs[half:]:
            async with client.post("/api/jobs/retry", json={"ids": [str(job.id)]}) as answer:
                batch = (await answer.json())["data"]
            trial.published[UUID(batch["batch_id"])] = job
            async with client.delete(f"/api/retry-batches/{batch['batch_id']}") as answer:
                assert (await answer.json())["data"]["cancelled"] == 1


async def test_p24_a_retry_touches_the_job_that_was_named_and_no_other(rig: Rig) -> None:
    count = scaled(60, full=2_000)
    async with (
        keyed_by_project(rig),
        rig.trial("P24 the same id in four projects", parks=True) as trial,
    ):
        load = await trial.finite_load(count=count, rate=RATE)
        asked_by_message = await twins_of(rig, load.jobs, project_id="p2", status="failed")
        taken_back = await twins_of(rig, load.jobs[: count // 2], project_id="p3", status="failed")
        bystanders = await twins_of(rig, load.jobs, project_id="p4", status="running")
        bystanders += await twins_of(rig, load.jobs, project_id="p5", status="failed")
        before = [await rig.jobs.row(job) for job in bystanders]
        for worker in rig.workers:
            worker.pause()
        async with load.flowing():
            await take_back(rig, trial, taken_back, project_id="p3")
            await eventually(lambda: len(load.acked) == count, within_s=30 + count / 10)
        others = [a_message_for(job, any_version=number % 2 == 0) for number, job in enumerate(asked_by_message)]
        trial.published |= {message.id: job for message, job in zip(others, asked_by_message, strict=True)}
        # Copies of the relay's, by a program that names the wrong project: the ledger's facts win.
        forged = [a_message_for(job, request_id=id_, project_id="p5") for id_, job in load.acked.items()]
        messages = (others + forged) * COPIES
        trial.rng.shuffle(messages)
        async with rig.queues() as queues:
            await publish(queues, messages)
        for worker in rig.workers:
            worker.go_on()
        for worker in rig.workers[1:]:
            await trial.pause(0.05, 0.3)
            await worker.replaced(signal.SIGKILL)
        await eventually(partial(_settled, trial), within_s=60 + count / 20, every_s=0.1)
        trial.broken(len(messages))
        assert [await rig.jobs.row(job) for job in bystanders] == before
        assert await rig.jobs.effects(taken_back) == [0] * len(taken_back)
    assert trial.tally.parked == len(taken_back)


async def _settled(trial: Trial) -> bool:
    await asyncio.sleep(0)
    return await trial.unsettled() == 0
