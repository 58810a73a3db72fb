"""The ledger: what accepting, applying, reading and pruning cost with ten million settled rows, beside ten thousand.

All rows are of one project and were settled over the last hundred days, with ids as the api makes them, in the order of
time, and jobs at random, four requests each. They are inserted by one statement, with every index in place, so the
indexes are as they become by use. The worker settles straight from the ledger.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Final, NamedTuple
from uuid import UUID

import msgspec

from bench import jobs
from bench.client import Answer, ask, drive_at, post, request, until_true
from bench.load import Aim
from bench.part import Stage
from bench.programs import PROJECT, Program, bearer, redrive_api, redrive_worker
from bench.results import Ledger, LedgerCall, LedgerOf, Load, Sizes
from shared.database import Database
from shared.pruning import Pruned, prune
from tests.servers.processes import ServerFailed

if TYPE_CHECKING:
    from bench.jobs import Connection

HISTORY: Final = "history of a job"
ONE: Final = "one retry"
FIRST_PAGE: Final = "first page"
DEEP_PAGE: Final = "deep page"
REJECTED: Final = "first page of the rejected"
STATS: Final = "stats"
CALLS: Final = (ONE, HISTORY, FIRST_PAGE, DEEP_PAGE, REJECTED, STATS)
_IDS: Final = 1_000
_PAGE: Final = 10
_DEEP_PAGE: Final = 100
_WITHIN_S: Final = 300
_LOOK_S: Final = 0.02
_FILL: Final = """
INSERT INTO redrive.retry_requests (
    id, project_id, job_id, job_version, state, outcome, actor, requested_at, published_at, processed_at,
    attempts_before, max_attempts_before, error_before, started_at_before, completed_at_before
)
SELECT
    (
        lpad(to_hex((extract(epoch FROM made_at) * 1000)::bigint), 12, '0') || '7' || substr(digest, 1, 3) || '8'
        || substr(digest, 4, 15)
    )::uuid,
    $2, overlay(overlay(md5((i / 4)::text) PLACING '4' FROM 13 FOR 1) PLACING '8' FROM 17 FOR 1)::uuid,
    '3f9c01ab77d2e410',
    CASE WHEN i % 50 = 0 THEN 'rejected' ELSE 'applied' END, CASE WHEN i % 50 = 0 THEN 'superseded' ELSE 'applied' END,
    'user-' || i % 20, made_at, made_at + interval '5 ms', made_at + interval '50 ms', 1, 3,
    CASE WHEN i % 50 <> 0 THEN 'TimeoutError: the renderer did not answer within 30 s' END, made_at, made_at
FROM (
    SELECT i, md5(i::text) AS digest, now() - interval '1 day' * ($3::int * (1 - i / $1::float8)) AS made_at
    FROM generate_series(1, $1::int) AS i
) AS numbered
"""
_SIZES: Final = (
    "SELECT pg_table_size(oid), pg_indexes_size(oid) FROM pg_class WHERE oid = 'redrive.retry_requests'::regclass"
)
_WAITED: Final = """
SELECT coalesce(
    percentile_disc(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM processed_at - requested_at)), 0
)::float8 * 1000
FROM redrive.retry_requests WHERE id = ANY ($1::uuid[])
"""


class _Pruning(NamedTuple):
    rows: int
    seconds: float
    slowest_ms: float


async def measure(stage: Stage) -> Ledger:
    """The figures. Raises ServerFailed, WrkFailed, TimeoutError."""
    plan = stage.plan.ledger
    ledgers = []
    for rows in plan.rows:
        async with stage.postgres.database() as database_url, jobs.connected(database_url) as connection:
            filled_s = await _fill(connection, rows, days=plan.days)
            stage.say(f"ledger: {rows} rows in {filled_s:.0f} s")
            ledgers.append(await _measured(stage, database_url, connection, rows, filled_s))
        stage.say(f"ledger: {rows} rows measured")
    return Ledger(
        days=plan.days,
        kept_days=plan.kept_days,
        clients=plan.clients,
        connections=plan.connections,
        rate_per_s=plan.rate_per_s,
        ledgers=ledgers,
    )


async def _fill(connection: "Connection", rows: int, *, days: int) -> float:
    """Insert so many settled rows; how long that took, in seconds. The log may grow meanwhile."""
    await connection.execute("ALTER SYSTEM SET max_wal_size = '8GB'")
    await connection.execute("SELECT pg_reload_conf()")
    began_at = time.perf_counter()
    await connection.execute(_FILL, rows, PROJECT, days)
    filled_s = time.perf_counter() - began_at
    await connection.execute("ALTER SYSTEM RESET max_wal_size")
    await connection.execute("SELECT pg_reload_conf()")
    await jobs.settle(connection)
    return filled_s


async def _measured(stage: Stage, database_url: str, connection: "Connection", rows: int, filled_s: float) -> LedgerOf:
    plan = stage.plan.ledger
    async with (
        redrive_api(stage.folder, database_url) as api,
        redrive_worker(stage.folder, database_url, None) as worker,
    ):
        calls = [
            LedgerCall(call, await _load(stage, api, paths))
            for call, paths in (await _asked(api, connection, rows)).items()
        ]
        await _accepted(connection, api, plan.clients, min(500, plan.posts))  # to warm up
        await until_true(lambda: jobs.all_settled(connection), every_s=_LOOK_S, within_s=_WITHIN_S)

        worker.freeze()
        accepting = await _accepted(connection, api, plan.clients, plan.posts)
        await connection.execute("CHECKPOINT")
        began_at = time.perf_counter()
        worker.thaw()
        await until_true(lambda: jobs.all_settled(connection), every_s=_LOOK_S, within_s=_WITHIN_S)
        settled_per_s = plan.posts / (time.perf_counter() - began_at)

        waited_p99_ms = await _waited_p99_ms(connection, api, plan.rate_per_s, int(plan.rate_per_s * plan.rate_s))
        await jobs.settle(connection)
        before = await _sizes(connection)
        pruning, meanwhile = await _pruned(stage, database_url, connection, api)
        after_prune = await _sizes(connection)
        began_at = time.perf_counter()
        await connection.execute("VACUUM (ANALYZE) redrive.retry_requests")
        vacuum_s = time.perf_counter() - began_at
    return LedgerOf(
        rows=rows,
        filled_s=filled_s,
        accepting=accepting,
        settled_per_s=settled_per_s,
        waited_p99_ms=waited_p99_ms,
        calls=calls,
        pruned=pruning.rows,
        pruned_per_s=pruning.rows / pruning.seconds,
        slowest_ms=pruning.slowest_ms,
        meanwhile=meanwhile,
        before=before,
        after_prune=after_prune,
        after_vacuum=await _sizes(connection),
        vacuum_s=vacuum_s,
    )


async def _asked(api: Program, connection: "Connection", rows: int) -> dict[str, list[str]]:
    """The paths of each kind of request. Requests and jobs are from all over the ledger."""
    found = await connection.fetch(
        f"SELECT id, job_id FROM redrive.retry_requests TABLESAMPLE BERNOULLI ({min(100.0, 150.0 * _IDS / rows)}) "
        f"REPEATABLE (1) ORDER BY job_id LIMIT {_IDS}"
    )
    first = f"/api/retries?limit={_PAGE}"
    return {
        ONE: [f"/api/retries/{row['id']}" for row in found],
        HISTORY: [f"/api/jobs/{row['job_id']}/retries" for row in found],
        FIRST_PAGE: [first],
        DEEP_PAGE: [f"{first}&cursor={await _cursor(api, first)}"],
        REJECTED: [f"{first}&state=rejected"],
        STATS: ["/api/retries/stats"],
    }


async def _cursor(api: Program, first: str) -> str:
    """The cursor of a page far down, got as a client gets it: by turning all pages before it."""
    path = first
    for _ in range(_DEEP_PAGE):
        answer = await ask(api.port, request("GET", path, bearer()))
        cursor = msgspec.json.decode(answer.body).get("next_cursor") if answer.status == 200 else None
        if cursor is None:
            raise ServerFailed(f"the trail is not long enough (status {answer.status})")
        path = f"{first}&cursor={cursor}"
    return path.partition("cursor=")[2]


async def _load(stage: Stage, api: Program, paths: Sequence[str]) -> Load:
    aim, plan = Aim(api.port, paths, bearer()), stage.plan.ledger
    await stage.loader.load(aim, connections=plan.connections, seconds=stage.plan.warm_s)
    return await stage.loader.load(aim, connections=plan.connections, seconds=plan.seconds)


async def _posts(connection: "Connection", count: int) -> list[bytes]:
    """Requests to retry so many jobs that have just failed."""
    ids = await jobs.make(connection, count, status="failed")
    await connection.execute("VACUUM (ANALYZE) control_plane.jobs")
    return [request("POST", f"/api/jobs/{job_id}/retry", bearer()) for job_id in ids]


async def _accepted(connection: "Connection", api: Program, clients: int, count: int) -> Load:
    posts = iter(await _posts(connection, count))
    return await post(api.port, posts, clients=clients, until=time.perf_counter() + _WITHIN_S)


async def _waited_p99_ms(connection: "Connection", api: Program, per_s: float, count: int) -> float:
    """How long single retries at a steady rate are queued, as the ledger has it."""
    accepted: list[UUID] = []

    def heard(_due_at: float, answer: Answer) -> None:
        if answer.status == 202:
            accepted.append(UUID(msgspec.json.decode(answer.body)["data"]["id"]))

    posts = await _posts(connection, count)
    sent = await drive_at(api.port, posts, per_s=per_s, heard=heard, stop=lambda: False)
    await until_true(lambda: jobs.all_settled(connection), every_s=_LOOK_S, within_s=_WITHIN_S)
    if len(accepted) < sent:
        raise ServerFailed(f"{sent - len(accepted)} of {sent} retries were not accepted")
    return float(await connection.fetchval(_WAITED, accepted))


async def _pruned(stage: Stage, database_url: str, connection: "Connection", api: Program) -> tuple[_Pruning, Load]:
    """Prune as `redrive prune` does, while a few clients ask for retries; their worker settles them meanwhile."""
    plan = stage.plan.ledger
    posts = await _posts(connection, plan.posts)
    ended = asyncio.Event()

    async def pruned() -> _Pruning:
        taken_s: list[float] = []
        counted = [0]
        last_at = began_at = time.perf_counter()

        def note(so_far: Pruned) -> None:
            nonlocal last_at
            now = time.perf_counter()
            taken_s.append(now - last_at)
            last_at, counted[0] = now, so_far.requests

        try:
            async with Database(
                database_url, program="bench", timeout_s=60, pool_size=1, pooled=False
            ).opened() as database:
                last_at = began_at = time.perf_counter()
                await prune(database, timedelta(days=plan.kept_days), report=note)
        finally:
            ended.set()
        return _Pruning(counted[0], time.perf_counter() - began_at, max(taken_s, default=0.0) * 1_000)

    def until_pruned() -> Iterator[bytes]:
        for each in posts:
            yield each
            if ended.is_set():
                return

    async with asyncio.TaskGroup() as tasks:
        pruning = tasks.create_task(pruned())
        until = time.perf_counter() + _WITHIN_S
        posting = tasks.create_task(post(api.port, until_pruned(), clients=4, until=until))
    await until_true(lambda: jobs.all_settled(connection), every_s=_LOOK_S, within_s=_WITHIN_S)
    return pruning.result(), posting.result()


async def _sizes(connection: "Connection") -> Sizes:
    found = await connection.fetchrow(_SIZES)
    assert found is not None
    return Sizes(*found)
