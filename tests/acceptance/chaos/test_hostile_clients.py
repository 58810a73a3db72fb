"""Slow clients: P16. Thousands hold on to their connections; other clients are answered as if these were not there."""

import asyncio
import itertools
import resource
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.acceptance.chaos.attacks import GROUP, Attack, Record, Target, attack, target
from tests.acceptance.chaos.tally import SCALE, scaled
from tests.eventually import eventually
from tests.jobs import JobMaker, MadeJob
from tests.tokens import token

pytestmark = GROUP

FAR: Final = 4_000_000_000
SOON_S: Final = 0.2
P99_S: Final = 1.0
LONGEST_S: Final = 3.0
RATE: Final = 40.0
KIB_EACH: Final = 48
KIB_BESIDES: Final = 120_000
HUNG_UP_WITHIN_S: Final = 120.0
MOST_UNREAD: Final = 100
"""Of those who never read, no more: for each of them the kernel keeps some megabytes, which are this machine's."""
LARGE: Final = 300_000
_SPARE_DESCRIPTORS: Final = 12
"""What the api may have opened for itself meanwhile: connections to its database, and the good client's."""


@pytest.fixture(autouse=True)
def _told() -> None:
    """Nothing here needs the rig."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How a client is slow: what it begins with, and what it then sends a piece of at a time, for ever.

    `most` is how many there are at most of those who never read.
    """

    name: str
    begins: bytes
    goes_on: bytes = b""
    most: int | None = None


def kinds(job: MadeJob, watched: MadeJob, large: MadeJob, soon: int) -> list[Kind]:
    """All of them; `soon` is when the tokens of those who only listen expire."""
    bearer = f"Host: a\r\nAuthorization: Bearer {token(exp=FAR)}\r\n".encode()
    listener = f"Host: a\r\nAuthorization: Bearer {token(exp=soon)}\r\n".encode()
    post = f"POST /api/jobs/{job.id}/retry HTTP/1.1\r\nContent-Type: application/json\r\n".encode() + bearer
    stream = f"GET /api/jobs/{watched.id}/events HTTP/1.1\r\n".encode()
    large_job = f"GET /api/jobs/{large.id}?include=payload HTTP/1.1\r\n".encode() + bearer + b"\r\n"
    return [
        Kind("silent", b""),
        Kind("slow line", b"GET /api", b"/"),
        Kind("slow headers", b"GET /api/jobs HTTP/1.1\r\nX-A: ", b"a"),
        Kind("slow headers, after an answer", b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nX-A: ", b"a"),
        Kind("slow body", post + b"Content-Length: 4000\r\n\r\n", b" "),
        Kind("slow chunks", post + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        Kind("slow body that is not read", b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 4000\r\n\r\n", b" "),
        Kind("answers that are never read", large_job * 40, most=MOST_UNREAD),
        Kind("events that are never read", stream + listener + b"\r\n", most=MOST_UNREAD),
    ]  # fmt: skip


class Crowd:
    """Clients that hold on."""

    def __init__(self) -> None:
        self.clients: list[tuple[Kind, socket.socket]] = []

    @classmethod
    @asynccontextmanager
    async def gathered(cls, port: int, count: int, among: list[Kind]) -> "AsyncIterator[Crowd]":
        crowd, loop = cls(), asyncio.get_running_loop()
        try:
            left = {kind.name: kind.most or count for kind in among}
            coming = (kind for kind in itertools.cycle(among) if left[kind.name])
            for kind in itertools.islice(coming, count):
                left[kind.name] -= 1
                sock = socket.socket()
                crowd.clients.append((kind, sock))
                if kind.most:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.settimeout(0)
                await loop.sock_connect(sock, ("127.0.0.1", port))
                crowd._tell(sock, kind.begins)
            yield crowd
        finally:
            for _, sock in crowd.clients:
                sock.close()

    async def go_on(self, until: Callable[[], bool]) -> None:
        """Send what each sends, about once a second, while the connection lasts."""
        while not until():
            round_began_at = time.monotonic()
            for number, (kind, sock) in enumerate(self.clients):
                if kind.goes_on:
                    self._tell(sock, kind.goes_on)
                if number % 20 == 0:
                    await asyncio.sleep(0)  # the good client is in this process, too
            await asyncio.sleep(max(0.0, 1 - (time.monotonic() - round_began_at)))

    @staticmethod
    def _tell(sock: socket.socket, piece: bytes) -> None:
        with suppress(BlockingIOError, ConnectionError):
            sock.send(piece)


class GoodClient:
    """Asks at a steady rate, and notes how long each answer takes, from when it was due."""

    def __init__(self, port: int, job: MadeJob) -> None:
        self._port = port
        self._request = (
            f"GET /api/jobs/{job.id} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token(exp=FAR)}\r\n\r\n".encode()
        )
        self.seconds: list[float] = []
        self.wrong: list[bytes] = []

    async def ask(self, until: Callable[[], bool]) -> None:
        """On a new connection each time: who cannot get in is starved as much as who is not answered."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            for number in itertools.count():
                if until():
                    return
                due_at = loop.time()
                group.create_task(self._one(due_at), name=f"request {number}")
                await asyncio.sleep(1 / RATE)

    async def _one(self, due_at: float) -> None:
        loop = asyncio.get_running_loop()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(self._request)
        line = await reader.readline()
        self.seconds.append(loop.time() - due_at)
        if b" 200 " not in line:
            self.wrong.append(line)
        writer.transport.abort()

    async def is_served_soon(self) -> bool:
        await self._one(asyncio.get_running_loop().time())
        return self.seconds[-1] < SOON_S

    @property
    def p99_s(self) -> float:
        return sorted(self.seconds)[int(len(self.seconds) * 0.99)]


async def test_p16_slow_clients_starve_no_other(database_url: str, record_property: Record) -> None:
    count, seconds = scaled(400, full=6_000), scaled(4, full=60)
    what = (
        f"connections that are silent, trickle or never read, for {seconds} s: others are answered, memory is bounded"
    )
    with _descriptors(count):
        async with JobMaker.on(database_url) as jobs, target(database_url) as api:
            asked_for, watched = await jobs.failed(), await jobs.pending()
            (large,) = await jobs.make(1, status="failed", payload=f'"{"x" * LARGE}"')
            with attack("P16 slow clients starve no other", what, record_property) as attacked:
                attacked.tried = count
                among = kinds(asked_for, watched, large, soon=int(time.time()) + seconds)
                await _starve(attacked, api, jobs, among, watched, seconds)


async def _starve(  # noqa: PLR0917 - what one test hands to its own end
    attacked: Attack, api: Target, jobs: JobMaker, among: list[Kind], watched: MadeJob, seconds: int
) -> None:
    good = GoodClient(api.port, watched)
    ends_at = time.monotonic() + 1

    def over() -> bool:
        return time.monotonic() >= ends_at

    await good.ask(over)  # alone, so that all is warm
    memory_kib, descriptors = api.memory_kib, _open_in(api)
    alone_p99_s, good.seconds = good.p99_s, []
    async with Crowd.gathered(api.port, attacked.tried, among) as crowd:
        await eventually(good.is_served_soon, within_s=30, what="the crowd's own requests are answered")
        good.seconds.clear()
        attacked.mind(_open_in(api) - descriptors > 0.8 * attacked.tried, "the crowd was not let in")
        ends_at = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            group.create_task(crowd.go_on(over))
            group.create_task(_change(jobs, watched, over))
            await good.ask(over)
        grown_kib = api.memory_kib - memory_kib
        attacked.mind(not good.wrong, good.wrong[:3])
        attacked.mind(
            good.p99_s < P99_S, f"99 of 100 were answered in {good.p99_s:.3f} s, alone in {alone_p99_s:.3f} s"
        )
        attacked.mind(max(good.seconds) < LONGEST_S, f"a client waited {max(good.seconds):.3f} s")
        bound_kib = KIB_BESIDES + KIB_EACH * len(crowd.clients)
        attacked.mind(grown_kib < bound_kib, f"{grown_kib} KiB for {len(crowd.clients)} clients, over {bound_kib}")
        attacked.what += (
            f" (p99 {good.p99_s * 1000:.0f} ms, alone {alone_p99_s * 1000:.0f} ms; {grown_kib / 1024:.0f} MB)"
        )
        if SCALE > 1:  # the small form has not the time: test_hostile.py sees to it on a clock that runs faster
            await _hung_up_on(attacked, api, crowd, descriptors)


async def _hung_up_on(attacked: Attack, api: Target, crowd: Crowd, descriptors: int) -> None:
    """In the end all are hung up on, though they go on."""
    gone = asyncio.Event()
    going_on = asyncio.create_task(crowd.go_on(gone.is_set))
    try:
        await eventually(
            lambda: _open_in(api) <= descriptors + _SPARE_DESCRIPTORS, within_s=HUNG_UP_WITHIN_S, every_s=0.5,
            what="all slow clients are hung up on",
        )  # fmt: skip
    except AssertionError:
        attacked.wrong.append(f"{_open_in(api) - descriptors} are still connected")
    finally:
        gone.set()
        await going_on


async def _change(jobs: JobMaker, watched: MadeJob, until: Callable[[], bool]) -> None:
    """Give those who listen something to hear."""
    statement = "UPDATE control_plane.jobs SET last_error = repeat('x', 2000 + $2::int % 100) WHERE id = $1"
    for number in itertools.count():
        if until():
            return
        await jobs.pool.execute(statement, watched.id, number)
        await asyncio.sleep(0.25)


def _open_in(api: Target) -> int:
    return len(list(Path(f"/proc/{api.program.pid}/fd").iterdir()))


@contextmanager
def _descriptors(count: int) -> Iterator[None]:
    """Let this process, and those that it starts, have as many connections as it takes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 1_000
    assert hard == resource.RLIM_INFINITY or hard >= wanted, f"this test needs {wanted} file descriptors (ulimit -Hn)"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
