"""What holds for every system that Redrive serves through an adapter: each test runs with each of them.

Its own library has made the tables, and its own worker has failed the jobs. Whether a job was put back is counted in
the system's own table, and whether it was completed is what its own worker did with it.
"""

import asyncio
import json
import re
import time
import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import asyncpg
import pytest

from cli.checking.database import database_findings
from cli.checking.findings import Verdict
from shared import adapters
from shared.database import Database
from shared.migrations import migrate
from shared.models import JobId
from tests.adapters.drivers.jobs import ERROR, QUEUE
from tests.adapters.rig import Rig
from tests.api_server import Api, Serve
from tests.eventually import eventually
from tests.queues import Queues
from tests.tokens import token

pytestmark = pytest.mark.timeout(300)  # the first test of each system waits for its preparation

AT_ONCE_S = 10  # those that are notified look by themselves once in 30 s, as the tests set it
OPERATOR = token(scope="jobs:read jobs:retry jobs:retry:bulk")
COUNTS_ATTEMPTS_WHILE_FAILING = {
    "chancy",
    "django-tasks-db",
    "graphile-worker",
    "oban",
    "pg-boss",
    "procrastinate",
    "river",
}
STORES_ERRORS = COUNTS_ATTEMPTS_WHILE_FAILING - {"procrastinate"} | {"pgqueuer"}


def message(job_id: str, version: str, request_id: str) -> bytes:
    """A retry that another program asks for."""
    body = {"v": 1, "request_id": request_id, "job_id": job_id, "project_id": QUEUE, "job_version": version}
    return json.dumps(body).encode()


async def retried(rig: Rig, job_ids: Sequence[str]) -> None:
    """Wait until these jobs have left their failed state, each once."""

    async def all_of_them() -> bool:
        counted = await rig.effects()
        return [counted.get(each, 0) for each in job_ids] == [1] * len(job_ids)

    await eventually(all_of_them, within_s=30, what="the jobs are put back, each once")


async def in_bulk(api: Api, job_ids: Sequence[str], **options: object) -> None:
    answer = await api.post("/api/jobs/retry", {"ids": list(job_ids), **options}, token=OPERATOR)
    assert answer.status == 202, answer.body
    assert answer.data["accepted"] == len(job_ids)


async def test_jobs_are_shown_as_what_their_own_table_says(rig: Rig, api: Api) -> None:
    one = (await api.get(f"/api/jobs/{rig.failed[0]}?include=payload")).data
    page = (await api.get("/api/jobs?limit=200")).data
    failed = (await api.get("/api/jobs?status=failed&limit=200")).data
    counts = (await api.get("/api/jobs/stats")).data
    groups = (await api.get("/api/failures")).data

    assert (one["status"], one["retryable"], one["done"]) == ("failed", True, True)
    assert one["payload"]
    if rig.system.adapter in COUNTS_ATTEMPTS_WHILE_FAILING:
        assert one["attempts"] == 1
    if rig.system.adapter in STORES_ERRORS:
        assert ERROR in one["last_error"]
        assert ERROR.replace("4242", "<n>") in groups[0]["error"]
    shown = {each["id"]: each["status"] for each in page}
    assert {each["done"] for each in page if each["status"] in {"failed", "completed", "cancelled"}} == {True}
    wanted = {"failed": "failed", "running": "running", "later": "pending"}
    wanted |= {} if rig.system.deletes_successes else {"worked": "completed"}
    wanted |= {} if rig.system.cancelled is None else {"cancelled": "cancelled"}
    assert {each: shown.get(each) for kind in wanted for each in rig.jobs[kind]} == {
        each: status for kind, status in wanted.items() for each in rig.jobs[kind]
    }
    assert {each["id"] for each in failed} == set(rig.failed)
    assert (counts["failed"]["count"], counts["failed"]["retryable"]) == (len(rig.failed), len(rig.failed))
    assert sum(group["jobs"] for group in groups) == len(rig.failed)


async def test_only_failed_jobs_are_retried(rig: Rig, api: Api) -> None:
    kinds = ["running", "later", "cancelled", *([] if rig.system.deletes_successes else ["worked"])]
    others = [each for kind in kinds for each in rig.jobs[kind]]

    answers = [await api.post(f"/api/jobs/{each}/retry") for each in others]

    assert {(answer.status, answer.code) for answer in answers} == {(409, "job-not-failed")}


async def test_its_own_worker_completes_what_was_put_back_and_nothing_else(rig: Rig, api: Api) -> None:
    first, second, delayed, *rest = rig.failed
    chosen, left = rest[:10], rest[10:]
    async with rig.working("succeed"), rig.worker():

        async def are_completed(job_ids: set[str]) -> bool:
            return job_ids <= await rig.completed()

        await api.post(f"/api/jobs/{first}/retry")
        await eventually(lambda: are_completed({first}), within_s=30)
        began = time.monotonic()  # its worker is idle now
        await api.post(f"/api/jobs/{second}/retry")
        end = await api.get(f"/api/jobs/{second}", headers={"Prefer": "wait=30"})
        took_s = time.monotonic() - began
        assert (await api.post(f"/api/jobs/{delayed}/retry", {"delay_seconds": 3600})).status == 202
        await in_bulk(api, chosen, reason="the bank is back")
        await eventually(lambda: are_completed(set(chosen)), within_s=30)
        await retried(rig, [first, second, delayed, *chosen])
        row = await rig.row(delayed)

    assert took_s < AT_ONCE_S
    if rig.system.deletes_successes:
        assert (end.status, end.code) == (404, "job-not-found")
    else:
        assert (end.data["status"], end.data["done"]) == ("completed", True)
    assert await rig.completed() == {first, second, *chosen}
    assert await rig.still_failed() == set(left)
    assert row is not None
    assert row["status"] == "pending"
    assert row["scheduled_at"] > datetime.now(UTC) + timedelta(minutes=58)
    assert await rig.effects() == dict.fromkeys([first, second, delayed, *chosen], 1)


async def test_a_batch_is_spread_and_each_job_put_back_once_by_four_workers(
    rig: Rig, amqp_url: str, serve: Serve
) -> None:
    await rig.fill(200)
    jobs = sorted(await rig.still_failed())
    api = await serve(rig.api_url, amqp_url=amqp_url, **rig.system.settings)
    async with AsyncExitStack() as stack:
        for _ in range(4):
            await stack.enter_async_context(rig.worker(amqp_url))
        await in_bulk(api, jobs, spread_seconds=3600)
        await retried(rig, jobs)

    rows = await rig.pool.fetch("SELECT scheduled_at, status FROM control_plane.jobs WHERE id::text = ANY ($1)", jobs)
    assert {row["status"] for row in rows} == {"pending"}
    times = [row["scheduled_at"] for row in rows]
    assert max(times) < datetime.now(UTC) + timedelta(seconds=3600)
    assert max(times) - min(times) > timedelta(seconds=1800)  # of 230 that fall at random within the hour
    assert set((await rig.effects()).values()) == {1}


async def test_a_locked_job_is_waited_for_and_the_others_are_not_held_up(rig: Rig, api: Api) -> None:
    locked, *others = rig.failed[:5]
    async with rig.worker():
        async with rig.pool.acquire() as connection, connection.transaction():
            await connection.execute(f"SELECT FROM {rig.system.table} WHERE id::text = $1 FOR UPDATE", locked)
            await in_bulk(api, [locked, *others])
            await retried(rig, others)
            assert locked not in await rig.effects()
        await retried(rig, [locked, *others])


async def test_a_message_delivered_ten_times_has_one_effect_and_a_late_one_none(rig: Rig, amqp_url: str) -> None:
    job, moved_on = rig.failed[:2]
    version, old = await rig.version(job), await rig.version(moved_on)
    await rig.update(rig.system.released, [moved_on])  # by an operator, with its own tool
    wanted, late = str(uuid.uuid4()), str(uuid.uuid4())
    async with Queues.on(amqp_url) as queues, rig.worker(amqp_url):
        await queues.publish_all([message(job, version, wanted)] * 10)
        await queues.publish(message(moved_on, old, late))

        async def are_settled() -> bool:
            return await queues.drained() and await rig.outcome(late) is not None

        await eventually(are_settled, within_s=30)
        assert [await rig.outcome(each) for each in (wanted, late)] == ["applied", "superseded"]
    assert await rig.effects() == {job: 1, moved_on: 1}  # one is the operator's


async def test_a_job_that_failed_again_is_not_retried_by_an_old_message_but_by_a_new_one(
    rig: Rig, amqp_url: str, serve: Serve
) -> None:
    job = rig.failed[0]
    version, late = await rig.version(job), str(uuid.uuid4())
    api = await serve(rig.api_url, amqp_url=amqp_url, **rig.system.settings)
    async with Queues.on(amqp_url) as queues, rig.worker(amqp_url):
        await api.post(f"/api/jobs/{job}/retry")
        await retried(rig, [job])

        async def has_failed_again() -> bool:
            return job in await rig.still_failed()

        async with rig.working("fail"):
            await eventually(has_failed_again, within_s=30)
        assert await rig.version(job) != version
        await queues.publish(message(job, version, late))
        await eventually(lambda: rig.outcome(late), within_s=30)
        again = await api.post(f"/api/jobs/{job}/retry")

        async def is_put_back_again() -> bool:
            return await rig.effects() == {job: 2}

        await eventually(is_put_back_again, within_s=30)
        assert again.status == 202
    assert await rig.outcome(late) == "superseded"


async def test_a_job_that_its_owner_does_not_take_back_is_blocked_and_its_neighbours_are_not(
    rig: Rig, api: Api
) -> None:
    if rig.system.unique is None:
        assert rig.system.adapter in {"django-tasks-db", "graphile-worker", "oban"}  # nothing of theirs is unique
        return
    rivals, neighbours = rig.failed[:2], rig.failed[2:6]
    await rig.update(rig.system.unique, rivals)
    async with rig.worker():
        await in_bulk(api, [*rivals, *neighbours])

        async def retries() -> dict[str, str]:
            return {each["job_id"]: each["outcome"] for each in (await api.get("/api/retries")).data}

        async def are_settled() -> bool:
            return None not in (await retries()).values()

        await eventually(are_settled, within_s=30)
        outcomes = await retries()
    assert sorted(outcomes[each] for each in rivals) == ["applied", "blocked"]
    assert {outcomes[each] for each in neighbours} == {"applied"}
    assert sum((await rig.effects()).values()) == 5


async def test_its_own_maintenance_leaves_a_job_that_waits_again(rig: Rig, api: Api) -> None:
    old = rig.failed[:3]
    await rig.age(old)
    async with rig.worker():
        await in_bulk(api, old)
        await retried(rig, old)

    await rig.prune()

    statuses = await rig.statuses()
    assert [statuses.get(each) for each in old] == ["pending"] * 3


async def test_a_job_is_found_by_its_tables_own_key(rig: Rig) -> None:
    await rig.fill(5_000)
    connection = await asyncpg.connect(
        rig.api_url,
        timeout=10,
        server_settings={
            "enable_seqscan": "off",
            "enable_bitmapscan": "off",
            "plan_cache_mode": "force_generic_plan",
            "jit": "off",
        },
    )
    try:
        ids = rig.system.ids
        statement = await connection.prepare(
            "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + ids.statements("jobs")["find"]
        )
        given = ([ids.stored(JobId(rig.failed[3]))], [QUEUE], 2001)
        await statement.fetchval(*given)  # the first one reads the catalogues, too
        plan = json.loads(await statement.fetchval(*given))[0]["Plan"]
    finally:
        await connection.close()

    assert plan["Actual Rows"] == 1
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 40, json.dumps(plan)


FORBIDDEN = (
    "SELECT 1 FROM {t}",
    "UPDATE {t} SET id = DEFAULT",
    "DELETE FROM {t}",
    "INSERT INTO {t} DEFAULT VALUES",
    "DELETE FROM control_plane.jobs",
    "INSERT INTO control_plane.jobs DEFAULT VALUES",
    "UPDATE control_plane.jobs SET payload = '{{}}'",
    "UPDATE control_plane.jobs SET attempts = 0",
    "UPDATE control_plane.jobs SET project_id = 'p2'",
    "TRUNCATE {t}",
)


@pytest.mark.parametrize("role", ["api", "worker"])
async def test_the_programs_may_do_nothing_else(rig: Rig, role: str) -> None:
    connection = await asyncpg.connect(rig.api_url if role == "api" else rig.worker_url, timeout=10)
    forbidden = [*FORBIDDEN, *(["UPDATE control_plane.jobs SET status = 'pending'"] if role == "api" else [])]
    try:
        for statement in forbidden:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement.format(t=rig.system.table))
        if role == "worker":
            for change in ("completed", "running", "cancelled"):
                with pytest.raises(asyncpg.RaiseError, match="only takes failed jobs back"):
                    await connection.execute(f"UPDATE control_plane.jobs SET status = '{change}'")
            with pytest.raises(asyncpg.RaiseError, match="only takes failed jobs back"):
                await connection.execute("UPDATE control_plane.jobs SET status = 'pending' WHERE status <> 'failed'")
    finally:
        await connection.close()
    assert await rig.effects() == {}


OTHER = 'My "jobs"'
# The statements that move all of a system's own out of the schema public.
MOVES = """
SELECT format('ALTER ROUTINE %s SET SCHEMA %I', oid::regprocedure, $1::text) FROM pg_proc
WHERE pronamespace = 'public'::regnamespace AND proname <> 'test_effect'
UNION ALL
SELECT format('ALTER TABLE %s SET SCHEMA %I', oid::regclass, $1::text) FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname <> 'test_effects'
UNION ALL
SELECT format('ALTER TYPE %s SET SCHEMA %I', oid::regtype, $1::text) FROM pg_type
WHERE typnamespace = 'public'::regnamespace AND typtype = 'e'
"""


FUNCTIONS = """
SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = to_regnamespace(quote_ident($1)) AND prokind = 'f'
"""


async def test_its_tables_may_be_in_a_schema_of_any_name(rig: Rig, serve: Serve) -> None:
    before = await rig.statuses()
    schema = rig.system.table.partition(".")[0]
    if schema == "public":
        await rig.pool.execute(f"CREATE SCHEMA {adapters.quoted(OTHER)}")
        for (move,) in await rig.pool.fetch(MOVES, OTHER):
            await rig.pool.execute(move)
    else:
        await rig.pool.execute(f"ALTER SCHEMA {schema} RENAME TO {adapters.quoted(OTHER)}")
        for (function,) in await rig.pool.fetch(FUNCTIONS, OTHER):  # their texts name the schema that they were made in
            await rig.pool.execute(re.sub(rf'"?\b{schema}\b"?(?=\.)', lambda _: adapters.quoted(OTHER), function))
    await rig.pool.execute(f"GRANT USAGE ON SCHEMA {adapters.quoted(OTHER)} TO {urlsplit(rig.owner_url).username}")
    await rig.add_adapter(OTHER)

    api = await serve(rig.api_url, **rig.system.settings)
    async with rig.worker():
        assert await rig.statuses() == before
        await in_bulk(api, rig.failed[:3])
        await retried(rig, rig.failed[:3])


ODD = r"\u0000 \ud83d \ud83d\ude00 $redrive$ '; DROP TABLE jobs; --"  # escapes, as JSON has them


async def test_odd_bytes_in_one_job_spoil_no_other(rig: Rig, api: Api) -> None:
    odd, *others = rig.failed
    await rig.pool.execute(rig.system.odd.format(t=rig.system.table), odd, ODD)
    async with rig.worker():
        page = (await api.get("/api/jobs?status=failed&limit=200")).data
        one = await api.get(f"/api/jobs/{odd}?include=payload")
        groups = (await api.get("/api/failures")).data
        counts = (await api.get("/api/jobs/stats")).data
        await in_bulk(api, [odd, *others[:3]])
        await retried(rig, [odd, *others[:3]])

    assert {each["id"] for each in page} == set(rig.failed)
    assert one.status == 200
    assert sum(group["jobs"] for group in groups) == counts["failed"]["count"] == len(rig.failed)


async def test_the_check_finds_it_in_order_and_names_a_version_that_was_not_tested(rig: Rig) -> None:
    adapter = adapters.get(rig.system.adapter)

    async def check() -> dict[Verdict, str]:
        async with Database(rig.worker_url, program="test", timeout_s=2, pool_size=1).opened() as database:
            found = [
                each
                async for each in database_findings(
                    database, "database", ("worker",), writes=True, job_id=rig.system.job_id
                )
            ]
        return {verdict: "\n".join(each.text for each in found if each.verdict is verdict) for verdict in Verdict}

    done = await check()
    assert (done[Verdict.FAILED], done[Verdict.WARNING]) == ("", "")
    assert f"control_plane.jobs is the adapter {adapter.name}, tested with {adapter.tested}" in done[Verdict.OK]
    if adapter.versions is not None:
        assert "; its tables have version " in done[Verdict.OK]
        await rig.pool.execute(
            "CREATE OR REPLACE FUNCTION control_plane.schema_version() RETURNS bigint LANGUAGE sql RETURN 999"
        )
        assert "tables have version 999" in (await check())[Verdict.FAILED]


async def test_after_migrate_the_adapter_says_the_way_out_and_its_first_lines_remove_it(rig: Rig) -> None:
    owner = urlsplit(rig.owner_url).username
    sql = adapters.get(rig.system.adapter).sql(project=rig.system.project)
    await rig.pool.execute("DROP SCHEMA redrive CASCADE; DROP SCHEMA control_plane CASCADE")
    await asyncio.to_thread(migrate, rig.admin_url)
    connection = await asyncpg.connect(rig.owner_url, timeout=10)
    try:
        with pytest.raises(asyncpg.RaiseError, match=r"control_plane\.jobs is a table") as refused:
            await connection.execute(sql)
        await connection.execute("ROLLBACK")
        drop, give, _ = str(getattr(refused.value, "hint", "")).partition(": ")[2].split("; ")
        assert (drop, give) == ("DROP TABLE control_plane.jobs", f"ALTER SCHEMA control_plane OWNER TO {owner}")
        await rig.pool.execute(drop)
        with pytest.raises(asyncpg.RaiseError, match="belongs to another user"):
            await connection.execute(sql)
        await connection.execute("ROLLBACK")
        await rig.pool.execute(give)
        await connection.execute(sql)
        shown = await rig.statuses()
        assert shown.keys() >= set(rig.failed)
        assert await rig.pool.fetchval("SELECT has_table_privilege('redrive_api', 'control_plane.jobs', 'SELECT')")

        (remove,) = re.findall(r"To remove it:\n-- (.*)", sql)
        await connection.execute(remove)
        await connection.execute("DROP SCHEMA control_plane")  # nothing is left in it, or this fails
    finally:
        await connection.close()
