"""The queues as another program sees them: publishing retry messages, and looking at what lies where."""

import struct
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import aio_pika
import pamqp.encode
import pytest

from shared import topology
from shared.job_ids import UuidIds
from shared.messages import CONTENT_TYPE, RetryMessage, decoded, encoded

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection, AbstractExchange


@dataclass(frozen=True, slots=True)
class Letter:
    """A message in a queue."""

    body: bytes
    headers: Mapping[str, object]

    @property
    def requests(self) -> Sequence[RetryMessage]:
        return decoded(self.body, UuidIds(), from_ledger=topology.LEDGER_HEADER in self.headers).requests

    @property
    def reason(self) -> object:
        return self.headers.get(topology.REASON_HEADER)

    @property
    def deliveries(self) -> int:
        """How often it was delivered before, in vain."""
        count = self.headers.get("x-delivery-count", 0)
        assert isinstance(count, int)
        return count


class Queues:
    """Exchange and queues of one virtual host, declared."""

    def __init__(self, connection: "AbstractConnection", exchange: "AbstractExchange") -> None:
        self._connection = connection
        self._exchange = exchange

    @classmethod
    @asynccontextmanager
    async def on(cls, amqp_url: str) -> AsyncIterator[Self]:
        connection = await aio_pika.connect(amqp_url, timeout=60)
        async with connection:
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            yield cls(connection, await topology.declare(channel))

    async def publish(
        self,
        message: RetryMessage | bytes,
        *,
        key: str = topology.KEY_RETRY,
        headers: Mapping[str, str] | None = None,
        timestamp_s: int | None = None,
    ) -> None:
        """Publish, and return once it is confirmed. `timestamp_s` is a property of AMQP's, and any 64 bits will do."""
        body = message if isinstance(message, bytes) else encoded(message)
        properties = aio_pika.Message(
            body,
            content_type=CONTENT_TYPE,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            headers=dict(headers or {}),
            timestamp=None if timestamp_s is None else 0,
        )
        with pytest.MonkeyPatch.context() as patch:
            if timestamp_s is not None:  # the library sends no date that it could not read
                patch.setitem(pamqp.encode.METHODS, "timestamp", lambda _: struct.pack(">Q", timestamp_s))
            await self._exchange.publish(properties, key, mandatory=True, timeout=60)

    async def publish_all(self, messages: Iterable[RetryMessage | bytes], *, key: str = topology.KEY_RETRY) -> None:
        for message in messages:
            await self.publish(message, key=key)

    async def waiting(self, queue: str = topology.RETRIES) -> int:
        """How many messages could be delivered at once: not those in some consumer's hands."""
        async with self._connection.channel() as channel:
            state = (await channel.declare_queue(queue, passive=True)).declaration_result
        return int(state.message_count or 0)

    async def drained(self) -> bool:
        """Whether no retry waits to be delivered."""
        return not (await self.waiting(topology.RETRIES) or await self.waiting(topology.RETRIES_BULK))

    async def consumers(self, queue: str = topology.RETRIES) -> int:
        async with self._connection.channel() as channel:
            state = (await channel.declare_queue(queue, passive=True)).declaration_result
        return int(state.consumer_count or 0)

    async def peek(self, queue: str) -> list[Letter]:
        """Everything that waits in a queue; it is back there once this returns, and counted as delivered."""
        letters = []
        async with self._connection.channel() as channel:
            taken = await channel.get_queue(queue, ensure=False)
            while (message := await taken.get(fail=False)) is not None:
                letters.append(Letter(message.body, message.headers))
        return letters

    async def take_dead(self) -> list[Letter]:
        """Everything in the dead-letter queue, which is empty then."""
        letters = []
        async with self._connection.channel() as channel:
            taken = await channel.get_queue(topology.RETRIES_DEAD, ensure=False)
            while (message := await taken.get(fail=False)) is not None:
                letters.append(Letter(message.body, message.headers))
                await message.ack()
        return letters

    async def delete(self, queue: str) -> None:
        async with self._connection.channel() as channel:
            await channel.queue_delete(queue)

    async def unbind(self, queue: str, key: str) -> None:
        async with self._connection.channel() as channel:
            await (await channel.get_queue(queue, ensure=False)).unbind(topology.EXCHANGE, key)

    async def bind(self, queue: str, key: str) -> None:
        async with self._connection.channel() as channel:
            await (await channel.get_queue(queue, ensure=False)).bind(topology.EXCHANGE, key)
