"""A job's version is made of what is shown of it, and of nothing else."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from shared.models import Outcome
from shared.sql import statements
from tests.api_server import Api, Reply, Serve
from tests.eventually import eventually
from tests.jobs import VERSION_SQL, JobMaker, MadeJob, a_message_for, a_retry_of
from tests.ledger import Ledger
from tests.servers.postgres import Postgres, PrivatePostgres

TICK_S = 0.05

OURS = """
redrive.job_version(
    type::text, status::text, attempts::bigint, max_attempts::bigint, last_error::text, scheduled_at::timestamptz,
    started_at::timestamptz, completed_at::timestamptz, created_at::timestamptz
)
"""

HEARTBEAT = "ALTER TABLE control_plane.jobs ADD heartbeat_at timestamptz, ADD tags text[]"
BEAT = "UPDATE control_plane.jobs SET heartbeat_at = clock_timestamp(), tags = '{seen}'"

VIEW = """
ALTER TABLE control_plane.jobs RENAME TO all_jobs;
CREATE VIEW control_plane.jobs AS SELECT * FROM control_plane.all_jobs;
CREATE FUNCTION control_plane.put_back() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$;
CREATE TRIGGER put_back INSTEAD OF UPDATE ON control_plane.jobs FOR EACH ROW EXECUTE FUNCTION control_plane.put_back();
"""

AFTER = """
CREATE FUNCTION control_plane.undo() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE control_plane.jobs SET
        status = OLD.status, last_error = OLD.last_error, scheduled_at = OLD.scheduled_at,
        started_at = OLD.started_at, completed_at = OLD.completed_at
    WHERE project_id = OLD.project_id AND id = OLD.id;
    RETURN NULL;
END
$$;
CREATE TRIGGER undo AFTER UPDATE ON control_plane.jobs FOR EACH ROW
    WHEN (OLD.type = 'sealed' AND NEW.status = 'pending') EXECUTE FUNCTION control_plane.undo();
"""


@pytest.fixture
async def api(database_url: str, serve: Serve) -> Api:
    return await serve(database_url, watch_interval=TICK_S)


async def tag_of(api: Api, job: MadeJob, query: str = "") -> str:
    return (await api.get(f"/api/jobs/{job.id}{query}")).headers["ETag"]


@asynccontextmanager
async def held(api: Api, path: str, etag: str) -> AsyncIterator["asyncio.Task[Reply]"]:
    """A client that has the job as `etag` says and waits for news, while the block lasts."""
    before = api.counted("redrive_waiters")
    task = asyncio.create_task(api.get(path, headers={"Prefer": "wait=60", "If-None-Match": etag}))
    try:
        await eventually(lambda: api.counted("redrive_waiters") > before)
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await eventually(lambda: api.counted("redrive_waiters") == before)


async def looks(api: Api, count: int) -> None:
    """Return once the watch has begun and ended so many looks more."""
    watch = api.parts.watches.jobs
    before = watch._looks
    await eventually(lambda: watch._looks > before + count)


@pytest.mark.parametrize(
    "change",
    [
        "last_error = NULL, scheduled_at = NULL, attempts = NULL, max_attempts = NULL",
        "type = repeat('é', 3000), last_error = repeat('é', 70000)",
        "last_error = repeat('x', 65536)",
        "last_error = repeat('x', 65535) || 'é'",
        "scheduled_at = 'infinity', started_at = '-infinity', created_at = '4000-01-01 BC'",
        "attempts = -1, max_attempts = 2147483647",
        "status = 'completed', last_error = ''",
    ],
)
async def test_a_version_is_the_promised_hash(api: Api, jobs: JobMaker, change: str) -> None:
    job = await jobs.failed()
    await jobs.pool.execute(f"UPDATE control_plane.jobs SET {change} WHERE id = $1", job.id)
    ((ours, promised),) = await jobs.pool.fetch(
        f"SELECT {OURS}, {VERSION_SQL} FROM control_plane.jobs WHERE id = $1", job.id
    )

    assert ours == promised
    assert await tag_of(api, job) == f'"{promised}"'


async def test_other_types_and_collations_of_the_columns_make_the_same_version(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()
    before = await tag_of(api, job)
    await jobs.pool.execute("""
        DROP TRIGGER test_effect ON control_plane.jobs;
        CREATE TYPE control_plane.status AS ENUM ('pending', 'running', 'failed', 'completed');
        ALTER TABLE control_plane.jobs
            DROP CONSTRAINT jobs_status_check, ALTER status DROP DEFAULT,
            ALTER type TYPE varchar(100) COLLATE "POSIX",
            ALTER last_error TYPE text COLLATE "C",
            ALTER attempts TYPE numeric, ALTER max_attempts TYPE smallint,
            ALTER created_at TYPE timestamp USING created_at AT TIME ZONE 'UTC';
        DROP INDEX control_plane.jobs_pending_idx;
        ALTER TABLE control_plane.jobs ALTER status TYPE control_plane.status USING status::control_plane.status;
    """)

    assert await tag_of(api, job) == before


@pytest.mark.parametrize("role", ["redrive_api", "redrive_worker"])
async def test_the_planner_puts_the_function_in_place(jobs: JobMaker, role: str) -> None:
    async with jobs.pool.acquire() as connection, connection.transaction():
        await connection.execute(f"SET LOCAL ROLE {role}")
        plan = await connection.fetch(f"EXPLAIN VERBOSE SELECT {OURS} FROM control_plane.jobs")

    text = "\n".join(row[0] for row in plan)
    assert "hash_record_extended" in text
    assert "job_version" not in text


@pytest.mark.parametrize("query", ["", "?include=payload"])
async def test_a_heartbeat_changes_no_tag_and_wakes_nothing(api: Api, jobs: JobMaker, query: str) -> None:
    await jobs.pool.execute(HEARTBEAT)
    job = await jobs.running()
    tag = await tag_of(api, job, query)
    async with held(api, f"/api/jobs/{job.id}{query}", tag) as waiting:
        for _ in range(3):
            await jobs.pool.execute(BEAT)
            await looks(api, 2)

        assert not waiting.done()
        assert await tag_of(api, job, query) == tag
        await jobs.pool.execute("UPDATE control_plane.jobs SET attempts = attempts + 1, heartbeat_at = now()")
        async with asyncio.timeout(30):
            assert (await waiting).headers["ETag"] != tag


async def test_a_payload_that_changes_is_news_to_whom_it_is_shown_alone(api: Api, jobs: JobMaker) -> None:
    job = await jobs.running()
    path, plain = f"/api/jobs/{job.id}", await tag_of(api, job)
    whole = await tag_of(api, job, "?include=payload")
    async with held(api, path, plain) as one, held(api, f"{path}?include=payload", whole) as other:
        await looks(api, 2)
        await jobs.pool.execute("UPDATE control_plane.jobs SET payload = '{\"n\": 1}'")
        async with asyncio.timeout(30):
            news = await other

        assert (news.status, news.data["payload"]) == (200, {"n": 1})
        await looks(api, 2)
        assert not one.done()
        assert await tag_of(api, job) == plain


async def test_a_row_that_is_the_same_is_not_hashed_again(api: Api, jobs: JobMaker) -> None:
    """What the watch reads of a table's row that has not moved is its xmin: an error may have 64 KiB."""
    job = await jobs.running()
    tag = await tag_of(api, job)
    async with held(api, f"/api/jobs/{job.id}", tag) as waiting:
        await looks(api, 2)
        await jobs.pool.execute(  # from now on, each call is refused
            """
            CREATE OR REPLACE FUNCTION redrive.job_version(
                type text, status text, attempts bigint, max_attempts bigint, last_error text, scheduled_at timestamptz,
                started_at timestamptz, completed_at timestamptz, created_at timestamptz
            ) RETURNS text IMMUTABLE LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'hashed' USING ERRCODE = '22000'; END $$
            """
        )
        await looks(api, 3)

        assert not waiting.done()


async def test_a_restore_and_a_rewrite_of_the_table_supersede_no_request(
    api: Api, postgres: Postgres, jobs: JobMaker, ledger: Ledger, serve: Serve
) -> None:
    job = await jobs.failed()
    tag = await tag_of(api, job)
    retry = (await ledger.retries.accept(a_retry_of(job))).retry
    await jobs.pool.execute("VACUUM FULL control_plane.jobs")
    assert (await tag_of(api, job)).startswith(tag[:-1])
    dump = io.BytesIO()
    async with jobs.pool.acquire() as connection:  # as pg_dump has it: COPY, and back
        await connection.copy_from_table("jobs", schema_name="control_plane", output=dump)
        await connection.execute("TRUNCATE control_plane.jobs")
        dump.seek(0)
        await connection.copy_to_table("jobs", schema_name="control_plane", source=dump)

    assert (await tag_of(api, job)).startswith(tag[:-1])
    async with postgres.database() as elsewhere, JobMaker.on(elsewhere) as copies:
        there = await serve(elsewhere)
        async with copies.pool.acquire() as connection:
            dump.seek(0)
            await connection.copy_to_table("jobs", schema_name="control_plane", source=dump)
        assert await tag_of(there, job) == tag
    assert (await ledger.settlement.apply_queued(1))[retry.id].outcome is Outcome.APPLIED


async def test_a_logical_replica_has_the_same_tags(private_postgres: PrivatePostgres, serve: Serve) -> None:
    server = private_postgres.postgres
    async with (
        server.database() as here,
        server.database() as there,
        JobMaker.on(here) as jobs,
        JobMaker.on(there) as copies,
    ):
        job = await jobs.failed()
        await jobs.pool.execute("CREATE PUBLICATION jobs FOR TABLE control_plane.jobs")
        await jobs.pool.execute("SELECT pg_create_logical_replication_slot('versions', 'pgoutput')")
        ((socket, port, name),) = await jobs.pool.fetch(
            "SELECT split_part(current_setting('unix_socket_directories'), ',', 1), current_setting('port'),"
            " current_database()"
        )
        try:
            await copies.pool.execute(
                f"CREATE SUBSCRIPTION jobs CONNECTION 'host={socket} port={port} user=postgres dbname={name}'"
                " PUBLICATION jobs WITH (create_slot = false, slot_name = 'versions')"
            )
            await eventually(lambda: copies.pool.fetchval("SELECT count(*) FROM control_plane.jobs"), what="copied")
            primary, replica = await serve(here), await serve(there)
            tag = await tag_of(primary, job)
            assert await tag_of(replica, job) == tag
            again = await jobs.fail_again(job)
            await eventually(lambda: _is_tagged(replica, job, f'"{again.version}"'))
            assert await tag_of(primary, job) == f'"{again.version}"' != tag
        finally:
            await copies.pool.execute("DROP SUBSCRIPTION IF EXISTS jobs")


async def _is_tagged(api: Api, job: MadeJob, tag: str) -> bool:
    return await tag_of(api, job) == tag


async def test_a_heartbeat_supersedes_no_request_and_fails_no_if_match(
    api: Api, jobs: JobMaker, ledger: Ledger
) -> None:
    await jobs.pool.execute(HEARTBEAT)
    job = await jobs.failed()
    tag = await tag_of(api, job)
    await jobs.pool.execute(BEAT)
    answer = await api.post(f"/api/jobs/{job.id}/retry", headers={"If-Match": tag})
    await jobs.pool.execute(BEAT)

    assert answer.status == 202, answer.body
    settled = await ledger.settlement.apply_queued(1)
    assert [each.outcome for each in settled.values()] == [Outcome.APPLIED]
    assert (await api.post(f"/api/jobs/{job.id}/retry", headers={"If-Match": tag})).code == "job-changed"


async def test_behind_a_view_waiters_get_their_news(api: Api, jobs: JobMaker) -> None:
    job = await jobs.running()
    await jobs.pool.execute(VIEW.format(body="RETURN NULL;"))
    await jobs.pool.execute("ALTER TABLE control_plane.all_jobs ADD heartbeat_at timestamptz")
    tag = await tag_of(api, job)
    async with held(api, f"/api/jobs/{job.id}", tag) as waiting:
        await jobs.pool.execute("UPDATE control_plane.all_jobs SET heartbeat_at = now()")
        await looks(api, 3)
        assert not waiting.done()
        await jobs.pool.execute("UPDATE control_plane.all_jobs SET status = 'completed'")

        async with asyncio.timeout(30):
            assert (await waiting).data["status"] == "completed"


@pytest.mark.parametrize("body", ["RETURN NEW;", "RETURN NULL;", "RETURN OLD;"])
async def test_a_view_s_trigger_that_does_nothing_blocks_the_request(jobs: JobMaker, ledger: Ledger, body: str) -> None:
    made = await jobs.many_failed(3)
    await jobs.pool.execute(VIEW.format(body=body))
    for job in made:
        await ledger.retries.accept(a_retry_of(job))

    settled = await ledger.settlement.apply_queued(10)

    assert [each.outcome for each in settled.values()] == [Outcome.BLOCKED] * 3
    for request_id in settled:
        row = await jobs.ledger_row(request_id)
        assert row is not None
        assert (row["state"], row["outcome"], row["error_before"]) == ("rejected", "blocked", None)
        assert row["processed_at"] is not None


async def test_a_trigger_that_puts_one_job_as_it_was_blocks_that_request_alone(jobs: JobMaker, ledger: Ledger) -> None:
    await jobs.pool.execute(AFTER)
    sealed = await jobs.failed(kind="sealed")
    others = await jobs.many_failed(3)
    retries = {(await ledger.retries.accept(a_retry_of(job))).retry.id: job for job in [sealed, *others]}

    settled = await ledger.settlement.apply_queued(10)

    assert {retries[each].id: found.outcome for each, found in settled.items()} == {
        sealed.id: Outcome.BLOCKED, **{job.id: Outcome.APPLIED for job in others},
    }  # fmt: skip
    assert await jobs.status_of(sealed) == "failed"


async def test_a_version_of_another_making_is_refused_and_harms_nothing(jobs: JobMaker, ledger: Ledger) -> None:
    job = await jobs.failed()
    foreign = msgspec.structs.replace(a_message_for(job), job_version="!any~thing" * 6)

    assert (await ledger.settlement.apply([foreign]))[foreign.id].outcome is Outcome.SUPERSEDED
    assert await jobs.effects_of(job) == 0


def test_nothing_reads_the_row_s_place_but_the_watch() -> None:
    named = [
        f"{file}.{name}"
        for file in ("jobs", "failed", "batches", "retries", "outbox", "settlement", "overview", "prune")
        for name, text in statements(file).items()
        if "xmin" in text
    ]

    assert len(named) == 1
