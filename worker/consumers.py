"""Consumer: one consumer on one channel, and the inbox that RabbitMQ delivers to.

A consumer is never repaired. Where its channel or connection closes, or RabbitMQ cancels it (the queue was deleted, or
has lost its leader), the inbox fails, and with it the session.

RabbitMQ bounds what it delivers ahead in messages, whatever their size. A consumer bounds it in bytes: while more are
in hand, nothing is read from the connection, so that RabbitMQ must wait. What was read before that is the excess.
"""

import asyncio
from typing import TYPE_CHECKING, Final

from pamqp.commands import Basic

from shared.broker import CALL_S, NODE_S, translated
from shared.errors import BrokerUnavailable
from shared.refusals import CLOSED, words_of
from worker.deliveries import Delivery
from worker.inbox import Inbox

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection
    from aiormq.abc import AbstractChannel, DeliveredMessage

    from shared.job_ids import JobIds

MOST_BYTES: Final = 16 * 1024 * 1024
"""In hand of one consumer; 800 messages of 1 MB would not fit into the memory that a worker is given."""
_TAG: Final = "redrive"


class Consumer:
    """A consumer on a channel of its own, and the inbox that RabbitMQ delivers to."""

    def __init__(
        self,
        connection: "AbstractConnection",
        channel: "AbstractChannel",
        queue: str,
        ids: "JobIds",
        reading: asyncio.Event,
    ) -> None:
        self._connection = connection
        self._channel = channel
        self._queue = queue
        self._ids = ids
        self._reading = reading
        self._bytes = 0  # in hand
        self.inbox: Inbox[Delivery] = Inbox()
        self.acked = 0

    @classmethod
    async def on(
        cls,
        connection: "AbstractConnection",
        queue: str,
        ids: "JobIds",
        *,
        prefetch: int,
        reading: asyncio.Event | None = None,
    ) -> "Consumer":
        """Begin to consume, with at most `prefetch` messages that are not acknowledged.

        `reading` is the event that the connection was opened with; it is cleared while too many bytes are in hand.
        """
        async with asyncio.timeout(CALL_S):
            # Aiormq's channel, beneath aio-pika's: it costs one task less for each message. And aio-pika fails on a
            # message whose properties make no sense; the message would then be acknowledged with its neighbours.
            channel = await (await connection.channel(publisher_confirms=False)).get_underlay_channel()
            consumer = cls(connection, channel, queue, ids, reading or asyncio.Event())
            channel.closing.add_done_callback(consumer._on_closed)
            channel.on_consumer_cancel_callbacks.add(consumer._on_cancelled)
            await channel.basic_qos(prefetch_count=prefetch)
            await channel.basic_consume(queue, consumer._on_delivered, consumer_tag=_TAG)
        return consumer

    async def _on_delivered(self, message: "DeliveredMessage") -> None:
        delivery = Delivery.of(message, self._ids)
        self._count_bytes(len(message.body))
        self.inbox.put(delivery, size=delivery.size)

    def _count_bytes(self, count: int) -> None:
        self._bytes += count
        if self._bytes >= MOST_BYTES:
            self._reading.clear()
        else:
            self._reading.set()

    def _on_closed(self, closing: "asyncio.Future[None]") -> None:
        error = None if closing.cancelled() else closing.exception()
        self.inbox.fail(BrokerUnavailable(CLOSED if error is None else words_of(error)))

    async def _on_cancelled(self, _frame: Basic.Cancel) -> None:
        self.inbox.fail(BrokerUnavailable("RabbitMQ cancelled the consumer: its queue was deleted, or lost its leader"))

    async def ping(self) -> None:
        """Ask the node for an answer, by opening a channel. Raises TimeoutError where none comes within two seconds."""
        async with asyncio.timeout(NODE_S):
            channel = await (await self._connection.channel(publisher_confirms=False)).get_underlay_channel()
            await channel.close()

    async def is_starved(self) -> bool:
        """Whether a message waits in the queue that RabbitMQ does not deliver, though there is room for it.

        Takes the message and gives it back, on a channel of its own: `ack` acknowledges every message of this one.
        """
        async with asyncio.timeout(CALL_S):
            channel = await (await self._connection.channel(publisher_confirms=False)).get_underlay_channel()
            try:
                taken = await channel.basic_get(self._queue)
                if taken.delivery_tag is not None and not isinstance(taken.delivery, Basic.GetEmpty):
                    await channel.basic_nack(taken.delivery_tag, requeue=True)
                    return True
            finally:
                await channel.close()
        return False

    async def ack(self, batch: list[Delivery]) -> None:
        """Acknowledge a batch, and all messages delivered before it: there must be no other batch in hand."""
        tag = batch[-1].message.delivery_tag
        assert tag is not None  # noqa: S101 - a delivery has one
        async with asyncio.timeout(CALL_S):
            await self._channel.basic_ack(tag, multiple=True)
        self.acked += len(batch)
        self._count_bytes(-sum(len(delivery.message.body) for delivery in batch))

    async def cancel(self) -> None:
        """Stop deliveries; then close the inbox behind the last of them."""
        try:
            with translated():
                async with asyncio.timeout(CALL_S):
                    await self._channel.basic_cancel(_TAG)
        except BrokerUnavailable as error:
            self.inbox.fail(error)
        else:
            self.inbox.close()
