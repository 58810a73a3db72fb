"""Consumer: one consumer on one channel, and the inbox that RabbitMQ delivers to.

A consumer is never repaired. Where its channel or connection closes, or RabbitMQ cancels it (the queue was deleted, or
has lost its leader), the inbox fails, and with it the session.
"""

import asyncio
from typing import TYPE_CHECKING, Final

from pamqp.commands import Basic

from shared.broker import CALL_S, translated
from shared.errors import BrokerUnavailable
from shared.refusals import CLOSED, words_of
from worker.inbox import Inbox

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection
    from aiormq.abc import AbstractChannel, DeliveredMessage

_TAG: Final = "redrive"


class Consumer:
    """A consumer on a channel of its own, and the inbox that RabbitMQ delivers to."""

    def __init__(self, connection: "AbstractConnection", channel: "AbstractChannel", queue: str) -> None:
        self._connection = connection
        self._channel = channel
        self._queue = queue
        self.inbox: Inbox[DeliveredMessage] = Inbox()
        self.acked = 0

    @classmethod
    async def on(cls, connection: "AbstractConnection", queue: str, *, prefetch: int) -> "Consumer":
        """Begin to consume, with at most `prefetch` messages that are not acknowledged."""
        async with asyncio.timeout(CALL_S):
            # Aiormq's channel, beneath aio-pika's: it costs one task less for each message. And aio-pika fails on a
            # message whose properties make no sense; the message would then be acknowledged with its neighbours.
            channel = await (await connection.channel(publisher_confirms=False)).get_underlay_channel()
            consumer = cls(connection, channel, queue)
            channel.closing.add_done_callback(consumer._on_closed)
            channel.on_consumer_cancel_callbacks.add(consumer._on_cancelled)
            await channel.basic_qos(prefetch_count=prefetch)
            await channel.basic_consume(queue, consumer._on_delivered, consumer_tag=_TAG)
        return consumer

    async def _on_delivered(self, message: "DeliveredMessage") -> None:
        self.inbox.put(message)

    def _on_closed(self, closing: "asyncio.Future[None]") -> None:
        error = None if closing.cancelled() else closing.exception()
        self.inbox.fail(BrokerUnavailable(CLOSED if error is None else words_of(error)))

    async def _on_cancelled(self, _frame: Basic.Cancel) -> None:
        self.inbox.fail(BrokerUnavailable("RabbitMQ cancelled the consumer: its queue was deleted, or lost its leader"))

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

    async def ack(self, batch: "list[DeliveredMessage]") -> None:
        """Acknowledge a batch, and all messages delivered before it: there must be no other batch in hand."""
        tag = batch[-1].delivery_tag
        assert tag is not None  # noqa: S101 - a delivery has one
        async with asyncio.timeout(CALL_S):
            await self._channel.basic_ack(tag, multiple=True)
        self.acked += len(batch)

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
