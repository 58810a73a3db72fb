"""Jobs that another session keeps locked, as a long transaction of their owner's may: no other job waits for them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg
import pytest

from shared.errors import StatementRefused
from shared.models import Outcome
from shared.sql import statements
from tests.api_server import Serve
from tests.eventually import eventually
from tests.jobs import JobMaker, MadeJob, a_message_for, a_retry_of
from tests.ledger import Ledger
from tests.queues import Queues
from tests.workers import a_worker


@asynccontextmanager
async def locking(database_url: str, jobs: Sequence[MadeJob]) -> AsyncIterator[None]:
    """Keep the rows of these jobs locked until the block ends."""
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction():
            await connection.execute(
                "SELECT FROM control_plane.jobs WHERE id = ANY ($1) FOR UPDATE", [job.id for job in jobs]
            )
            yield
    finally:
        await connection.close()


@pytest.mark.parametrize("dispatch", ["rabbitmq", "ledger"])
async def test_a_locked_job_delays_its_own_retry_and_no_other(
    database_url: str, amqp_url: str, jobs: JobMaker, dispatch: str, serve: Serve
) -> None:
    broker = amqp_url if dispatch == "rabbitmq" else None
    locked, *others = await jobs.many_failed(30)
    api = await serve(database_url, amqp_url=broker)
    async with a_worker(database_url, broker) as worker:

        async def the_others_are_applied() -> bool:
            return await jobs.effects(others) == [1] * len(others)

        async def the_locked_one_is_applied() -> bool:
            return await jobs.effects_of(locked) == 1

        async with locking(database_url, [locked]):
            answers = await asyncio.gather(*(api.post(f"/api/jobs/{job.id}/retry") for job in (locked, *others)))
            assert {answer.status for answer in answers} == {202}
            await eventually(the_others_are_applied)
            retry = await api.get(answers[0].headers["Location"])
            assert retry.data["state"] == "queued"
            assert await jobs.status_of(locked) == "failed"
        await eventually(the_locked_one_is_applied, within_s=20)  # by itself
        await worker.sampled("redrive_sessions_total", 0, end="database_unavailable")
        assert await jobs.queued() == 0

    assert await jobs.effects([locked, *others]) == [1] * 30


async def test_many_locked_jobs_do_not_stand_in_the_way_of_those_behind_them(
    database_url: str, jobs: JobMaker, ledger: Ledger
) -> None:
    locked = await jobs.many_failed(25)
    await asyncio.gather(*(ledger.retries.accept(a_retry_of(job)) for job in locked))
    free = await jobs.failed()
    await ledger.retries.accept(a_retry_of(free))

    async with locking(database_url, locked), a_worker(database_url, worker_batch_size=10):
        await eventually(lambda: jobs.effects_of(free))

    assert sum(await jobs.effects(locked)) == 0
    assert await jobs.queued() == 25


async def test_a_mark_that_comes_late_does_not_hide_a_request_that_is_held(
    database_url: str, jobs: JobMaker, ledger: Ledger
) -> None:
    job = await jobs.failed()
    await ledger.retries.accept(a_retry_of(job))
    (published,) = await ledger.outbox.lease(1, lease_s=30, bulk=False)
    async with locking(database_url, [job]):
        assert await ledger.settlement.apply([published.message]) == {}
    await ledger.outbox.mark_published([published.lease])

    async def again() -> bool:
        return [each.message for each in await ledger.outbox.lease(1, lease_s=30, bulk=False)] == [published.message]

    await eventually(again)
    assert len(await ledger.settlement.apply([published.message])) == 1
    assert await jobs.effects_of(job) == 1


async def test_another_program_s_message_for_a_locked_job_waits_for_it(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues
) -> None:
    job = await jobs.failed()
    async with a_worker(database_url, amqp_url):

        async def the_worker_waits() -> bool:
            return bool(await jobs.pool.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"))

        async with locking(database_url, [job]):
            await queues.publish_all([a_message_for(job)])
            await eventually(the_worker_waits)
        await eventually(lambda: jobs.effects_of(job), within_s=20)
        await eventually(queues.drained)

    assert await jobs.effects_of(job) == 1


async def test_another_program_s_message_for_a_job_that_is_locked_for_long_delays_no_other(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues, serve: Serve
) -> None:
    locked, *others = await jobs.many_failed(30)
    theirs = a_message_for(locked)

    await serve(database_url, amqp_url=amqp_url)
    async with a_worker(database_url, amqp_url, db_timeout=0.3):

        async def the_others_are_applied() -> bool:
            return await jobs.effects(others) == [1] * len(others)

        async with locking(database_url, [locked]):
            await queues.publish_all([theirs, *map(a_message_for, others)])
            await eventually(the_others_are_applied)
            await eventually(lambda: jobs.ledger_row(theirs.id))
            assert await jobs.queued() == 1
        await eventually(lambda: jobs.effects_of(locked), within_s=20)  # the relay has brought it again
    assert await jobs.outcome_of(theirs.id) == "applied"


async def test_what_is_held_is_a_queued_request_and_there_is_one_for_a_job_at_most(
    jobs: JobMaker, ledger: Ledger
) -> None:
    job, done = await jobs.failed(), await jobs.failed()
    held, second, settled = a_message_for(job), a_message_for(job), a_message_for(done)
    await ledger.settlement.apply([settled])

    for _ in range(2):
        await ledger.settlement.defer(held)
        await ledger.settlement.defer(settled)
    with pytest.raises(StatementRefused):
        await ledger.settlement.defer(second)

    assert await jobs.queued() == 1
    assert await jobs.ledger_row(second.id) is None
    assert await jobs.outcome_of(settled.id) == "applied"
    assert await ledger.outbox.lease(1, lease_s=30, bulk=False) == []  # not yet

    async def comes_again() -> bool:
        return [each.message.id for each in await ledger.outbox.lease(1, lease_s=30, bulk=False)] == [held.id]

    await eventually(comes_again)
    assert (await ledger.settlement.apply([held]))[held.id].outcome is Outcome.APPLIED


async def test_a_row_that_refers_to_a_job_neither_holds_up_its_retry_nor_is_held_up(
    jobs: JobMaker, ledger: Ledger
) -> None:
    await jobs.pool.execute("CREATE TABLE control_plane.attachments (job_id uuid REFERENCES control_plane.jobs (id))")
    attach = "INSERT INTO control_plane.attachments VALUES ($1)"
    first, second = await jobs.failed(), await jobs.failed()
    async with jobs.pool.acquire() as theirs, theirs.transaction():
        await theirs.execute(attach, first.id)
        message = a_message_for(first)
        assert (await ledger.settlement.apply([message]))[message.id].outcome is Outcome.APPLIED

    retry = (await ledger.retries.accept(a_retry_of(second))).retry
    async with jobs.pool.acquire() as ours, ours.transaction():
        adopted: list[object] = []
        published = False
        assert await ours.fetch(statements("settlement")["apply"], [retry.id], adopted, published)
        await jobs.pool.execute(attach, second.id, timeout=30)
    assert await jobs.effects([first, second]) == [1, 1]
