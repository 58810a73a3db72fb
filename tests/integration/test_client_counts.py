"""redrive_client's counts, groups and streams of many jobs, against the real API."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from redrive_client import BadRequest, FailedFilter, JobStatus, NotFound, Redrive, RetriedFewerThan
from tests.api_server import Serve
from tests.jobs import JobMaker
from tests.tokens import token

SCOPES = "jobs:read jobs:retry jobs:retry:bulk"


@pytest.fixture
async def redrive(database_url: str, serve: Serve) -> AsyncIterator[Redrive]:
    api = await serve(database_url, watch_interval=0.05)
    async with Redrive(f"http://127.0.0.1:{api.port}", token=token(scope=SCOPES)) as client:
        yield client


async def test_a_group_of_failures_is_found_listed_and_retried(redrive: Redrive, jobs: JobMaker) -> None:
    for number in range(3):
        await jobs.failed(last_error=f"timed out after {number} s")
    await jobs.failed(kind="report", last_error="no route")

    found = await redrive.failures()
    first = found.data[0]
    listed = [job.id async for job in redrive.list(status="failed", fingerprint=first.fingerprint, retryable=True)]
    chosen = FailedFilter(fingerprint=first.fingerprint, retried_fewer_than=RetriedFewerThan(1, 3600))
    accepted = await redrive.retry_many(chosen, max=10, reason="it is back")

    assert (first.error, first.jobs, first.retryable, found.truncated) == ("timed out after <n> s", 3, 3, False)
    assert sorted(listed) == sorted(first.sample)
    assert accepted.accepted == 3
    few = RetriedFewerThan(times=1, within_seconds=60)
    assert len([job async for job in redrive.list(status="failed", retried_fewer_than=few, error_contains="no")]) == 1


async def test_counts_come_with_when_they_were_counted(redrive: Redrive, jobs: JobMaker) -> None:
    job = await jobs.failed()
    await redrive.retry(job.id)
    before = datetime.now(UTC) - timedelta(minutes=1)

    stats, types, retries = await redrive.stats(), await redrive.types(), await redrive.retry_stats()
    series = await redrive.series(by="1h", start=before - timedelta(hours=1))

    assert stats.as_of is not None
    assert retries.as_of is not None
    assert before < min(stats.as_of, types.as_of, retries.as_of, series.as_of)
    assert [(each.type, each.jobs) for each in types.data] == [("email", 1)]
    assert (retries.queued.count, retries.last_hour.applied.count, retries.wait_ms) == (1, 0, None)
    assert sum(each.failed.count for each in series.data) == 1
    with pytest.raises(BadRequest):
        await redrive.series(by="1m")


async def test_a_client_can_ask_who_it_is(redrive: Redrive) -> None:
    me = await redrive.me()

    assert (me.actor, me.project_id, me.scopes, me.jobs) == ("alice", "p1", tuple(sorted(SCOPES.split())), None)


async def test_many_jobs_are_followed_in_one_stream(redrive: Redrive, jobs: JobMaker) -> None:
    first, second, gone = await jobs.pending(), await jobs.running(), await jobs.pending()
    seen: list[tuple[str, str]] = []

    async def follow() -> None:
        async for job in redrive.events_of([first.id, second.id, gone.id, uuid4()]):
            seen.append((job.id, str(job.status)))
            if len(seen) == 3:
                await jobs.pool.execute("DELETE FROM control_plane.jobs WHERE id = $1", gone.id)
                await jobs.pool.execute("UPDATE control_plane.jobs SET status = 'completed' WHERE id = $1", first.id)
                await jobs.pool.execute("UPDATE control_plane.jobs SET status = 'failed' WHERE id = $1", second.id)

    async with asyncio.timeout(30):
        await follow()

    assert set(seen[3:]) == {(first.id, JobStatus.COMPLETED), (second.id, JobStatus.FAILED)}


async def test_whoever_waits_for_a_job_that_is_deleted_is_told_so(redrive: Redrive, jobs: JobMaker) -> None:
    job = await jobs.running()
    seen: list[str] = []

    async def follow() -> None:
        async for each in redrive.events(job.id):
            seen.append(str(each.status))
            await jobs.pool.execute("DELETE FROM control_plane.jobs WHERE id = $1", job.id)

    async with asyncio.timeout(20):
        waiting = asyncio.create_task(redrive.wait(job.id, timeout_s=15))
        with pytest.raises(NotFound):
            await follow()
        with pytest.raises(NotFound):
            await waiting
    assert seen == ["running"]
