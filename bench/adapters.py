"""Adapters: other systems' jobs tables behind a view, beside the plain table, with UUIDs and with numbers as ids.

All have as many failed jobs of one project. All run all the time, and are asked in turn: one round is every table.
Single jobs are asked for at random; lists as the system's table is, and with the index that its page names for the
owner. The backlog is settled by one worker, straight from the ledger.

What a version costs, a hash of all that is shown, is measured on the plain table, beside `xmin`, pair by pair.
"""

import statistics
import time
import uuid
from collections import defaultdict
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bench import jobs
from bench.client import ask, request, until_true
from bench.load import Aim
from bench.part import Stage
from bench.programs import PROJECT, Program, answers, bearer, redrive_api, redrive_worker
from bench.results import AdapterCost, Adapters, Figure, Load, Loads, VersionCost
from shared.sql import statements
from tests.adapters.rig import Rig, discard, prepare
from tests.adapters.systems import SYSTEMS, System
from tests.servers.processes import ServerFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from bench.jobs import Connection
    from shared.sql import JobIdType

PLAIN: Final = "plain table"
NUMBERED: Final = "plain table, bigint ids"
CONNECTIONS: Final = 64
_IDS: Final = 1_000
_WITHIN_S: Final = 300
_LOOK_S: Final = 0.02
_VERSION_PAIRS: Final = 31
_DB_TIMEOUT_S: Final = "2.5"  # the longest that there is: a list that takes longer is a 503

_TO_NUMBERS: Final = """
ALTER TABLE control_plane.jobs ALTER id DROP DEFAULT, ALTER id TYPE bigint USING NULL;
ALTER TABLE control_plane.jobs ALTER id ADD GENERATED ALWAYS AS IDENTITY;
"""
_FAILED: Final = """
INSERT INTO control_plane.jobs (project_id, type, status, attempts, last_error, started_at, completed_at)
SELECT $2, 'render', 'failed', 1, 'TimeoutError: the renderer did not answer within 30 s', now(), now()
FROM generate_series(1, $1::int)
"""
_SOME_FAILED: Final = """
SELECT j.id::text AS id FROM control_plane.jobs AS j
WHERE j.project_id = $1 AND j.status = 'failed' ORDER BY random() LIMIT $2
"""
_QUEUE_UP: Final = """
INSERT INTO redrive.retry_requests (id, project_id, job_id, job_version, actor)
SELECT gen_random_uuid(), j.project_id, {id}, redrive.job_version(
    j.type::text, j.status::text, j.attempts::bigint, j.max_attempts::bigint, j.last_error::text,
    j.scheduled_at, j.started_at, j.completed_at, j.created_at
), 'bench'
FROM (SELECT * FROM control_plane.jobs AS j WHERE j.project_id = $1 AND j.status = 'failed' LIMIT $2) AS j
"""
_NOT_APPLIED: Final = "SELECT count(*) FROM redrive.retry_requests WHERE state <> 'applied'"
# Errors that are not compressed well, so that those of 64 KB are stored apart from their row, as real ones are.
_WITH_ERRORS: Final = """
INSERT INTO control_plane.jobs (project_id, type, status, attempts, last_error, started_at, completed_at)
SELECT $2, 'render', 'failed', 1,
    left(
        (SELECT string_agg(md5(random()::text || i || n), '') FROM generate_series(0, $3::int / 32) AS n), $3::int
    ), now(), now()
FROM generate_series(1, $1::int) AS i
RETURNING id
"""
_BY_ID: Final = """
SELECT wanted.id, found.read FROM unnest($1::uuid[]) AS wanted (id)
CROSS JOIN LATERAL (
    SELECT {read} AS read FROM control_plane.jobs WHERE jobs.project_id = $2 AND jobs.id = wanted.id LIMIT 1
) AS found
"""
_VERSION: Final = """redrive.job_version(
    type::text, status::text, attempts::bigint, max_attempts::bigint, last_error::text, scheduled_at, started_at,
    completed_at, created_at
)"""


_XMIN: Final = "xmin::text"


@dataclass(frozen=True, slots=True)
class _Table:
    """One jobs table with an api on it. `system`: None for a plain one."""

    name: str
    database: "Connection"
    worker_url: str
    settings: "Mapping[str, str]"
    system: System | None
    api: Program
    paths: "Sequence[str]"

    @property
    def job_id(self) -> "JobIdType":
        return "bigint" if self.settings.get("REDRIVE_JOB_ID") == "bigint" else "uuid"


async def measure(stage: Stage) -> Adapters:
    """The figures. Raises ServerFailed, WrkFailed, TimeoutError."""
    plan = stage.plan.adapters
    loads: defaultdict[str, list[Load]] = defaultdict(list)
    pages: defaultdict[str, list[float]] = defaultdict(list)
    with_index: defaultdict[str, list[float]] = defaultdict(list)
    settled: defaultdict[str, list[float]] = defaultdict(list)
    async with AsyncExitStack() as stack:
        tables = [await stack.enter_async_context(_plain(stage, numbered=numbered)) for numbered in (False, True)]
        tables += [await stack.enter_async_context(_adapted(stage, SYSTEMS[name])) for name in plan.systems]
        for table in tables:
            await stage.loader.load(_aim(table), connections=CONNECTIONS, seconds=stage.plan.warm_s)
        for number in range(plan.rounds):
            for table in tables:
                loads[table.name].append(
                    await stage.loader.load(_aim(table), connections=CONNECTIONS, seconds=plan.seconds)
                )
                pages[table.name].append(await _page_ms(table, plan.pages))
            stage.say(f"adapters: reading, round {number + 1} of {plan.rounds}")
        for table in tables:
            await _add_index(table)
        for _ in range(plan.rounds):
            for table in tables:
                with_index[table.name].append(await _page_ms(table, plan.pages))
        for number in range(plan.rounds):
            for table in tables:
                settled[table.name].append(plan.backlog / await _settling_s(stage, table, plan.backlog))
            stage.say(f"adapters: settling, round {number + 1} of {plan.rounds}")
    costs = [
        AdapterCost(
            table=table.name,
            get=Loads.of(loads[table.name]),
            page_ms=Figure.of(pages[table.name]),
            page_with_index_ms=_indexed(table, with_index[table.name]),
            settled_per_s=Figure.of(settled[table.name]),
        )
        for table in tables
    ]
    versions = [await _version_cost(stage, rows, error) for rows, error in plan.versions]
    return Adapters(rows=plan.rows, backlog=plan.backlog, costs=costs, versions=versions)


@asynccontextmanager
async def _plain(stage: Stage, *, numbered: bool) -> "AsyncIterator[_Table]":
    settings = {"REDRIVE_JOB_ID": "bigint"} if numbered else {}
    async with stage.postgres.database() as url, jobs.connected(url) as connection:
        if numbered:
            await connection.execute(_TO_NUMBERS)
        await connection.execute(_FAILED, stage.plan.adapters.rows, PROJECT)
        await jobs.settle(connection)
        async with _served(stage, url, connection, settings) as (api, paths):
            yield _Table(NUMBERED if numbered else PLAIN, connection, url, settings, None, api, paths)


@asynccontextmanager
async def _adapted(stage: Stage, system: System) -> "AsyncIterator[_Table]":
    """Its own library, or its table made by hand, with copies of a job that its own worker has failed."""
    settings = {f"REDRIVE_{name.upper()}": str(value) for name, value in system.settings.items()}
    prepared = await prepare(system, stage.postgres, f"bench_{uuid.uuid4().hex[:6]}")
    try:
        async with Rig.on(prepared) as rig, jobs.connected(rig.admin_url) as connection:
            await connection.execute(system.fill.format(t=system.table), stage.plan.adapters.rows, rig.failed[0])
            await connection.execute(f"VACUUM (ANALYZE) {system.table}")
            await connection.execute("ANALYZE")
            await connection.execute("CHECKPOINT")
            async with _served(stage, rig.api_url, connection, settings) as (api, paths):
                yield _Table(system.name, connection, rig.worker_url, settings, system, api, paths)
    finally:
        await discard(prepared)
    stage.say(f"adapters: {system.name} is done")


@asynccontextmanager
async def _served(
    stage: Stage, url: str, connection: "Connection", settings: "Mapping[str, str]"
) -> "AsyncIterator[tuple[Program, Sequence[str]]]":
    rows = await connection.fetch(_SOME_FAILED, PROJECT, min(_IDS, stage.plan.adapters.rows))
    paths = [f"/api/jobs/{row['id']}" for row in rows]
    async with redrive_api(stage.folder, url, REDRIVE_DB_TIMEOUT=_DB_TIMEOUT_S, **settings) as api:
        await answers(api, paths[0])
        yield api, paths


def _aim(table: _Table) -> Aim:
    return Aim(table.api.port, table.paths, bearer())


async def _page_ms(table: _Table, times: int) -> float:
    """How long the first page takes, or the 503 of a list that took too long: the median of so many calls in turn."""
    taken = []
    wanted = request("GET", "/api/jobs", bearer())
    for _ in range(times):
        began_at = time.perf_counter()
        answer = await ask(table.api.port, wanted)
        taken.append((time.perf_counter() - began_at) * 1_000)
        if answer.status not in {200, 503}:
            raise ServerFailed(f"a page of {table.name} was answered {answer.status}")
    return statistics.median(taken)


async def _add_index(table: _Table) -> None:
    if table.system is not None and table.system.index is not None:
        await table.database.execute(f"CREATE INDEX ON {table.system.table} ({table.system.index})")
        await table.database.execute("ANALYZE")


def _indexed(table: _Table, rounds: "Sequence[float]") -> Figure | None:
    return None if table.system is None or table.system.index is None else Figure.of(rounds)


async def _settling_s(stage: Stage, table: _Table, backlog: int) -> float:
    """How long one worker takes for so many requests, that are there before it is let loose."""
    job_id = "redrive.job_uuid(j.id)" if table.job_id == "bigint" else "j.id"
    async with redrive_worker(stage.folder, table.worker_url, None, **table.settings) as worker:
        worker.freeze()
        await table.database.execute(_QUEUE_UP.format(id=job_id), PROJECT, backlog)
        await table.database.execute("VACUUM (ANALYZE) redrive.retry_requests")
        await table.database.execute("CHECKPOINT")

        async def finished() -> bool:
            return await jobs.all_settled(table.database)

        began_at = time.perf_counter()
        worker.thaw()
        await until_true(finished, every_s=_LOOK_S, within_s=_WITHIN_S)
        taken_s = time.perf_counter() - began_at
    if left := await table.database.fetchval(_NOT_APPLIED):
        raise ServerFailed(f"{left} of the retries of {table.name} were not applied")
    await table.database.execute("TRUNCATE redrive.retry_requests")
    return taken_s


async def _version_cost(stage: Stage, rows: int, error_bytes: int) -> VersionCost:
    """Look-ups of so many jobs by id that read the version, and that read `xmin`, in turn; until the rows are here."""
    assert statements("jobs")["find"].count("redrive.job_version(") == 1  # what is measured here is what is read
    async with stage.postgres.database() as url, jobs.connected(url) as connection:
        ids = [row["id"] for row in await connection.fetch(_WITH_ERRORS, rows, PROJECT, error_bytes)]
        await jobs.settle(connection)
        await connection.execute("SET enable_seqscan = off; SET enable_bitmapscan = off; SET jit = off")

        async def ms(read: str) -> float:
            began_at = time.perf_counter()
            found = await connection.fetch(_BY_ID.format(read=read), ids, PROJECT)
            taken = (time.perf_counter() - began_at) * 1_000
            if len(found) != rows:
                raise ServerFailed(f"{rows - len(found)} of {rows} jobs were not found")
            return taken

        for read in (_VERSION, _XMIN):
            await ms(read)  # prepared, and in the cache
        pairs = [(await ms(_VERSION), await ms(_XMIN)) for _ in range(_VERSION_PAIRS)]
    return VersionCost(
        rows=rows,
        error_bytes=error_bytes,
        version_ms=Figure.of([version for version, _ in pairs]),
        xmin_ms=Figure.of([xmin for _, xmin in pairs]),
    )
