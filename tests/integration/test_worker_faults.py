"""Servers that go away under a worker, and workers that go away under load: nothing lost, nothing twice."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from shared import topology
from shared.broker import connected, translated
from shared.errors import BrokerUnavailable
from shared.migrations import migrate
from tests.eventually import eventually
from tests.jobs import JobMaker, MadeJob, a_message_for
from tests.lateness import lateness
from tests.queues import Queues
from tests.servers.postgres import PrivatePostgres
from tests.servers.rabbitmq import KILLABLE_AFTER_S, PrivateRabbitmq
from tests.workers import RunningWorker, a_worker
from worker.consumers import Consumer


async def _all_put_back(jobs: JobMaker, failed: list[MadeJob]) -> bool:
    return await jobs.effects(failed) == [1] * len(failed)


@asynccontextmanager
async def _database_on(server: PrivatePostgres) -> AsyncIterator[str]:
    """A migrated database that outlives its server's restarts."""
    async with server.postgres.database(migrated=False) as url:
        await asyncio.to_thread(migrate, url)
        try:
            yield url
        finally:
            await server.recover()


async def test_a_broker_that_is_restarted_loses_no_retry_and_no_worker(
    database_url: str, jobs: JobMaker, private_rabbitmq: PrivateRabbitmq
) -> None:
    before, after = await jobs.many_failed(100), await jobs.many_failed(100)
    async with (
        private_rabbitmq.rabbitmq.vhost() as amqp_url,
        a_worker(database_url, amqp_url, worker_batch_size=7) as worker,
    ):
        await asyncio.sleep(KILLABLE_AFTER_S)
        async with Queues.on(amqp_url) as queues:
            await queues.publish_all(map(a_message_for, before))
        await private_rabbitmq.kill()
        await eventually(lambda: _readiness(worker, 503))
        await private_rabbitmq.start()
        await eventually(worker.ready, within_s=30)
        async with Queues.on(amqp_url) as queues:
            await queues.publish_all(map(a_message_for, after))
            await eventually(lambda: _all_put_back(jobs, [*before, *after]), within_s=30)
            await worker.stop()
            assert await queues.waiting() == 0


async def _readiness(worker: RunningWorker, status: int) -> bool:
    return await worker.readiness() == status


async def test_a_database_that_is_away_in_mid_work_costs_each_message_one_delivery_and_loses_none(
    amqp_url: str, queues: Queues, private_postgres: PrivatePostgres
) -> None:
    async with _database_on(private_postgres) as database_url, JobMaker.on(database_url) as jobs:
        failed = await jobs.many_failed(50)
        async with a_worker(database_url, amqp_url, worker_batch_size=20, worker_batch_wait=1) as worker:
            async with jobs.locked():
                await queues.publish_all(map(a_message_for, failed))
                await eventually(jobs.lock_is_waited_for, what="a batch waits for the lock")
                await private_postgres.stop_immediate()
            # Several attempts at a database that is away, none of which may take messages.
            await worker.sampled_at_least("redrive_sessions_total", 4, end="database_unavailable")
            deliveries = [letter.deliveries for letter in await queues.peek(topology.RETRIES)]
            assert len(deliveries) == len(failed)
            assert max(deliveries) == 1
            await private_postgres.start()
            await eventually(lambda: _all_put_back(jobs, failed), within_s=30)
            await worker.stop()
        assert await queues.waiting() == 0
        assert await queues.waiting(topology.RETRIES_DEAD) == 0
        assert await _all_put_back(jobs, failed)


async def test_a_jobs_table_that_is_locked_for_long_costs_one_delivery_too(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues
) -> None:
    failed = await jobs.many_failed(10)
    async with a_worker(database_url, amqp_url, db_timeout=1) as worker:
        async with jobs.locked():
            await queues.publish_all(map(a_message_for, failed))
            await worker.sampled_at_least("redrive_sessions_total", 3, end="database_unavailable")
            deliveries = [letter.deliveries for letter in await queues.peek(topology.RETRIES)]
            assert len(deliveries) == len(failed)
            assert max(deliveries) == 1
        await eventually(lambda: _all_put_back(jobs, failed))


async def test_a_worker_starts_before_its_servers_and_takes_nothing_it_cannot_settle(
    amqp_url: str, queues: Queues, private_postgres: PrivatePostgres
) -> None:
    async with _database_on(private_postgres) as database_url:
        async with JobMaker.on(database_url) as jobs:
            failed = await jobs.many_failed(5)
        await private_postgres.stop()
        await queues.publish_all(map(a_message_for, failed))
        async with a_worker(database_url, amqp_url, ready=False) as worker:
            await eventually(lambda: _readiness(worker, 503))
            await worker.sampled_at_least("redrive_sessions_total", 4, end="database_unavailable")
            assert [letter.deliveries for letter in await queues.peek(topology.RETRIES)] == [0] * 5
            await private_postgres.start()
            await eventually(worker.ready)
            await eventually(queues.drained)


@pytest.mark.parametrize("queue", [topology.RETRIES, topology.RETRIES_BULK])
async def test_a_queue_that_is_deleted_is_declared_and_consumed_anew(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues, queue: str
) -> None:
    async with a_worker(database_url, amqp_url) as worker:
        await queues.delete(queue)
        await worker.sampled("redrive_sessions_total", 1, end="broker_unavailable")
        await eventually(worker.ready)
        assert await queues.consumers(queue) == 1
        job = await jobs.failed()
        await queues.publish(a_message_for(job), key=_key_of(queue))
        await eventually(lambda: jobs.effects_of(job))


def _key_of(queue: str) -> str:
    return topology.KEY_RETRY if queue == topology.RETRIES else topology.KEY_BULK


async def test_a_worker_that_is_stopped_under_load_settles_what_is_in_hand_and_gives_back_the_rest(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues
) -> None:
    failed = await jobs.many_failed(400)
    await queues.publish_all(map(a_message_for, failed))
    async with a_worker(database_url, amqp_url, worker_batch_size=10) as worker:
        await worker.sampled_at_least("redrive_batches_total", 1)
        await worker.stop()
        assert await worker.readiness() == 0

    settled = await jobs.effects(failed)
    assert set(settled) <= {0, 1}
    assert 10 <= sum(settled) < len(failed)
    # Each message is either acknowledged or back.
    await eventually(lambda: _waiting(queues, len(failed) - sum(settled)))

    async with a_worker(database_url, amqp_url):
        await eventually(lambda: _all_put_back(jobs, failed))


async def test_a_worker_stops_within_its_grace_though_the_database_hangs(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues
) -> None:
    failed = await jobs.many_failed(10)
    async with a_worker(database_url, amqp_url, db_timeout=2.5, shutdown_grace=1) as worker, jobs.locked():
        await queues.publish_all(map(a_message_for, failed))
        await eventually(jobs.lock_is_waited_for, what="a batch waits for the lock")
        began_at = asyncio.get_running_loop().time()
        async with lateness() as late:
            await worker.stop()
        assert asyncio.get_running_loop().time() - began_at < 1.5 + late.seconds
    await eventually(lambda: _waiting(queues, len(failed)))
    assert await jobs.all_effects() == 0


async def _waiting(queues: Queues, count: int) -> bool:
    """What a worker that left had in hand comes back a moment after its connection has gone."""
    return await queues.waiting() == count


async def test_a_user_who_may_only_read_queues_and_write_the_exchange_is_enough(
    database_url: str, least_privileged_amqp_url: str, jobs: JobMaker, queues: Queues
) -> None:
    job = await jobs.failed()
    async with a_worker(database_url, least_privileged_amqp_url) as worker:
        await queues.publish(b"poison")
        await queues.publish(a_message_for(job))
        await eventually(lambda: jobs.effects_of(job))
        await eventually(lambda: _dead(queues))
        await worker.sampled("redrive_sessions_total", 0, end="broker_unavailable")


async def test_a_silent_queue_is_asked_for_a_message_and_a_session_that_is_starved_begins_anew(
    database_url: str, least_privileged_amqp_url: str, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[bool] = []
    lying = False

    async def look(consumer: Consumer) -> bool:
        answers.append(await is_starved(consumer))
        return lying

    is_starved = Consumer.is_starved
    monkeypatch.setattr(Consumer, "is_starved", look)
    monkeypatch.setattr("worker.sources.WATCHDOG_S", 0.02)
    async with a_worker(database_url, least_privileged_amqp_url) as worker:
        await eventually(lambda: len(answers) > 20)
        assert not any(answers)
        await worker.sampled("redrive_sessions_total", 0, end="broker_unavailable")
        lying = True
        await worker.sampled_at_least("redrive_sessions_total", 2, end="broker_unavailable")
        lying = False
        await eventually(worker.ready)
        assert await queues.consumers() == 1


async def _dead(queues: Queues) -> bool:
    return await queues.waiting(topology.RETRIES_DEAD) == 1


async def test_a_connection_that_is_lost_before_its_first_channel_is_a_broker_that_is_away(amqp_url: str) -> None:
    async def lost() -> None:
        with translated():
            async with connected(amqp_url, name="test") as connection:
                assert connection.transport is not None
                await connection.transport.connection.close()  # as a broker does that is starting, or going
                await topology.Topology().mend(connection)

    with pytest.raises(BrokerUnavailable):
        await lost()
