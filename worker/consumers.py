"""Consumer: one consumer on one channel, and the inbox that it is delivered to.

It is never mended. Whatever ends it, the channel, the connection or a word from the broker (a queue that is deleted, a
leader that is lost), fails the inbox, and with it the session.
"""

import asyncio
from typing import TYPE_CHECKING, Final

from shared.broker import CALL_S, translated
from shared.errors import BrokerUnavailable
from worker.batches import Inbox

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection
    from aiormq.abc import AbstractChannel, DeliveredMessage
    from pamqp.commands import Basic

_TAG: Final = "redrive"


class Consumer:
    """A consumer on a channel of its own, and the inbox that it is delivered to."""

    def __init__(self, channel: "AbstractChannel", queue: str) -> None:
        self._channel = channel
        self._queue = queue
        self.inbox: Inbox[DeliveredMessage] = Inbox()
        self.acked = 0

    @classmethod
    async def on(cls, connection: "AbstractConnection", queue: str, *, prefetch: int) -> "Consumer":
        """Begin to consume, with at most `prefetch` messages on the way or in hand."""
        async with asyncio.timeout(CALL_S):
            # aiormq's channel, beneath aio-pika's: a task less for each message, and a message whose properties make
            # no sense reaches us, instead of failing on the way and being acknowledged with its neighbours.
            channel = await (await connection.channel(publisher_confirms=False)).get_underlay_channel()
            consumer = cls(channel, queue)
            channel.closing.add_done_callback(consumer._closed)
            channel.on_consumer_cancel_callbacks.add(consumer._cancelled)
            await channel.basic_qos(prefetch_count=prefetch)
            await channel.basic_consume(queue, consumer._delivered, consumer_tag=_TAG)
        return consumer

    async def _delivered(self, message: "DeliveredMessage") -> None:
        self.inbox.put(message)

    def _closed(self, _closing: "asyncio.Future[None]") -> None:
        self.inbox.fail(BrokerUnavailable("the channel was closed"))

    async def _cancelled(self, _frame: "Basic.Cancel") -> None:
        self.inbox.fail(BrokerUnavailable("the broker cancelled the consumer"))

    async def is_passed_over(self) -> bool:
        """Whether the queue has messages and nobody gets them, or does not know of any consumer."""
        async with asyncio.timeout(CALL_S):
            state = await self._channel.queue_declare(self._queue, passive=True)
        return bool(state.message_count) or not state.consumer_count

    async def ack(self, batch: "list[DeliveredMessage]") -> None:
        """Acknowledge a batch, and with it everything delivered before: there must be no other batch in hand."""
        tag = batch[-1].delivery_tag
        assert tag is not None  # noqa: S101 - a delivery has one
        async with asyncio.timeout(CALL_S):
            await self._channel.basic_ack(tag, multiple=True)
        self.acked += len(batch)

    async def cancel(self) -> None:
        """Get no more deliveries; then close the inbox behind the last of them."""
        try:
            with translated():
                async with asyncio.timeout(CALL_S):
                    await self._channel.basic_cancel(_TAG)
        except BrokerUnavailable as error:
            self.inbox.fail(error)
        else:
            self.inbox.close()
