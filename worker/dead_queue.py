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

from shared import broker
from shared.broker import CALL_S, connected, translated
from shared.errors import TopologyMissing, UnreadableMessage
from shared.messages import RetryMessage, decoded
from shared.topology import EXCHANGE, KEY_DEAD, LEDGER_HEADER, REASON_HEADER, RETRIES_DEAD, Topology

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection, AbstractExchange
    from aiormq.abc import AbstractChannel, DeliveredMessage
    from pamqp.common import FieldValue

    from shared.secret import Url

MOST_DELIVERIES: Final = 10
"""After so many a letter is published anew: half of what RabbitMQ allows, the rest being for connections that break."""
TOO_OFTEN: Final = "delivered too often without being settled"
_UNKNOWN: Final = "unknown"
_WORDS: Final = {
    "delivery_limit": TOO_OFTEN,
    "expired": "expired: a policy or an argument of the queue limits how long messages live",
    "maxlen": "dropped: the queue was full, by a limit of its length",
    "rejected": "rejected by another consumer of the queue",
}
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

    @property
    def is_poison(self) -> bool:
        """Whether workers could not read or settle it; what only expired or was dropped, none has failed with."""
        return self.reason == TOO_OFTEN or REASON_HEADER in self.headers


class DeadQueue:
    """The queue on one connection. What is still in hand when that ends is in the queue again.

    `queue` and `key` name another one, to be looked at with the same care.
    """

    def __init__(
        self,
        connection: "AbstractConnection",
        channel: "AbstractChannel",
        exchange: "AbstractExchange",
        topology: Topology | None,
        *,
        queue: str,
        key: str,
    ) -> None:
        self._connection = connection
        self._channel = channel
        self._exchange = exchange
        self._topology = topology
        self._queue = queue
        self._key = key
        self._in_hand: set[int] = set()
        self._worn: dict[int, Letter] = {}
        self._first: Letter | None = None
        self.left = 0
        """How many letters waited when the last was taken, without it."""

    @classmethod
    @asynccontextmanager
    async def opened(cls, url: "Url", *, name: str, topology: Topology | None = None) -> AsyncIterator[Self]:
        """Connect; `name` is what RabbitMQ's operators see. Raises BrokerUnavailable, in the block, too.

        Where `topology` is given, a queue that is missing is declared.
        """
        with translated():
            async with connected(url, name=name) as connection:
                yield await cls.on(connection, topology)

    @classmethod
    async def on(
        cls,
        connection: "AbstractConnection",
        topology: Topology | None,
        *,
        queue: str = RETRIES_DEAD,
        key: str = KEY_DEAD,
    ) -> Self:
        """The queue, on channels of its own. Raises BrokerUnavailable."""
        with translated():
            async with asyncio.timeout(CALL_S):
                confirming = await connection.channel(publisher_confirms=True, on_return_raises=True)
                exchange = await confirming.get_exchange(EXCHANGE, ensure=False)
            taking = await _channel_on(connection)
        return cls(connection, taking, exchange, topology, queue=queue, key=key)

    async def count(self) -> int:
        """How many letters wait; what is in other hands is not among them. The oldest is in hand from then on.

        Taking one tells how many are left. Asking for the number alone needs a right that the programs do not have.
        """
        if self._first is None:
            self._first = await self._take()
        return 0 if self._first is None else self.left + 1

    async def letters(self, limit: int) -> AsyncIterator[Letter]:
        """Take up to `limit` of the letters that wait now, from the oldest on; each is in hand from then on."""
        for _ in range(min(limit, await self.count())):
            letter, self._first = self._first or await self._take(), None
            if letter is None:
                return
            yield letter

    async def _take(self) -> Letter | None:
        try:
            delivery = await self._got()
        except TopologyMissing:
            if self._topology is None:
                raise
            await self._topology.mend(self._connection)
            self._channel = await _channel_on(self._connection)
            delivery = await self._got()
        if not isinstance(delivery.delivery, Basic.GetOk):
            self.left = 0
            return None
        self.left = delivery.delivery.message_count or 0
        letter = _letter_of(delivery)
        self._in_hand.add(letter.tag)
        if letter.deliveries >= MOST_DELIVERIES:
            self._worn[letter.tag] = letter
        return letter

    async def _got(self) -> "DeliveredMessage":
        with translated():
            async with asyncio.timeout(CALL_S):
                return await self._channel.basic_get(self._queue)

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
        self._first = None
        for letter in list(self._worn.values()):
            await self.publish(letter, self._key)
            await self.ack(letter)
        if self._in_hand:
            async with asyncio.timeout(CALL_S):
                await self._channel.basic_nack(max(self._in_hand), multiple=True, requeue=True)
            self._in_hand.clear()


async def _channel_on(connection: "AbstractConnection") -> "AbstractChannel":
    """Aiormq's channel, beneath aio-pika's: letters may have properties that make no sense."""
    async with asyncio.timeout(CALL_S):
        return await (await connection.channel(publisher_confirms=False)).get_underlay_channel()


def _letter_of(delivery: "DeliveredMessage") -> Letter:
    tag = delivery.delivery_tag
    assert tag is not None  # noqa: S101 - what was got has one
    properties = delivery.header.properties
    headers: Mapping[str, FieldValue] = properties.headers or {}
    try:
        message = decoded(delivery.body, from_ledger=LEDGER_HEADER in headers)
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
    match headers.get(REASON_HEADER):
        case str(reason):
            return reason
        case _:
            pass
    match headers.get("x-death"):
        case [{"reason": str(reason)}, *_]:
            return _WORDS.get(reason, reason)
        case _:
            return _UNKNOWN
