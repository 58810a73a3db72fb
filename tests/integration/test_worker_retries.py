"""Retry messages through RabbitMQ and a worker, into the jobs table."""

import random

from shared import topology
from shared.messages import RetryMessage
from shared.retries import RetryKey
from tests.eventually import eventually
from tests.jobs import JobMaker, MadeJob, a_message_for, a_retry_of
from tests.ledger import Ledger
from tests.queues import Queues
from tests.workers import a_worker


async def _requested(ledger: Ledger, job: MadeJob) -> RetryMessage:
    """The message that the relay would publish for a request."""
    request = (await ledger.retries.accept(a_retry_of(job, actor="ann"))).retry
    (found,) = [
        each for each in await ledger.outbox.lease(100, lease_s=30, bulk=False) if each.message.id == request.id
    ]
    await ledger.outbox.mark_published([found.lease])
    return found.message


async def test_a_published_retry_puts_the_job_back(
    database_url: str, amqp_url: str, jobs: JobMaker, ledger: Ledger, queues: Queues
) -> None:
    job = await jobs.failed(attempts=2, last_error="smtp said no")
    message = await _requested(ledger, job)

    async with a_worker(database_url, amqp_url) as worker:
        await queues.publish(message)
        await eventually(lambda: jobs.outcome_of(message.id))
        await worker.sampled("redrive_retries_settled_total", 1, outcome="applied")
        await worker.sampled("redrive_retry_wait_seconds_count", 1)
        await worker.sampled("redrive_consumers", 2)

    retry = await ledger.retries.get(RetryKey(message.id, job.project_id))
    assert (retry.state, retry.outcome, retry.actor) == ("applied", "applied", "ann")
    assert (retry.attempts_before, retry.error_before) == (2, "smtp said no")
    row = await jobs.row(job)
    assert (row["status"], row["attempts"], row["last_error"], row["completed_at"]) == ("pending", 2, None, None)
    assert await jobs.effects_of(job) == 1
    assert await queues.waiting() == 0


async def test_a_message_that_is_delivered_twice_has_one_effect(
    database_url: str, amqp_url: str, jobs: JobMaker, ledger: Ledger, queues: Queues
) -> None:
    job = await jobs.failed()
    message = await _requested(ledger, job)

    async with a_worker(database_url, amqp_url) as worker:
        await queues.publish(message)
        await worker.sampled("redrive_batches_total", 1)
        await jobs.fail_again(job)  # so that a second effect would be possible
        await queues.publish(message)
        await worker.sampled("redrive_batches_total", 2)
        await worker.sampled("redrive_retries_settled_total", 1, outcome="applied")

    assert await jobs.effects_of(job) == 1
    assert await jobs.status_of(job) == "failed"
    assert await queues.waiting() == 0


async def test_ten_copies_of_each_message_shuffled_to_two_workers_have_one_effect_each(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues
) -> None:
    failed = await jobs.many_failed(100)
    messages = [a_message_for(job) for job in failed]
    copies = messages * 10
    random.Random(7).shuffle(copies)
    await queues.publish_all(copies)

    async with (
        a_worker(database_url, amqp_url, worker_batch_size=20) as one,
        a_worker(database_url, amqp_url, worker_batch_size=20) as other,
    ):
        await eventually(queues.drained, within_s=30)
        await one.stop()
        await other.stop()

    assert await queues.waiting() == 0  # what was in a worker's hands would be back
    assert await jobs.effects(failed) == [1] * len(failed)
    assert {await jobs.outcome_of(message.id) for message in messages} == {"applied"}


async def test_two_workers_with_overlapping_batches_of_the_same_jobs_retry_each_once(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues
) -> None:
    failed = await jobs.many_failed(60)
    there = [a_message_for(job) for job in failed]
    back = [a_message_for(job) for job in reversed(failed)]  # other requests, for the same jobs, the other way round

    async with a_worker(database_url, amqp_url) as one, a_worker(database_url, amqp_url) as other:
        await queues.publish_all(there, key=topology.KEY_RETRY)
        await queues.publish_all(back, key=topology.KEY_BULK)
        await eventually(lambda: _all_settled(jobs, [*there, *back]))
        for worker in (one, other):
            await worker.sampled("redrive_sessions_total", 0, end="database_unavailable")  # no deadlock

    assert await jobs.effects(failed) == [1] * len(failed)
    outcomes = [await jobs.outcome_of(message.id) for message in (*there, *back)]
    assert outcomes.count("applied") == 60
    assert outcomes.count("superseded") == 60


async def _all_settled(jobs: JobMaker, messages: list[RetryMessage]) -> bool:
    return all([await jobs.outcome_of(message.id) for message in messages])


async def test_a_job_that_has_failed_anew_since_the_request_is_left_alone(
    database_url: str, amqp_url: str, jobs: JobMaker, ledger: Ledger, queues: Queues
) -> None:
    job = await jobs.failed()
    message = await _requested(ledger, job)
    await jobs.fail_again(job)

    async with a_worker(database_url, amqp_url):
        await queues.publish(message)
        assert await eventually(lambda: jobs.outcome_of(message.id)) == "superseded"

    row = await jobs.row(job)
    assert (row["status"], row["last_error"]) == ("failed", "it broke again")
    assert await jobs.effects_of(job) == 0


async def test_a_message_for_another_projects_job_finds_no_job(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues
) -> None:
    job = await jobs.failed(project_id="theirs")
    message = a_message_for(job, project_id="ours")

    async with a_worker(database_url, amqp_url):
        await queues.publish(message)
        assert await eventually(lambda: jobs.outcome_of(message.id)) == "job_not_found"

    row = await jobs.ledger_row(message.id)
    assert row is not None
    assert (row["state"], row["project_id"], row["attempts_before"], row["error_before"]) == (
        "rejected", "ours", None, None,
    )  # fmt: skip
    assert await jobs.effects_of(job) == 0


async def test_a_job_whose_attempts_are_used_up_stays_failed(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues
) -> None:
    job = await jobs.failed(attempts=3, max_attempts=3)
    message = a_message_for(job)

    async with a_worker(database_url, amqp_url):
        await queues.publish(message)
        assert await eventually(lambda: jobs.outcome_of(message.id)) == "attempts_exhausted"

    assert await jobs.effects_of(job) == 0


async def test_another_programs_message_is_written_into_the_ledger(
    database_url: str, amqp_url: str, jobs: JobMaker, ledger: Ledger, queues: Queues
) -> None:
    job = await jobs.failed(last_error="their error")
    message = a_message_for(job)

    async with a_worker(database_url, amqp_url):
        await queues.publish(message)
        assert await eventually(lambda: jobs.outcome_of(message.id)) == "applied"

    retry = await ledger.retries.get(RetryKey(message.id, job.project_id))
    assert (retry.job_id, retry.actor, retry.error_before) == (job.id, "unknown", "their error")
    assert await jobs.effects_of(job) == 1


async def test_single_retries_do_not_wait_for_bulk_ones(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues
) -> None:
    many = await jobs.many_failed(1_000)
    job = await jobs.failed()
    message = a_message_for(job)
    await queues.publish_all((a_message_for(each) for each in many), key=topology.KEY_BULK)
    await queues.publish(message)

    async with a_worker(database_url, amqp_url, worker_batch_size=10):
        await eventually(lambda: jobs.outcome_of(message.id))
        assert await queues.waiting(topology.RETRIES_BULK) > 0
