"""Nothing of one request reaches another: trailer fields after a chunked body are no headers of the next request."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Final

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import RawTestServer
from pytest_aiohttp import AiohttpClient

from tests.api_server import Api, Reply, Serve
from tests.integration.api.conftest import module_fixture
from tests.jobs import JobMaker, MadeJob
from tests.servers.reusing import REUSING, Reusing, answers_over, message_of
from tests.tokens import token
from tests.trailers import FIELDS, LEAKED, with_trailer

pytestmark = pytest.mark.asyncio(loop_scope="module")

FAR: Final = 4_000_000_000
ALICE: Final = token(sub="alice", exp=FAR)
MALLORY: Final = token(sub="mallory", project_id="p9", exp=FAR)
NOWHERE: Final = "/api/jobs/6ba7b810-9dad-41d1-80b4-00c04fd430c8"
CHUNKS: Final = b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-Request-Id: leaked\r\n\r\n"
NEXT: Final = f"GET {NOWHERE} HTTP/1.1\r\nHost: a\r\n\r\n".encode()


async def test_aiohttp_has_not_mended_it_yet(module_client: AiohttpClient) -> None:
    """Once this fails, shared/trailers.py and the close that it brings can go, with what the contract says."""
    seen: list[str | None] = []

    async def handle(request: web.BaseRequest) -> web.Response:
        await request.read()
        seen.append(request.headers.get("X-Request-Id"))
        return web.Response()

    server = RawTestServer(handle)
    await module_client(server)
    reader, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(b"POST / HTTP/1.1\r\nHost: a\r\n" + CHUNKS + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    for _ in range(2):
        await message_of(reader)
    writer.close()

    assert seen == [None, "leaked"], "aiohttp keeps trailers apart now: remove shared/trailers.py"


# -- on one connection


async def answers_on(api: Api, *pieces: bytes) -> list[bytes]:
    return await answers_over(*await asyncio.open_connection("127.0.0.1", api.port), *pieces)


ROUTES: Final = {
    "a retry": ("POST", "/retry", 202),
    "a dry run": ("POST", "/retry?dry_run=true", 200),
    "no such path": ("POST", "/nothing", 404),
    "no such method": ("PUT", "", 405),
    "another method": ("PATCH", "/retry", 405),
    "a wrong parameter": ("POST", "/retry?colour=blue", 400),
    "a get": ("GET", "", 411),
    "a get of a stream": ("GET", "/events", 411),
    "a head": ("HEAD", "", 411),
    "a delete": ("DELETE", "/retry", 411),
    "options": ("OPTIONS", "", 411),
    "a get of nothing": ("GET", "/nothing", 411),
}


@pytest.mark.parametrize("apart", [False, True], ids=["at once", "in pieces"])
@pytest.mark.parametrize(("method", "path", "status"), ROUTES.values(), ids=ROUTES.keys())
async def test_chunks_end_their_connection_whatever_they_are_answered(  # noqa: PLR0917 - a table
    api: Api, jobs: JobMaker, method: str, path: str, status: int, apart: bool  # noqa: FBT001
) -> None:  # fmt: skip
    job = await jobs.failed()
    request = with_trailer(f"/api/jobs/{job.id}{path}", "X-Request-Id", bearer=token(), method=method)
    at = request.index(b"0\r\nX-Request-Id")

    pieces = [request[:at], request[at:-4], request[-4:], NEXT] if apart else [request + NEXT]
    (answer,) = await answers_on(api, *pieces) if method != "HEAD" else [await api.raw(*pieces)]

    reply = Reply.parsed(answer)
    assert (reply.status, reply.headers["Connection"]) == (status, "close")
    assert answer.count(b"HTTP/1.") == 1
    assert LEAKED.encode() not in answer


UNREAD: Final = {
    "no token": (b"", b"{}", 401),
    "a bad token": (b"Authorization: Bearer x\r\n", b"{}", 401),
    "another type": (f"Authorization: Bearer {ALICE}\r\nContent-Type: text/plain\r\n".encode(), b"{}", 415),
    "a coded body": (f"Authorization: Bearer {ALICE}\r\nContent-Encoding: gzip\r\n".encode(), b"{}", 415),
    "a large body": (f"Authorization: Bearer {ALICE}\r\n".encode(), b"x" * 5000, 413),
    "an expectation": (b"Expect: nothing\r\n", b"{}", 417),
    "an upgrade": (b"Connection: upgrade\r\nUpgrade: websocket\r\n", b"{}", 401),
    "a second coding": (b"Transfer-Encoding: gzip\r\n", b"{}", 400),
    "a length, too": (b"Content-Length: 2\r\n", b"{}", 400),
}


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize(("fields", "body", "status"), UNREAD.values(), ids=UNREAD.keys())
async def test_a_body_that_is_not_read_ends_its_connection_too(
    api: Api, fields: bytes, body: bytes, status: int, version: str
) -> None:
    head = f"POST {NOWHERE}/retry HTTP/{version}\r\nHost: a\r\nConnection: keep-alive\r\n".encode()
    chunks = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\nX-Request-Id: leaked\r\n\r\n" % (len(body), body)

    (answer,) = await answers_on(api, head + fields + chunks + NEXT, NEXT)

    reply = Reply.parsed(answer)
    assert reply.status in {status, 404 if version == "1.0" and status == 417 else status, 401}
    assert reply.headers["Connection"] == "close"
    assert b"leaked" not in answer


async def test_over_a_limit_chunks_end_their_connection_too(database_url: str, serve: Serve) -> None:
    api = await serve(database_url, limit_ip="1/3600")
    await api.get("/nowhere")
    answers = [
        await answers_on(api, with_trailer(NOWHERE, "X-Request-Id", bearer=ALICE, method=method) + NEXT)
        for method in ("GET", "POST")
    ]

    assert [[Reply.parsed(each).status for each in answer] for answer in answers] == [[429], [429]]


@pytest.mark.parametrize("spelled", ["transfer-encoding: chunked", "TRANSFER-ENCODING:CHUNKED", "Transfer-Encoding: gzip, chunked"])  # fmt: skip  # noqa: E501
@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS"])
async def test_a_method_without_a_body_wants_none_in_chunks(api: Api, method: str, spelled: str) -> None:
    head = f"{method} {NOWHERE} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {ALICE}\r\n{spelled}\r\n\r\n"

    raw = await api.raw(head.encode() + b"0\r\n\r\n")

    reply = Reply.parsed(raw)
    assert (reply.status, reply.headers["Connection"]) == (411, "close")
    if method != "HEAD":
        assert (reply.code, reply.json["type"]) == ("length-required", "/problems/length-required")


async def test_what_came_before_the_chunks_is_answered(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()
    first = f"GET /api/jobs/{job.id} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token()}\r\n\r\n".encode()
    second = with_trailer(f"/api/jobs/{job.id}/retry?dry_run=true", "X-Request-Id", bearer=token())

    answers = await answers_on(api, first + second + NEXT)

    assert [Reply.parsed(each).status for each in answers] == [200, 200]


# -- by way of a proxy that many clients share


@module_fixture
async def job(jobs: JobMaker) -> MadeJob:
    return await jobs.failed()


@module_fixture
async def done(jobs: JobMaker) -> MadeJob:
    (made,) = await jobs.make(1, status="completed")
    return made


@pytest_asyncio.fixture(params=REUSING.values(), ids=REUSING.keys(), scope="module", loop_scope="module")
async def shared_port(request: pytest.FixtureRequest, database_url: str, serve: Serve) -> AsyncIterator[int]:
    """A proxy before an api that trusts it."""
    start: Reusing = request.param
    behind = await serve(database_url, trusted_proxies="127.0.0.1", keepalive_timeout=75)
    async with start(behind.port) as port:
        yield port


class Client:
    """One client of the proxy, with a connection of its own."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, request: bytes) -> bytes:
        if self._streams is None or self._streams[0].at_eof():
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(request)
        async with asyncio.timeout(10):
            return await message_of(reader)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


_VARYING: Final = re.compile(rb'\r\n(?:Date|X-Request-Id|Connection): [^\r]*|"request_id":"[^"]*"', re.IGNORECASE)


def victims_of(job: MadeJob, done: MadeJob) -> list[bytes]:
    """What others ask meanwhile."""
    bearer = f"Authorization: Bearer {ALICE}\r\n"
    return [
        f"{line} HTTP/1.1\r\nHost: a\r\n{fields}\r\n".encode()
        for line, fields in (
            (f"GET /api/jobs/{job.id}", bearer),
            (f"GET /api/jobs/{job.id}", ""),
            (f"POST /api/jobs/{job.id}/retry?dry_run=true", bearer),
            (f"POST /api/jobs/{job.id}/retry?dry_run=true", bearer + "Content-Length: 0\r\n"),
            (f"GET /api/jobs/{done.id}/events", bearer),
            ("GET /api/jobs?limit=20", bearer),
        )
    ]


@pytest.mark.parametrize("name", FIELDS)
async def test_a_trailer_of_one_client_is_no_header_of_another(
    shared_port: int, job: MadeJob, done: MadeJob, name: str
) -> None:
    mallory, alice = Client(shared_port), Client(shared_port)
    attack = with_trailer(f"{NOWHERE}/retry?dry_run=true", name, bearer=MALLORY)
    for victim in victims_of(job, done):
        before = await alice.send(victim)

        assert Reply.parsed(await mallory.send(attack)).status in {400, 404}
        after = await alice.send(victim)

        assert LEAKED.encode() not in after
        assert _VARYING.sub(b"", after) == _VARYING.sub(b"", before)
        mallory.close()
        mallory = Client(shared_port)
    mallory.close()
    alice.close()


@pytest.mark.parametrize("name", ["Idempotency-Key", "traceparent", "If-Match", "X-Request-Id"])
async def test_a_trailer_of_one_client_is_not_written_down_with_another_s_retry(
    shared_port: int, jobs: JobMaker, name: str
) -> None:
    wanted = await jobs.failed()
    mallory, alice = Client(shared_port), Client(shared_port)
    await mallory.send(with_trailer(f"{NOWHERE}/retry?dry_run=true", name, bearer=MALLORY))

    answer = await alice.send(
        f"POST /api/jobs/{wanted.id}/retry HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {ALICE}\r\n\r\n".encode()
    )

    assert Reply.parsed(answer).status == 202
    row = await jobs.pool.fetchrow(
        "SELECT actor, idempotency_key, traceparent FROM redrive.retry_requests WHERE job_id = $1", wanted.id
    )
    assert row is not None
    assert tuple(row) == ("alice", None, None)
    mallory.close()
    alice.close()
