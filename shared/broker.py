"""Talking to RabbitMQ: bounded in time, confirmed, and never mended. After a loss, a session starts clean.

The one place that knows how the client libraries fail: what goes wrong between us and the broker is BrokerUnavailable.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Final

import aio_pika
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError
from pamqp.commands import Basic
from yarl import URL

from shared.errors import BrokerUnavailable

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection, AbstractExchange, HeadersType

CALL_S: Final = 5.0
"""How long the broker may take for one answer."""
_CLOSE_S: Final = 2.0
_NO_CONNECTION: Final = ("> closed", "Connection was not opened", "Connection is not ready")
_HEARTBEAT_S: Final = 10  # a dead link is noticed after about 33 s; the default takes 183 s


@contextmanager
def translated() -> Iterator[None]:
    """Turn whatever goes wrong between us and the broker into BrokerUnavailable."""
    try:
        yield
    except (AMQPError, ChannelInvalidStateError, OSError, TimeoutError) as error:
        raise BrokerUnavailable(type(error).__name__) from error
    except StopAsyncIteration as error:
        # aiormq's word for a connection that ended before it was read from. An async generator would turn it into a
        # RuntimeError on its way to whoever waits for the broker.
        raise BrokerUnavailable("the connection was closed") from error
    except RuntimeError as error:
        # What both libraries raise, with no class of its own, for a channel on a connection that has just been lost.
        if not str(error).endswith(_NO_CONNECTION):
            raise
        raise BrokerUnavailable("the connection was closed") from error
    except asyncio.CancelledError as error:
        # aiormq cancels what waits on a connection that closes. Where nobody has cancelled us, that is a loss like any
        # other, and passing it on would end this task without a word.
        if (task := asyncio.current_task()) is None or task.cancelling():
            raise
        raise BrokerUnavailable("the connection was closed") from error


@asynccontextmanager
async def connected(url: str, *, name: str) -> "AsyncIterator[AbstractConnection]":
    """Connect, and close within two seconds. `name` is what RabbitMQ's operators see. Raises BrokerUnavailable."""
    try:
        target = URL(url)
        if "heartbeat" not in target.query:
            target = target.update_query(heartbeat=_HEARTBEAT_S)
        with translated():
            async with asyncio.timeout(CALL_S):
                connection = await aio_pika.connect(target, client_properties={"connection_name": name})
    except ValueError:
        raise BrokerUnavailable("the URL cannot be used") from None  # its text quotes it
    try:
        yield connection
    finally:
        # What could not be said in two seconds will not be heard: a frozen broker must not hold the exit.
        with suppress(BrokerUnavailable), translated():
            async with asyncio.timeout(_CLOSE_S):
                await connection.close()


async def publish(
    exchange: "AbstractExchange",
    key: str,
    body: bytes,
    *,
    content_type: str | None,
    headers: "HeadersType",
    within_s: float = CALL_S,
) -> None:
    """Publish one message, persistent and mandatory; return once the broker has it on disk.

    The channel of `exchange` must have been opened with `publisher_confirms` and `on_return_raises`: otherwise a
    message that no queue takes would look confirmed. Raises BrokerUnavailable, after which it may have been published.
    """
    message = aio_pika.Message(
        body, content_type=content_type, delivery_mode=aio_pika.DeliveryMode.PERSISTENT, headers=headers
    )  # no message_id: aiormq tells returned messages apart by one of its own making
    with translated():
        async with asyncio.timeout(within_s):  # publish(timeout=) would not cover a blocked connection
            answer = await exchange.publish(message, key, mandatory=True)
    if not isinstance(answer, Basic.Ack):
        raise BrokerUnavailable("not confirmed")
