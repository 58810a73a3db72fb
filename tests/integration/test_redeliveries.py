"""What RabbitMQ says of a message that comes again: docs/scaling.md has the table, for each release that was tried.

Redrive relies on two things: the flag is set each time, whatever is counted, and what a dying worker had in hand is
given up after twenty returns.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import aio_pika
import pytest

from shared import topology
from shared.job_ids import UuidIds
from shared.messages import packed
from tests.eventually import eventually
from tests.jobs import JobMaker, a_message_for
from tests.queues import Queues
from worker.deliveries import Delivery

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection
    from aiormq.abc import AbstractChannel, DeliveredMessage

RETURNS = ("connection closed", "channel closed", "consumer cancelled", "nack", "reject")
COUNTS_NO_NACK = (4, 3)
COUNTS_TAKES = (4, 3)


class Taken(NamedTuple):
    """A message in hand, and what it was taken with."""

    connection: "AbstractConnection"
    channel: "AbstractChannel"
    message: "DeliveredMessage"

    async def give_back(self, way: str) -> None:
        tag = self.message.delivery_tag
        assert tag is not None
        match way:
            case "channel closed":
                await self.channel.close()
            case "consumer cancelled":
                await self.channel.basic_cancel("test")
            case "nack":
                await self.channel.basic_nack(tag, requeue=True)
            case "reject":
                await self.channel.basic_reject(tag, requeue=True)
            case _:
                assert way == "connection closed"
        await self.connection.close()


@asynccontextmanager
async def taking(amqp_url: str, *, consuming: bool) -> AsyncIterator[Taken]:
    """Take the message that waits, by a consumer or by `basic.get`."""
    connection = await aio_pika.connect(amqp_url, timeout=60)
    async with connection:
        channel = await (await connection.channel(publisher_confirms=False)).get_underlay_channel()
        delivered: list[DeliveredMessage] = []
        if consuming:

            async def note(message: "DeliveredMessage") -> None:
                delivered.append(message)

            await channel.basic_qos(prefetch_count=1)
            await channel.basic_consume(topology.RETRIES, note, consumer_tag="test")
            await eventually(lambda: delivered, within_s=20)
        else:

            async def got() -> bool:
                found = await channel.basic_get(topology.RETRIES)
                if found.delivery_tag is not None:
                    delivered.append(found)
                return bool(delivered)

            await eventually(got, within_s=20)
        yield Taken(connection, channel, delivered[0])


async def version_of(amqp_url: str) -> tuple[int, ...]:
    connection = await aio_pika.connect(amqp_url, timeout=60)
    async with connection:
        assert connection.transport is not None
        version = connection.transport.connection.server_properties["version"]
        assert isinstance(version, str)
        return tuple(int(part) for part in version.split(".")[:2])


def headers_of(message: "DeliveredMessage") -> Mapping[str, object]:
    return message.header.properties.headers or {}


@pytest.mark.parametrize("way", RETURNS)
async def test_a_message_that_comes_again_says_so(amqp_url: str, jobs: JobMaker, queues: Queues, *, way: str) -> None:
    version = await version_of(amqp_url)
    ((body, _),) = packed([a_message_for(job) for job in await jobs.many_failed(2)])
    await queues.publish(body)
    seen: list[tuple[object, object, object]] = []
    apart: list[bool] = []
    for _ in range(3):
        async with taking(amqp_url, consuming=way == "consumer cancelled") as taken:
            headers = headers_of(taken.message)
            flag = taken.message.redelivered
            seen.append((flag, headers.get("x-delivery-count", 0), headers.get("x-acquired-count", 0)))
            apart.append(Delivery.of(taken.message, UuidIds()).is_to_be_taken_apart)
            await taken.give_back(way)

    delivered = [0, 0, 0] if way == "nack" and version >= COUNTS_NO_NACK else [0, 1, 2]
    acquired = [0, 1, 2] if version >= COUNTS_TAKES else [0, 0, 0]
    assert seen == list(zip([False, True, True], delivered, acquired, strict=True))
    assert apart == [False, True, True]


@pytest.mark.parametrize("way", ["connection closed", "nack", "reject"])
async def test_what_is_returned_twenty_times_is_given_up_where_the_return_counts(
    amqp_url: str, jobs: JobMaker, queues: Queues, *, way: str
) -> None:
    counts = way != "nack" or await version_of(amqp_url) < COUNTS_NO_NACK
    await queues.publish(a_message_for(await jobs.failed()))
    for _ in range(21):
        assert await queues.waiting(topology.RETRIES_DEAD) == 0
        async with taking(amqp_url, consuming=False) as taken:
            await taken.give_back(way)

    async def where() -> tuple[int, int] | None:
        places = await queues.waiting(), await queues.waiting(topology.RETRIES_DEAD)
        return places if sum(places) == 1 else None

    assert await eventually(where) == ((0, 1) if counts else (1, 0))
