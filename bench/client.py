"""A small HTTP/1.1 client for loads that wrk cannot make: each job once, at a steady rate, thousands of waiters.

One connection has one request under way. The answer's time is taken when its last byte is there, before anything is
done with it. Of HTTP it knows what the servers here send: a status line, and `Content-Length` or no body.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple, cast

from bench.results import Load

HOST: Final = "127.0.0.1"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_HEADER_END: Final = b"\r\n\r\n"


class Answer(NamedTuple):
    """An answer; `at` is `time.perf_counter()` when all of it was there."""

    status: int
    head: bytes
    body: bytes
    at: float

    def header(self, name: str) -> str | None:
        """One header's value."""
        found = re.search(rb"\r\n" + name.encode() + rb": *([^\r]*)", self.head, re.IGNORECASE)
        return None if found is None else found[1].decode()


class Disconnected(Exception):
    """The connection ended before the answer was there."""


class NothingMeasured(Exception):
    """There is nothing to make a figure of."""


class Connection(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._buffer = b""
        self._answer: asyncio.Future[Answer] | None = None

    @classmethod
    async def open(cls, port: int) -> "Connection":
        """Connect to this machine's `port`."""
        _, connection = await asyncio.get_running_loop().create_connection(cls, HOST, port)
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is no subclass

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        at = time.perf_counter()
        self._buffer += data
        end = self._buffer.find(_HEADER_END)
        if end < 0 or self._answer is None:
            return
        head, start = self._buffer[:end], end + len(_HEADER_END)
        status = int(head[9:12])
        length = _LENGTH.search(head)
        stop = start + (0 if length is None or status == 304 else int(length[1]))
        if len(self._buffer) < stop:
            return
        answer = Answer(status, head, self._buffer[start:stop], at)
        self._buffer = self._buffer[stop:]
        waiting, self._answer = self._answer, None
        if not waiting.done():
            waiting.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(Disconnected(str(exc)))

    def send(self, request: bytes) -> "asyncio.Future[Answer]":
        """Send a request; the answer comes later. A caller that does not wait for it must look at it one day."""
        self._answer = asyncio.get_running_loop().create_future()
        if self._transport.is_closing():
            self._answer.set_exception(Disconnected("closed"))
        else:
            self._transport.write(request)
        return self._answer

    def close(self) -> None:
        """Hang up."""
        self._transport.abort()


def request(method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """A request as it goes over the wire."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {HOST}", *(f"{name}: {value}" for name, value in headers.items())]
    if body or method == "POST":
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def ask(port: int, wanted: bytes, *, within_s: float = 30) -> Answer:
    """One request on a connection of its own. Raises OSError, Disconnected, TimeoutError."""
    async with asyncio.timeout(within_s):
        connection = await Connection.open(port)
        try:
            return await connection.send(wanted)
        finally:
            connection.close()


Heard = Callable[[float, Answer], None]
"""Gets each answer, with the time at which its request was sent, or due."""


async def drive(port: int, requests: Iterator[bytes], *, clients: int, until: float, heard: Heard) -> int:
    """Let `clients` ask one request after the other until there are no more, or until that time.

    Each asks at least once, so that a slow machine has a figure too. Answers how many connections failed.
    """
    failures = 0

    async def client() -> None:
        nonlocal failures
        connection = await Connection.open(port)
        try:
            for wanted in requests:
                sent_at = time.perf_counter()
                heard(sent_at, await connection.send(wanted))
                if time.perf_counter() >= until:
                    return
        except Disconnected:
            failures += 1
        finally:
            connection.close()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(clients):
            tasks.create_task(client())
    return failures


async def post(port: int, posts: Iterator[bytes], *, clients: int, until: float) -> Load:
    """Let `clients` ask for retries, as `drive` does. An answer other than 202 is an error."""
    latencies_s: list[float] = []
    errors = 0

    def heard(sent_at: float, answer: Answer) -> None:
        nonlocal errors
        latencies_s.append(answer.at - sent_at)
        errors += answer.status != 202

    began_at = time.perf_counter()
    errors += await drive(port, posts, clients=clients, until=until, heard=heard)
    return load_of(latencies_s, seconds=time.perf_counter() - began_at, errors=errors)


async def drive_at(
    port: int, requests: Sequence[bytes], *, per_s: float, heard: Heard, stop: Callable[[], bool]
) -> int:
    """Send requests at a steady rate, however long the answers take; a late answer counts from when it was due.

    Ends early once `stop` says so. Answers how many were sent.
    """
    free: list[Connection] = []

    async def one(due_at: float, wanted: bytes) -> None:
        connection = free.pop() if free else await Connection.open(port)
        with suppress(Disconnected):
            heard(due_at, await connection.send(wanted))
            free.append(connection)

    began_at = time.perf_counter()
    sent = 0
    async with asyncio.timeout(len(requests) / per_s + 60), asyncio.TaskGroup() as tasks:
        for wanted in requests:
            due_at = began_at + sent / per_s
            await asyncio.sleep(due_at - time.perf_counter())
            if stop():
                break
            tasks.create_task(one(due_at, wanted))
            sent += 1
    for connection in free:
        connection.close()
    return sent


async def until_true(look: Callable[[], Awaitable[bool]], *, every_s: float, within_s: float) -> None:
    """Look until it is so. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while not await look():  # noqa: ASYNC110 - it happens in another process
            await asyncio.sleep(every_s)


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed. Raises NothingMeasured where there are none."""
    if not values:
        raise NothingMeasured("no answer was as it should be")
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def load_of(latencies_s: Sequence[float], *, seconds: float, errors: int) -> Load:
    """The figures of one measurement."""
    return Load(
        requests=len(latencies_s),
        errors=errors,
        per_s=len(latencies_s) / seconds,
        p50_ms=quantile(latencies_s, 0.5) * 1_000,
        p99_ms=quantile(latencies_s, 0.99) * 1_000,
    )
