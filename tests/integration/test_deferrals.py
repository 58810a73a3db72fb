"""Jobs that stay locked, and jobs that the worker may not see, are a warning, seldom, and not silence."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from tests.eventually import eventually
from tests.jobs import JobMaker, MadeJob, a_message_for
from tests.logins import Users
from tests.logs import Log
from tests.workers import a_worker


def reasons(log: Log, event: str) -> list[str]:
    return [str(line["reason"]) for line in log.lines if line["event"] == event]


async def queue(jobs: JobMaker, job: MadeJob) -> None:
    """A queued request for the job, as the api writes it."""
    message = a_message_for(job)
    await jobs.pool.execute(
        "INSERT INTO redrive.retry_requests (id, project_id, job_id, actor) VALUES ($1, $2, $3, 'me')",
        message.id,
        message.project_id,
        message.job_id,
    )


@asynccontextmanager
async def locked(url: str, job: MadeJob) -> AsyncIterator[None]:
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute("SELECT FROM control_plane.jobs WHERE id = $1 FOR UPDATE", job.id)
            yield
    finally:
        await connection.close()


async def test_a_job_that_stays_locked_is_one_warning_a_minute(
    database_url: str, jobs: JobMaker, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.deferrals.LONG_S", 0.5)
    job = await jobs.failed()
    await queue(jobs, job)
    async with locked(database_url, job), a_worker(database_url):
        await eventually(lambda: reasons(log, "retry requests deferred"), within_s=20)
        await asyncio.sleep(2)  # it is tried again meanwhile

    assert reasons(log, "retry requests deferred") == ["their jobs stay locked by another transaction"]


async def test_row_security_is_named_where_it_hides_jobs_from_the_worker_or_keeps_it_from_updating_them(
    users: Users, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.deferrals.LONG_S", 0.5)
    async with JobMaker.on(users.admin) as jobs:
        await jobs.pool.execute("ALTER TABLE control_plane.jobs ENABLE ROW LEVEL SECURITY")
        await queue(jobs, await jobs.failed())
        async with a_worker(users.worker):
            await eventually(lambda: reasons(log, "jobs not found"))
            assert "row-level security may hide them" in reasons(log, "jobs not found")[0]

            await jobs.pool.execute("CREATE POLICY seen ON control_plane.jobs FOR SELECT USING (true)")
            await queue(jobs, await jobs.failed())
            await eventually(lambda: reasons(log, "retry requests deferred"), within_s=20)
            assert "row-level security lets this role see their jobs" in reasons(log, "retry requests deferred")[0]
