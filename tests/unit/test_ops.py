"""The ops port: on it, too, nothing of one request reaches another."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.ops import Readiness, Status, serve_ops
from tests.servers.reusing import answers_over
from tests.trailers import FIELDS, LEAKED, with_trailer

NEXT = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
async def ops(tmp_path: Path) -> AsyncIterator[str]:
    """An ops port, on the Unix socket at the path."""

    async def ready() -> Readiness:
        return Readiness(Status.OK, {})

    async def metrics() -> bytes:
        return b""

    path = str(tmp_path / "ops")
    async with serve_ops(ready=ready, metrics=metrics, path=path):
        yield path


async def answers_to(ops: str, *pieces: bytes) -> list[bytes]:
    return await answers_over(*await asyncio.open_unix_connection(ops), *pieces)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/livez", 200), ("GET", "/readyz", 200), ("GET", "/metrics", 200), ("GET", "/nowhere", 404),
     ("POST", "/livez", 405)],
)  # fmt: skip
@pytest.mark.parametrize("apart", ["at once", "in pieces"])
async def test_chunks_end_their_connection_whatever_they_are_answered(
    ops: str, method: str, path: str, status: int, apart: str
) -> None:
    request = with_trailer(path, "X-Request-Id", bearer="none", method=method)
    at = request.index(b"0\r\nX-Request-Id")

    pieces = [request + NEXT] if apart == "at once" else [request[:at], request[at:], NEXT]
    (answer,) = await answers_to(ops, *pieces)

    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"\r\nConnection: close\r\n" in answer


@pytest.mark.parametrize("name", FIELDS)
async def test_no_trailer_is_a_header_of_the_next_request(ops: str, name: str) -> None:
    (answer,) = await answers_to(ops, with_trailer("/livez", name, bearer="none", method="GET") + NEXT)

    assert LEAKED.encode() not in answer


async def test_other_requests_share_a_connection(ops: str) -> None:
    last = NEXT.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")

    answers = await answers_to(ops, NEXT + NEXT + last)

    assert [answer.split(b" ")[1] for answer in answers] == [b"200"] * 3


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /livez HTTP/1.1\r\nHost: a\r\nExpect: \xff\xfe\r\n\r\n", 417),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\nExpect: canary\r\n\r\n", 417),
        (b"canary \xff\r\n\r\n", 400),
    ],
)
async def test_what_cannot_be_read_is_answered_plainly_and_not_repeated(
    ops: str, request_: bytes, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    (answer,) = await answers_to(ops, request_)

    assert answer.split()[1] == str(status).encode()
    assert b"canary" not in answer
    assert b"\xff" not in answer
    assert "Traceback" not in "".join(capfd.readouterr())
