"""The broker, from outside: declaring, filling and watching queues."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Self

import aio_pika
from aio_pika.exceptions import ChannelClosed

from bench.client import until_true
from shared import topology
from shared.messages import CONTENT_TYPE

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection


class Broker:
    """One virtual host."""

    def __init__(self, connection: "AbstractConnection") -> None:
        self._connection = connection

    @classmethod
    @asynccontextmanager
    async def on(cls, amqp_url: str) -> AsyncIterator[Self]:
        """Connect to it."""
        connection = await aio_pika.connect(amqp_url, timeout=10)
        async with connection:
            yield cls(connection)

    async def declare(self) -> None:
        """Redrive's exchange and queues."""
        async with self._connection.channel() as channel:
            await topology.declare(channel)

    async def purge(self) -> None:
        """Take everything out of Redrive's queues."""
        async with self._connection.channel() as channel:
            for queue in (topology.RETRIES, topology.RETRIES_BULK):
                await (await channel.get_queue(queue, ensure=False)).purge()

    async def fill(self, bodies: Sequence[bytes]) -> None:
        """Publish to the queue of single retries; return once all of it lies there, or in a consumer's hands."""
        async with self._connection.channel(publisher_confirms=False) as channel:
            exchange = await channel.get_exchange(topology.EXCHANGE, ensure=False)
            for body in bodies:
                message = aio_pika.Message(
                    body, content_type=CONTENT_TYPE, delivery_mode=aio_pika.DeliveryMode.PERSISTENT
                )
                await exchange.publish(message, topology.KEY_RETRY)

    async def waiting(self, queue: str) -> int:
        """How many messages could be delivered at once."""
        async with self._connection.channel() as channel:
            state = (await channel.declare_queue(queue, passive=True)).declaration_result
        return int(state.message_count or 0)

    async def consumers(self, queue: str) -> int:
        """How many consumers the queue has; none where there is no such queue."""
        try:
            async with self._connection.channel() as channel:
                state = (await channel.declare_queue(queue, passive=True)).declaration_result
        except ChannelClosed:
            return 0
        return int(state.consumer_count or 0)

    async def filled(self, queue: str, *, at_least: int) -> None:
        """Wait until so many messages lie there."""

        async def there() -> bool:
            return await self.waiting(queue) >= at_least

        await until_true(there, every_s=0.05, within_s=120)

    async def consumed(self, queue: str, *, by: int) -> None:
        """Wait until the queue has so many consumers."""

        async def there() -> bool:
            return await self.consumers(queue) >= by

        await until_true(there, every_s=0.05, within_s=60)
