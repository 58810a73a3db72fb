"""Large rows: P25. However large errors and payloads are, and however few of their readers read, memory is bounded."""

import asyncio
import json
import socket
import time
from contextlib import ExitStack
from typing import Final

import aiohttp

from tests.acceptance.chaos.attacks import GROUP, Attack, Record, Target, attack, target
from tests.acceptance.chaos.tally import scaled
from tests.eventually import eventually
from tests.jobs import JobMaker
from tests.tokens import token

pytestmark = GROUP

LARGE: Final = 1_000_000
PAGE: Final = 200
FAR: Final = 4_000_000_000
PAGE_KIB: Final = 8 * 1024
MOST_KIB: Final = 160 * 1024
"""A hundred answers that are not read, the largest of a megabyte, and what sixteen payloads in hand take meanwhile."""
LONGEST_S: Final = 3.0


async def test_p25_answers_are_bounded_in_bytes(database_url: str, record_property: Record) -> None:
    count = scaled(40, full=100)
    what = (
        f"readers that read nothing, of pages of {PAGE} errors of 1 MB, of payloads of 1 MB, of streams, and held: "
        "answers and memory are bounded, and others are answered"
    )
    async with JobMaker.on(database_url) as jobs, target(database_url) as api:
        failed = [str(job.id) for job in await jobs.make(PAGE, status="failed", last_error="e" * LARGE)]
        payload = json.dumps("x" * LARGE)
        running = [
            str(job.id) for job in await jobs.make(20, status="running", last_error="e" * LARGE, payload=payload)
        ]
        with attack("P25 answers are bounded in bytes", what, record_property) as attacked:
            attacked.tried = count
            async with aiohttp.ClientSession(
                f"http://127.0.0.1:{api.port}", headers={"Authorization": f"Bearer {token(exp=FAR)}"}
            ) as session:
                page = await _read(session, f"/api/jobs?limit={PAGE}")
                await _read(session, f"/api/jobs/{running[0]}?include=payload")  # so that all is warm
                attacked.mind(len(page) < PAGE_KIB * 1024, f"a page of {len(page)} bytes")
                attacked.mind(len(json.loads(page)["data"]) == PAGE, "the page ends early")
                grown_kib, longest_s = await _read_by_none(attacked, api, session, jobs, failed, running)
            attacked.mind(grown_kib < MOST_KIB, f"{grown_kib} KiB for {count} readers, over {MOST_KIB}")
            attacked.mind(longest_s < LONGEST_S, f"a client waited {longest_s:.3f} s")
            attacked.what += f" ({grown_kib / 1024:.0f} MB, the slowest answer {longest_s * 1000:.0f} ms)"


async def _read(session: aiohttp.ClientSession, path: str) -> bytes:
    async with session.get(path) as answer:
        assert answer.status == 200
        return await answer.read()


async def _read_by_none(  # noqa: PLR0917 - what one test hands to its own half
    attacked: Attack, api: Target, session: aiohttp.ClientSession, jobs: JobMaker, failed: list[str], running: list[str]
) -> tuple[int, float]:
    """How many KiB the api has grown by at most, and how long another client's answer took at most."""
    head = f"Host: a\r\nAuthorization: Bearer {token(exp=FAR)}\r\n"
    memory_kib, most_kib, longest_s = api.memory_kib, 0, 0.0

    def request(number: int) -> str:
        """A page, a payload, twenty long errors in line, a wait, or a stream."""
        job = f"/api/jobs/{running[number % len(running)]}"
        path, more, times = [
            (f"/api/jobs?limit={PAGE}", "", 1),
            (f"{job}?include=payload", "", 1),
            (f"/api/jobs/{failed[number]}", "", 20),
            (f"{job}?include=payload", "Prefer: wait=60\r\n", 1),
            (f"{job}/events", "", 1),
        ][number % 5]
        return f"GET {path} HTTP/1.1\r\n{head}{more}\r\n" * times

    async def look() -> bool:
        nonlocal most_kib, longest_s
        began_at = time.monotonic()
        await _read(session, f"/api/jobs/{failed[-1]}")
        longest_s = max(longest_s, time.monotonic() - began_at)
        most_kib = max(most_kib, api.memory_kib - memory_kib)
        return False

    with ExitStack() as stack:
        for number in range(attacked.tried):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.settimeout(0)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", api.port))
            sock.send(request(number).encode())
            await look()
        # Every one that waits, and every stream, gets its job at once.
        await jobs.pool.execute("UPDATE control_plane.jobs SET status = 'completed' WHERE status = 'running'")
        ends_at = time.monotonic() + scaled(4, full=30)
        while time.monotonic() < ends_at:
            await look()
            await asyncio.sleep(0.05)
    await eventually(lambda: api.memory_kib - memory_kib < MOST_KIB, what="memory is given back")
    return most_kib, longest_s
