"""RabbitMQ: connections and publishing, bounded in time and confirmed. A lost connection is replaced, never mended.

Only this module knows how the client libraries fail: every failure between us and the broker becomes BrokerUnavailable.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Final, cast

import aio_pika
from aio_pika.abc import ConnectionParameter
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError, ChannelNotFoundEntity, DeliveryError
from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from pamqp.commands import Basic
from yarl import URL

from shared.errors import BrokerUnavailable, TopologyMissing
from shared.refusals import CLOSED, is_unroutable, words_of
from shared.secret import Url, current
from shared.urls import amqp_urls

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection, AbstractExchange, HeadersType

CALL_S: Final = 5.0
"""How long the broker may take for one answer."""
NODE_S: Final = 2.0
"""How long one node of a cluster may take to connect to, before the next is tried."""
_PROBE_KEY: Final = "redrive.probe"
"""No queue is bound to this key, so that a mandatory message with it is returned."""
_CLOSE_S: Final = 2.0
_NO_CONNECTION: Final = ("> closed", "Connection was not opened", "Connection is not ready")
_HEARTBEAT_S: Final = 10  # notices a dead link after about 33 s; the default needs 183 s


@contextmanager
def translated(*, connecting: bool = False) -> Iterator[None]:
    """Turn every failure between us and the broker into BrokerUnavailable, with its reason in words.

    Raises TopologyMissing where the exchange, a queue or a binding is not there.
    """
    try:
        yield
    except (AMQPError, ChannelInvalidStateError, OSError, TimeoutError, StopAsyncIteration) as error:
        # aiormq raises StopAsyncIteration for a connection that ended before the first read. An async generator above
        # would turn it into a RuntimeError.
        is_missing = isinstance(error, ChannelNotFoundEntity) or is_unroutable(error)
        kind = TopologyMissing if is_missing else BrokerUnavailable
        raise kind(words_of(error, connecting=connecting)) from error
    except RuntimeError as error:
        # Both libraries raise it, without a class of its own, for a channel on a connection that was just lost.
        if not str(error).endswith(_NO_CONNECTION):
            raise
        raise BrokerUnavailable(CLOSED) from error
    except asyncio.CancelledError as error:
        # aiormq cancels calls that wait on a connection when it closes. Where this task was not cancelled, that is a
        # loss like any other; raised as CancelledError it would end the task silently.
        if (task := asyncio.current_task()) is None or task.cancelling():
            raise
        raise BrokerUnavailable(CLOSED) from error


class _PausableReader:
    """What aiormq uses of a stream; it is read from only while `reading` is set, so that the sender has to wait."""

    def __init__(self, reader: asyncio.StreamReader, reading: asyncio.Event) -> None:
        self._reader = reader
        self._reading = reading

    async def readexactly(self, n: int) -> bytes:
        """Read `n` bytes, as the stream does."""
        await self._reading.wait()
        return await self._reader.readexactly(n)

    async def read(self, n: int = -1) -> bytes:
        """Read up to `n` bytes, as the stream does."""
        return await self._reader.read(n)

    def at_eof(self) -> bool:
        """Whether the stream has ended, and all of it was read."""
        return self._reader.at_eof()


class _PausableTransport(TransportFactory):
    """Opens a socket as aiormq does, with a reader that can be paused."""

    def __init__(self, reading: asyncio.Event) -> None:
        self._reading = reading

    async def create(self, url: URL, **options: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to `url`."""
        factory = TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
        reader, writer = await factory.create(url, **options)
        return cast("asyncio.StreamReader", _PausableReader(reader, self._reading)), writer


class _Connection(aio_pika.Connection):
    """A connection that takes a transport."""

    PARAMETERS = (
        *aio_pika.Connection.PARAMETERS,
        ConnectionParameter(name="transport_factory", parser=lambda factory: factory, is_kwarg=True),
    )


def is_cluster(url: Url) -> bool:
    """Whether there is another node to go to, so that one that does not answer is soon given up."""
    return len(amqp_urls(current(url))) > 1


class Nodes:
    """Which node of a cluster to try first: any at first, then the one after the last that was connected to.

    A program that connects again has lost that node, or could do nothing there, as on the smaller side of a partition.
    """

    def __init__(self) -> None:
        self._last: str | None = None

    def in_turn(self, urls: Sequence[str]) -> list[str]:
        """All of these URLs, in the order in which to try them."""
        start = urls.index(self._last) + 1 if self._last in urls else random.randrange(len(urls))  # noqa: S311
        return [*urls[start:], *urls[:start]]

    def note(self, url: str) -> None:
        """Remember that this one was connected to."""
        self._last = url


@asynccontextmanager
async def connected(
    url: Url, *, name: str, reading: asyncio.Event | None = None, nodes: Nodes | None = None
) -> "AsyncIterator[AbstractConnection]":
    """Connect to a node that takes it, and close within two seconds. `name` is what RabbitMQ's operators see.

    Where `reading` is given, nothing is read from the connection while it is not set. A pause of half a minute ends the
    connection, because no heartbeat is read either. `nodes` remembers where the caller was connected to before.

    Raises BrokerUnavailable, with what each node has said.
    """
    connection = await _connection_to(amqp_urls(current(url)), nodes or Nodes(), name, reading)
    try:
        yield connection
    except BrokerUnavailable as error:
        # Only the connection knows why the server closed it; calls that waited on it know only that it is closed.
        if (words := _last_words(connection)) and str(error) == CLOSED:
            raise BrokerUnavailable(words) from error
        raise
    finally:
        # Bounded: a frozen broker must not delay the exit.
        with suppress(BrokerUnavailable), translated():
            async with asyncio.timeout(_CLOSE_S):
                await connection.close()


async def _connection_to(
    urls: Sequence[str], nodes: Nodes, name: str, reading: asyncio.Event | None
) -> "AbstractConnection":
    within_s = CALL_S if len(urls) == 1 else NODE_S
    said: list[str] = []
    last: BrokerUnavailable | None = None
    for url in nodes.in_turn(urls):
        try:
            with translated(connecting=True):
                async with asyncio.timeout(within_s):
                    connection = await _opened(url, name, reading)
        except BrokerUnavailable as error:
            said.append(str(error))
            last = error
        except ValueError:
            said.append("the URL cannot be used")  # not the error's text, which quotes the URL
        else:
            nodes.note(url)
            return connection
    raise BrokerUnavailable("; ".join(dict.fromkeys(said))) from last


async def _opened(url: str, name: str, reading: asyncio.Event | None) -> "AbstractConnection":
    connection = _Connection(
        _as_aiormq_reads(URL(url)),
        client_properties={"connection_name": name},
        transport_factory=None if reading is None else _PausableTransport(reading),
    )
    await connection.connect()
    return connection


def _as_aiormq_reads(url: URL) -> URL:
    """The URL with RabbitMQ's own names of parameters in the library's spelling; see shared/urls.py."""
    query = dict(url.query)
    if "cacertfile" in query:
        query["cafile"] = query.pop("cacertfile")
    if query.pop("verify", None) == "verify_none":
        query["no_verify_ssl"] = "1"
    query.setdefault("heartbeat", str(_HEARTBEAT_S))
    return url.with_query(query)


def _last_words(connection: "AbstractConnection") -> str | None:
    """The reason that the server closed the connection with; None where it gave none."""
    transport = connection.transport
    closing = None if transport is None else transport.connection.closing
    if closing is None or not closing.done() or closing.cancelled() or (error := closing.exception()) is None:
        return None
    words = words_of(error)
    return words if " - " in words else None


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
        try:
            async with asyncio.timeout(within_s):  # publish(timeout=) would not cover a blocked connection
                answer = await exchange.publish(message, key, mandatory=True)
        except TimeoutError as error:
            raise BrokerUnavailable(
                f"a message was not confirmed within {within_s:g} s: RabbitMQ is short of memory or disk, or too slow"
            ) from error
    if not isinstance(answer, Basic.Ack):
        raise BrokerUnavailable("not confirmed")


async def probe(exchange: "AbstractExchange") -> None:
    """Prove that `exchange` is there and may be published to, with a message that no queue gets.

    Raises TopologyMissing, or BrokerUnavailable with what the server refuses. The channel as for `publish`.
    """
    with translated():
        try:
            async with asyncio.timeout(CALL_S):
                await exchange.publish(aio_pika.Message(b""), _PROBE_KEY, mandatory=True)
        except DeliveryError as error:
            if not is_unroutable(error):
                raise
