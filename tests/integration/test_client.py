"""The client against the real api and a real worker, on a real database."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest

from redrive_client import (
    BadRequest,
    Conflict,
    FailedFilter,
    Forbidden,
    InvalidBody,
    JobStatus,
    KeyReused,
    NotFound,
    Outcome,
    PreconditionFailed,
    Redrive,
    RetryBlock,
    RetryState,
    Unauthenticated,
    WaitTimeout,
)
from tests.api_server import Api, Serve
from tests.eventually import eventually
from tests.jobs import JobMaker, MadeJob
from tests.tokens import token
from tests.workers import a_worker

ALL = "jobs:read jobs:payload jobs:retry jobs:retry:bulk jobs:retry:extend"


@pytest.fixture
async def api(database_url: str, serve: Serve) -> Api:
    return await serve(database_url, watch_interval=0.05)


@pytest.fixture
async def redrive(api: Api) -> AsyncIterator[Redrive]:
    async with Redrive(f"http://127.0.0.1:{api.port}", token=token(scope=ALL)) as client:
        yield client


async def run(jobs: JobMaker, job: MadeJob, status: str) -> None:
    """Move a job on, as its owner would."""
    await jobs.pool.execute(
        "UPDATE control_plane.jobs SET status = $2, completed_at = now(), attempts = attempts + 1 WHERE id = $1",
        job.id,
        status,
    )


async def run_when_pending(jobs: JobMaker, job: MadeJob) -> None:
    """Complete a job as soon as it has been put back."""

    async def is_pending() -> bool:
        return await jobs.status_of(job) == "pending"

    await eventually(is_pending)
    await run(jobs, job, "completed")


async def test_a_job_is_read_whole(redrive: Redrive, jobs: JobMaker) -> None:
    (made,) = await jobs.make(1, status="failed", last_error="it broke", payload='{"pages": [1, 2]}')
    job = await redrive.get(made.id, include_payload=True)

    assert (job.id, job.status, job.last_error, job.retryable, job.done) == (made.id, "failed", "it broke", True, True)
    assert job.payload == {"pages": [1, 2]}
    assert (await redrive.get(made.id)).payload is None


async def test_refusals_are_told_apart(redrive: Redrive, api: Api, jobs: JobMaker) -> None:
    running, exhausted, foreign = (
        await jobs.running(),
        await jobs.failed(attempts=3, max_attempts=3),
        await jobs.failed(project_id="p2"),
    )
    with pytest.raises(Conflict) as caught:
        await redrive.retry(running.id)
    assert caught.value.code == "job-not-failed"
    with pytest.raises(Conflict) as caught:
        await redrive.retry(exhausted.id)
    assert caught.value.code == "attempts-exhausted"
    for unknown in (foreign.id, uuid.uuid4()):
        with pytest.raises(NotFound):
            await redrive.get(unknown)
    with pytest.raises(BadRequest):
        await redrive.get("not-an-id")
    with pytest.raises(InvalidBody) as invalid:
        await redrive.retry(exhausted.id, extra_attempts=11)
    assert invalid.value.errors[0].pointer == "/extra_attempts"
    url = f"http://127.0.0.1:{api.port}"
    async with Redrive(url, token="not.a.token") as stranger:
        with pytest.raises(Unauthenticated):
            await stranger.get(running.id)
    async with Redrive(url, token=token(scope="jobs:read")) as reader:
        with pytest.raises(Forbidden):
            await reader.retry(running.id)


async def test_a_retry_takes_a_version_and_a_key(redrive: Redrive, jobs: JobMaker) -> None:
    made = await jobs.failed()
    seen = await redrive.get(made.id)
    first = await redrive.retry(made.id, if_match=seen.etag, idempotency_key="k1", reason="again")
    again = await redrive.retry(made.id, if_match=seen.etag, idempotency_key="k1", reason="again")

    assert (first.replayed, again.replayed) == (False, True)
    assert first.retry == again.retry
    with pytest.raises(KeyReused):
        await redrive.retry(made.id, idempotency_key="k1")
    other = await redrive.retry(made.id)
    assert other.deduplicated
    assert other.retry.id == first.retry.id
    other_job = await jobs.failed()
    with pytest.raises(PreconditionFailed):
        await redrive.retry(other_job.id, if_match='"1"')


async def test_a_dry_run_tells_and_does_nothing(redrive: Redrive, jobs: JobMaker) -> None:
    good, exhausted = await jobs.failed(), await jobs.failed(attempts=3, max_attempts=3)

    assert (await redrive.retry(good.id, dry_run=True)).would_retry
    assert (await redrive.retry(exhausted.id, dry_run=True)).blocked_by is RetryBlock.ATTEMPTS_EXHAUSTED
    assert (await redrive.retry(exhausted.id, dry_run=True, extra_attempts=1)).would_retry
    assert await jobs.queued() == 0


async def test_retry_and_wait_sees_the_job_through(redrive: Redrive, database_url: str, jobs: JobMaker) -> None:
    job = await jobs.failed(last_error="it broke")
    async with a_worker(database_url), asyncio.TaskGroup() as tasks:
        tasks.create_task(run_when_pending(jobs, job))
        retried = await redrive.retry_and_wait(job.id, timeout_s=30, reason="again")

    assert retried.job is not None
    assert retried.job.status is JobStatus.COMPLETED
    assert (retried.retry.state, retried.retry.error_before) == (RetryState.APPLIED, "it broke")
    assert await jobs.effects_of(job) == 1


async def test_retry_and_wait_tells_of_a_rejection(redrive: Redrive, database_url: str, jobs: JobMaker) -> None:
    job = await jobs.failed()
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(redrive.retry_and_wait(job.id, timeout_s=30))
        await eventually(jobs.queued)
        await jobs.fail_again(job)
        async with a_worker(database_url):
            retried = await waiting

    assert (retried.retry.state, retried.retry.outcome) == (RetryState.REJECTED, Outcome.SUPERSEDED)
    assert retried.job is None


async def test_a_wait_sees_the_end_and_its_own(redrive: Redrive, jobs: JobMaker) -> None:
    job = await jobs.running()
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(redrive.wait(job.id, timeout_s=30))
        await redrive.get(job.id)
        await run(jobs, job, "failed")
    assert waiting.result().status is JobStatus.FAILED

    with pytest.raises(WaitTimeout) as caught:
        await redrive.wait((await jobs.running()).id, timeout_s=1.5)
    assert caught.value.last is not None


async def test_a_queued_retry_can_be_taken_back_twice_and_a_settled_one_not(
    redrive: Redrive, database_url: str, jobs: JobMaker
) -> None:
    first, second = await jobs.failed(), await jobs.failed()
    cancelled = (await redrive.retry(first.id)).retry
    assert (await redrive.cancel(cancelled.id)).state is RetryState.CANCELLED
    assert (await redrive.cancel(cancelled.id)).state is RetryState.CANCELLED

    settled = (await redrive.retry(second.id)).retry
    async with a_worker(database_url):
        await redrive.wait_retry(settled.id, timeout_s=30)
    with pytest.raises(Conflict):
        await redrive.cancel(settled.id)
    with pytest.raises(NotFound):
        await redrive.get_retry(uuid.uuid4())


async def test_lists_are_read_to_their_end(redrive: Redrive, jobs: JobMaker) -> None:
    failed = await jobs.many_failed(25)
    await jobs.completed()

    listed = [job.id async for job in redrive.list(status=JobStatus.FAILED, page_size=10)]
    assert len(listed) == 25
    assert set(listed) == {job.id for job in failed}

    foreign = await jobs.failed(project_id="p2")
    found = await redrive.get_many([failed[0].id, foreign.id, failed[1].id])
    assert [job.id for job in found.jobs] == [failed[0].id, failed[1].id]
    assert found.not_found == (foreign.id,)

    stats = await redrive.stats()
    assert (stats.failed.count, stats.failed.retryable, stats.completed.count) == (25, 25, 1)
    assert stats.pending.retryable is None


async def test_a_bulk_retry_from_preview_to_audit(redrive: Redrive, database_url: str, jobs: JobMaker) -> None:
    await jobs.make(12, status="failed", kind="email", last_error="SMTP: 421, try later")
    await jobs.make(3, status="failed", kind="email", last_error="SMTP: 421, try later", attempts=3)
    await jobs.make(5, status="failed", kind="report", last_error="SMTP: 421, try later")
    chosen = FailedFilter(type="email", error_contains="421, try")

    preview = await redrive.preview(chosen)
    assert (preview.matched, preview.retryable, preview.skipped["attempts_exhausted"]) == (15, 12, 3)
    with pytest.raises(Conflict) as caught:
        await redrive.retry_many(chosen, max=10, reason="the relay is back")
    assert caught.value.code == "too-many-matches"
    accepted = await redrive.retry_many(chosen, max=100, reason="the relay is back")
    assert (accepted.accepted, len(accepted.skipped)) == (12, 3)

    async with a_worker(database_url):
        batch = await redrive.wait_batch(accepted.batch_id, timeout_s=30)
    assert (batch.total, batch.applied, batch.done) == (12, 12, True)
    audit = [retry async for retry in redrive.list_retries(batch_id=accepted.batch_id, page_size=5)]
    assert len(audit) == 12
    assert {(retry.actor, retry.reason) for retry in audit} == {("alice", "the relay is back")}


async def test_a_bulk_retry_is_found_again_and_taken_back(redrive: Redrive, jobs: JobMaker) -> None:
    await jobs.make(5, status="failed", kind="wrong")
    by_filter = await redrive.retry_many(FailedFilter(type="wrong"), max=10, reason="oh")
    by_id = await redrive.retry_many([(await jobs.failed()).id])

    listed = [batch async for batch in redrive.list_batches(actor="alice", page_size=1)]
    cancelled = await redrive.cancel_batch(by_filter.batch_id)

    assert [batch.id for batch in listed][:2] == [by_id.batch_id, by_filter.batch_id]
    assert [batch.filter for batch in listed][:2] == [None, {"type": "wrong"}]
    assert (cancelled.queued, cancelled.cancelled, cancelled.done) == (0, 5, True)
    audit = [retry async for retry in redrive.list_retries(batch_id=by_filter.batch_id)]
    assert {(retry.state, retry.cancelled_by) for retry in audit} == {(RetryState.CANCELLED, "alice")}
    with pytest.raises(NotFound):
        await redrive.cancel_batch(uuid.uuid4())


async def test_a_dead_lettered_retry_is_redriven(redrive: Redrive, jobs: JobMaker) -> None:
    retry = (await redrive.retry((await jobs.failed()).id)).retry
    with pytest.raises(Conflict) as caught:
        await redrive.redrive(retry.id)
    assert caught.value.code == "retry-not-dead-lettered"
    await jobs.pool.execute(
        "UPDATE redrive.retry_requests SET state = 'dead_lettered', outcome = 'poison', processed_at = now()"
        " WHERE id = $1",
        retry.id,
    )

    first, again = await redrive.redrive(retry.id), await redrive.redrive(retry.id)

    assert (first.state, first.redriven_by, first.done) == (RetryState.QUEUED, "alice", False)
    assert again.redriven_at == first.redriven_at


async def test_a_batch_is_watched_from_now_to_its_end(redrive: Redrive, database_url: str, jobs: JobMaker) -> None:
    accepted = await redrive.retry_many([job.id for job in await jobs.many_failed(5)])
    seen = []
    watching = redrive.watch_batch(accepted.batch_id, timeout_s=30)
    seen.append(await anext(aiter(watching)))
    async with a_worker(database_url):
        seen += [batch async for batch in watching]
    assert (seen[0].queued, seen[-1].applied) == (5, 5)


async def test_events_show_each_state_up_to_the_last(redrive: Redrive, jobs: JobMaker) -> None:
    job = await jobs.pending()
    seen = []
    async for event in redrive.events(job.id):
        seen.append(str(event.status))
        if not event.done:
            await run(jobs, job, "running" if event.status == "pending" else "completed")
    assert seen == ["pending", "running", "completed"]


async def test_an_administrator_names_the_project(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed(project_id="p2")
    url = f"http://127.0.0.1:{api.port}"
    async with Redrive(url, token=token(scope=f"{ALL} jobs:admin"), project_id="p2") as admin:
        assert (await admin.get(job.id)).id == job.id
        assert (await admin.retry(job.id)).retry.actor == "alice"
        assert [retry.job_id async for retry in admin.list_retries()] == [job.id]
