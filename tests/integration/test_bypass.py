"""What a cluster of RabbitMQ holds up is settled from the ledger, once, and nothing else is."""

import pytest

from shared import topology
from shared.broker import connected
from shared.job_ids import UuidIds
from shared.messages import encoded
from tests.api_server import Serve
from tests.eventually import eventually
from tests.jobs import JobMaker, MadeJob, a_retry_of
from tests.ledger import Ledger
from tests.queues import Queues
from tests.servers.proxy import Proxy
from tests.workers import a_worker
from worker.consumers import Consumer


@pytest.fixture
async def waiting(jobs: JobMaker, ledger: Ledger) -> list[MadeJob]:
    """Three failed jobs whose retries have waited in the ledger for ten seconds."""
    failed = await jobs.many_failed(3)
    for job in failed:
        await ledger.retries.accept(a_retry_of(job))
    await jobs.pool.execute("UPDATE redrive.retry_requests SET requested_at = now() - interval '10 s'")
    return failed


async def leased(ledger: Ledger, *, older_than_s: float = 5, bulk: bool = False, lease_s: float = 10) -> int:
    """How many requests are held up, which are leased now."""
    return len(
        await ledger.settlement.lease_held_up(10, bulk=bulk, older_than_s=older_than_s, held_up_s=5, lease_s=lease_s)
    )


@pytest.mark.usefixtures("waiting")
async def test_a_request_is_held_up_that_is_old_and_neither_leased_nor_just_published(
    jobs: JobMaker, ledger: Ledger
) -> None:
    assert await leased(ledger, older_than_s=20) == 0
    assert await leased(ledger, bulk=True) == 0
    (row,) = await ledger.outbox.lease(1, lease_s=30, bulk=False)
    assert await leased(ledger) == 2
    assert await leased(ledger) == 0

    await ledger.outbox.mark_published([row.lease])
    assert await leased(ledger) == 0
    await jobs.pool.execute("UPDATE redrive.retry_requests SET published_at = published_at - interval '10 s'")
    assert await leased(ledger) == 1


@pytest.mark.usefixtures("waiting")
async def test_a_request_whose_deferral_has_just_ended_is_left_to_the_relay(jobs: JobMaker, ledger: Ledger) -> None:
    end = "UPDATE redrive.retry_requests SET publish_lease_until = now() - $1 * interval '1 s'"
    await jobs.pool.execute(end, 1.0)
    assert await leased(ledger) == 0

    await jobs.pool.execute(end, 6.0)
    assert await leased(ledger) == 3


@pytest.mark.usefixtures("waiting")
async def test_what_a_worker_dies_with_is_published_alone_and_not_taken_again(ledger: Ledger) -> None:
    assert await leased(ledger, lease_s=0) == 3

    assert await leased(ledger) == 0
    assert [row.alone for row in await ledger.outbox.lease(10, lease_s=30, bulk=False)] == [True] * 3


async def test_what_another_consumer_never_settles_is_settled_from_the_ledger(
    database_url: str, amqp_url: str, jobs: JobMaker, ledger: Ledger, queues: Queues, *, waiting: list[MadeJob]
) -> None:
    """As of a node that is cut off: its leader gives out messages that nobody gets."""
    rows = await ledger.outbox.lease(10, lease_s=30, bulk=False)
    await ledger.outbox.mark_published([row.lease for row in rows])
    for row in rows:
        await queues.publish(encoded(row.message), headers={topology.LEDGER_HEADER: "1"})
    async with connected(amqp_url, name="test") as connection:
        consumer = await Consumer.on(connection, topology.RETRIES, UuidIds(), prefetch=100)
        await consumer.inbox.take_batch(max_size=3, max_wait_s=5, timeout_s=10)
        async with a_worker(database_url, f"{amqp_url},{amqp_url}") as worker:

            async def all_put_back() -> bool:
                return await jobs.effects(waiting) == [1, 1, 1]

            await eventually(all_put_back, within_s=20)
            await worker.sampled("redrive_requests_bypassed_total", 3)
            await connection.close()  # what it had is delivered now, and changes nothing
            await eventually(queues.drained)
            await worker.sampled("redrive_retries_settled_total", 3, outcome="applied")

    assert await jobs.effects(waiting) == [1, 1, 1]


async def test_while_no_node_answers_retries_go_through_the_ledger(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues, serve: Serve
) -> None:
    assert queues is not None
    async with Proxy.to(amqp_url) as one, Proxy.to(amqp_url) as two:
        urls = f"{one.url_of(amqp_url)},{two.url_of(amqp_url)}"
        api = await serve(database_url, amqp_url=urls)
        async with a_worker(database_url, urls):
            await one.black_hole()
            await two.black_hole()
            failed = await jobs.many_failed(20)
            for job in failed:
                assert (await api.post(f"/api/jobs/{job.id}/retry")).status == 202

            async def all_put_back() -> bool:
                return await jobs.effects(failed) == [1] * len(failed)

            await eventually(all_put_back, within_s=20)
            await one.heal()
            await two.heal()
            await eventually(queues.drained)
    assert await jobs.effects(failed) == [1] * len(failed)
