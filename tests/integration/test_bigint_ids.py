"""Jobs whose ids are numbers (REDRIVE_JOB_ID=bigint): numbers are seen everywhere, and the ledger's UUIDs nowhere."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from typing import Final

import asyncpg
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from redrive_client import FailedFilter, JobStatus, Redrive
from shared import topology
from shared.job_ids import BigintIds
from shared.migrations import migrate
from shared.models import JobId
from tests.api_server import NO_TOKEN, Api, Reply, Serve
from tests.commands import Done, commanded
from tests.eventually import eventually
from tests.jobs import JobMaker, a_message_for
from tests.queues import Queues
from tests.statements import statements_sent
from tests.tokens import SECRET, token
from tests.workers import a_worker

SCOPES: Final = "jobs:read jobs:payload jobs:retry jobs:retry:bulk jobs:retry:extend"
OF_LEDGER: Final = "626967696e74"
"""How every UUID ends that the ledger has for a number."""
MOST: Final = 2**63 - 1
VERSION_1: Final = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
VERSION_7: Final = "0193c9a8-0000-7000-8000-000000000001"


@pytest.fixture
async def jobs(bigint_database_url: str) -> AsyncIterator[JobMaker]:
    async with JobMaker.on(bigint_database_url, "bigint") as maker:
        yield maker


@pytest.fixture
async def api(bigint_database_url: str, serve: Serve) -> Api:
    return await serve(bigint_database_url, job_id="bigint")


async def read(api: Api, path: str, *, bearer: str | None = None, headers: Mapping[str, str] | None = None) -> Reply:
    """A good answer; no UUID of the ledger's is in it."""
    return good(await api.get(path, token=bearer or token(scope=SCOPES, exp=4_000_000_000), headers=headers))


async def sent(api: Api, path: str, body: object = ..., *, method: str = "POST") -> Reply:
    return good(await api.call(method, path, json=body, token=token(scope=SCOPES, sub="alice", exp=4_000_000_000)))


def good(answer: Reply) -> Reply:
    assert answer.status in {200, 202}, answer.body
    assert OF_LEDGER.encode() not in answer.body
    assert OF_LEDGER not in str(answer.headers)
    return answer


async def test_sql_and_python_make_the_same_uuids_of_numbers(jobs: JobMaker) -> None:
    ids, numbers = BigintIds(), [1, 2, 9, 10, 2**31, 2**32 - 1, 2**48, 2**53 + 1, MOST - 1, MOST, 0, -1, -(2**63)]
    for number in numbers:
        ((stored, back),) = await jobs.pool.fetch(
            "SELECT redrive.job_uuid($1), redrive.job_number(redrive.job_uuid($1))", number
        )
        assert (stored, back) == (ids.stored(JobId(str(number))), number)
        assert ids.shown(stored) == str(number)

    others = ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"]
    others += ["00000000-0000-4000-8100-626967696e74", "00000000-0000-8000-9100-626967696e74"]
    others += ["00000000-0000-8000-8101-626967696e74", "00000000-0000-8000-8100-626967696e75"]
    for other in others:
        assert await jobs.pool.fetchval("SELECT redrive.job_number($1)", other) is None


async def test_a_job_is_read_by_its_number(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed(job_id=42)

    answer = await read(api, "/api/jobs/42?include=payload")

    path = "/api/jobs/42"
    assert answer.data["id"] == "42"
    assert answer.data["links"] == {
        "self": path, "retry": f"{path}/retry", "retries": f"{path}/retries", "events": f"{path}/events"
    }  # fmt: skip
    assert answer.headers["ETag"].startswith(f'"{job.version}')
    assert (await read(api, path, headers={"Prefer": "wait=1"})).data["id"] == "42"
    largest = await jobs.failed(job_id=MOST)
    assert (await read(api, f"/api/jobs/{MOST}")).data["id"] == str(MOST) == largest.id
    assert [(await api.get(f"/api/jobs/{number}")).code for number in (1, MOST - 1)] == ["job-not-found"] * 2


async def test_lists_and_groups_name_jobs_by_number(api: Api, jobs: JobMaker) -> None:
    made = await jobs.many_failed(25)
    newest_first = [job.id for job in reversed(made)]
    assert all(job.id.isdigit() for job in made)

    for query in ("", "&status=failed", "&status=failed&retryable=true", "&status=failed&error_contains=broke"):
        seen: list[str] = []
        cursor = ""
        while True:
            page = await read(api, f"/api/jobs?limit=10{query}{cursor}")
            seen += [job["id"] for job in page.data]
            if page.json["next_cursor"] is None:
                break
            cursor = f"&cursor={page.json['next_cursor']}"
        assert seen == newest_first

    asked = [made[3].id, "77777", made[0].id]
    by_ids = await read(api, f"/api/jobs?ids={','.join(asked)}")
    assert ([job["id"] for job in by_ids.data], by_ids.json["not_found"]) == ([asked[0], asked[2]], ["77777"])
    (group,) = (await read(api, "/api/failures")).data
    assert group["sample"] == newest_first[:5]
    await read(api, "/api/jobs/stats")


async def test_rows_without_a_time_come_last_and_rows_that_cannot_be_read_stand_alone(api: Api, jobs: JobMaker) -> None:
    await jobs.many_failed(3)
    await jobs.pool.execute("ALTER TABLE control_plane.jobs ALTER created_at DROP NOT NULL, ALTER type DROP NOT NULL")
    await jobs.pool.execute("UPDATE control_plane.jobs SET created_at = NULL WHERE id = 1")
    await jobs.pool.execute("UPDATE control_plane.jobs SET created_at = 'infinity' WHERE id = 2")
    await jobs.pool.execute("UPDATE control_plane.jobs SET type = NULL WHERE id = 3")

    seen = []
    cursor = ""
    for _ in range(3):
        page = await read(api, f"/api/jobs?limit=1{cursor}")
        seen += [(job["id"], job.get("unreadable", False)) for job in page.data]
        cursor = f"&cursor={page.json['next_cursor']}"
    assert seen == [("2", False), ("3", True), ("1", True)]
    assert (await api.get("/api/jobs/1")).code == "job-unreadable"


async def test_a_number_that_is_no_id_is_in_no_list_and_in_no_bulk_retry(api: Api, jobs: JobMaker) -> None:
    good = [await jobs.failed(job_id=number) for number in (1, 2)]
    for number in (0, -1, -(2**63)):
        await jobs.failed(job_id=number)
    await jobs.pool.execute("ALTER TABLE control_plane.jobs ALTER created_at DROP NOT NULL")
    newest_first = [each.id for each in reversed(good)]

    for timeless in (False, True):
        if timeless:
            await jobs.pool.execute("UPDATE control_plane.jobs SET created_at = NULL WHERE id IN (0, -1)")
        for query in ("", "?status=failed", "?type=email", "?status=failed&error_contains=broke"):
            page = await read(api, f"/api/jobs{query}")
            assert [job["id"] for job in page.data] == newest_first, query
        page = await read(api, "/api/jobs?limit=1")
        assert [job["id"] for job in page.data] == newest_first[:1]
        assert (await read(api, f"/api/jobs?limit=1&cursor={page.json['next_cursor']}")).json["next_cursor"] is None
        (group,) = (await read(api, "/api/failures")).data
        assert (group["jobs"], group["sample"]) == (2, newest_first)
        assert (await read(api, "/api/jobs/stats")).data["failed"]["count"] == 2
        assert (await read(api, "/api/jobs/types")).data == [{"type": "email", "jobs": 2}]
        assert sum(each["failed"]["count"] for each in (await read(api, "/api/jobs/series")).data) == 2
        bulk = await sent(api, "/api/jobs/retry", {"filter": {"type": "email"}, "reason": "x", "max": 9})
        assert (bulk.data["matched"], bulk.data["sample"]) == (2, newest_first)


async def test_the_check_warns_of_numbers_that_are_no_ids(bigint_database_url: str, jobs: JobMaker) -> None:
    url = {"DATABASE_URL": bigint_database_url, "JOB_ID": "bigint"}
    await jobs.failed(job_id=1)
    assert "ids below 1" not in (await commanded("check", "worker", **url)).out

    await jobs.failed(job_id=-7)
    done = await commanded("check", "worker", **url)

    assert done.status == 0
    assert "control_plane.jobs has ids below 1, such as -7" in done.out


@pytest.mark.parametrize(
    "bad",
    [
        "0", "01", "-1", "+1", "%2B1", "1.0", "1e3", "0x1", "1_0", "%201", "1%20", "1%0a", "1%00", str(MOST + 1),
        "9" * 20, "%D9%A1", "%EF%BC%91", "1%D9%A1", "6ba7b810-9dad-41d1-80b4-00c04fd430c8",
        "00000000-0000-8000-8100-626967696e74", "a", "1;--",
    ],
)  # fmt: skip
async def test_what_is_no_number_is_refused_before_any_query(api: Api, jobs: JobMaker, bad: str) -> None:
    await jobs.failed(job_id=1)
    with statements_sent() as queries:
        answers = [
            await api.get(f"/api/jobs/{bad}"),
            await api.get(f"/api/jobs/{bad}/events"),
            await api.get(f"/api/jobs/{bad}/retries"),
            await api.post(f"/api/jobs/{bad}/retry"),
            await api.get(f"/api/jobs?ids=1,{bad}"),
            await api.get(f"/api/jobs/events?ids=1,{bad}"),
            await api.get(f"/api/retries?job_id={bad}"),
        ]
        if "%" not in bad:
            answers.append(
                await api.post("/api/jobs/retry", {"ids": ["1", bad]}, token=token(scope=SCOPES, exp=4_000_000_000))
            )
            narrowed = token(jobs=["1", bad], exp=4_000_000_000)
            assert (await api.get("/api/jobs/1", token=narrowed)).status == 401

    assert [(answer.status, answer.code) for answer in answers] == [(400, "invalid-job-id")] * len(answers)
    assert "whole number" in answers[0].json["detail"]
    assert not queries


async def test_a_retry_is_accepted_settled_and_audited_by_number(
    api: Api, jobs: JobMaker, bigint_database_url: str
) -> None:
    job, other = await jobs.failed(job_id=42), await jobs.failed(job_id=43)

    accepted = await sent(api, "/api/jobs/42/retry", {"reason": "again"})
    assert (accepted.data["job_id"], accepted.data["links"]["job"]) == ("42", "/api/jobs/42?fresh=true")
    assert (await sent(api, "/api/jobs/42/retry")).json["deduplicated"]
    pending = (await read(api, "/api/jobs/42")).data["pending_retry"]
    assert pending["id"] == accepted.data["id"]
    assert (await read(api, "/api/jobs?status=failed&retryable=true")).data[0]["id"] == "43"
    async with a_worker(bigint_database_url, job_id="bigint"):
        settled = await read(api, accepted.headers["Location"], headers={"Prefer": "wait=20"})

    assert (settled.data["outcome"], settled.data["job_id"]) == ("applied", "42")
    assert await jobs.effects([job, other]) == [1, 0]
    assert (await jobs.row(job))["status"] == "pending"
    for path in ("/api/jobs/42/retries", "/api/retries?job_id=42", "/api/retries"):
        assert [retry["job_id"] for retry in (await read(api, path)).data] == ["42"]
    assert (await read(api, "/api/retries?job_id=43")).data == []


async def test_a_bulk_retry_names_jobs_by_number(api: Api, jobs: JobMaker, bigint_database_url: str) -> None:
    made = await jobs.many_failed(5)
    running = await jobs.running()
    ids = [job.id for job in made[:2]]

    dry = (await sent(api, "/api/jobs/retry?dry_run=true", {"ids": [*ids, running.id, "999"]})).data
    assert (dry["sample"], dry["skipped"]["job_not_found"]) == (ids, 1)
    by_ids = (await sent(api, "/api/jobs/retry", {"ids": [*ids, running.id, "999"]})).data
    assert by_ids["skipped"] == [
        {"job_id": running.id, "code": "job-not-failed"}, {"job_id": "999", "code": "job-not-found"}
    ]  # fmt: skip
    chosen = {"filter": {"retried_fewer_than": {"times": 1, "within_seconds": 60}}, "max": 10, "reason": "all"}
    assert (await sent(api, "/api/jobs/retry", chosen)).data["retryable"] == 3
    by_filter = (await sent(api, "/api/jobs/retry?dry_run=false", {**chosen, "spread_seconds": 1})).data
    assert {each["code"] for each in by_filter["skipped"]} == {"retry-queued"}
    assert {each["job_id"] for each in by_filter["skipped"]} == set(ids)

    async with a_worker(bigint_database_url, job_id="bigint"):
        for batch in (by_ids, by_filter):
            done = await read(api, f"/api/retry-batches/{batch['batch_id']}", headers={"Prefer": "wait=20"})
            assert done.data["applied"] == batch["accepted"]
    assert await jobs.effects([*made, running]) == [1, 1, 1, 1, 1, 0]


async def test_streams_name_jobs_by_number(api: Api, jobs: JobMaker) -> None:
    await jobs.make(1, status="running", job_id=7)
    await jobs.make(1, status="running", job_id=8)
    bearer = token(exp=4_000_000_000)
    one = asyncio.create_task(api.get("/api/jobs/7/events", token=bearer))
    many = asyncio.create_task(api.get("/api/jobs/events?ids=8,7,9", token=bearer))

    async def both_wait() -> bool:
        return api.counted("redrive_waiters") == 2

    await eventually(both_wait)
    await jobs.pool.execute("DELETE FROM control_plane.jobs WHERE id = 7")
    await jobs.pool.execute("UPDATE control_plane.jobs SET status = 'completed' WHERE id = 8")

    last = (await one).body.decode().rstrip().rpartition("\n\n")[2]
    assert last == 'event: gone\ndata: {"id":"7"}'
    text = (await many).body.decode()
    assert "event: not_found" in text
    assert 'data: {"ids":["9"]}' in text
    assert text.count('data: {"id":"8"') == 2
    assert 'data: {"id":"7"}' in text
    assert OF_LEDGER not in text


async def test_a_token_may_be_narrowed_to_numbers(api: Api, jobs: JobMaker) -> None:
    await jobs.failed(job_id=7)
    await jobs.failed(job_id=8)
    narrowed = token(jobs=["7", "9"], exp=4_000_000_000)

    assert (await read(api, "/api/me", bearer=narrowed)).data["jobs"] == ["7", "9"]
    assert (await read(api, "/api/jobs/7", bearer=narrowed)).data["id"] == "7"
    assert (await api.get("/api/jobs/8", token=narrowed)).code == "job-not-found"


async def test_messages_name_jobs_by_number(
    bigint_database_url: str, amqp_url: str, queues: Queues, jobs: JobMaker, serve: Serve
) -> None:
    ours, theirs = await jobs.failed(job_id=42), await jobs.failed(job_id=43)
    api = await serve(bigint_database_url, amqp_url=amqp_url, job_id="bigint")
    accepted = await sent(api, "/api/jobs/42/retry")

    async def published() -> bool:
        return await queues.waiting() == 1

    await eventually(published, within_s=20)
    (letter,) = await queues.peek(topology.RETRIES)
    message = json.loads(letter.body)
    assert (message["request_id"], message["job_id"]) == (accepted.data["id"], "42")
    assert OF_LEDGER.encode() not in letter.body

    own = a_message_for(theirs)
    bad = ["0", "-1", "044", "44 ", str(MOST + 1), "00000000-0000-8000-82c0-626967696e74", 44]
    await queues.publish(own)
    for number, job_id in enumerate(bad):
        fields = {"v": 1, "request_id": f"0193c9a8-0000-7000-8000-00000000000{number}", "project_id": "p1"}
        await queues.publish(json.dumps({**fields, "job_id": job_id}).encode())
    async with a_worker(bigint_database_url, amqp_url, job_id="bigint"):
        settled = await read(api, accepted.headers["Location"], headers={"Prefer": "wait=20"})
        assert settled.data["outcome"] == "applied"
        await eventually(queues.drained)

        async def adopted() -> bool:
            return await jobs.outcome_of(own.id) == "applied"

        await eventually(adopted)
        letters = await queues.peek(topology.RETRIES_DEAD)

    assert len(letters) == len(bad)
    assert all("(at job_id)" in str(letter.reason) for letter in letters)
    assert await jobs.effects([ours, theirs]) == [1, 1]
    row = await jobs.ledger_row(own.id)
    assert row is not None
    assert row["job_id"] == BigintIds().stored(JobId("43"))


async def redrive(api: Api, *args: str, **settings: str) -> Done:
    bearer = token(sub="ana", scope=SCOPES)
    done = await commanded(*args, URL=f"http://127.0.0.1:{api.port}", TOKEN=bearer, **settings)
    assert OF_LEDGER not in done.out + done.err
    return done


async def test_commands_read_jobs_by_number(api: Api, jobs: JobMaker) -> None:
    await jobs.failed(job_id=42)
    await jobs.make(1, status="completed", job_id=43)

    (shown,) = (await redrive(api, "jobs", "get", "42", "--json")).json
    assert shown["id"] == "42"
    assert (await redrive(api, "jobs", "wait", "43")).status == 0
    listed = (await redrive(api, "jobs", "list")).out.splitlines()[1:]
    assert {line.split()[0] for line in listed} == {"42", "43"}
    assert "invalid-job-id" in (await redrive(api, "jobs", "get", "0")).err


async def test_commands_retry_jobs_by_number(api: Api, jobs: JobMaker, bigint_database_url: str) -> None:
    made = [await jobs.failed(job_id=number) for number in (42, 43)]
    async with a_worker(bigint_database_url, job_id="bigint"):
        one = await redrive(api, "retry", "42")
        two = await redrive(api, "retry", "43", "44")

    assert (one.status, two.status) == (0, 3), (one, two)
    assert "44" in two.out
    assert await jobs.effects(made) == [1, 1]
    (found,) = (await redrive(api, "retries", "list", "--job", "43", "--json")).json
    assert (found["job_id"], found["state"]) == ("43", "applied")


async def test_a_token_is_made_for_numbers_and_for_nothing_else(api: Api, jobs: JobMaker) -> None:
    await jobs.failed(job_id=42)
    settings = {"JWT_SECRET": SECRET, "JOB_ID": "bigint", "DATABASE_URL": "postgresql://"}

    made = await commanded("token", "--project", "p1", "--job", "42", **settings)
    refused = await commanded("token", "--project", "p1", "--job", "042", **settings)

    assert (await read(api, "/api/me", bearer=made.out.strip())).data["jobs"] == ["42"]
    assert refused.status == 2


async def test_dead_letters_name_jobs_by_number(bigint_database_url: str, jobs: JobMaker) -> None:
    job = await jobs.failed(job_id=42)
    await jobs.pool.execute(
        """
        INSERT INTO redrive.retry_requests (id, project_id, job_id, state, outcome, actor, processed_at)
        VALUES (gen_random_uuid(), 'p1', redrive.job_uuid(42), 'dead_lettered', 'poison', 'ana', now())
        """
    )
    assert job.id == "42"

    listed = await commanded("dead", "list", "--json", DATABASE_URL=bigint_database_url, JOB_ID="bigint")

    assert [each["job_id"] for each in listed.json] == ["42"]


async def test_the_client_takes_and_answers_numbers(api: Api, jobs: JobMaker) -> None:
    await jobs.failed(job_id=42)
    await jobs.make(1, status="completed", job_id=43)
    bearer = token(sub="ana", scope=SCOPES)
    async with Redrive(f"http://127.0.0.1:{api.port}", token=bearer, timeout_s=10) as client:
        assert (await client.get(42)).id == (await client.get("42")).id == "42"
        assert (await client.wait(43, timeout_s=5)).status is JobStatus.COMPLETED
        found = await client.get_many([43, "44", 42])
        assert ([job.id for job in found.jobs], found.not_found) == (["43", "42"], ("44",))
        assert [job.id async for job in client.events_of([43, 42, 44])] == ["43", "42"]
        assert [job.id async for job in client.events(42)] == ["42"]
        assert (await client.failures()).data[0].sample == ("42",)
        assert (await client.preview(FailedFilter())).sample == ("42",)
        assert (await client.retry(42)).retry.job_id == "42"
        assert [retry.job_id async for retry in client.list_retries(job_id=42)] == ["42"]
        assert (await client.retry_many([42, 43])).skipped[0].job_id == "42"


async def test_numbers_of_two_projects_are_two_jobs(bigint_database_url: str, jobs: JobMaker, api: Api) -> None:
    await jobs.pool.execute(
        "ALTER TABLE control_plane.jobs DROP CONSTRAINT jobs_pkey, ADD PRIMARY KEY (project_id, id)"
    )
    ours, theirs = await jobs.failed(job_id=42), await jobs.failed(job_id=42, project_id="p2")

    await sent(api, "/api/jobs/42/retry")
    async with a_worker(bigint_database_url, job_id="bigint"):

        async def settled() -> bool:
            return await jobs.queued() == 0

        await eventually(settled)

    assert await jobs.effects([ours, theirs]) == [1, 0]


LOOK_UPS: Final = {
    "find": "jobs", "find_with_payload": "jobs", "changed": "jobs", "blocks": "batches", "insert_requests": "batches",
    "apply": "settlement", "block_unmoved": "settlement", "block": "settlement",
}  # fmt: skip


async def test_each_look_up_goes_by_the_primary_key(jobs: JobMaker) -> None:
    """With no index of ours: of a hundred thousand jobs, a look-up of one touches a few pages."""
    await jobs.pool.execute(
        """
        INSERT INTO control_plane.jobs (project_id, type, status, attempts, max_attempts)
        SELECT 'p1', 'email', CASE WHEN n % 10 = 0 THEN 'failed' ELSE 'completed' END, 1, 3
        FROM generate_series(1, 100000) AS n;
        INSERT INTO redrive.retry_requests (id, project_id, job_id, actor)
        SELECT gen_random_uuid(), 'p1', redrive.job_uuid(n * 10), 'ana' FROM generate_series(1, 100) AS n;
        ANALYZE;
        """
    )
    ids = BigintIds()
    request = await jobs.pool.fetchval("SELECT id FROM redrive.retry_requests WHERE job_id = redrive.job_uuid(500)")
    job = "ARRAY[redrive.job_uuid(500)]"
    arguments = {
        "find": [job, "ARRAY['p1']", "2001"],
        "find_with_payload": [job, "ARRAY['p1']", "2001", "true"],
        "changed": [job, "ARRAY['p1']", "ARRAY['x']", "ARRAY[NULL]::uuid[]", "ARRAY[NULL]", "ARRAY[NULL]::xid[]"],
        "blocks": ["'p1'", job, "0"],
        "insert_requests": [
            "gen_random_uuid()", "'p1'", "ARRAY[gen_random_uuid()]", "ARRAY[redrive.job_uuid(100000)]", "'ana'",
            "NULL", "0", "0", "0", "NULL",
        ],
        "apply": [f"ARRAY['{request}']::uuid[]", "ARRAY[]::uuid[]", "true"],
        "block_unmoved": [f"ARRAY['{request}']::uuid[]", "ARRAY['x']"],
        "block": [f"ARRAY['{request}']::uuid[]", "ARRAY[]::uuid[]", "true"],
    }  # fmt: skip
    for name, file in LOOK_UPS.items():
        async with jobs.pool.acquire() as connection:
            await connection.execute(f"PREPARE planned AS {ids.statements(file)[name]}")
            transaction = connection.transaction()
            await transaction.start()
            call = f"EXECUTE planned({', '.join(arguments[name])})"
            plan = json.loads(await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {call}"))[0]["Plan"]
            await transaction.rollback()
            await connection.execute("DEALLOCATE planned")
        assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 120, name
        assert '"Index Name": "jobs_pkey"' in json.dumps(plan), name


VIEW: Final = """
CREATE SCHEMA theirs;
CREATE TABLE theirs.work (
    no bigint PRIMARY KEY, queue text NOT NULL, state text NOT NULL, tries int NOT NULL, error text,
    due timestamptz NOT NULL DEFAULT now(), made timestamptz NOT NULL DEFAULT now(), returned int NOT NULL DEFAULT 0
);
CREATE SCHEMA control_plane;
CREATE VIEW control_plane.jobs AS
SELECT
    no AS id, queue AS project_id, 'work'::text AS type, '{}'::jsonb AS payload,
    CASE state WHEN 'done' THEN 'completed' WHEN 'dead' THEN 'failed' ELSE 'pending' END AS status,
    tries AS attempts, greatest(3, tries + 1) AS max_attempts, error AS last_error, due AS scheduled_at,
    NULL::timestamptz AS started_at, NULL::timestamptz AS completed_at, made AS created_at
FROM theirs.work;
CREATE FUNCTION control_plane.jobs_retry() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE theirs.work SET state = 'waiting', error = NULL, due = NEW.scheduled_at, returned = returned + 1
    WHERE no = OLD.id AND state = 'dead';
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER jobs_retry INSTEAD OF UPDATE ON control_plane.jobs
FOR EACH ROW EXECUTE FUNCTION control_plane.jobs_retry();
"""


async def test_a_view_over_a_table_of_numbers_serves_as_the_table(
    empty_database_url: str, amqp_url: str, serve: Serve
) -> None:
    connection = await asyncpg.connect(empty_database_url)
    try:
        await connection.execute(VIEW)
        await asyncio.to_thread(migrate, empty_database_url)
        await connection.execute(
            "INSERT INTO theirs.work (no, queue, state, tries, error) "
            "SELECT n, 'p1', CASE WHEN n <= 60 THEN 'dead' ELSE 'done' END, 1, 'it broke' "
            "FROM generate_series(1, 80) AS n"
        )
        api = await serve(empty_database_url, amqp_url=amqp_url, job_id="bigint")
        async with a_worker(empty_database_url, amqp_url, job_id="bigint", ready=False):
            one = await sent(api, "/api/jobs/60/retry")
            many = await sent(api, "/api/jobs/retry", {"ids": [str(n) for n in range(1, 51)]})
            settled = await read(api, one.headers["Location"], headers={"Prefer": "wait=20"})
            done = await read(api, many.headers["Location"], headers={"Prefer": "wait=20"})
            failed = (await read(api, "/api/jobs?status=failed&limit=100")).data
        assert (settled.data["outcome"], done.data["applied"]) == ("applied", 50)
        assert {int(job["id"]) for job in failed} == set(range(51, 60))
        rows = await connection.fetch("SELECT no, returned FROM theirs.work ORDER BY no")
        assert [row["returned"] for row in rows] == [int(row["no"] in {*range(1, 51), 60}) for row in rows]
    finally:
        await connection.close()


async def test_with_the_other_setting_nothing_is_shown_and_check_says_why(
    bigint_database_url: str, database_url: str, serve: Serve
) -> None:
    async with JobMaker.on(bigint_database_url, "bigint") as jobs:
        await jobs.failed(job_id=42)
    cases = ((bigint_database_url, "uuid", "bigint"), (database_url, "bigint", "uuid"))
    for url, job_id, column in cases:
        api = await serve(url, job_id=job_id)
        path = "/api/jobs/6ba7b810-9dad-41d1-80b4-00c04fd430c8" if job_id == "uuid" else "/api/jobs/42"
        answers = [await api.get(each) for each in (path, "/api/jobs", "/api/jobs?status=failed&retryable=true")]
        assert [answer.status for answer in answers] == [503] * len(answers)
        check = await commanded("check", "worker", DATABASE_URL=url, JOB_ID=job_id)
        assert check.status == 1
        assert f"control_plane.jobs.id is of type {column}, wanted: {job_id}" in check.out
        assert f"set it to {column}" in check.out
        assert (await commanded("check", "worker", DATABASE_URL=url, JOB_ID=column)).status == 0


async def test_the_document_that_is_served_says_which_ids_are_taken(api: Api, database_url: str, serve: Serve) -> None:
    document = (await api.get("/api/openapi.json", token=NO_TOKEN)).json

    OpenAPIV31SpecValidator(document).validate()
    schemas = document["components"]["schemas"]
    taken = re.compile(schemas["JobId"]["pattern"])
    assert all(taken.match(text) for text in ("1", "42", str(MOST)))
    assert not any(taken.match(text) for text in ("0", "042", "-1", "", "6ba7b810-9dad-41d1-80b4-00c04fd430c8"))
    assert "format" not in schemas["JobId"] | schemas["ShownJobId"]
    assert "6ba7b810" not in json.dumps(document)
    refusal = await api.get("/api/jobs/0")
    assert document["components"]["examples"]["invalid-job-id"]["value"]["detail"] == refusal.json["detail"]

    for versions, good, bad in (("4,7", VERSION_7, VERSION_1), ("any", VERSION_1, "42")):
        other = await serve(database_url, job_id_versions=versions)
        served = (await other.get("/api/openapi.json", token=NO_TOKEN)).json["components"]["schemas"]["JobId"]
        assert (await other.get(f"/api/jobs/{good}")).code == "job-not-found"
        assert re.match(served["pattern"], good)
        assert not re.match(served["pattern"], bad)
