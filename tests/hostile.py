"""What hostile clients send, and how to see that an answer to it is one of ours."""

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from random import Random
from typing import Final
from urllib.parse import quote

from tests.api_server import Reply
from tests.openapi import DOCUMENT
from tests.tokens import token

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
            body=b'{"filter":{"type":"%b","created_after":"2026-01-01T00:00:00Z"},"max":9,"reason":"x"}' % CANARY,
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


HOSTILE_IDS: Final = [
    "not-a-uuid", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "0193c9a8-0000-7000-8000-000000000001",
    "6ba7b810-9dad-31d1-80b4-00c04fd430c8", "6ba7b810-9dad-51d1-80b4-00c04fd430c8",
    "6ba7b810-9dad-81d1-80b4-00c04fd430c8", "6ba7b810-9dad-41d1-00b4-00c04fd430c8",
    "ffffffff-ffff-ffff-ffff-ffffffffffff", "+6ba7b81-9dad-41d1-80b4-00c04fd430c8",
    "%206ba7b810-9dad-41d1-80b4-00c04fd430c8", "6ba7b810-9dad-41d1-80b4-00c04fd430c8%20",
    "6ba7b810_9dad_41d1_80b4_00c04fd430c8", "6ba7b810-9dad-41d1-80b4-00c04fd430c",
    "00000000-0000-0000-0000-000000000000", "6ba7b810-9dad-41d1-c0b4-00c04fd430c8",
    "%7B6ba7b810-9dad-41d1-80b4-00c04fd430c8%7D", "urn:uuid:6ba7b810-9dad-41d1-80b4-00c04fd430c8",
    "6ba7b8109dad41d180b400c04fd430c8", "6ba7b810-9dad-41d1-80b4-00c04fd430c8%0a",
    "6ba7b810-9dad-41d1-80b4-00c04fd430c8%00", "%006ba7b810-9dad-41d1-80b4-00c04fd430c8",
    "%D9%A66ba7b81-9dad-41d1-80b4-00c04fd430c8", "%FF", "%C0%AF", "%", "%2", "%zz", "%25", "%2e%2e", "..;",
    "1'%20OR%20'1'='1", "1;DROP%20TABLE%20control_plane.jobs--", "$%7Bjndi:ldap:%2F%2F127.0.0.1%2Fa%7D",
    "..%2F..%2Fetc%2Fpasswd", "a" * 4000,
    "%E2%80%A8", "%F0%9F%92%A9", "%0d%0aSet-Cookie:%20a=b",
]  # fmt: skip


async def answers_to(port: int, request: bytes) -> list[bytes]:
    """What comes back until the server closes, or until it does not seem to come to anything."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
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
    # Of all that a client sends, an id for the request is told again, if it is one: damage has made one of the canary.
    request_id = reply.headers.get("X-Request-Id", "").encode()
    rest = answer.replace(b"X-Request-Id: " + request_id, b"").replace(b'"request_id":"' + request_id, b"")
    if CANARY.lower() in rest.lower():
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
