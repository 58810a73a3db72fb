"""Good requests, damaged at random and sent over raw sockets: whatever comes, the answer is one of ours, and no 5xx.

    REDRIVE_FUZZ_COUNT=100000 REDRIVE_FUZZ_SEED=7 .venv/bin/pytest tests/integration/api/test_fuzz.py

Each request is made from the seed and its number alone, so that one that fails can be sent again by itself.
"""

import asyncio
import json
import os
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from functools import partial
from random import Random
from typing import Final
from urllib.parse import quote

import pytest

from tests.api_server import Api, Reply, serving
from tests.eventually import eventually
from tests.integration.api.conftest import module_fixture
from tests.jobs import JobMaker
from tests.openapi import DOCUMENT
from tests.tokens import token

pytestmark = pytest.mark.asyncio(loop_scope="module")

COUNT: Final = int(os.environ.get("REDRIVE_FUZZ_COUNT", "2000"))
SEED: Final = int(os.environ.get("REDRIVE_FUZZ_SEED", "20261123"))
AT_ONCE: Final = 32
PATIENCE_S: Final = 1.0
"""How long to wait for an answer to a request that may not be a whole one."""

CANARY: Final = b"CaNaRy"
CODES: Final = frozenset(DOCUMENT["components"]["schemas"]["ProblemCode"]["enum"])
SCOPES: Final = "jobs:read jobs:payload jobs:retry jobs:retry:bulk jobs:retry:extend jobs:admin"
BEARER: Final = b"Authorization: Bearer %b" % token(project_id="fuzz", scope=SCOPES, exp=4_000_000_000).encode()
_ANSWER: Final = re.compile(rb"(?=HTTP/1\.[01] [1-5]\d\d [A-Z])")


def good(method: bytes, path: bytes, *lines: bytes, body: bytes = b"") -> bytes:
    """A whole request, its canaries in places that an answer has no reason to repeat."""
    head = [b"%b %b HTTP/1.1" % (method, path), b"Host: canary.example", BEARER, b"User-Agent: %b/1" % CANARY, *lines]
    if body:
        head += [b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    return b"\r\n".join([*head, b"Connection: close", b"", body])


def corpus(job: bytes, retry: bytes, batch: bytes) -> list[bytes]:
    """A good request of every kind."""
    of_job, of_retry = b"/api/jobs/" + job, b"/api/retries/" + retry
    order = b'{"reason":"%b","delay_seconds":60,"extra_attempts":2}' % CANARY
    chunked = b"Content-Type: application/json\r\nTransfer-Encoding: chunked"
    return [
        good(b"GET", of_job, b'If-None-Match: W/"%b", "1"' % CANARY, b"Prefer: wait=0", b"X-Request-Id: fuzz-1"),
        good(b"GET", of_job + b"?include=payload", b"traceparent: 00-%b-00-01" % (b"4b" * 16)),
        good(b"GET", of_job + b"/events", b"Accept: text/event-stream", b"Last-Event-ID: %b" % CANARY),
        good(b"GET", of_job + b"/retries?limit=3&cursor=%b" % CANARY),
        good(b"GET", b"/api/jobs?status=failed&type=%b&created_after=2026-01-01T00:00:00Z&limit=2" % CANARY),
        good(b"GET", b"/api/jobs?ids=%b,%b" % (job, job)),
        good(b"GET", b"/api/jobs/stats?type=%b" % CANARY),
        good(b"GET", b"/api/retries?state=queued&actor=%b&job_id=%b&batch_id=%b" % (CANARY, job, batch)),
        good(b"GET", of_retry, b"If-None-Match: *", b"Prefer: wait=0, respond-async"),
        good(b"GET", b"/api/retry-batches/" + batch, b"Prefer: wait=0"),
        good(b"GET", b"/nowhere/%b?%b=%b" % (CANARY, CANARY, CANARY)),
        good(b"DELETE", of_retry),
        good(b"POST", of_job + b"/retry", b'If-Match: "1"', b"Idempotency-Key: %b" % CANARY, body=order),
        good(b"POST", of_job + b"/retry?dry_run=true", b"Expect: 100-continue", body=order),
        good(b"POST", of_job + b"/retry", chunked) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(order), order),
        good(b"POST", b"/api/jobs/retry", body=b'{"ids":["%b"],"reason":"%b"}' % (job, CANARY)),
        good(
            b"POST", b"/api/jobs/retry?dry_run=true",
            body=b'{"filter":{"type":"%b","created_after":"2026-01-01T00:00:00Z"},"max":9}' % CANARY,
        ),
    ]  # fmt: skip


NASTY: Final = [
    b"\x00", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b"\t", b":", b"%", b"%00", b"%0d%0a", b"%ff", b"\xff",
    b"\xc0\xaf", b"\xed\xa0\x80", b"%ed%a0%80", b"/", b"//", b"..", b"?", b"#", b"&", b"=", b";", b'"', b"'", b"{",
    b"[" * 999, b"}",
    b"\\u0000", b"\\ud800", b"null", b"-1", b"1e999", b"9" * 25, b"\xe2\x80\xa8", b"HTTP/1.1",
    b"Transfer-Encoding: chunked", b"Content-Length: 5", b"Content-Encoding: gzip", b"Upgrade: websocket",
    b"Expect: 100-continue", b"A" * 9000,
]  # fmt: skip


class Damage:
    """What can happen to a request: to any of its bytes; or to one part, so that it is read, and goes further in."""

    def __init__(self, random: Random, requests: list[bytes]) -> None:
        self._random = random
        self._requests = requests

    def done_to(self, request: bytes) -> bytes:
        return self._random.choice([self.anywhere, self.in_target, self.in_header, self.in_body])(request)

    def anywhere(self, request: bytes) -> bytes:
        harms = (
            self.flipped, self.inserted, self.deleted, self.doubled, self.swapped, self.resized, self.renumbered,
            self.cut, self.spliced,
        )  # fmt: skip
        for _ in range(self._random.randint(1, 4)):
            request = self._random.choice(harms)(request)
        return request

    def in_target(self, request: bytes) -> bytes:
        method, target, rest = request.split(b" ", 2)
        harmed = self._harmed(target)
        return b" ".join(
            [method, quote(harmed, safe="/?&=%,:+").encode() if self._random.random() < 0.8 else harmed, rest]
        )

    def in_header(self, request: bytes) -> bytes:
        head, end, body = request.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        at = self._random.randrange(len(lines))
        name, colon, value = lines[at].partition(b": ")
        lines[at] = name + colon + self._harmed(value)
        return b"\r\n".join([first, *lines]) + end + body

    def in_body(self, request: bytes) -> bytes:
        head, end, body = request.partition(b"\r\n\r\n")
        if not body or b"chunked" in head:
            return self.in_target(request)
        harmed = self._harmed(body)
        return re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(harmed), head) + end + harmed

    def _harmed(self, part: bytes) -> bytes:
        for _ in range(self._random.randint(1, 2)):
            part = self._random.choice([self.flipped, self.inserted, self.deleted, self.renumbered])(part)
        return part

    def _place(self, request: bytes) -> int:
        return self._random.randint(0, len(request))

    def flipped(self, request: bytes) -> bytes:
        changed = bytearray(request)
        for _ in range(self._random.randint(1, 8)):
            if changed:
                changed[self._random.randrange(len(changed))] ^= 1 << self._random.randrange(8)
        return bytes(changed)

    def inserted(self, request: bytes) -> bytes:
        at = self._place(request)
        what = self._random.choice([self._random.choice(NASTY), self._random.randbytes(self._random.randint(1, 16))])
        return request[:at] + what + request[at:]

    def deleted(self, request: bytes) -> bytes:
        at = self._place(request)
        return request[:at] + request[at + self._random.randint(1, 40) :]

    def doubled(self, request: bytes) -> bytes:
        lines = request.split(b"\r\n")
        at = self._random.randrange(len(lines))
        return b"\r\n".join([*lines[: at + 1], *lines[at:]])

    def swapped(self, request: bytes) -> bytes:
        lines = request.split(b"\r\n")
        self._random.shuffle(lines)
        return b"\r\n".join(lines)

    def resized(self, request: bytes) -> bytes:
        length = b"%d" % self._random.choice([0, 1, 2, 5, 4096, 4097, 65_537, 2**31, 2**63, 2**64])
        return re.sub(rb"(?i)(content-length: *)\d+", rb"\g<1>" + length, request)

    def renumbered(self, request: bytes) -> bytes:
        numbers = list(re.finditer(rb"\d+", request))
        if not numbers:
            return request
        one = self._random.choice(numbers)
        number = self._random.choice([b"0", b"-1", b"1.5", b"1e3", b"65536", b"2147483648", b"9" * 30, b"\xd9\xa1"])
        return request[: one.start()] + number + request[one.end() :]

    def cut(self, request: bytes) -> bytes:
        return request[: self._place(request)]

    def spliced(self, request: bytes) -> bytes:
        other = self._random.choice(self._requests)
        return request[: self._place(request)] + other[self._place(other) :]


@module_fixture
async def fuzzed(database_url: str) -> AsyncIterator[Api]:
    """An api that nobody waits at, so that `Prefer: wait=60` is not a matter of time."""
    async with serving(database_url, max_waiters=0) as running:
        yield running


@module_fixture
async def requests(fuzzed: Api, jobs: JobMaker) -> list[bytes]:
    async def accepted(path: str, json: object) -> Reply:
        return await fuzzed.post(path, json, token=BEARER.split()[-1].decode())

    done, other = await jobs.many_failed(2, project_id="fuzz")
    retry = (await accepted(f"/api/jobs/{other.id}/retry", {})).data["id"]
    await jobs.many_failed(5, project_id="fuzz")
    batch = (await accepted("/api/jobs/retry", {"ids": [str(other.id)]})).data["batch_id"]
    return corpus(str(done.id).encode(), retry.encode(), batch.encode())


@pytest.fixture(autouse=True)
def _nothing_is_logged_as_an_error(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    yield
    logged = capsys.readouterr()
    assert "[error" not in logged.out
    assert "Traceback" not in logged.out + logged.err
    assert not [record.getMessage() for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}]


async def answers_to(api: Api, request: bytes) -> list[bytes]:
    """What comes back until the server closes, or until it does not seem to come to anything."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    received = b""
    with suppress(ConnectionError, TimeoutError):
        writer.write(request)
        async with asyncio.timeout(PATIENCE_S):
            while chunk := await reader.read(65_536):
                received += chunk
    writer.transport.abort()
    return _ANSWER.split(received)[1:]


def faults_of(answer: bytes) -> Iterator[str]:
    """What is wrong with an answer."""
    reply = Reply.parsed(answer)
    if reply.status == 100:
        return
    if not (200 <= reply.status < 300 or reply.status == 304 or 400 <= reply.status < 500 or reply.status == 503):
        yield f"status {reply.status}"
    for name in ("X-Request-Id", "X-Content-Type-Options", "Cache-Control"):
        if len(reply.headers.getall(name, ())) != 1:
            yield f"{name} is not there once"
    if "Server" in reply.headers:
        yield "a banner"
    if reply.status < 400:
        return
    if reply.headers.get("Content-Type") != "application/problem+json":
        yield "another content type"
    if reply.body:  # none to HEAD
        yield from _faults_of_problem(reply)
    if CANARY.lower() in answer.lower():
        yield "an echo"


def _faults_of_problem(reply: Reply) -> Iterator[str]:
    try:
        problem = json.loads(reply.body)
    except ValueError:
        yield "no JSON"
        return
    if problem.get("code") not in CODES:
        yield "an unknown code"
    if problem.get("request_id") != reply.headers.get("X-Request-Id"):
        yield "another request's id"


async def test_the_requests_to_damage_are_good_ones(fuzzed: Api, requests: list[bytes]) -> None:
    answers = [(await answers_to(fuzzed, request))[-1] for request in requests]

    assert [Reply.parsed(answer).status for answer in answers] == [
        200, 200, 200, 400, 200, 200, 200, 200, 304, 200, 404, 200, 412, 200, 202, 202, 200,
    ]  # fmt: skip
    assert [fault for answer in answers for fault in faults_of(answer)] == []


OURS: Final = (
    b"HTTP/1.1 400 Bad Request\r\nX-Request-Id: r\r\nX-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n"
    b"Content-Type: application/problem+json\r\n\r\n" + b'{"code":"bad-request","request_id":"r"}'
)


@pytest.mark.parametrize(
    ("was", "is_", "fault"),
    [(b"", b"", None), (b"400", b"500", "status 500"), (b"400", b"302", "status 302"),
     (b"nosniff", b"canary", "an echo"), (b"no-store\r\n", b"no-store\r\nServer: x\r\n", "a banner"),
     (b"X-Request-Id: r\r\n", b"", "X-Request-Id is not there once"),
     (b"problem+json", b"json", "another content type"),
     (b"bad-request", b"bad", "an unknown code"), (b"{", b"", "no JSON"), (b'"r"', b'"s"', "another request's id")],
)  # fmt: skip
async def test_what_is_wrong_with_an_answer_is_seen(was: bytes, is_: bytes, fault: str | None) -> None:
    assert ([*faults_of(OURS.replace(was, is_, 1)), None])[0] == fault


@pytest.mark.timeout(120 + COUNT / 20)
async def test_damaged_requests_are_answered_in_our_words_or_not_at_all(
    fuzzed: Api, requests: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    faults: list[tuple[int, str, bytes]] = []
    statuses: Counter[int] = Counter()
    numbers = iter(range(COUNT))
    unavailable: list[int] = []

    async def send() -> None:
        for number in numbers:
            seen = await sent(number)
            statuses.update(seen)
            if 503 in seen:
                unavailable.append(number)

    async def sent(number: int) -> list[int]:
        random = Random(SEED * 1_000_003 + number)
        damaged = Damage(random, requests).done_to(random.choice(requests))
        answers = await answers_to(fuzzed, damaged)
        faults.extend((number, fault, damaged) for answer in answers for fault in faults_of(answer))
        return [Reply.parsed(answer).status for answer in answers]

    async def available(number: int) -> bool:
        return 503 not in await sent(number)

    async with asyncio.TaskGroup() as senders:
        for _ in range(AT_ONCE):
            senders.create_task(send())

    with capsys.disabled():
        sys.stdout.write(
            f"\nseed {SEED}: {COUNT} damaged requests, answers by status {dict(sorted(statuses.items()))}\n"
        )
    for number in unavailable:  # all at once they may have been too many for this machine; one is not
        await eventually(partial(available, number), every_s=0.5)
    assert faults == []
    assert sum(statuses.values()) > COUNT / 2  # the rest were never whole requests
    assert internal_errors(fuzzed) == 0
    assert (await fuzzed.get("/api/jobs")).status == 200


def internal_errors(api: Api) -> float:
    """How many requests were answered with a 500, whether or not anybody was there to see it."""
    return sum(
        sample.value
        for family in api._registry.collect()
        for sample in family.samples
        if sample.name == "redrive_http_requests_total" and sample.labels["status"] == "500"
    )


# -- what damage has found


@pytest.mark.parametrize("path", [b"/nowhere", b"/api/jobs"])
@pytest.mark.parametrize("method", [b"GET", b"PUT"])
async def test_an_expectation_of_bytes_that_are_no_text_is_refused_like_any_other(
    fuzzed: Api, method: bytes, path: bytes
) -> None:
    (answer,) = await answers_to(fuzzed, good(method, path, b"Expect: 100-\xf9ontinue"))

    assert (Reply.parsed(answer).status, Reply.parsed(answer).code) == (417, "expectation-failed")
    assert [*faults_of(answer)] == []


async def test_a_condition_of_bytes_that_are_no_text_goes_with_an_idempotency_key(fuzzed: Api, jobs: JobMaker) -> None:
    job = await jobs.failed(project_id="fuzz")
    path = f"/api/jobs/{job.id}/retry".encode()

    async def code_of(condition: bytes) -> str:
        (answer,) = await answers_to(fuzzed, good(b"POST", path, b"Idempotency-Key: k", b"If-Match: " + condition))
        assert [*faults_of(answer)] == []
        return str(Reply.parsed(answer).json.get("code"))

    assert await code_of(b'"\xa6"') == "job-changed"
    assert await code_of(b"*") == "None"
    assert await code_of(b'"\xa6"') == "idempotency-key-reused"
