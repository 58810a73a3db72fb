"""Waiting: thousands of clients held until their job changes, first with nothing changing, then with everything.

Each asks `Prefer: wait=60` with the ETag that it knows, over a connection of its own. What they hear is counted from
the moment at which the one UPDATE that changes all jobs is committed.
"""

import asyncio
import time

from bench import jobs
from bench.client import Answer, Connection, Disconnected, ask, quantile, request
from bench.part import Stage
from bench.programs import Program, bearer, redrive_api
from bench.results import Waiting
from tests.servers.processes import ServerFailed

_WAIT_S = 60
_AT_ONCE = 100
_HEARD_WITHIN_S = 30
_TICK_S = 0.5  # REDRIVE_WATCH_INTERVAL, as it is by default


async def measure(stage: Stage) -> Waiting:
    """The figures. Raises ServerFailed."""
    plan = stage.plan.waiting
    async with (
        stage.postgres.database() as database_url,
        jobs.connected(database_url) as connection,
        redrive_api(stage.folder, database_url, REDRIVE_WATCH_INTERVAL=str(_TICK_S)) as redrive,
    ):
        paths = [f"/api/jobs/{job_id}" for job_id in await jobs.make(connection, plan.jobs, status="running")]
        await jobs.settle(connection)
        asked = [await _question(redrive, path) for path in paths]  # warms it up, too
        rss_before = redrive.rss_bytes()

        began_at = time.perf_counter()
        waiters = await _opened(redrive.port, [asked[number % len(asked)] for number in range(plan.waiters)])
        opened_s = time.perf_counter() - began_at
        await asyncio.sleep(2 * _TICK_S)  # the last ones have been read, and looked at
        cpu_before_s, idle_from = redrive.cpu_s(), time.perf_counter()
        await asyncio.sleep(plan.idle_s)
        idle_s = time.perf_counter() - idle_from
        idle_cpu_s = redrive.cpu_s() - cpu_before_s
        held_bytes = redrive.rss_bytes() - rss_before
        if early := sum(waiter.done() for _, waiter in waiters):
            raise ServerFailed(f"{early} of {plan.waiters} waiters were answered before anything changed")
        stage.say(f"waiting: {plan.waiters} waiters held")

        await connection.execute("UPDATE control_plane.jobs SET status = 'completed', completed_at = now()")
        changed_at = time.perf_counter()
        heard = await _heard([waiter for _, waiter in waiters])
        for each, _ in waiters:
            each.close()
        delays_ms = [(answer.at - changed_at) * 1_000 for answer in heard if answer.status == 200]
    return Waiting(
        waiters=plan.waiters,
        jobs=plan.jobs,
        tick_ms=_TICK_S * 1_000,
        opened_s=opened_s,
        idle_s=idle_s,
        idle_cpu_share=idle_cpu_s / idle_s,
        bytes_per_waiter=held_bytes / plan.waiters,
        heard_p50_ms=quantile(delays_ms, 0.5),
        heard_p99_ms=quantile(delays_ms, 0.99),
        heard_max_ms=max(delays_ms),
        unheard=plan.waiters - len(delays_ms),
    )


async def _question(redrive: Program, path: str) -> bytes:
    """The request that waits for what is there to change."""
    answer = await ask(redrive.port, request("GET", path, bearer()))
    if (etag := answer.header("ETag")) is None:
        raise ServerFailed(f"Redrive answered {answer.status} to {path}")
    return request("GET", path, {**bearer(), "If-None-Match": etag, "Prefer": f"wait={_WAIT_S}"})


async def _opened(port: int, questions: list[bytes]) -> "list[tuple[Connection, asyncio.Future[Answer]]]":
    """Connect and ask, a hundred at a time; the answers come later."""
    waiters = []
    for start in range(0, len(questions), _AT_ONCE):
        some = questions[start : start + _AT_ONCE]
        connections = await asyncio.gather(*(Connection.open(port) for _ in some))
        waiters += [(each, each.send(question)) for each, question in zip(connections, some, strict=True)]
        await asyncio.sleep(0.02)  # the listening socket's line is 1,024 long
    return waiters


async def _heard(waiters: "list[asyncio.Future[Answer]]") -> list[Answer]:
    await asyncio.wait(waiters, timeout=_HEARD_WITHIN_S)
    for waiter in waiters:
        if not waiter.done():
            waiter.cancel()
    answers = await asyncio.gather(*waiters, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, Exception) and not isinstance(answer, Disconnected):
            raise answer
    return [answer for answer in answers if isinstance(answer, Answer)]
