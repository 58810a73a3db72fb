"""Memory: what the api takes for answers that are large, and for readers that do not read them.

All jobs have an error of a megabyte and a payload of one. Every reader has a connection of its own, asks once, and
never reads; what the kernel keeps of an answer is not the api's.
"""

import asyncio
import socket
from contextlib import ExitStack
from typing import Final

from bench import jobs
from bench.client import ask, request
from bench.part import Stage
from bench.programs import Program, bearer, redrive_api
from bench.results import Memory, Unread
from tests.servers.processes import ServerFailed

PAGE: Final = "a page of 200 jobs"
PAYLOAD: Final = "a payload of 1 MB"
ERROR: Final = "a job with an error of 1 MB"
_JOBS: Final = 200
_LARGE: Final = """
UPDATE control_plane.jobs SET last_error = repeat('e', 1000000), payload = to_jsonb(repeat('x', 1000000))
"""


async def measure(stage: Stage) -> Memory:
    """The figures. Raises ServerFailed."""
    plan = stage.plan.memory
    unread: list[Unread] = []
    async with stage.postgres.database() as database_url:
        async with jobs.connected(database_url) as connection:
            ids = await jobs.make(connection, _JOBS, status="running")
            await connection.execute(_LARGE)
        paths = {
            PAGE: [f"/api/jobs?limit={_JOBS}"],
            PAYLOAD: [f"/api/jobs/{job_id}?include=payload" for job_id in ids],
            ERROR: [f"/api/jobs/{job_id}" for job_id in ids],
        }
        for what, asked in paths.items():
            async with redrive_api(stage.folder, database_url) as redrive:
                answer = await ask(redrive.port, request("GET", asked[0], bearer()))
                if answer.status != 200:
                    raise ServerFailed(f"Redrive answered {answer.status} to {what}")
                before = redrive.rss_bytes()
                most = await _most_bytes(redrive, asked, readers=plan.readers, seconds=plan.seconds)
                unread.append(Unread(what, plan.readers, len(answer.body), before, most))
            stage.say(f"memory: {what}")
    return Memory(unread)


async def _most_bytes(redrive: Program, paths: list[str], *, readers: int, seconds: float) -> int:
    """The most memory that was seen while so many asked and did not read."""
    loop = asyncio.get_running_loop()
    most = 0
    with ExitStack() as stack:
        for number in range(readers):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.settimeout(0)
            await loop.sock_connect(sock, ("127.0.0.1", redrive.port))
            await loop.sock_sendall(sock, request("GET", paths[number % len(paths)], bearer()))
        ends_at = loop.time() + seconds
        while loop.time() < ends_at:
            most = max(most, redrive.rss_bytes())
            await asyncio.sleep(0.02)
    return most
