"""Dead letters: messages that the worker cannot settle, in the queue `redrive.retries.dead`: put in, read, given back.

A dead letter keeps its body as it came. RabbitMQ confirms it before the original is acknowledged: between the two, a
crash makes a second copy, and loses none.

To read a queue, AMQP takes messages from it. A reader takes letters, keeps them in hand, and gives them back
(`basic.nack`): to their places from RabbitMQ 4.0 on, to the end of the queue before. Each return counts as a delivery,
until 4.3, which counts no `basic.nack`, but lost connections still; and from 4.0 on a message is dropped after twenty
(https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling). An argument of the queue cannot prevent it: a
limit of `-1`, which ends the counting in 4.0, makes 3.10 drop a letter when it is given back first (measured). So a
letter that has come back ten times is published anew, confirmed, and then acknowledged: its copy is counted from zero.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from pamqp.commands import Basic

from shared import broker
from shared.broker import CALL_S, connected, translated
from shared.errors import TopologyMissing
from shared.messages import RetryMessage
from shared.topology import EXCHANGE, KEY_DEAD, LEDGER_HEADER, REASON_HEADER, RETRIES_DEAD, Topology
from worker.deliveries import Delivery

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection, AbstractExchange
    from aiormq.abc import AbstractChannel, DeliveredMessage
    from pamqp.common import FieldTable, FieldValue

    from shared.job_ids import JobIds
    from shared.secret import Url

MOST_DELIVERIES: Final = 10
"""Half of what RabbitMQ allows; the rest is for connections that break."""
WORN_BYTES: Final = 16 * 1024 * 1024
"""How many bytes of letters that are to be published anew a reader holds; then it takes no more."""
TOO_OFTEN: Final = "delivered too often without being settled"
_UNKNOWN: Final = "unknown"
_REASONS: Final = {
    "delivery_limit": TOO_OFTEN,
    "expired": "expired: a policy or an argument of the queue limits how long messages live",
    "maxlen": "dropped: the queue was full, by a limit of its length",
    "rejected": "rejected by another consumer of the queue",
}
_KEPT_HEADERS: Final = ("traceparent", "tracestate", LEDGER_HEADER)  # not CC and BCC, which send copies elsewhere
_NOT_COPIED: Final = frozenset({"CC", "BCC", "x-delivery-count", "x-acquired-count"})
_IN_FLIGHT: Final = 128  # a `multiple` confirm walks all messages that wait for theirs


class Letter(NamedTuple):
    """What is to be put aside of a delivery: its body, or that of one request of it, and the reason."""

    delivery: "DeliveredMessage"
    body: bytes
    reason: str


async def put_aside(url: "Url", letters: Sequence[Letter], topology: Topology) -> None:
    """Publish letters to the dead-letter queue, each with its reason; all are on disk there when this returns.

    A reason quotes nothing of the message. The connection is opened for this: RabbitMQ stops reading from a connection
    that publishes while memory or disk is short, and acknowledgements would be stuck behind it.

    Raises BrokerUnavailable, after which some of them may have been published.
    """
    async with connected(url, name="redrive worker: dead letters") as connection:

        async def publish_all() -> None:
            async with asyncio.timeout(CALL_S):
                channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
                exchange = await channel.get_exchange(EXCHANGE, ensure=False)
            for start in range(0, len(letters), _IN_FLIGHT):
                await asyncio.gather(*(_put_aside(exchange, each) for each in letters[start : start + _IN_FLIGHT]))

        with translated():
            try:
                with translated():
                    await publish_all()
            except TopologyMissing:
                await topology.mend(connection)
                await publish_all()


async def _put_aside(exchange: "AbstractExchange", letter: Letter) -> None:
    properties = letter.delivery.header.properties
    headers: FieldTable = {REASON_HEADER: letter.reason}
    for name in _KEPT_HEADERS:
        if properties.headers and name in properties.headers:
            headers[name] = properties.headers[name]
    await broker.publish(exchange, KEY_DEAD, letter.body, content_type=properties.content_type, headers=headers)


class DeadLetter(NamedTuple):
    """A dead letter in hand. `requests` are those that can be read of it.

    `id` is the request's. Where there is not exactly one, it is made of the body: the same bytes have the same id.
    """

    tag: int
    id: str
    reason: str
    deliveries: int
    body: bytes
    headers: "Mapping[str, FieldValue]"
    content_type: str | None
    requests: Sequence[RetryMessage]
    together: bool

    @property
    def is_poison(self) -> bool:
        """Whether a worker has failed with its request.

        With a letter that expired or was dropped none has; and which of several requests was at fault is not known.
        """
        return not self.together and (self.reason == TOO_OFTEN or REASON_HEADER in self.headers)


class DeadQueue:
    """The dead-letter queue on one connection. Letters that are in hand when it closes return to the queue.

    `queue` and `key` name another queue, to be read with the same care.
    """

    def __init__(
        self,
        connection: "AbstractConnection",
        channel: "AbstractChannel",
        exchange: "AbstractExchange",
        topology: Topology | None,
        ids: "JobIds",
        *,
        queue: str,
        key: str,
    ) -> None:
        self._connection = connection
        self._channel = channel
        self._exchange = exchange
        self._topology = topology
        self._ids = ids
        self._queue = queue
        self._key = key
        self._in_hand: set[int] = set()
        self._worn: dict[int, DeadLetter] = {}  # those in hand that are to be published anew
        self._worn_bytes = 0
        self._first: DeadLetter | None = None
        self.left = 0
        """How many letters waited when the last was taken, without it."""

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, url: "Url", ids: "JobIds", *, name: str, topology: Topology | None = None
    ) -> AsyncIterator[Self]:
        """Connect; `name` is what RabbitMQ's operators see. Raises BrokerUnavailable, in the block, too.

        Where `topology` is given, a queue that is missing is declared.
        """
        with translated():
            async with connected(url, name=name) as connection:
                yield await cls.on(connection, topology, ids)

    @classmethod
    async def on(
        cls,
        connection: "AbstractConnection",
        topology: Topology | None,
        ids: "JobIds",
        *,
        queue: str = RETRIES_DEAD,
        key: str = KEY_DEAD,
    ) -> Self:
        """The queue, on channels of its own. Raises BrokerUnavailable."""
        with translated():
            async with asyncio.timeout(CALL_S):
                confirming = await connection.channel(publisher_confirms=True, on_return_raises=True)
                exchange = await confirming.get_exchange(EXCHANGE, ensure=False)
            taking = await _open_channel(connection)
        return cls(connection, taking, exchange, topology, ids, queue=queue, key=key)

    async def count(self) -> int:
        """How many letters wait, without those that other readers have in hand. Takes the oldest in hand.

        To take a letter tells how many are left. To ask for the number needs a right that the programs do not have.
        """
        if self._first is None:
            self._first = await self._take()
        return 0 if self._first is None else self.left + 1

    async def letters(self, limit: int) -> AsyncIterator[DeadLetter]:
        """Take up to `limit` of the letters that wait now, the oldest first; each is in hand from then on.

        Ends early where the letters in hand that are to be published anew have more than WORN_BYTES. `give_back` puts
        these at the end of the queue, so the next reader begins with the others.
        """
        for _ in range(min(limit, await self.count())):
            if self._worn_bytes > WORN_BYTES:
                return
            letter, self._first = self._first or await self._take(), None
            if letter is None:
                return
            yield letter

    async def _take(self) -> DeadLetter | None:
        try:
            delivery = await self._get()
        except TopologyMissing:
            if self._topology is None:
                raise
            await self._topology.mend(self._connection)
            self._channel = await _open_channel(self._connection)
            delivery = await self._get()
        if not isinstance(delivery.delivery, Basic.GetOk):
            self.left = 0
            return None
        self.left = delivery.delivery.message_count or 0
        letter = _letter_of(delivery, self._ids)
        self._in_hand.add(letter.tag)
        if letter.deliveries >= MOST_DELIVERIES:
            self._worn[letter.tag] = letter
            self._worn_bytes += len(letter.body)
        return letter

    async def _get(self) -> "DeliveredMessage":
        with translated():
            async with asyncio.timeout(CALL_S):
                return await self._channel.basic_get(self._queue)

    async def ack(self, letter: DeadLetter) -> None:
        """Remove a letter from the queue for good."""
        async with asyncio.timeout(CALL_S):
            await self._channel.basic_ack(letter.tag)
        self._in_hand.discard(letter.tag)
        if self._worn.pop(letter.tag, None) is not None:
            self._worn_bytes -= len(letter.body)

    async def publish(self, letter: DeadLetter, key: str) -> None:
        """Publish a letter as it came, confirmed, with the routing key `key`."""
        headers = {name: value for name, value in letter.headers.items() if name not in _NOT_COPIED}
        await broker.publish(self._exchange, key, letter.body, content_type=letter.content_type, headers=headers)

    async def give_back(self) -> None:
        """Return all letters in hand to the queue."""
        self._first = None
        for letter in list(self._worn.values()):
            await self.publish(letter, self._key)
            await self.ack(letter)
        if self._in_hand:
            async with asyncio.timeout(CALL_S):
                await self._channel.basic_nack(max(self._in_hand), multiple=True, requeue=True)
            self._in_hand.clear()


async def _open_channel(connection: "AbstractConnection") -> "AbstractChannel":
    """Aiormq's channel, beneath aio-pika's, which fails on letters whose properties make no sense."""
    async with asyncio.timeout(CALL_S):
        return await (await connection.channel(publisher_confirms=False)).get_underlay_channel()


def _letter_of(delivery: "DeliveredMessage", ids: "JobIds") -> DeadLetter:
    tag = delivery.delivery_tag
    assert tag is not None  # noqa: S101 - `basic.get` answers with one
    properties = delivery.header.properties
    headers: Mapping[str, FieldValue] = properties.headers or {}
    contents = Delivery.of(delivery, ids).contents
    is_one = len(contents.requests) == 1 and not contents.together
    deliveries = headers.get("x-delivery-count", 0)
    return DeadLetter(
        tag=tag,
        id=str(contents.requests[0].id) if is_one else f"x{hashlib.sha256(delivery.body).hexdigest()[:15]}",
        reason=_reason_in(headers),
        deliveries=deliveries if isinstance(deliveries, int) else 0,
        body=delivery.body,
        headers=headers,
        content_type=properties.content_type,
        requests=contents.requests,
        together=contents.together,
    )


def _reason_in(headers: "Mapping[str, FieldValue]") -> str:
    """Why a letter is dead: what the worker has written, or what RabbitMQ has."""
    match headers.get(REASON_HEADER):
        case str(reason):
            return reason
        case _:
            pass
    match headers.get("x-death"):
        case [{"reason": str(reason)}, *_]:
            return _REASONS.get(reason, reason)
        case _:
            return _UNKNOWN
