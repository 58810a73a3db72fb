"""The servers that the other tests stand on."""

import asyncio

import aio_pika
import asyncpg
import pytest
from aio_pika.abc import DeliveryMode

from shared import topology
from tests.eventually import eventually
from tests.servers.postgres import Postgres, PrivatePostgres
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import KILLABLE_AFTER_S, PrivateRabbitmq


async def fetch(url: str, query: str) -> object:
    connection = await asyncpg.connect(url, timeout=60, command_timeout=60)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


@pytest.mark.parametrize("_time", ["first", "second"])
async def test_a_test_has_a_migrated_database_to_itself(database_url: str, _time: str) -> None:
    assert await fetch(database_url, "SELECT count(*) FROM redrive.retry_requests") == 0
    await fetch(database_url, "CREATE TABLE mine ()")  # fails the second time if the database is the same


async def test_an_empty_database_has_no_schema_of_ours(empty_database_url: str) -> None:
    assert await fetch(empty_database_url, "SELECT to_regnamespace('redrive') IS NULL")


async def test_a_database_is_dropped_with_its_connections(postgres: Postgres) -> None:
    async with postgres.database() as url:
        connection = await asyncpg.connect(url)
        name = await connection.fetchval("SELECT current_database()")
    connection.terminate()

    assert await fetch(postgres.url, f"SELECT count(*) FROM pg_database WHERE datname = '{name}'") == 0


@pytest.mark.parametrize("_time", ["first", "second"])
async def test_a_test_has_a_virtual_host_to_itself(amqp_url: str, _time: str) -> None:
    connection = await aio_pika.connect(amqp_url)
    async with connection, await connection.channel(publisher_confirms=True, on_return_raises=True) as channel:
        queue = await channel.declare_queue("redrive.retries", durable=True, arguments={"x-queue-type": "quorum"})
        assert queue.declaration_result.message_count == 0

        message = aio_pika.Message(b"{}", delivery_mode=DeliveryMode.PERSISTENT)
        confirmed = await channel.default_exchange.publish(message, routing_key=queue.name, mandatory=True)
        assert type(confirmed).__name__ == "Ack"

        assert (await queue.get(timeout=60, no_ack=True)).body == b"{}"
        await channel.default_exchange.publish(
            message, routing_key=queue.name
        )  # for the second time to find, if shared


async def test_a_private_postgres_keeps_its_data_over_a_crash_and_a_power_cut(
    private_postgres: PrivatePostgres, private_database_url: str
) -> None:
    url = private_database_url
    await fetch(url, "CREATE TABLE kept (n int)")

    for n, fall in enumerate([private_postgres.stop_immediate, private_postgres.kill, private_postgres.stop]):
        await fetch(url, f"INSERT INTO kept VALUES ({n})")
        await fall()
        with pytest.raises(OSError, match="Connect call failed"):
            await fetch(url, "SELECT 1")
        await private_postgres.start()
        assert await fetch(url, "SELECT count(*) FROM kept") == n + 1


async def test_a_frozen_postgres_answers_nothing_until_it_thaws(private_postgres: PrivatePostgres) -> None:
    connection = await asyncpg.connect(private_postgres.postgres.url)
    await private_postgres.freeze()
    answer = asyncio.ensure_future(connection.fetchval("SELECT 1"))
    assert await asyncio.wait([answer], timeout=0.3) == (set(), {answer})

    await private_postgres.thaw()
    assert await asyncio.wait_for(answer, timeout=60) == 1
    await connection.close()


async def test_a_private_rabbitmq_keeps_what_it_confirmed_over_a_power_cut(
    private_rabbitmq: PrivateRabbitmq, private_amqp_url: str
) -> None:
    message = aio_pika.Message(b"1", delivery_mode=DeliveryMode.PERSISTENT)
    connection = await aio_pika.connect(private_amqp_url)
    async with connection, await connection.channel() as channel:
        await channel.declare_queue("kept", durable=True, arguments={"x-queue-type": "quorum"})
        await channel.default_exchange.publish(message, routing_key="kept", timeout=60)

    await asyncio.sleep(KILLABLE_AFTER_S)
    await private_rabbitmq.kill()
    with pytest.raises(OSError, match="Connect call failed"):
        await aio_pika.connect(private_amqp_url)
    await private_rabbitmq.start()

    connection = await aio_pika.connect(private_amqp_url)
    async with connection, await connection.channel() as channel:
        queue = await channel.get_queue("kept")
        assert (await queue.get(timeout=60)).body == b"1"


async def test_a_private_rabbitmq_that_was_killed_takes_the_queues_of_the_next_test(
    private_rabbitmq: PrivateRabbitmq,
) -> None:
    async with private_rabbitmq.rabbitmq.vhost() as url:
        await _declare(url)
        await asyncio.sleep(KILLABLE_AFTER_S)
        await private_rabbitmq.kill()
        await private_rabbitmq.start()
    async with private_rabbitmq.rabbitmq.vhost() as url:
        await _declare(url)


async def _declare(url: str) -> None:
    async with await aio_pika.connect(url, timeout=60) as connection:
        await topology.Topology().mend(connection)


async def test_a_rabbitmq_that_is_blocked_or_frozen_confirms_nothing_until_it_is_not(
    private_rabbitmq: PrivateRabbitmq, private_amqp_url: str
) -> None:
    message = aio_pika.Message(b"1")
    connection = await aio_pika.connect(private_amqp_url)
    async with connection, await connection.channel() as channel:
        queue = await channel.declare_queue("mine")
        faults = (private_rabbitmq.block, private_rabbitmq.unblock), (private_rabbitmq.freeze, private_rabbitmq.thaw)
        for begin, end in faults:
            await begin()
            confirmed = asyncio.ensure_future(channel.default_exchange.publish(message, routing_key=queue.name))
            assert await asyncio.wait([confirmed], timeout=0.5) == (set(), {confirmed})

            await end()
            await asyncio.wait_for(confirmed, timeout=60)


async def test_the_proxy_breaks_connections_in_every_way(postgres: Postgres) -> None:
    async with Proxy.to(postgres.url) as proxy:
        url = proxy.url_of(postgres.url)
        connection = await asyncpg.connect(url)
        assert await connection.fetchval("SELECT 1") == 1
        assert (proxy.connections, proxy.connections_total) == (1, 1)
        assert proxy.bytes_to_server > 0
        assert proxy.bytes_to_client > 0

        await proxy.stall()
        answer = asyncio.ensure_future(connection.fetchval("SELECT 2"))
        assert await asyncio.wait([answer], timeout=0.2) == (set(), {answer})
        await proxy.heal()
        assert await asyncio.wait_for(answer, timeout=60) == 2

        await proxy.refuse()
        with pytest.raises(OSError, match="Connect call failed"):
            await fetch(url, "SELECT 1")
        assert await connection.fetchval("SELECT 3") == 3
        await proxy.heal()
        assert await fetch(url, "SELECT 4") == 4

        await proxy.black_hole()
        answer = asyncio.ensure_future(connection.fetchval("SELECT 5"))
        assert await asyncio.wait([answer], timeout=0.2) == (set(), {answer})
        with pytest.raises(TimeoutError):
            await asyncpg.connect(url, timeout=0.2)
        await proxy.heal()
        with pytest.raises((OSError, asyncpg.PostgresConnectionError)):
            await answer

        connection = await asyncpg.connect(url)
        await proxy.reset()
        await eventually(connection.is_closed)
        assert proxy.connections == 0
