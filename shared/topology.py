"""The topology on RabbitMQ: the exchange, the queues of retries, and the dead-letter queue.

Each program declares this topology when something of it is missing, so either may start first; the user `guest`
declares it at once, which compares the arguments. A queue that exists with other arguments is a mistake of the
deployment, and RabbitMQ refuses the declaration (406 PRECONDITION_FAILED). Valid on RabbitMQ 3.10 and 4.x.

RabbitMQ moves a message to the dead-letter queue after twenty deliveries. `at-least-once` dead-lettering keeps the
message in its queue until the dead-letter queue has it. It needs `reject-publish`; without it RabbitMQ silently uses a
mode that can lose the message.
"""

import asyncio
from typing import TYPE_CHECKING, Final, Self, TypeVar

from aio_pika import ExchangeType
from aiormq.exceptions import ChannelAccessRefused
from yarl import URL

from shared.broker import CALL_S, probe, translated
from shared.errors import BrokerUnavailable, TopologyMissing
from shared.urls import amqp_urls

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange
    from pamqp.common import FieldValue

EXCHANGE: Final = "redrive"
RETRIES: Final = "redrive.retries"
RETRIES_BULK: Final = "redrive.retries.bulk"
RETRIES_DEAD: Final = "redrive.retries.dead"
KEY_RETRY: Final = "retry"
KEY_BULK: Final = "retry.bulk"
KEY_DEAD: Final = "retry.dead"
REASON_HEADER: Final = "x-redrive-reason"
LEDGER_HEADER: Final = "x-redrive-ledger"
"""The header of messages that the relay publishes: the ledger has the request, or it was settled and pruned."""
DELIVERY_LIMIT: Final = 20

_EVERY_RIGHT: Final = "guest"

T = TypeVar("T")

_WORK_QUEUE: Final[dict[str, "FieldValue"]] = {
    "x-queue-type": "quorum",
    "x-delivery-limit": DELIVERY_LIMIT,
    "x-dead-letter-exchange": EXCHANGE,
    "x-dead-letter-routing-key": KEY_DEAD,
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}


async def declare(channel: "AbstractChannel") -> "AbstractExchange":
    """Declare all of it, idempotently; returns the exchange that all messages are published to."""
    exchange = await channel.declare_exchange(EXCHANGE, ExchangeType.DIRECT, durable=True)
    for name, key in ((RETRIES, KEY_RETRY), (RETRIES_BULK, KEY_BULK)):
        queue = await channel.declare_queue(name, durable=True, arguments=_WORK_QUEUE)
        await queue.bind(exchange, key)
    dead = await channel.declare_queue(RETRIES_DEAD, durable=True, arguments={"x-queue-type": "quorum"})
    await dead.bind(exchange, KEY_DEAD)
    return exchange


class Topology:
    """Declares what is missing. A process has one: where its user may not declare, it tries once and not again.

    The programs declare only when something is missing for consuming or publishing: RabbitMQ logs each refused
    declaration, and each use of a missing queue, as an error. The user `guest`, which has every right on a development
    broker, declares first, which also compares the arguments.
    """

    def __init__(self, *, declares_first: bool = False) -> None:
        self._declares_first = declares_first
        self._may_declare = True
        self.has_declared = False
        """Whether this object has declared all of it, which compares the arguments of what existed."""
        self._lock = asyncio.Lock()

    @classmethod
    def of(cls, url: str) -> Self:
        """The topology on the broker behind `url`."""
        return cls(declares_first=URL(amqp_urls(url)[0]).user in (None, _EVERY_RIGHT))

    async def needed_by(self, connection: "AbstractConnection", use: "Callable[[], Awaitable[T]]") -> T:
        """Call `use`; where something is missing for it, declare all of it, and call `use` again. Returns its result.

        One caller at a time, so that not all sessions of a process find the same queue missing. Raises
        BrokerUnavailable.
        """
        async with self._lock:
            if self._declares_first:
                await self._declare(connection)
                self._declares_first = False
            try:
                with translated():
                    return await use()
            except TopologyMissing as error:
                if not await self._declare(connection):
                    raise TopologyMissing(f"{error}; and this user may not declare it") from error
        with translated():
            return await use()

    async def mend(self, connection: "AbstractConnection") -> None:
        """Declare all of it, after something was found missing; does nothing where this user may not declare."""
        async with self._lock:
            await self._declare(connection)

    async def _declare(self, connection: "AbstractConnection") -> bool:
        """Declare all of it; returns whether this user may. Uses its own channel, because a refusal closes it."""
        if not self._may_declare:
            return False
        try:
            with translated():
                async with asyncio.timeout(CALL_S), connection.channel() as channel:
                    await declare(channel)
        except BrokerUnavailable as error:
            if not isinstance(error.__cause__, ChannelAccessRefused):
                raise
            self._may_declare = False
        else:
            self.has_declared = True
        return self._may_declare


async def publishing_on(connection: "AbstractConnection") -> "tuple[AbstractChannel, AbstractExchange]":
    """A channel, and the exchange, after a check that it takes messages. Raises TopologyMissing where it does not."""
    async with asyncio.timeout(CALL_S):
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        exchange = await channel.get_exchange(EXCHANGE, ensure=False)
    await probe(exchange)
    return channel, exchange
