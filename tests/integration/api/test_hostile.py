"""What no honest client sends: each is answered in our words, generically, and the server goes on."""

import asyncio
import gzip
import resource
import socket
import time
import zlib
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from typing import Final

import pytest

from api import bodies, server
from api.unread import Unread
from tests.api_server import Api, Reply, Serve
from tests.eventually import eventually
from tests.jobs import JobMaker
from tests.logs import Log
from tests.servers.proxy import Proxy
from tests.tokens import token

pytestmark = pytest.mark.asyncio(loop_scope="module")

JOB = "/api/jobs/6ba7b810-9dad-41d1-80b4-00c04fd430c8"
END = b"Host: a\r\nConnection: close\r\n\r\n"
BEARER = f"Authorization: Bearer {token(exp=4_000_000_000)}\r\n".encode()
POST = f"POST {JOB}/retry HTTP/1.1\r\n".encode() + BEARER + b"Content-Type: application/json\r\n"


@pytest.fixture(autouse=True)
def _nothing_is_logged_as_an_error(log: Log) -> Iterator[None]:
    yield
    assert log.errors() == []


def ours(raw: bytes) -> Reply:
    """The answer, which is a problem in our words, without a word of the request or of the software."""
    reply = Reply.parsed(raw)
    assert "Server" not in reply.headers
    assert "canary" not in raw.decode("latin-1").lower()
    assert b"aiohttp" not in raw.lower()
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["X-Request-Id"] == reply.json["request_id"]
    assert reply.headers["Cache-Control"] == "no-store"
    return reply


UNREADABLE = {
    "no HTTP at all": b"canary\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03canary" + b"\x00" * 200,
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "bytes": bytes(range(128, 256)) * 4 + b"\r\n\r\n",
    "empty method": b" / HTTP/1.1\r\n" + END,
    "method with bytes": b"G\xffT / HTTP/1.1\r\n" + END,
    "no version": b"GET /canary\r\n" + END,
    "version of nothing": b"GET / HTTP/9.9.9\r\n" + END,
    "another protocol": b"GET / CANARY/1.1\r\n" + END,
    "path without a slash": b"GET canary HTTP/1.1\r\n" + END,
    "space in the path": b"GET /api/jobs/canary canary HTTP/1.1\r\n" + END,
    "NUL in the path": b"GET /canary\x00 HTTP/1.1\r\n" + END,
    "raw byte in the path": b"GET /api/jobs/canary\xff HTTP/1.1\r\n" + END,
    "path of 9 KB": b"GET /" + b"canary" * 1500 + b" HTTP/1.1\r\n" + END,
    "header of 9 KB": b"GET / HTTP/1.1\r\nX-A: " + b"canary" * 1500 + b"\r\n" + END,
    "header name of 9 KB": b"GET / HTTP/1.1\r\n" + b"canary" * 1500 + b": a\r\n" + END,
    "200 headers": b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: canary\r\n" % n for n in range(200)) + END,
    "header without a colon": b"GET / HTTP/1.1\r\ncanary\r\n" + END,
    "header without a name": b"GET / HTTP/1.1\r\n: canary\r\n" + END,
    "space before the colon": b"GET / HTTP/1.1\r\nX-A : canary\r\n" + END,
    "folded header": b"GET / HTTP/1.1\r\nX-A: a\r\n canary\r\n" + END,
    "NUL in a header": b"GET / HTTP/1.1\r\nX-A: canary\x00\r\n" + END,
    "CR in a header": b"GET / HTTP/1.1\r\nX-A: canary\rX-B: b\r\n" + END,
    "byte in a header's name": b"GET / HTTP/1.1\r\nX-\xff: canary\r\n" + END,
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n" + END + b"{}",
    "length and chunks": POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n" + END + b"{}",
    "length of letters": POST + b"Content-Length: canary\r\n" + END,
    "length below zero": POST + b"Content-Length: -1\r\n" + END,
    "length with a plus": POST + b"Content-Length: +2\r\n" + END + b"{}",
    "length of no number that is": POST + b"Content-Length: " + b"9" * 40 + b"\r\n" + END,
    "unknown transfer coding": POST + b"Transfer-Encoding: canary\r\n" + END,
    "chunk of letters": POST + b"Transfer-Encoding: chunked\r\n" + END + b"canary\r\n",
    "chunk of no size that is": POST + b"Transfer-Encoding: chunked\r\n" + END + b"f" * 40 + b"\r\n",
    "chunk without an end": POST + b"Transfer-Encoding: chunked\r\n" + END + b"2\r\n{}canary\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("sent", UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_what_cannot_be_read_as_http_is_a_bad_request(api: Api, sent: bytes) -> None:
    reply = ours(await api.raw(sent))

    assert (reply.status, reply.code) in {(400, "bad-request"), (404, "not-found")}
    assert reply.status == 400 or sent.startswith(b"GET /canary\r\n")  # HTTP/0.9, without a version


@pytest.mark.parametrize("sent", UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_what_cannot_be_read_reaches_no_database(api: Api, database_proxy: Proxy, sent: bytes) -> None:
    passed = database_proxy.bytes_to_server

    await api.raw(sent)

    assert database_proxy.bytes_to_server == passed


@pytest.mark.parametrize(
    "path",
    ["/", "/api", "/api/", "/api/jobs/", f"/{JOB}", f"/{JOB.replace('jobs', '/jobs')}", f"{JOB}/", f"{JOB}/canary",
     "/API/JOBS", "/robots.txt", "/api/retries/", "/api/retry-batches/", "http://canary/api/jobs/", "/%61pi/jobs/",
     "/metrics", "/livez"],
)  # fmt: skip
async def test_where_nothing_is_nothing_is_found(api: Api, path: str) -> None:
    reply = ours(await api.raw(f"GET {path} HTTP/1.1\r\n".encode() + BEARER + END))

    assert (reply.status, reply.code) == (404, "not-found")


@pytest.mark.parametrize(
    ("path", "allow"),
    [(JOB, "GET"), (f"{JOB}/retry", "POST"), (f"{JOB}/retries", "GET"), ("/api/jobs", "GET"), ("/api/retries", "GET"),
     (JOB.replace("jobs", "retries"), "DELETE, GET")],
)  # fmt: skip
@pytest.mark.parametrize("method", ["HEAD", "PUT", "PATCH", "TRACE", "OPTIONS", "PROPFIND", "CANARY"])
async def test_a_method_that_a_resource_does_not_have_is_refused_with_those_it_has(
    api: Api, method: str, path: str, allow: str
) -> None:
    raw = await api.raw(f"{method} {path} HTTP/1.1\r\n".encode() + BEARER + END)
    if method == "CANARY":
        assert ours(raw).status in {400, 405}  # the parser knows the methods there are
        return
    reply = Reply.parsed(raw) if method == "HEAD" else ours(raw)

    assert (reply.status, reply.headers["Allow"]) == (405, allow)
    assert "Server" not in reply.headers
    assert (reply.body == b"") == (method == "HEAD")


@pytest.mark.parametrize(
    "line", [b"CONNECT canary:443 HTTP/1.1\r\n", b"CONNECT / HTTP/1.1\r\n", b"OPTIONS * HTTP/1.1\r\n"]
)
async def test_what_is_for_proxies_is_not_for_us(api: Api, line: bytes) -> None:
    assert ours(await api.raw(line + END)).status in {400, 404, 405}


# -- bodies


def _bomb() -> bytes:
    """A hundred megabytes; made in pieces, as what this process has occupied once is what it is measured by."""
    packing = zlib.compressobj(wbits=31)
    return b"".join(packing.compress(bytes(1_000_000)) for _ in range(100)) + packing.flush()


@pytest.mark.parametrize("body", [gzip.compress(b"{}"), _bomb(), b"canary"], ids=["gzip", "bomb", "garbage"])
@pytest.mark.parametrize("coding", [b"gzip", b"deflate", b"br", b"zstd", b"identity", b"canary"])
async def test_a_coded_body_is_refused_and_not_unpacked(api: Api, body: bytes, coding: bytes) -> None:
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    head = POST + b"Content-Encoding: " + coding + b"\r\nContent-Length: %d\r\n" % len(body)

    reply = ours(await api.raw(head + END, body))

    assert (reply.status, reply.code) == (415, "unsupported-media-type")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < peak_kib + 50_000


@pytest.mark.parametrize(
    "head", [b"Content-Length: 10\r\n", b"Transfer-Encoding: chunked\r\n"], ids=["length", "chunks"]
)
async def test_a_body_that_does_not_come_is_cut_off(api: Api, head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "READ_TIMEOUT_S", 0.1)

    reply = ours(await api.raw(POST + head + END, b"2\r\n{\r\n"[:1]))

    assert (reply.status, reply.code) == (400, "bad-request")


async def test_a_body_that_never_ends_is_not_read_for_ever(api: Api) -> None:
    piece = b"400\r\n" + b" " * 1024 + b"\r\n"

    reply = ours(await api.raw(POST + b"Transfer-Encoding: chunked\r\n" + END, *[piece] * 8))

    assert (reply.status, reply.code) == (413, "payload-too-large")


@pytest.mark.parametrize(
    "chunks", [b"canary\r\n", b"2\r\n{}canary\r\n0\r\n\r\n", b"2\r\n{}\r\n"], ids=["bad", "late", "cut"]
)
@pytest.mark.parametrize("line", [b"POST /nowhere", b"PUT /api/jobs", f"POST {JOB}/retry".encode()])
async def test_a_broken_body_that_no_handler_reads_does_not_matter(api: Api, line: bytes, chunks: bytes) -> None:
    raw = await api.raw(line + b" HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: a\r\n\r\n", chunks[:4], chunks[4:])

    assert ours(raw).status in {400, 401, 404, 405}


async def test_a_body_where_none_is_wanted_is_no_matter(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()
    head = f"GET /api/jobs/{job.id} HTTP/1.1\r\n".encode() + BEARER + b"Content-Length: 6\r\n"

    assert Reply.parsed(await api.raw(head + END, b"canary")).status == 200


# -- expectations, versions, pipelines


async def test_a_client_that_asks_first_is_told_to_go_on(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()
    head = f"POST /api/jobs/{job.id}/retry HTTP/1.1\r\n".encode() + BEARER + b"Content-Type: application/json\r\n"

    raw = await api.raw(head + b"Expect: 100-continue\r\nContent-Length: 2\r\n" + END, b"{}")

    first, _, rest = raw.partition(b"\r\n\r\n")
    assert first == b"HTTP/1.1 100 Continue"
    assert Reply.parsed(rest).status == 202


async def test_a_client_that_hangs_up_at_once_is_no_error(api: Api, log: Log, jobs: JobMaker) -> None:
    path = f"/api/jobs/{(await jobs.failed()).id}"
    for line, more in (
        (f"POST {path}/retry", "Expect: 100-continue\r\nContent-Length: 2\r\n"),  # told to go on before all else
        (f"POST {path}/retry", "Content-Length: 2\r\n"),
        ("POST /api/jobs/retry", "Transfer-Encoding: chunked\r\n"),
        (f"GET {path}", ""),
        (f"GET {path}", 'If-None-Match: "none"\r\nPrefer: wait=1\r\n'),
        (f"GET {path}/events", ""),
        (f"GET /api/jobs/events?ids={path.rpartition('/')[2]}", ""),
        ("GET /nowhere", "Expect: 100-continue\r\n"),
    ):
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", api.port)) as client:  # the api sees all of it at once
                client.sendall(f"{line} HTTP/1.1\r\nHost: a\r\n".encode() + BEARER + more.encode() + b"\r\n")
            await api.get("/api/me")

    assert log.troubles() == []


async def test_another_expectation_cannot_be_met(api: Api) -> None:
    reply = ours(await api.raw(POST + b"Expect: canary\r\nContent-Length: 2\r\n" + END, b"{}"))

    assert (reply.status, reply.code) == (417, "expectation-failed")


async def test_http_1_0_is_answered_and_ended(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()

    reply = Reply.parsed(await api.raw(f"GET /api/jobs/{job.id} HTTP/1.0\r\n".encode() + BEARER + b"\r\n"))

    assert (reply.status, reply.data["id"]) == (200, str(job.id))
    assert "Server" not in reply.headers


async def test_pipelined_requests_are_answered_in_order(api: Api, jobs: JobMaker) -> None:
    made = await jobs.many_failed(5)
    head = [f"GET /api/jobs/{job.id} HTTP/1.1\r\nHost: a\r\n".encode() + BEARER for job in made]

    raw = await api.raw(b"\r\n".join(head) + b"Connection: close\r\n\r\n")

    at = [raw.index(b'{"data":{"id":"%s"' % str(job.id).encode()) for job in made]
    assert at == sorted(at)
    assert raw.count(b"HTTP/1.1 200 OK") == 5


async def test_rubbish_behind_an_answered_request_is_a_bad_request(api: Api) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n")
    assert b"404" in await reader.readline()
    writer.write(b"canary\r\n\r\n")

    _, _, bad = (await reader.read()).partition(b"}HTTP/1.0 ")
    writer.close()

    assert ours(b"HTTP/1.0 " + bad).code == "bad-request"


@pytest.mark.parametrize(
    "headers",
    [b"If-None-Match: " + b'"' * 4096 + b"\r\n", b"If-None-Match: \xff\xfe\r\n",
     b"Prefer: wait=" + b"9" * 4000 + b"\r\n",
     b"Accept: canary/canary\r\n", b"Range: bytes=0-1\r\n", b"If-Modified-Since: canary\r\n", b"Cookie: canary=1\r\n",
     b"Upgrade: websocket\r\nConnection: upgrade\r\n", b"X-HTTP-Method-Override: DELETE\r\n", b"Host: b\r\n",
     b"X-Request-Id: canary\xff\r\n", b"traceparent: canary\r\n", b"Transfer-Encoding:\r\n"],
)  # fmt: skip
async def test_headers_that_mean_nothing_to_us_change_nothing(api: Api, jobs: JobMaker, headers: bytes) -> None:
    job = await jobs.failed()

    raw = await api.raw(f"GET /api/jobs/{job.id} HTTP/1.1\r\n".encode() + BEARER + headers + END)

    assert Reply.parsed(raw).status in {200, 400, 411 if headers.startswith(b"Transfer-Encoding") else 200}
    assert b"\r\nServer:" not in raw


# -- clients that hold on


async def test_a_crowd_of_silent_clients_does_not_starve_the_others(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()
    starts = [b"", b"G", b"GET / HTTP/1.1\r\nX-A: ", POST + b"Content-Length: 100\r\n\r\n{"]
    crowd = [await asyncio.open_connection("127.0.0.1", api.port) for _ in range(200)]
    try:
        for number, (_, writer) in enumerate(crowd):
            writer.write(starts[number % len(starts)])
        answers = await asyncio.gather(*(api.get(f"/api/jobs/{job.id}") for _ in range(100)))
    finally:
        for _, writer in crowd:
            writer.transport.abort()

    assert {answer.status for answer in answers} == {200}


SLOW: Final = {
    "silent": (b"", b""),
    "slow line": (b"G", b"E"),
    "slow headers": (b"GET / HTTP/1.1\r\nX-A: ", b"a"),
    "slow headers, after an answer": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nX-A: ", b"a"),
    "slow body": (POST + b"Host: a\r\nContent-Length: 4000\r\n\r\n", b" "),
    "slow chunks": (POST + b"Host: a\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "slow body that no handler reads": (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 4000\r\n\r\n", b" "),
    "idle after an answer": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b""),
}


@pytest.mark.parametrize(("begin", "go_on"), SLOW.values(), ids=SLOW.keys())
async def test_a_slow_client_is_hung_up_on_though_it_goes_on(
    database_url: str, begin: bytes, go_on: bytes, monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    monkeypatch.setattr(bodies, "READ_TIMEOUT_S", 0.3)
    impatient = await serve(database_url, keepalive_timeout=0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", impatient.port)
    writer.write(begin)

    async def hung_up() -> bool:
        writer.write(go_on)
        return reader.at_eof() or reader.exception() is not None

    draining = asyncio.create_task(_drained(reader))
    try:
        await eventually(hung_up, every_s=0.05)
    finally:
        writer.transport.abort()
        await draining


async def _drained(reader: asyncio.StreamReader) -> None:
    with suppress(ConnectionError):
        await reader.read()


@pytest.mark.parametrize("bytes_at_once", [0, 4096], ids=["nothing", "a little"])
async def test_a_client_that_does_not_read_its_answers_is_cut_off(
    api: Api, jobs: JobMaker, bytes_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "UNREAD_S", 0.3)
    lost, connection_lost = asyncio.Event(), server._Protocol.connection_lost

    def seen(self: server._Protocol, error: BaseException | None) -> None:
        connection_lost(self, error)
        lost.set()

    monkeypatch.setattr(server._Protocol, "connection_lost", seen)
    (large,) = await jobs.make(1, status="failed", payload=f'"{"x" * 20_000_000}"')
    request = f"GET /api/jobs/{large.id}?include=payload HTTP/1.1\r\n".encode() + BEARER + b"Host: a\r\n\r\n"
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(0)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", api.port))
        sock.sendall(request)

        def is_cut_off() -> bool:
            if bytes_at_once:
                with suppress(BlockingIOError, ConnectionError):
                    sock.recv(bytes_at_once)
            return lost.is_set()

        await eventually(is_cut_off, every_s=0.1)


async def test_what_many_clients_do_not_read_is_bounded(
    database_url: str, jobs: JobMaker, monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    monkeypatch.setattr(server, "UNREAD_BYTES", 3_000_000)
    held: list[int] = []
    add = Unread.add

    def seen(self: Unread, transport: asyncio.Transport) -> None:
        add(self, transport)
        held.append(self.total_bytes)

    monkeypatch.setattr(Unread, "add", seen)
    (large,) = await jobs.make(1, status="completed", payload='{"x":"%s"}' % ("x" * 1_000_000))
    request = f"GET /api/jobs/{large.id}?include=payload HTTP/1.1\r\n".encode() + BEARER + b"Host: a\r\n\r\n"
    api = await serve(database_url)
    async with AsyncExitStack() as crowd:
        for _ in range(30):
            sock = crowd.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.settimeout(0)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", api.port))
            before = len(held)
            sock.sendall(request)
            await eventually(lambda: len(held) > before, within_s=20, what="it is being answered")  # noqa: B023 - at once

        read = await api.get(f"/api/jobs/{large.id}?include=payload")

    assert max(held) < 3_000_000
    assert (read.status, len(read.data["payload"]["x"])) == (200, 1_000_000)


async def test_a_client_that_reads_slowly_gets_all_of_its_answer(
    api: Api, jobs: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "UNREAD_S", 0.2)
    (large,) = await jobs.make(1, status="failed", payload=f'"{"x" * 8_000_000}"')
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port, limit=4096)
    began_at = time.monotonic()
    writer.write(f"GET /api/jobs/{large.id}?include=payload HTTP/1.1\r\n".encode() + BEARER + END)
    received = 0
    while chunk := await reader.read(200_000):
        received += len(chunk)
        await asyncio.sleep(0.01)  # what makes it slow
    writer.close()

    assert received > 8_000_000
    assert time.monotonic() - began_at > 0.2


async def test_no_answer_names_the_software(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()
    tag = (await api.get(f"/api/jobs/{job.id}")).headers["ETag"]
    answers = [
        await api.get(f"/api/jobs/{job.id}"),
        await api.get(f"/api/jobs/{job.id}", headers={"If-None-Match": tag}),
        await api.get("/api/jobs"),
        await api.post(f"/api/jobs/{job.id}/retry"),
        await api.get("/nowhere"),
        await api.call("PUT", "/api/jobs"),
        await api.post(f"/api/jobs/{job.id}/retry", body=b"{"),
    ]

    assert [answer.status for answer in answers] == [200, 304, 200, 202, 404, 405, 400]
    for answer in answers:
        assert answer.headers.keys().isdisjoint({"Server", "X-Powered-By", "Via"})
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == ("private, no-cache" if answer.status < 400 else "no-store")
