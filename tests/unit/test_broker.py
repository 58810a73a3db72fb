"""What goes wrong between us and RabbitMQ is one exception, whatever the client libraries make of it."""

import asyncio
import traceback

import pytest
from aio_pika.exceptions import AMQPConnectionError, ChannelInvalidStateError

from shared.broker import connected, translated
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
        await reader.read()  # the end has come before anybody looked
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
