"""An answer as it goes over the wire, without a server around it."""

import asyncio

import pytest
from aiohttp import HttpVersion, HttpVersion10, HttpVersion11
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_writer import StreamWriter
from aiohttp.test_utils import make_mocked_request

from api.answers import Answer
from tests.api_server import Reply


class Wire(asyncio.Transport):
    """Keeps what is written to it, write by write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: object) -> None:
        assert isinstance(data, bytes)
        self.writes.append(data)

    def is_closing(self) -> bool:
        return False


async def sent(
    answer: Answer, method: str = "GET", version: HttpVersion = HttpVersion11, *, closing: bool = False
) -> bytes:
    """What goes out for one request; in one write, or this fails."""
    loop = asyncio.get_running_loop()
    protocol, wire = BaseProtocol(loop), Wire()
    protocol.transport = wire
    request = make_mocked_request(method, "/", version=version, writer=StreamWriter(protocol, loop))
    request._message = request._message._replace(should_close=closing)  # as the parser makes of version and headers
    await answer.prepare(request)
    await answer.write_eof()
    (written,) = wire.writes
    return written


async def test_an_answer_goes_out_in_one_write() -> None:
    reply = Reply.parsed(await sent(Answer(b'{"data":1}', headers={"ETag": '"7741"'})))

    assert (reply.status, reply.body) == (200, b'{"data":1}')
    assert reply.headers["Content-Type"] == "application/json"
    assert reply.headers["Content-Length"] == "10"
    assert reply.headers["ETag"] == '"7741"'
    assert reply.headers.keys() == {"Content-Type", "Content-Length", "ETag", "Date"}


async def test_an_answer_without_a_body_describes_none() -> None:
    reply = Reply.parsed(await sent(Answer(None, status=304, headers={"ETag": '"7741"'})))

    assert (reply.status, reply.body) == (304, b"")
    assert reply.headers.keys() == {"ETag", "Date"}


async def test_head_is_told_the_length_and_not_sent_the_body() -> None:
    reply = Reply.parsed(await sent(Answer(b"12345", status=405), method="HEAD"))

    assert (reply.status, reply.headers["Content-Length"], reply.body) == (405, "5", b"")


@pytest.mark.parametrize(
    ("version", "closing", "said"),
    [
        (HttpVersion11, False, None),
        (HttpVersion11, True, "close"),
        (HttpVersion10, True, None),
        (HttpVersion10, False, "keep-alive"),
    ],
)
async def test_whether_the_connection_stays_is_said_where_it_is_not_the_rule(
    version: HttpVersion, said: str | None, *, closing: bool
) -> None:
    answer = Answer(b"{}")

    written = await sent(answer, version=version, closing=closing)

    assert written.startswith(f"HTTP/{version.major}.{version.minor} 200 OK\r\n".encode())
    assert Reply.parsed(written).headers.get("Connection") == said
    assert answer.keep_alive is not closing


async def test_an_answer_that_ends_its_connection_says_so() -> None:
    answer = Answer(b"{}")
    answer.force_close()

    assert Reply.parsed(await sent(answer)).headers["Connection"] == "close"
    assert answer.keep_alive is False


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\nb", "a\rb", "a\x00b"])
async def test_a_value_that_would_break_out_of_its_line_is_not_sent(value: str) -> None:
    with pytest.raises(ValueError, match="header"):
        await sent(Answer(b"{}", headers={"Location": value}))
