"""Exchange, queues and dead letters: where a retry request travels on RabbitMQ.

Both programs declare the same things, so either may come first; a queue that stands there with other arguments is a
mistake of the deployment's, and RabbitMQ says so (406 PRECONDITION_FAILED). Valid on RabbitMQ 3.10 and 4.x.

A message that twenty deliveries have not settled goes to the dead-letter queue. `at-least-once` dead-lettering keeps it
in its queue until the other has it; it needs `reject-publish`, without which RabbitMQ silently falls back to losing it.
"""

import asyncio
from typing import TYPE_CHECKING, Final, Self, TypeVar

from aio_pika import ExchangeType
from aiormq.exceptions import ChannelAccessRefused
from yarl import URL

from shared.broker import CALL_S, probe, translated
from shared.errors import BrokerUnavailable, TopologyMissing

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
"""On what the relay publishes: the ledger has the request, or had it and it ended long ago."""
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
    """Declare all of it, idempotently; answers the exchange that everything is published to."""
    exchange = await channel.declare_exchange(EXCHANGE, ExchangeType.DIRECT, durable=True)
    for name, key in ((RETRIES, KEY_RETRY), (RETRIES_BULK, KEY_BULK)):
        queue = await channel.declare_queue(name, durable=True, arguments=_WORK_QUEUE)
        await queue.bind(exchange, key)
    dead = await channel.declare_queue(RETRIES_DEAD, durable=True, arguments={"x-queue-type": "quorum"})
    await dead.bind(exchange, KEY_DEAD)
    return exchange


class Topology:
    """Declares what is missing. One for a process: a user who may not declare is refused once, and not asked again.

    The programs consume and publish, and declare only after what that needs was missing: each declaration that is
    refused is an error in RabbitMQ's log, and so is the use of a queue that is not there. The user `guest`, who has
    every right on a broker for development, declares first, which also compares the arguments.
    """

    def __init__(self, *, declares_first: bool = False) -> None:
        self._declares_first = declares_first
        self._may_declare = True
        self.has_declared = False
        """Whether all of it was declared from here, which compares the arguments of what was there."""
        self._lock = asyncio.Lock()

    @classmethod
    def of(cls, url: str) -> Self:
        """The topology on the broker behind `url`."""
        return cls(declares_first=URL(url).user in (None, _EVERY_RIGHT))

    async def needed_by(self, connection: "AbstractConnection", use: "Callable[[], Awaitable[T]]") -> T:
        """What `use` answers; where something is missing for it, declare all of it and use it again.

        One at a time, so that the sessions of a process do not all find the same missing. Raises BrokerUnavailable.
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
        """Declare all of it, something having been found missing; nothing where this user may not."""
        async with self._lock:
            await self._declare(connection)

    async def _declare(self, connection: "AbstractConnection") -> bool:
        """Declare all of it; whether this user may. On a channel of its own, because a refusal closes the channel."""
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
    """A channel with the exchange, which is there and may be published to. Raises TopologyMissing where it is not."""
    async with asyncio.timeout(CALL_S):
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        exchange = await channel.get_exchange(EXCHANGE, ensure=False)
    await probe(exchange)
    return channel, exchange
