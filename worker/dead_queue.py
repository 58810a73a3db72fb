"""DeadQueue: the dead-letter queue, looked through without being worn out.

AMQP reads a queue by taking from it. A look takes letters, keeps them in hand, and gives them back (`basic.nack`): to
their places from RabbitMQ 4.0 on, to the end of the queue before. Each of these counts as a delivery, and from 4.0 on
what has been delivered twenty times is dropped (https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling).
This queue's arguments cannot prevent that: a limit of `-1`, which ends the counting there, makes 3.10 drop a letter the
first time that it is given back (measured). So a letter that has come back often is not given back again, but published
anew, confirmed, and only then acknowledged: the count of the copy begins at nothing.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from pamqp.commands import Basic

from shared import broker, topology
from shared.broker import CALL_S, connected, translated
from shared.errors import UnreadableMessage
from shared.messages import RetryMessage, decoded

if TYPE_CHECKING:
    from aio_pika.abc import AbstractExchange
    from aiormq.abc import AbstractChannel, DeliveredMessage
    from pamqp.common import FieldValue

MOST_DELIVERIES: Final = 10
"""After so many a letter is published anew: half of what RabbitMQ allows, the rest being for connections that break."""
_TOO_OFTEN: Final = "delivered too often without being settled"
_UNKNOWN: Final = "unknown"
_NOT_COPIED: Final = frozenset({"CC", "BCC", "x-delivery-count", "x-acquired-count"})  # the first two would send copies


class Letter(NamedTuple):
    """A dead letter in our hands. `message` is None for one that cannot be read.

    `id` is the request's, or, where there is none to be read, made of the body: the same bytes have the same.
    """

    tag: int
    id: str
    reason: str
    deliveries: int
    body: bytes
    headers: "Mapping[str, FieldValue]"
    content_type: str | None
    message: RetryMessage | None


class DeadQueue:
    """The queue on one connection. What is still in hand when that ends is in the queue again."""

    def __init__(self, channel: "AbstractChannel", exchange: "AbstractExchange") -> None:
        self._channel = channel
        self._exchange = exchange
        self._in_hand: set[int] = set()
        self._worn: dict[int, Letter] = {}

    @classmethod
    @asynccontextmanager
    async def opened(cls, url: str, *, name: str) -> AsyncIterator[Self]:
        """Connect; `name` is what RabbitMQ's operators see. Raises BrokerUnavailable, in the block, too."""
        with translated():
            async with connected(url, name=name) as connection:
                async with asyncio.timeout(CALL_S):
                    await topology.ensure(connection)
                async with asyncio.timeout(CALL_S):
                    confirming = await connection.channel(publisher_confirms=True, on_return_raises=True)
                    exchange = await confirming.get_exchange(topology.EXCHANGE, ensure=False)
                    # aiormq's channel, beneath aio-pika's: letters may have properties that make no sense.
                    taking = await (await connection.channel(publisher_confirms=False)).get_underlay_channel()
                yield cls(taking, exchange)

    async def count(self) -> int:
        """How many letters wait; what is in somebody's hands is not among them."""
        async with asyncio.timeout(CALL_S):
            state = await self._channel.queue_declare(topology.RETRIES_DEAD, passive=True)
        return state.message_count or 0

    async def letters(self, limit: int) -> AsyncIterator[Letter]:
        """Take up to `limit` of the letters that wait now, from the oldest on; each is in hand from then on."""
        for _ in range(min(limit, await self.count())):
            async with asyncio.timeout(CALL_S):
                delivery = await self._channel.basic_get(topology.RETRIES_DEAD)
            if isinstance(delivery.delivery, Basic.GetEmpty):
                return
            letter = _letter_of(delivery)
            self._in_hand.add(letter.tag)
            if letter.deliveries >= MOST_DELIVERIES:
                self._worn[letter.tag] = letter
            yield letter

    async def ack(self, letter: Letter) -> None:
        """Take a letter out of the queue for good."""
        async with asyncio.timeout(CALL_S):
            await self._channel.basic_ack(letter.tag)
        self._in_hand.discard(letter.tag)
        self._worn.pop(letter.tag, None)

    async def publish(self, letter: Letter, key: str) -> None:
        """Publish a letter as it came, confirmed; to another queue, where `key` says so."""
        headers = {name: value for name, value in letter.headers.items() if name not in _NOT_COPIED}
        await broker.publish(self._exchange, key, letter.body, content_type=letter.content_type, headers=headers)

    async def give_back(self) -> None:
        """Put back all that is still in hand."""
        for letter in list(self._worn.values()):
            await self.publish(letter, topology.KEY_DEAD)
            await self.ack(letter)
        if self._in_hand:
            async with asyncio.timeout(CALL_S):
                await self._channel.basic_nack(max(self._in_hand), multiple=True, requeue=True)
            self._in_hand.clear()


def _letter_of(delivery: "DeliveredMessage") -> Letter:
    tag = delivery.delivery_tag
    assert tag is not None  # noqa: S101 - what was got has one
    properties = delivery.header.properties
    headers: Mapping[str, FieldValue] = properties.headers or {}
    try:
        message = decoded(delivery.body, from_ledger=topology.LEDGER_HEADER in headers)
    except UnreadableMessage:
        message = None
    deliveries = headers.get("x-delivery-count", 0)
    return Letter(
        tag=tag,
        id=f"x{hashlib.sha256(delivery.body).hexdigest()[:15]}" if message is None else str(message.id),
        reason=_reason_in(headers),
        deliveries=deliveries if isinstance(deliveries, int) else 0,
        body=delivery.body,
        headers=headers,
        content_type=properties.content_type,
        message=message,
    )


def _reason_in(headers: "Mapping[str, FieldValue]") -> str:
    """Why a letter is here: the worker's words, or RabbitMQ's."""
    match headers.get(topology.REASON_HEADER):
        case str(reason):
            return reason
        case _:
            pass
    match headers.get("x-death"):
        case [{"reason": "delivery_limit"}, *_]:
            return _TOO_OFTEN
        case [{"reason": str(reason)}, *_]:
            return reason
        case _:
            return _UNKNOWN
