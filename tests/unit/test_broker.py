"""What goes wrong between us and RabbitMQ is one exception, whatever the client libraries make of it."""

import asyncio
import traceback
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from aio_pika.exceptions import AMQPConnectionError, ChannelInvalidStateError

from shared import broker
from shared.broker import Nodes, connected, translated
from shared.errors import BrokerUnavailable


@pytest.mark.parametrize(
    "raised",
    [
        AMQPConnectionError(),
        ChannelInvalidStateError(),
        ConnectionResetError(),
        TimeoutError(),
        StopAsyncIteration(),
        RuntimeError("<Connection: 'amqp://localhost/'> closed"),
        asyncio.CancelledError(),
    ],
    ids=repr,
)
async def test_every_way_to_lose_the_broker_is_a_broker_that_is_away(raised: BaseException) -> None:
    with pytest.raises(BrokerUnavailable), translated():
        raise raised


async def test_a_mistake_of_ours_stays_one() -> None:
    with pytest.raises(RuntimeError, match=r"^ours$"), translated():
        raise RuntimeError("ours")


async def test_a_broker_that_hangs_up_at_once_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = asyncio.open_connection

    async def too_late(*args: object, **kwargs: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await connect(*args, **kwargs)  # type: ignore[arg-type]
        await reader.read()  # the end comes before the first read
        return reader, writer

    monkeypatch.setattr(asyncio, "open_connection", too_late)
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(BrokerUnavailable):
            async with connected(f"amqp://127.0.0.1:{port}/", name="test"):
                pass


@pytest.mark.parametrize("url", ["amqp://user:canary/2@mq/", "amqp://user:canary@two..dots/"])
async def test_a_url_that_cannot_be_used_is_a_broker_that_is_away(url: str) -> None:
    with pytest.raises(BrokerUnavailable, match=r"^the URL cannot be used$") as refusal:
        async with connected(url, name="test"):
            pass
    assert "canary" not in "".join(traceback.format_exception(refusal.value))


@asynccontextmanager
async def nodes(*answers: bytes | None) -> AsyncIterator[tuple[str, list[int]]]:
    """URLs of servers that answer so and hang up, or, with None, say nothing; and who was asked, in order."""
    asked: list[int] = []
    async with AsyncExitStack() as opened:
        ports = []
        for number, answer in enumerate(answers):

            async def serve(
                _: asyncio.StreamReader,
                writer: asyncio.StreamWriter,
                number: int = number,
                answer: bytes | None = answer,
            ) -> None:
                asked.append(number)
                if answer is None:
                    opened.callback(writer.close)
                else:
                    writer.write(answer)
                    writer.close()

            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            opened.callback(server.close)
            ports.append(server.sockets[0].getsockname()[1])
        yield ",".join(f"amqp://127.0.0.1:{port}/" for port in ports), asked


async def test_each_node_is_asked_once_and_all_that_they_say_is_told() -> None:
    async with nodes(b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"") as (urls, asked):
        with pytest.raises(BrokerUnavailable) as refusal:
            async with connected(urls, name="test"):
                pass

    assert sorted(asked) == [0, 1, 2]
    assert str(refusal.value).count(";") <= 1  # what two of them say alike is told once


async def test_a_node_that_says_nothing_is_soon_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "NODE_S", 0.1)
    async with nodes(None, None) as (urls, asked):
        async with asyncio.timeout(3):
            with pytest.raises(BrokerUnavailable):
                async with connected(urls, name="test"):
                    pass

    assert sorted(asked) == [0, 1]


def test_the_node_after_the_last_one_comes_first_and_the_last_one_last() -> None:
    order = Nodes()
    assert {Nodes().in_turn(["a", "b", "c"])[0] for _ in range(100)} == set("abc")
    order.note("b")
    assert order.in_turn(["a", "b", "c"]) == ["c", "a", "b"]
    order.note("c")
    assert order.in_turn(["a", "b", "c"]) == ["a", "b", "c"]
    assert order.in_turn(["a"]) == ["a"]
