"""What PostgreSQL does for our statements on tables that are not small: never a scan of a table that grows.

With the contract's index on the jobs, and settings as `shared/database.py` makes them.
"""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from shared.database import Database
from shared.job_ids import UuidIds
from tests.integration.api.conftest import module_fixture
from tests.servers.postgres import Postgres
from tests.statements import NAMES

if TYPE_CHECKING:
    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("large tables")]  # filled once

BIG = 80_000
MANY = 200
GROWING = {"jobs", "retry_requests"}
# These hold nothing but what waits, or what was given up: the condition is in the index itself.
OF_FEW = {
    "retry_requests_queued_idx",
    "retry_requests_unpublished_idx",
    "retry_requests_published_idx",
    "retry_requests_dead_idx",
}
# These read all queued requests in order; a look-up of one job's request must not scan their index.
IN_LINE = {
    "outbox.lease",
    "outbox.republish_stale",
    "gauges.backlog",
    "settlement.take",
    "settlement.queued",
    "settlement.lease_held_up",
    "dead_letters.any_overdue",
    "dead_letters.dead_lettered",
}
# These look for some ids among what waits: in an empty table that may be one pass over it, and never one for each.
ONE_PASS = {
    "retries.cancel",
    "settlement.dead_letter",
    "settlement.dead_among",
    "dead_letters.overdue_among",
    "dead_letters.redrive",
    "retries.redrive",
    "dead_letters.republish",
    "prune.prune_batches",
}
SQL = {name: sql for sql, name in NAMES.items() if not name.startswith("migrations.")}
OLD_BATCH = UUID(int=1, version=4)
HIGHEST = f"'{UuidIds.highest}'"
"""The id in the position before the first page."""


@asynccontextmanager
async def connected(database_url: str) -> AsyncIterator["PoolConnectionProxy[asyncpg.Record]"]:
    """A connection with the settings that the programs give it, but for the time that it may take."""
    database = Database(database_url, program="test", timeout_s=60, pool_size=1)
    async with database.opened(), database._pool.acquire() as connection:
        yield connection


@module_fixture
async def large(database_url: str) -> AsyncIterator["PoolConnectionProxy[asyncpg.Record]"]:
    """A database with one large project and many small ones."""
    async with connected(database_url) as connection:
        await _fill(connection)
        yield connection


@module_fixture
async def fresh(postgres: Postgres) -> AsyncIterator["PoolConnectionProxy[asyncpg.Record]"]:
    """A database of which the planner knows nothing: a plan made now is kept while the tables grow."""
    async with postgres.database() as url, connected(url) as connection:
        yield connection


async def _fill(connection: "PoolConnectionProxy[asyncpg.Record]") -> None:
    await connection.execute(
        f"""
        INSERT INTO control_plane.jobs (id, project_id, type, status, attempts, last_error, created_at)
        SELECT
            gen_random_uuid(), CASE WHEN n % 10 < 8 THEN 'p1' ELSE 'p' || n % 1000 END,
            CASE WHEN n % 1000 = 7 THEN 'rare' ELSE 'email' END,
            (ARRAY['completed', 'completed', 'completed', 'completed', 'completed', 'completed', 'completed', 'failed',
                'pending', 'running'])[1 + n % 10],
            1, CASE WHEN n % 10 = 7 THEN 'smtp ' || n END, now() - n * interval '1 second'
        FROM generate_series(1, {BIG}) AS n;

        INSERT INTO redrive.retry_requests (
            id, project_id, job_id, batch_id, state, outcome, actor, requested_at, processed_at
        )
        SELECT
            gen_random_uuid(), CASE WHEN n % 10 < 8 THEN 'p1' ELSE 'p' || n % 1000 END, gen_random_uuid(),
            CASE WHEN n > {BIG} - 500 THEN '{OLD_BATCH}'::uuid WHEN n % 2 = 0 THEN gen_random_uuid() END,
            'applied', 'applied', CASE WHEN n = 77 THEN 'rare' ELSE 'alice' END, now() - n * interval '1 second', now()
        FROM generate_series(1, {BIG}) AS n;

        INSERT INTO redrive.retry_requests (id, project_id, job_id, state, actor)
        SELECT gen_random_uuid(), project_id, id, 'queued', 'bob' FROM control_plane.jobs WHERE status = 'failed'
        LIMIT 2000;

        ANALYZE;
        """
    )


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes_of(child)


def scans_in(plan: dict[str, Any]) -> list[str]:
    """The nodes that read all of a table that grows, be it along an index."""
    return [
        f"{node['Node Type']} on {node['Relation Name']} ({node.get('Index Name')})"
        for node in nodes_of(plan)
        if node.get("Relation Name") in GROWING
        and node["Node Type"] not in {"ModifyTable", "Tid Scan"}
        and "Index Cond" not in node
        and node.get("Index Name") not in OF_FEW
    ]


def repeated_in(plan: dict[str, Any]) -> list[str]:
    """The conditions by which a nested loop looks up again for each row what is the same for all: n rows, n times."""
    return [
        condition
        for loop in nodes_of(plan)
        if loop["Node Type"] == "Nested Loop"
        for inner in loop["Plans"][1:]
        if (condition := str(inner.get("Index Cond"))).startswith("(id = ANY ($")
    ]


def _argument(kind: str) -> str:
    """An argument as a program might send it, as SQL."""
    if kind.endswith("[]"):
        return f"ARRAY[{', '.join(_argument(kind[:-2]) for _ in range(MANY))}]::{kind}"
    value = {
        "uuid": f"'{uuid4()}'", "text": "'p1'", "int4": "50", "int8": "50", "bool": "false", "interval": "'1 day'",
        "timestamptz": "now()", "bytea": r"'\x00'", "jsonb": "'[]'", "xid": "'7'",
    }[kind]  # fmt: skip
    return f"{value}::{kind}"


async def plan_of(
    connection: "PoolConnectionProxy[asyncpg.Record]",
    sql: str,
    arguments: list[str] | None = None,
    *,
    run: bool = False,
) -> dict[str, Any]:
    """How a statement is carried out. `run` does it, to count."""
    kinds = [parameter.name for parameter in (await connection.prepare(sql)).get_parameters()]
    given = [_argument(kind) for kind in kinds] if arguments is None else arguments
    await connection.execute(f"PREPARE planned AS {sql}")
    try:
        call = f"planned({', '.join(given)})" if given else "planned"
        options = "ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON" if run else "FORMAT JSON"
        plan = json.loads(await connection.fetchval(f"EXPLAIN ({options}) EXECUTE {call}"))[0]["Plan"]
    finally:
        await connection.execute("DEALLOCATE planned")
    assert isinstance(plan, dict)
    return plan


async def test_no_plan_of_ours_scans_a_table_that_grows(large: "PoolConnectionProxy[asyncpg.Record]") -> None:
    scans = {name: scans_in(await plan_of(large, sql)) for name, sql in SQL.items()}

    assert not {name: found for name, found in scans.items() if found}


SOME = """
INSERT INTO control_plane.jobs (id, project_id, type, status, attempts)
SELECT gen_random_uuid(), 'p1', 'email', 'failed', 1 FROM generate_series(1, 400);
INSERT INTO redrive.retry_requests (id, project_id, job_id, state, actor)
SELECT gen_random_uuid(), project_id, id, 'queued', 'bob' FROM control_plane.jobs;
"""


@pytest.mark.parametrize(
    "history",
    {
        "new": [],
        "analyzed": ["VACUUM (ANALYZE)"],
        "emptied": [SOME, "ANALYZE", "TRUNCATE redrive.retry_requests, redrive.retry_batches", "VACUUM (ANALYZE)"],
        "not analyzed": [SOME],
        "small": [SOME, "VACUUM (ANALYZE)"],
    }.items(),
    ids=lambda each: each[0],
)
async def test_no_plan_that_is_made_before_there_is_much_reads_more_than_it_must(
    postgres: Postgres, history: tuple[str, list[str]]
) -> None:
    """All indexes of an empty table look alike, and the plan is kept while the table grows: it must have no choice."""
    async with postgres.database() as url, connected(url) as connection:
        for statements in history[1]:
            await connection.execute(statements)
        for name, sql in SQL.items():
            plan = await plan_of(connection, sql)
            along = {node.get("Index Name") for node in nodes_of(plan) if node.get("Relation Name") in GROWING}

            assert name in ONE_PASS or scans_in(plan) == [], name
            assert name in {"retries.page", "overview.retries"} or "retry_requests_project_idx" not in along, name
            assert name == "batches.page" or "retry_batches_project_idx" not in along, name
            assert name in IN_LINE | ONE_PASS or not along & OF_FEW, name
            assert repeated_in(plan) == [], name


async def buffers(connection: "PoolConnectionProxy[asyncpg.Record]", name: str, *arguments: str) -> int:
    """How many pages a statement touches."""
    plan = await plan_of(connection, SQL[name], list(arguments), run=True)
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


async def test_the_thousandth_page_costs_what_the_first_does(large: "PoolConnectionProxy[asyncpg.Record]") -> None:
    for name, table, by, filters in (
        ("jobs.page", "control_plane.jobs", "created_at", ["NULL", "NULL"]),
        ("retries.page", "redrive.retry_requests", "requested_at", ["NULL", "NULL"]),
    ):
        place = await large.fetchrow(
            f"SELECT {by}, id FROM {table} WHERE project_id = 'p1' ORDER BY {by} DESC, id DESC OFFSET 51000 LIMIT 1"
        )
        assert place is not None
        thousandth = [f"'{place[0]}'", f"'{place[1]}'"]
        rest = ["NULL", "51", HIGHEST] if name == "jobs.page" else ["51"]

        first = await buffers(large, name, "'p1'", *filters, "NULL", HIGHEST, *rest)
        later = await buffers(large, name, "'p1'", *filters, *thousandth, *rest)

        assert later <= first + 10
        assert first < 51 * 5


async def test_a_small_project_costs_little_beside_a_large_one(large: "PoolConnectionProxy[asyncpg.Record]") -> None:
    nothing = ["NULL", "NULL", HIGHEST, "NULL"]
    for name, arguments in (
        ("jobs.page", ["'rare'", *nothing, "51", HIGHEST]),
        ("jobs.page_of_status", ["NULL", *nothing, "51", "'failed'", HIGHEST]),
        ("jobs.positions", ["'rare'", *nothing, "51", HIGHEST, "'failed'"]),
        ("overview.stats", ["NULL", "10000"]),
        ("overview.stats_of_newest", ["NULL", "10000"]),
        ("overview.types", ["10000", "500"]),
        ("overview.failures", [*["NULL"] * 3, "10000", "100", "5"]),
        ("overview.failures_of_newest", [*["NULL"] * 3, "1000", "100", "5", "10000"]),
        ("failed.match", [*["NULL"] * 7, "0", "NULL", "10001", "NULL", "NULL", HIGHEST, HIGHEST]),
        ("retries.page", ["NULL", "'no-actor'", "NULL", "NULL", "51"]),
    ):
        assert await buffers(large, name, "'p8'", *arguments) < 4 * 80 * 5, name  # it has 80 rows


async def test_an_old_batch_costs_what_is_in_it(large: "PoolConnectionProxy[asyncpg.Record]") -> None:
    page = ["NULL", "NULL", "NULL", "NULL", "51"]

    assert await buffers(large, "retries.page_of_batch", "'p1'", f"'{OLD_BATCH}'", *page) < 1_000
    assert await buffers(large, "batches.find_many", f"ARRAY['{OLD_BATCH}']::uuid[]", "ARRAY['p1']") < 1_000


async def test_the_trail_of_an_old_job_costs_a_few_pages(large: "PoolConnectionProxy[asyncpg.Record]") -> None:
    job_id = await large.fetchval(
        "SELECT job_id FROM redrive.retry_requests WHERE project_id = 'p1' ORDER BY requested_at"
    )

    assert await buffers(large, "retries.page_of_job", "'p1'", f"'{job_id}'", *["NULL"] * 5, "51") < 20


async def test_a_state_that_is_rare_costs_a_few_pages_in_a_long_trail(
    large: "PoolConnectionProxy[asyncpg.Record]", fresh: "PoolConnectionProxy[asyncpg.Record]"
) -> None:
    for state in ("rejected", "cancelled", "dead_lettered"):
        assert await buffers(large, "retries.page_of_state", "'p1'", f"'{state}'", *["NULL"] * 3, "51") < 20
    assert await buffers(large, "retries.page_of_state", "'p1'", "'queued'", *["NULL"] * 3, "51") < 51 * 5

    taken = {name: nodes_of(await plan_of(fresh, sql)) for name, sql in SQL.items()}
    along = {name for name, nodes in taken.items() for n in nodes if n.get("Index Name") == "retry_requests_state_idx"}
    assert along == {"retries.page_of_state", "overview.retries"}


async def test_what_waits_unpublished_is_not_read_for_what_was_published(
    large: "PoolConnectionProxy[asyncpg.Record]", fresh: "PoolConnectionProxy[asyncpg.Record]"
) -> None:
    for name, arguments in (
        ("dead_letters.any_overdue", ["'0 s'"]),
        ("outbox.republish_stale", ["'0 s'", "1000", "false", "false"]),
    ):
        assert await buffers(large, name, *arguments) < 20, name  # 2,000 wait

        taken = {node.get("Index Name") for node in nodes_of(await plan_of(fresh, SQL[name]))}
        assert "retry_requests_published_idx" in taken, name
        assert "retry_requests_queued_idx" not in taken, name


async def test_the_index_that_check_asks_for_is_taken(large: "PoolConnectionProxy[asyncpg.Record]") -> None:
    few = {
        "overview.stats": ["'p1'", "NULL", "51"],
        "overview.failures": ["'p1'", *["NULL"] * 3, "51", "100", "5"],
        "overview.series": ["'p1'", "NULL", "now() - interval '1 minute'", "1", "60", "51", "51", "now()"],
        "failed.match": ["'p1'", *["NULL"] * 7, "0", "NULL", "51", "NULL", "NULL", HIGHEST, HIGHEST],
        "failed.has_more": ["'p1'", *["NULL"] * 3, "51"],
        "jobs.page_of_status": ["'p1'", *["NULL"] * 3, HIGHEST, "NULL", "51", "'running'", HIGHEST],
    }
    change = large.transaction()
    await change.start()
    try:
        await large.execute("CREATE INDEX by_status ON control_plane.jobs (project_id, status, created_at, id)")
        for name, arguments in few.items():
            taken = {node.get("Index Name") for node in nodes_of(await plan_of(large, SQL[name], arguments))}

            assert "by_status" in taken, name
            assert await buffers(large, name, *arguments) < 51 * 5, name  # no job of this project is running or pending
    finally:
        await change.rollback()
