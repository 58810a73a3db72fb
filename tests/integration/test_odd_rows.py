"""Tables and rows that are not as the contract has them: what can be shown is, and what cannot fails alone."""

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import UUID

import asyncpg
import pytest

from shared import migrations
from shared.jobs import Jobs
from shared.models import Job, JobKey, UnreadableJob
from tests.api_server import Api, Reply, Serve
from tests.eventually import eventually
from tests.integration.reading.test_events import Stream
from tests.integration.reading.test_job_streams import stream_of
from tests.servers.postgres import Postgres
from tests.statements import statements_sent
from tests.tokens import token

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    Connection = asyncpg.Connection[asyncpg.Record]

READER = token(scope="jobs:read jobs:payload jobs:retry jobs:retry:bulk")

FREE = """
ALTER TABLE control_plane.jobs DROP CONSTRAINT jobs_status_check, DROP CONSTRAINT jobs_attempts_within_max;
ALTER TABLE control_plane.jobs ALTER type DROP NOT NULL, ALTER status DROP NOT NULL, ALTER created_at DROP NOT NULL;
"""
"""Let the table hold what the contract's may not."""

VIEW = """
ALTER TABLE control_plane.jobs RENAME TO all_jobs;
ALTER TABLE control_plane.all_jobs ADD odd boolean NOT NULL DEFAULT false;
CREATE FUNCTION public.refuse(code text) RETURNS text STABLE LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'not this one' USING ERRCODE = code; END $$;
CREATE VIEW control_plane.jobs AS SELECT
    id, project_id, type, payload, status, attempts, max_attempts,
    CASE WHEN odd THEN {expression} ELSE last_error END AS last_error,
    scheduled_at, started_at, completed_at, created_at
FROM control_plane.all_jobs;
"""
SPOIL_BEHIND_VIEW = "UPDATE control_plane.all_jobs SET odd = true WHERE id = $1"

UNREADABLE = {
    "a type that is NULL": (FREE, "UPDATE control_plane.jobs SET type = NULL WHERE id = $1"),
    "a status that is NULL": (FREE, "UPDATE control_plane.jobs SET status = NULL WHERE id = $1"),
    "a time that is NULL": (FREE, "UPDATE control_plane.jobs SET created_at = NULL WHERE id = $1"),
    "attempts that are no number": (
        FREE + "ALTER TABLE control_plane.jobs ALTER attempts TYPE numeric",
        "UPDATE control_plane.jobs SET attempts = 'NaN' WHERE id = $1",
    ),
    "attempts that no integer holds": (
        FREE + "ALTER TABLE control_plane.jobs ALTER max_attempts TYPE numeric",
        "UPDATE control_plane.jobs SET max_attempts = 1e30 WHERE id = $1",
    ),
    "a view that divides by zero": (VIEW.format(expression="(1 / (0 * length(type)))::text"), SPOIL_BEHIND_VIEW),
    "a view that may not look": (VIEW.format(expression="public.refuse('42501')"), SPOIL_BEHIND_VIEW),
    "a view that casts": (VIEW.format(expression="(type::int)::text"), SPOIL_BEHIND_VIEW),
    "a view with words of its own": (VIEW.format(expression="public.refuse('ZZ123')"), SPOIL_BEHIND_VIEW),
}  # fmt: skip


@asynccontextmanager
async def connected(database_url: str) -> "AsyncIterator[Connection]":
    connection = await asyncpg.connect(database_url)
    try:
        yield connection
    finally:
        await connection.close()


async def insert(connection: "Connection", count: int = 1, **columns: str) -> list[UUID]:
    """Failed jobs, the first the newest; `columns` are SQL."""
    columns = {
        "project_id": "'p1'", "type": "'email'", "status": "'failed'", "attempts": "1", "last_error": "NULL",
        "created_at": "'2026-11-23 12:00:00+00'::timestamptz - n * interval '1 minute'", **columns,
    }  # fmt: skip
    rows = await connection.fetch(
        f"INSERT INTO control_plane.jobs ({', '.join(columns)}) "
        f"SELECT {', '.join(columns.values())} FROM generate_series(1, {count}) AS n RETURNING id"
    )
    return [row["id"] for row in rows]


async def all_listed(api: Api, query: str) -> list[dict[str, object]]:
    """Every row of a list, page by page; AssertionError where it does not end."""
    rows: list[dict[str, object]] = []
    path: str | None = f"/api/jobs?{query}"
    for _ in range(50):
        assert path is not None
        page = await api.get(path, token=READER)
        assert page.status == 200, page.body
        rows += page.data
        cursor = page.json["next_cursor"]
        if cursor is None:
            return rows
        path = f"/api/jobs?{query}&cursor={cursor}"
    raise AssertionError("the list does not end")


async def expect_alone(api: Api, good: list[UUID], bad: UUID) -> None:
    """The bad row is refused by itself, however it is asked for; the others are answered."""
    asked = [*good[:2], bad, *good[2:], bad]

    async def read(job_id: UUID, include: str = "") -> Reply:
        return await api.get(f"/api/jobs/{job_id}{include}", token=READER)

    for include in ("", "?include=payload"):
        for _ in range(2):  # once more, when it is known to be bad
            answers = await asyncio.gather(*(read(job_id, include) for job_id in asked))
            for job_id, answer in zip(asked, answers, strict=True):
                if job_id == bad:
                    assert (answer.status, answer.code, answer.json["retryable"]) == (409, "job-unreadable", False)
                else:
                    assert (answer.status, answer.data["id"]) == (200, str(job_id))
    unreadable = {"id": str(bad), "unreadable": True}
    by_ids = await api.get(f"/api/jobs?ids={','.join(map(str, asked))}", token=READER)
    assert [row["id"] for row in by_ids.data] == list(map(str, asked))
    assert [row for row in by_ids.data if "status" not in row] == [unreadable] * 2
    for limit in (1, 2, 50):
        rows = await all_listed(api, f"limit={limit}")
        assert sorted(str(row["id"]) for row in rows) == sorted(map(str, [*good, bad]))
        assert [row for row in rows if "status" not in row] == [unreadable]
    assert {row["id"] for row in await all_listed(api, "status=failed")} >= set(map(str, good))
    stats = await api.get("/api/jobs/stats", token=READER)
    assert (stats.status, sum(each["count"] for each in stats.data.values())) == (200, len(good) + 1)
    for refused in (
        await api.get(f"/api/jobs/{bad}", token=READER, headers={"Prefer": "wait=1"}),
        await api.get(f"/api/jobs/{bad}/events", token=READER),
        await api.get(f"/api/jobs/{bad}/retries", token=READER),
        await api.post(f"/api/jobs/{bad}/retry?dry_run=true", token=READER),
        await api.post(f"/api/jobs/{bad}/retry", token=READER),
    ):
        assert (refused.status, refused.code) == (409, "job-unreadable")
    assert (await api.post(f"/api/jobs/{good[0]}/retry", token=READER)).status == 202


@pytest.mark.parametrize(("prepare", "spoil"), UNREADABLE.values(), ids=UNREADABLE)
async def test_a_row_that_cannot_be_shown_fails_alone(
    database_url: str, prepare: str, spoil: str, serve: Serve
) -> None:
    async with connected(database_url) as connection:
        good = await insert(connection, 5)
        (bad,) = await insert(connection, created_at="'2026-11-23 11:57:30+00'")
        await connection.execute(prepare)
        await connection.execute(spoil, bad)
        api = await serve(database_url)
        await expect_alone(api, good, bad)


@pytest.mark.parametrize("deleted", [[3], [0, 1], [0, 1, 2, 3]])
async def test_a_list_with_a_bad_row_goes_on_though_rows_are_deleted_while_it_is_read(
    database_url: str, monkeypatch: pytest.MonkeyPatch, deleted: list[int], serve: Serve
) -> None:
    prepare, spoil = UNREADABLE["a view that casts"]
    find_listed = Jobs._find_listed
    async with connected(database_url) as connection:
        jobs = await insert(connection, 9)
        await connection.execute(prepare)
        await connection.execute(spoil, jobs[2])
        gone = {jobs[n] for n in deleted}

        async def delete_and_find(self: Jobs, keys: "Sequence[JobKey]") -> dict[JobKey, Job | UnreadableJob]:
            await connection.execute("DELETE FROM control_plane.jobs WHERE id = ANY ($1)", gone)
            return await find_listed(self, keys)

        monkeypatch.setattr(Jobs, "_find_listed", delete_and_find)
        api = await serve(database_url)
        rows = await all_listed(api, "limit=4")

    assert [row["id"] for row in rows] == [str(job_id) for job_id in jobs if job_id not in gone]


@pytest.mark.parametrize(("prepare", "spoil"), UNREADABLE.values(), ids=UNREADABLE)
async def test_a_bulk_retry_leaves_out_a_row_that_cannot_be_read_and_takes_the_others(
    database_url: str, prepare: str, spoil: str, serve: Serve
) -> None:
    async with connected(database_url) as connection:
        jobs = await insert(connection, 6)
        bad, good = jobs[2], [*jobs[:2], *jobs[3:]]
        await connection.execute(prepare)
        await connection.execute(spoil, bad)
        api = await serve(database_url)
        wanted = {"ids": [str(job_id) for job_id in jobs]}
        dry = await api.post("/api/jobs/retry?dry_run=true", wanted, token=READER)
        done = await api.post("/api/jobs/retry", wanted, token=READER)
        queued = await connection.fetch("SELECT job_id FROM redrive.retry_requests WHERE state = 'queued'")

    assert (dry.status, dry.data["retryable"], dry.data["skipped"]["job_unreadable"]) == (200, 5, 1)
    assert (done.status, done.data["accepted"]) == (202, 5)
    assert done.data["skipped"] == [{"job_id": str(bad), "code": "job-unreadable"}]
    assert {row["job_id"] for row in queued} == set(good)


async def test_a_value_that_is_gone_from_the_disk_fails_alone(database_url: str, serve: Serve) -> None:
    async with connected(database_url) as connection:
        good = await insert(connection, 5)
        await connection.execute("ALTER TABLE control_plane.jobs ALTER last_error SET STORAGE EXTERNAL")
        (bad,) = await insert(connection, last_error="repeat('x', 20000)")
        toast = await connection.fetchval(
            "SELECT reltoastrelid FROM pg_class WHERE oid = 'control_plane.jobs'::regclass"
        )
        await connection.execute("DELETE FROM pg_class WHERE oid = $1", toast)
        api = await serve(database_url)
        await expect_alone(api, good, bad)


@pytest.mark.parametrize("column", ["type", "status", "last_error"])
async def test_bytes_that_are_no_text_fail_alone(postgres: Postgres, column: str, serve: Serve) -> None:
    async with postgres.database(migrated=False, encoding="SQL_ASCII") as database_url:
        await asyncio.to_thread(migrations.migrate, database_url)
        async with connected(database_url) as connection:
            await connection.execute(FREE)
            good = await insert(connection, 5, last_error="'später'")
            (bad,) = await insert(connection)
            await connection.execute(
                rf"UPDATE control_plane.jobs SET {column} = convert_from('\xfffe', 'SQL_ASCII') WHERE id = $1", bad
            )
            api = await serve(database_url)
            await expect_alone(api, good, bad)


async def test_a_filter_that_the_database_s_encoding_cannot_hold_matches_nothing(
    postgres: Postgres, serve: Serve
) -> None:
    async with postgres.database(migrated=False, encoding="LATIN1") as database_url:
        await asyncio.to_thread(migrations.migrate, database_url)
        async with connected(database_url) as connection:
            api = await serve(database_url)
            await insert(connection, 2, type="'café'")
            for query in ("type=%E6%97%A5%E6%9C%AC", "status=%F0%9F%92%A9", "status=failed&type=%E6%97%A5"):
                assert (await api.get(f"/api/jobs?{query}", token=READER)).json == {"data": [], "next_cursor": None}
            stats = await api.get("/api/jobs/stats?type=%E6%97%A5", token=READER)
            assert (stats.status, stats.data["failed"]["count"]) == (200, 0)
            assert len((await api.get("/api/jobs?type=caf%C3%A9", token=READER)).data) == 2


async def test_a_text_that_the_database_s_encoding_cannot_hold_is_refused_where_it_would_be_written(
    postgres: Postgres, serve: Serve
) -> None:
    text, query = "\u65e5\u672c", "%E6%97%A5%E6%9C%AC"
    theirs = token(scope="jobs:read jobs:retry jobs:retry:bulk", sub=text)
    async with postgres.database(migrated=False, encoding="LATIN1") as database_url:
        await asyncio.to_thread(migrations.migrate, database_url)
        async with connected(database_url) as connection:
            api = await serve(database_url)
            jobs = await insert(connection, 3)
            one, bulk = f"/api/jobs/{jobs[0]}/retry", "/api/jobs/retry"
            for path, body, pointer in (
                (one, {"reason": text}, "/reason"),
                (bulk, {"ids": [str(jobs[0])], "reason": text}, "/reason"),
                (f"{bulk}?dry_run=false", {"filter": {"type": text}, "max": 5, "reason": "x"}, "/filter/type"),
                (f"{bulk}?dry_run=false", {"filter": {"error_contains": text}, "max": 5, "reason": "x"},
                 "/filter/error_contains"),
            ):  # fmt: skip
                answer = await api.post(path, body, token=READER, headers={"Idempotency-Key": "k"})
                assert (answer.status, answer.code) == (422, "invalid-body")
                assert [fault["pointer"] for fault in answer.json["errors"]] == [pointer]
            for path in (f"/api/retries?actor={query}", f"/api/retry-batches?actor={query}"):
                assert (await api.get(path, token=READER)).json == {"data": [], "next_cursor": None}
            dry = await api.post(
                f"{bulk}?dry_run=true", {"filter": {"type": text}, "max": 5, "reason": "x"}, token=READER
            )
            assert (dry.status, dry.data["matched"]) == (200, 0)

            neighbours = await asyncio.gather(
                api.post(one, {"reason": "caf\u00e9"}, token=READER),
                api.post(f"/api/jobs/{jobs[1]}/retry", {"reason": text}, token=READER),
                api.post(f"/api/jobs/{jobs[1]}/retry", token=theirs),
            )
            assert [answer.status for answer in neighbours] == [202, 422, 403]
            accepted = await api.post(bulk, {"ids": [str(jobs[2])]}, token=READER)
            for answer in (
                await api.post(bulk, {"ids": [str(jobs[1])]}, token=theirs),
                await api.call("DELETE", neighbours[0].headers["Location"], token=theirs),
                await api.call("DELETE", accepted.headers["Location"], token=theirs),
            ):
                assert (answer.status, answer.code) == (403, "insufficient-scope")
            assert (await api.get(f"/api/jobs/{jobs[0]}", token=theirs)).status == 200


async def test_a_status_that_is_null_is_unreadable_to_a_single_retry_and_to_a_bulk_retry(
    database_url: str, serve: Serve
) -> None:
    async with connected(database_url) as connection:
        (good,) = await insert(connection)
        (odd,) = await insert(connection)
        await connection.execute(FREE)
        await connection.execute("UPDATE control_plane.jobs SET status = NULL WHERE id = $1", odd)
        api = await serve(database_url)
        body = {"ids": [str(odd), str(good)]}
        dry = await api.post("/api/jobs/retry?dry_run=true", body, token=READER)
        bulk = await api.post("/api/jobs/retry", body, token=READER)
        single = await api.post(f"/api/jobs/{odd}/retry", token=READER)

    assert (dry.data["matched"], dry.data["retryable"], dry.data["skipped"]["job_unreadable"]) == (2, 1, 1)
    assert (bulk.status, bulk.data["accepted"]) == (202, 1)
    assert bulk.data["skipped"] == [{"job_id": str(odd), "code": "job-unreadable"}]
    assert (single.status, single.code) == (409, "job-unreadable")


SHAPES = {
    "enums": """
        CREATE TYPE public.status AS ENUM ('pending', 'running', 'failed', 'completed', 'cancelled');
        CREATE TYPE public.kind AS ENUM ('email', 'report');
        DROP INDEX control_plane.jobs_pending_idx;
        ALTER TABLE control_plane.jobs DROP CONSTRAINT jobs_status_check, ALTER status DROP DEFAULT,
            ALTER status TYPE public.status USING status::public.status,
            ALTER type TYPE public.kind USING type::public.kind;
        """,
    "timestamps without time zone": """
        ALTER TABLE control_plane.jobs ALTER scheduled_at TYPE timestamp, ALTER started_at TYPE timestamp,
            ALTER completed_at TYPE timestamp, ALTER created_at TYPE timestamp;
        """,
    "varchar and char": """
        ALTER TABLE control_plane.jobs ALTER project_id TYPE varchar(50), ALTER status TYPE char(20),
            ALTER type TYPE varchar(20);
        """,
    "smallint and numeric": """
        ALTER TABLE control_plane.jobs ALTER attempts TYPE smallint, ALTER max_attempts TYPE numeric;
        """,
    "domains": """
        CREATE DOMAIN public.word AS text CHECK (length(VALUE) < 30); CREATE DOMAIN public.count AS int;
        ALTER TABLE control_plane.jobs ALTER type TYPE public.word, ALTER attempts TYPE public.count;
        """,
    "an error that is jsonb": "ALTER TABLE control_plane.jobs ALTER last_error TYPE jsonb USING to_jsonb(last_error)",
}


@pytest.mark.parametrize("change", SHAPES.values(), ids=SHAPES)
async def test_columns_of_other_types_are_read_as_the_contract_s(database_url: str, change: str, serve: Serve) -> None:
    async with connected(database_url) as connection:
        await connection.execute("SET timezone = 'UTC'")
        (job_id,) = await insert(connection, started_at="'2026-11-23 11:00+00'", last_error="'broken'")
        api = await serve(database_url)
        before = (await api.get(f"/api/jobs/{job_id}", token=READER)).data
        await connection.execute(change)
        api = await serve(database_url)
        after = await api.get(f"/api/jobs/{job_id}", token=READER)
        listed = await api.get("/api/jobs?status=failed&type=email&created_after=2026-11-01T00:00:00Z", token=READER)
        none = await api.get("/api/jobs?status=nothing", token=READER)
        stats = await api.get("/api/jobs/stats?type=email", token=READER)

    error = json.dumps("broken") if "jsonb" in change else "broken"
    assert after.data == {**before, "last_error": error}
    assert listed.data == [after.data]
    assert none.data == []
    assert (stats.data["failed"]["count"], stats.data["failed"]["oldest_at"]) == (1, before["created_at"])


PAYLOADS = [
    ("json", """'{"a":  1, "b": [1e400]}'""", '{"a":  1, "b": [1e400]}'),
    ("json", r"""'{"a": "\u0000"}'""", None),
    ("json", r"""'{"a": "\ud800"}'""", None),
    ("json", "NULL", "{}"),
    ("text", """'{"a": 1}'""", '{"a": 1}'),
    ("text", "'hello'", None),
    ("text", "''", None),
    ("text", """'{"a": NaN}'""", None),
    ("text", """'{"a": 1}, "done": true'""", None),
    ("text", "repeat('[', 100000)", None),
    ("bytea", "'hello'", None),
    ("int", "7", "7"),
    ("float", "'Infinity'", None),
    ("text[]", "'{x}'", None),
    ("jsonb", """'"text"'""", '"text"'),
]


@pytest.mark.parametrize(("kind", "stored", "shown"), PAYLOADS)
async def test_a_payload_is_sound_json_or_refused(
    database_url: str, kind: str, stored: str, shown: str | None, serve: Serve
) -> None:
    async with connected(database_url) as connection:
        await connection.execute(
            f"ALTER TABLE control_plane.jobs DROP payload; ALTER TABLE control_plane.jobs ADD payload {kind}"
        )
        (job_id,) = await insert(connection, payload=stored)
        (other,) = await insert(connection, payload="NULL")
        api = await serve(database_url)
        paths = [f"/api/jobs/{job_id}?include=payload", f"/api/jobs/{other}?include=payload", f"/api/jobs/{job_id}"]
        answer, neighbour, without = await asyncio.gather(*(api.get(path, token=READER) for path in paths))

    assert (neighbour.status, neighbour.data["payload"]) == (200, {})
    assert without.status == 200
    if shown is None:
        assert (answer.status, answer.code) == (409, "job-unreadable")
    else:
        assert json.dumps(answer.data["payload"]) == json.dumps(json.loads(shown))


async def test_a_list_goes_over_every_time_that_there_is_and_over_none(database_url: str, serve: Serve) -> None:
    times = [
        "'infinity'", "'infinity'", "'294276-12-31'", "'10000-01-01'", "'2026-11-23'", "'0001-01-01'",
        "'0044-03-15 BC'", "'4713-01-01 BC'", "'4713-01-01 BC'", "'-infinity'", "'-infinity'", "NULL", "NULL", "NULL",
    ]  # fmt: skip
    async with connected(database_url) as connection:
        await connection.execute(FREE)
        made = [(await insert(connection, created_at=time))[0] for time in times]
        groups = [
            sorted(id_ for id_, at in zip(made, times, strict=True) if at == time) for time in dict.fromkeys(times)
        ]
        newest_first = [str(id_) for group in groups for id_ in reversed(group)]
        api = await serve(database_url)
        for limit in (1, 2, 3, 13, 14, 200):
            assert [row["id"] for row in await all_listed(api, f"limit={limit}")] == newest_first
            assert [row["id"] for row in await all_listed(api, f"limit={limit}&status=failed")] == newest_first
        after = await all_listed(api, "limit=2&created_after=2026-11-22T00:00:00Z")
        before = await all_listed(api, "limit=2&created_before=2026-11-23T00:00:00Z")
        single = await asyncio.gather(*(api.get(f"/api/jobs/{id_}", token=READER) for id_ in newest_first))

    assert [row["id"] for row in after] == newest_first[:5]
    assert [row["id"] for row in before] == newest_first[5:11]
    assert [answer.status for answer in single] == [200] * 11 + [409] * 3


async def test_a_statement_that_is_unfit_is_503_for_all_and_not_taken_apart(database_url: str, serve: Serve) -> None:
    async with connected(database_url) as connection:
        jobs = await insert(connection, 20)
        await connection.execute("ALTER TABLE control_plane.jobs DROP last_error")
        api = await serve(database_url)
        with statements_sent() as sent:
            answers = await asyncio.gather(*(api.get(f"/api/jobs/{job_id}", token=READER) for job_id in jobs))
            listed = await api.get("/api/jobs", token=READER)

    assert {(answer.status, answer.code) for answer in [*answers, listed]} == {(503, "unavailable")}
    assert sent["jobs.find"] < len(jobs)


async def test_a_bad_row_costs_its_neighbours_one_query(database_url: str, serve: Serve) -> None:
    prepare, spoil = UNREADABLE["a view that casts"]
    async with connected(database_url) as connection:
        jobs = await insert(connection, 30)
        await connection.execute(prepare)
        await connection.execute(spoil, jobs[7])
        api = await serve(database_url)
        await asyncio.gather(*(api.get(f"/api/jobs/{job_id}", token=READER) for job_id in jobs))
        with statements_sent() as sent:
            good = [job_id for job_id in jobs if job_id != jobs[7]]
            answers = await asyncio.gather(*(api.get(f"/api/jobs/{job_id}", token=READER) for job_id in good))
            first = sent["jobs.find"]
            bad = await api.get(f"/api/jobs/{jobs[7]}", token=READER)

    assert {answer.status for answer in answers} == {200}
    assert (bad.status, sent["jobs.find"] - first) == (
        409,
        2,
    )  # the second for no job, which says that it is this row
    assert first <= 4


async def test_rows_with_numbers_that_no_integer_holds_cost_no_query_more(database_url: str, serve: Serve) -> None:
    prepare, spoil = UNREADABLE["attempts that are no number"]
    async with connected(database_url) as connection:
        jobs = await insert(connection, 30)
        await connection.execute(prepare)
        for job_id in jobs[::2]:
            await connection.execute(spoil, job_id)
        api = await serve(database_url)
        with statements_sent() as sent:
            answers = await asyncio.gather(*(api.get(f"/api/jobs/{job_id}", token=READER) for job_id in jobs))
            assert sent["jobs.find"] <= 3
            listed = await api.get("/api/jobs?limit=200", token=READER)

    assert [answer.status for answer in answers] == [409, 200] * 15
    assert ["status" in row for row in listed.data] == [False, True] * 15
    assert (sent["jobs.page"], sent["jobs.positions"]) == (1, 0)


async def test_a_job_that_becomes_unreadable_while_it_is_waited_for_ends_that_wait_alone(
    database_url: str, serve: Serve
) -> None:
    prepare, spoil = UNREADABLE["attempts that are no number"]
    async with connected(database_url) as connection:
        bad, good = await insert(connection, 2, status="'running'")
        await connection.execute(prepare)
        api = await serve(database_url, watch_interval=0.05)
        waits = [
            asyncio.create_task(api.get(f"/api/jobs/{id_}", token=READER, headers={"Prefer": "wait=20"}))
            for id_ in (bad, good)
        ]
        await eventually(lambda: len(api.parts.watches.jobs._watched) == 2)
        await connection.execute(spoil, bad)
        ended = await waits[0]
        await connection.execute("UPDATE control_plane.jobs SET status = 'completed' WHERE id = $1", good)
        done = await waits[1]

    assert (ended.status, ended.code) == (409, "job-unreadable")
    assert (done.status, done.data["status"]) == (200, "completed")


async def test_a_job_that_becomes_unreadable_is_told_as_that_in_a_stream_and_the_others_go_on(
    database_url: str,
    serve: Serve,
) -> None:
    prepare, spoil = UNREADABLE["attempts that are no number"]
    async with connected(database_url) as connection:
        bad, good = await insert(connection, 2, status="'running'")
        await connection.execute(prepare)
        api = await serve(database_url, watch_interval=0.05)
        async with (
            stream_of(api, [bad, good]) as both,
            api.client.get(f"/api/jobs/{bad}/events", headers={"Authorization": f"Bearer {READER}"}) as alone,
        ):
            stream = Stream(alone)
            await stream.news()
            for _ in range(2):
                await both.news()
            await connection.execute(spoil, bad)
            told_alone, end = (await stream.next()), (await stream.next())
            told = await both.news()
            await connection.execute("UPDATE control_plane.jobs SET status = 'completed' WHERE id = $1", good)
            done, end_of_both = (await both.news()), (await both.next())

    unreadable = {"id": str(bad), "unreadable": True}
    assert told_alone is not None
    assert (told_alone.fields["event"], told_alone.data, end) == ("job", unreadable, None)
    assert (told.fields["event"], told.data) == ("job", unreadable)
    assert (done.data["id"], done.data["status"], end_of_both) == (str(good), "completed", None)


# -- statuses of the owner's


async def test_a_status_of_the_owner_s_own_is_filtered_by_counted_and_final_where_the_settings_say_so(
    database_url: str,
    serve: Serve,
) -> None:
    async with connected(database_url) as connection:
        await connection.execute(FREE)
        (cancelled,) = await insert(connection, status="'cancelled'")
        (expired,) = await insert(connection, status="'timed out'", created_at="'2026-11-01 00:00+00'")
        await insert(connection, 3)
        api = await serve(database_url)
        by_default = [(await api.get(f"/api/jobs/{id_}", token=READER)).data for id_ in (cancelled, expired)]
        listed = await api.get("/api/jobs?status=timed%20out", token=READER)
        stats = (await api.get("/api/jobs/stats", token=READER)).data
        wait = await api.get(f"/api/jobs/{cancelled}", token=READER, headers={"Prefer": "wait=20"})
        refused = await api.post(f"/api/jobs/{cancelled}/retry", token=READER)
        api = await serve(database_url, final_statuses="timed out, skipped")
        as_set = [(await api.get(f"/api/jobs/{id_}", token=READER)).data for id_ in (cancelled, expired)]

    assert [(job["status"], job["done"], job["retry_blocked_by"]) for job in by_default] == [
        ("cancelled", True, "not_failed"), ("timed out", False, "not_failed"),
    ]  # fmt: skip
    assert [job["done"] for job in as_set] == [False, True]
    assert [job["id"] for job in listed.data] == [str(expired)]
    assert stats["other"] == {"count": 2, "capped": False, "oldest_at": "2026-11-01T00:00:00Z"}
    assert stats["failed"]["count"] == 3
    assert (wait.status, "Retry-After" in wait.headers) == (200, False)
    assert (refused.status, refused.code) == (409, "job-not-failed")
