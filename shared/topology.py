"""Exchange, queues and dead letters: where a retry request travels on RabbitMQ.

Both programs declare the same things, so either may come first; a queue that stands there with other arguments is a
mistake of the deployment's, and RabbitMQ says so (406 PRECONDITION_FAILED). Valid on RabbitMQ 3.10 and 4.x.

A message that twenty deliveries have not settled goes to the dead-letter queue. `at-least-once` dead-lettering keeps it
in its queue until the other has it; it needs `reject-publish`, without which RabbitMQ silently falls back to losing it.
"""

from typing import TYPE_CHECKING, Final

from aio_pika import ExchangeType
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity

if TYPE_CHECKING:
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


async def ensure(connection: "AbstractConnection") -> bool:
    """Declare all of it where this user may; a user with the least privilege may not, and then somebody else has.

    Whether this user may. On a channel of its own, because a refusal closes the channel.
    """
    try:
        async with connection.channel() as channel:
            await declare(channel)
    except ChannelAccessRefused:
        return False  # what is missing after all will be said by whoever publishes or consumes
    return True


async def missing(connection: "AbstractConnection") -> list[str]:
    """What is not there, by name; its arguments and bindings are not looked at. Any user may ask."""
    found: list[str] = []
    for name in (EXCHANGE, RETRIES, RETRIES_BULK, RETRIES_DEAD):
        try:
            async with connection.channel() as channel:  # each on its own: what is not found closes the channel
                await (channel.get_exchange if name == EXCHANGE else channel.get_queue)(name)
        except ChannelNotFoundEntity:
            found.append(name)
    return found
