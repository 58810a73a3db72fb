"""A project's jobs and retries in numbers: by status, type, time and error."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from shared import overview
from shared.database import Database, Row
from shared.errors import StatementTimeout
from tests.api_server import NO_TOKEN, Api, Serve
from tests.jobs import JobMaker
from tests.openapi import DOCUMENT
from tests.statements import NAMES, statements_sent
from tests.tokens import claims, forged, token

pytestmark = pytest.mark.asyncio(loop_scope="module")


def new_project() -> tuple[str, str]:
    """A project's name, and a token of it."""
    project = f"p-{uuid4()}"
    return project, token(project_id=project, exp=4_000_000_000)


async def test_numbers_tell_how_many_stand_where_since_when_and_whether_they_can_be_retried(
    api: Api, jobs: JobMaker
) -> None:
    _, of_nothing = new_project()
    project, own = new_project()
    empty = {"count": 0, "capped": False, "oldest_at": None}
    assert (await api.get("/api/jobs/stats", token=of_nothing)).data == {
        "pending": empty, "running": empty, "completed": empty, "other": empty,
        "failed": {**empty, "retryable": 0, "exhausted": 0},
    }  # fmt: skip
    await jobs.make(3, status="pending", project_id=project, attempts=0)
    await jobs.make(2, status="completed", project_id=project, kind="report")
    await jobs.make(4, status="failed", project_id=project)
    await jobs.make(2, status="failed", project_id=project, attempts=3, kind="report")
    await jobs.make(1, status="failed", project_id=project, attempts=3, max_attempts=None)
    await jobs.make(1, status="failed", project_id=project, attempts=None, max_attempts=None)
    await jobs.many_failed(5, project_id="p2")
    await jobs.pool.execute(
        "UPDATE control_plane.jobs SET created_at = '2026-01-01 00:00 UTC' WHERE ctid = "
        "(SELECT max(ctid) FROM control_plane.jobs WHERE project_id = $1 AND status = 'failed')",
        project,
    )

    with statements_sent() as sent:
        stats = (await api.get("/api/jobs/stats", token=own)).data
    reports = (await api.get("/api/jobs/stats?type=report", token=own)).data

    assert sent["overview.stats"] == 1
    assert {status: stats[status]["count"] for status in stats} == {
        "pending": 3, "running": 0, "completed": 2, "failed": 8, "other": 0
    }  # fmt: skip
    assert stats["failed"] == {
        "count": 8, "capped": False, "oldest_at": "2026-01-01T00:00:00Z", "retryable": 5, "exhausted": 3
    }  # fmt: skip
    assert stats["pending"].keys() == {"count", "capped", "oldest_at"}
    assert {status: reports[status]["count"] for status in reports} == {
        "pending": 0, "running": 0, "completed": 2, "failed": 2, "other": 0
    }  # fmt: skip
    assert (reports["failed"]["retryable"], reports["failed"]["exhausted"]) == (0, 2)


async def test_counting_stops_at_ten_thousand(api: Api, jobs: JobMaker) -> None:
    project, own = new_project()
    await jobs.make(10_000, status="failed", project_id=project, attempts=3)

    exactly = (await api.get("/api/jobs/stats", token=own)).data["failed"]
    await jobs.pool.execute(
        "INSERT INTO control_plane.jobs (project_id, type, status, attempts, created_at) "
        "VALUES ($1, 'email', 'failed', 3, '2026-01-01 00:00 UTC')",
        project,
    )
    beyond = (await api.get("/api/jobs/stats?type=email", token=own)).data["failed"]

    assert (exactly["count"], exactly["capped"], exactly["exhausted"], exactly["retryable"]) == (
        10_000,
        False,
        10_000,
        0,
    )
    assert (beyond["count"], beyond["capped"], beyond["exhausted"], beyond["retryable"]) == (10_000, True, 10_000, 0)
    assert beyond["oldest_at"] == "2026-01-01T00:00:00Z"  # the oldest of all, not of those counted


@pytest.mark.parametrize(
    "query", ["type=", "type=%00", "type=" + "a" * 201, "status=failed", "limit=5", "type=a&type=b"]
)
async def test_numbers_take_a_type_and_nothing_else(api: Api, query: str) -> None:
    assert (await api.get(f"/api/jobs/stats?{query}")).code == "invalid-parameter"


async def test_numbers_are_counted_once_for_all_who_ask_within_five_seconds(api: Api, jobs: JobMaker) -> None:
    project, own = new_project()
    await jobs.many_failed(2, project_id=project)

    with statements_sent() as sent:
        answers = await asyncio.gather(*(api.get("/api/failures", token=own) for _ in range(10)))
        await jobs.many_failed(3, project_id=project)
        answers.append(await api.get("/api/failures", token=own))
        other = await api.get("/api/failures?type=email", token=own)

    assert sent["overview.failures"] == 2
    assert len({answer.body for answer in answers}) == 1
    assert (answers[0].data[0]["jobs"], other.data[0]["jobs"]) == (2, 5)
    assert answers[0].json["as_of"] < other.json["as_of"]


async def test_a_count_that_fails_is_not_kept(api: Api, jobs: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    project, own = new_project()
    await jobs.many_failed(2, project_id=project)
    with monkeypatch.context() as patch:
        patch.setattr(overview.Overview, "_count", None)
        assert (await api.get("/api/failures", token=own)).status == 500

    assert (await api.get("/api/failures", token=own)).data[0]["jobs"] == 2


async def test_what_is_counted_is_charged_as_five_reads(database_url: str, serve: Serve) -> None:
    api = await serve(database_url, limit_read="12/3600")
    left = [(await api.get(path)).headers["RateLimit"] for path in ("/api/jobs/stats", "/api/jobs/types")]
    refused = [await api.get(path) for path in ("/api/jobs/series", "/api/failures", "/api/jobs/stats")]
    single = await api.get("/api/me")

    assert [each.split(";")[1] for each in left] == ["r=7", "r=2"]
    assert {each.code for each in refused} == {"rate-limited"}
    assert single.headers["RateLimit"].split(";")[1] == "r=1"


async def test_types_come_with_the_most_frequent_first(api: Api, jobs: JobMaker) -> None:
    project, own = new_project()
    await jobs.make(1, status="pending", project_id=project, kind="rare")
    await jobs.make(3, status="completed", project_id=project, kind="email")
    await jobs.make(2, status="failed", project_id=project, kind="report")

    answer = (await api.get("/api/jobs/types", token=own)).json

    assert answer["data"] == [{"type": "email", "jobs": 3}, {"type": "report", "jobs": 2}, {"type": "rare", "jobs": 1}]
    assert (answer["sampled"], answer["truncated"]) == (6, False)


async def test_types_are_those_of_the_newest_ten_thousand_jobs(api: Api, jobs: JobMaker) -> None:
    project, own = new_project()
    (old,) = await jobs.make(1, status="completed", project_id=project, kind="old")
    await jobs.pool.execute("UPDATE control_plane.jobs SET created_at = '2026-01-01 00:00Z' WHERE id = $1", old.id)
    await jobs.make(10_000, status="completed", project_id=project)

    answer = (await api.get("/api/jobs/types", token=own)).json

    assert answer["data"] == [{"type": "email", "jobs": 10_000}]
    assert (answer["sampled"], answer["truncated"]) == (10_000, True)


# -- by time


async def made_at(jobs: JobMaker, project: str, *times: datetime, status: str = "failed", kind: str = "email") -> None:
    for at in times:
        (made,) = await jobs.make(1, status=status, project_id=project, kind=kind)
        await jobs.pool.execute("UPDATE control_plane.jobs SET created_at = $2 WHERE id = $1", made.id, at)


def counts(bucket: dict[str, Any]) -> dict[str, object]:
    """What of a bucket is not zero; a count that may be more comes as text."""
    found = {name: cell for name, cell in bucket.items() if isinstance(cell, dict)}
    return {
        name: f"{cell['count']}+" if cell["capped"] else cell["count"]
        for name, cell in found.items()
        if cell["count"] or cell["capped"]
    }


async def test_a_series_counts_each_status_in_each_bucket(api: Api, jobs: JobMaker) -> None:
    project, own = new_project()
    noon = datetime(2026, 1, 2, 12, tzinfo=UTC)
    await made_at(jobs, project, noon, noon + timedelta(minutes=59, seconds=59))
    await made_at(jobs, project, noon + timedelta(hours=1), status="completed", kind="report")
    await made_at(jobs, project, noon - timedelta(microseconds=1), noon + timedelta(hours=2, minutes=30))
    await jobs.pool.execute("ALTER TABLE control_plane.jobs DROP CONSTRAINT jobs_status_check")
    await made_at(jobs, project, noon + timedelta(hours=1, minutes=1), status="parked")

    async def of(query: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await api.get(f"/api/jobs/series?{query}", token=own)).data
        return found

    span = "from=2026-01-02T12:20:00Z&to=2026-01-02T14:30:00Z"
    by_hour = await of(f"{span}&by=1h")

    assert [each["at"] for each in by_hour] == [f"2026-01-02T{hour}:00:00Z" for hour in (12, 13, 14)]
    assert [counts(each) for each in by_hour] == [{"failed": 2}, {"completed": 1, "other": 1}, {}]
    assert [counts(each) for each in await of(f"{span}&by=1h&type=email")] == [{"failed": 2}, {"other": 1}, {}]
    assert len(await of(span)) == 9  # quarters of an hour: 12:15 to 14:30


async def test_a_series_is_the_last_day_by_quarters_of_an_hour_where_nothing_else_is_asked(
    api: Api, jobs: JobMaker
) -> None:
    project, own = new_project()
    await made_at(jobs, project, datetime.now(UTC) - timedelta(minutes=1))

    buckets = (await api.get("/api/jobs/series", token=own)).data

    first, last = (datetime.fromisoformat(buckets[n]["at"]) for n in (0, -1))
    assert len(buckets) == 96
    assert last - first == timedelta(hours=24) - timedelta(minutes=15)
    assert (last.minute % 15, last.second) == (0, 0)
    assert sum(each["failed"]["count"] for each in buckets[-2:]) == 1


@pytest.mark.parametrize(
    ("query", "first", "buckets"),
    [
        ("to=2026-01-02T14:37:00Z", "2026-01-01T14:45:00Z", 96),  # a whole day would be one bucket too many
        ("to=2026-01-02T14:30:00Z", "2026-01-01T14:30:00Z", 96),
        ("to=2026-01-02T14:37:00Z&by=1h", "2026-01-01T14:00:00Z", 25),
        ("to=2026-01-02T14:37:00Z&by=6h", "2026-01-01T12:00:00Z", 5),
        ("to=2026-01-02T14:37:00Z&by=1d", "2026-01-01T00:00:00Z", 2),
        ("to=2026-01-02T00:00:00Z&by=1d", "2026-01-01T00:00:00Z", 1),
    ],
)
async def test_without_a_beginning_a_series_holds_the_whole_day_before_its_end(
    api: Api, query: str, first: str, buckets: int
) -> None:
    found = (await api.get(f"/api/jobs/series?{query}")).data

    assert (found[0]["at"], len(found)) == (first, buckets)


async def test_a_series_by_day_has_what_was_made_yesterday_at_this_hour(api: Api, jobs: JobMaker) -> None:
    project, own = new_project()
    await made_at(jobs, project, datetime.now(UTC) - timedelta(hours=23, minutes=50))

    for by in ("1h", "6h", "1d"):
        found = (await api.get(f"/api/jobs/series?by={by}", token=own)).data
        assert sum(each["failed"]["count"] for each in found) == 1, by


async def test_a_cell_of_a_series_ends_at_a_thousand_and_what_is_not_counted_says_so(api: Api, jobs: JobMaker) -> None:
    project, own = new_project()
    noon = datetime(2026, 1, 2, 12, tzinfo=UTC)
    await jobs.make(40 * 700, status="completed", project_id=project)
    await jobs.make(1001, status="failed", project_id=project)
    await jobs.pool.execute(
        """
        UPDATE control_plane.jobs SET created_at = $2::timestamptz + n % 40 * interval '15 minutes'
        FROM (SELECT ctid AS place, row_number() OVER () AS n FROM control_plane.jobs
              WHERE project_id = $1 AND status = 'completed') AS numbered
        WHERE ctid = place
        """,
        project,
        noon,
    )
    await jobs.pool.execute(
        "UPDATE control_plane.jobs SET created_at = $2 WHERE project_id = $1 AND status = 'failed'", project, noon
    )

    buckets = (await api.get("/api/jobs/series?from=2026-01-02T12:00:00Z&to=2026-01-02T23:00:00Z", token=own)).data

    assert counts(buckets[0])["failed"] == "1000+"
    completed = [each["completed"] for each in buckets[:40]]
    assert all(each["capped"] and 50 <= each["count"] <= 700 for each in completed)
    assert sum(cell["count"] for each in buckets for cell in each.values() if isinstance(cell, dict)) <= 24_000
    assert counts(buckets[-1]) == {}


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("by=2h", "by"), ("by=", "by"), ("by=1m", "by"), ("from=yesterday", "from"), ("to=2026-01-02", "to"),
        ("from=2026-01-02T00:00:00Z&to=2026-01-02T00:00:00Z", "to"), ("from=2999-01-01T00:00:00Z", "from"),
        ("from=2026-01-01T00:00:00Z&to=2026-01-02T00:00:01Z", "to"), ("from=2020-01-01T00:00:00Z", "from"),
        ("type=", "type"), ("type=%00", "type"), ("limit=5", "limit"), ("by=1h&by=1h", "by"),
        ("from=0001-01-01T00:00:00%2B14:00&to=0001-01-01T00:00:00Z", "to"),
    ],
)  # fmt: skip
async def test_a_series_that_cannot_be_names_the_parameter(api: Api, query: str, parameter: str) -> None:
    answer = await api.get(f"/api/jobs/series?{query}")

    assert (answer.status, answer.code, answer.json["parameter"]) == (400, "invalid-parameter", parameter)


async def test_a_series_may_reach_to_both_ends_of_time(api: Api) -> None:
    for query in ("to=9999-12-31T23:59:59Z&by=1d", "from=0001-01-01T00:00:00Z&to=0001-01-02T00:00:00Z&by=1d"):
        assert (await api.get(f"/api/jobs/series?{query}")).status in {200, 400}


# -- by error


async def test_failures_are_grouped_by_type_and_error_the_largest_first(api: Api, jobs: JobMaker) -> None:
    project, own = new_project()
    for number in range(4):
        await jobs.failed(project_id=project, last_error=f"mx{number}.example.net timed out after {number} s\nmore")
    await jobs.failed(project_id=project, attempts=3, last_error="mx9.example.net timed out after 99 s")
    await jobs.failed(project_id=project, kind="report", last_error="mx1.example.net timed out after 1 s")
    await jobs.failed(project_id=project, last_error="no route to host")
    await jobs.completed(project_id=project)
    queued = await jobs.failed(project_id=project, last_error="mx7.example.net timed out after 7 s")
    await api.post(f"/api/jobs/{queued.id}/retry", token=own)

    answer = (await api.get("/api/failures", token=own)).json
    first, *others = answer["data"]

    assert (answer["sampled"], answer["truncated"]) == (8, False)
    assert (first["type"], first["error"]) == ("email", "mx<n>.example.net timed out after <n> s")
    assert (first["jobs"], first["retryable"], first["exhausted"], first["queued"]) == (6, 4, 1, 1)
    assert len(first["sample"]) == 5
    assert first["first_at"] < first["last_at"]
    assert str(queued.id) in first["sample"]
    assert sorted((each["type"], each["error"], each["jobs"]) for each in others) == [
        ("email", "no route to host", 1), ("report", "mx<n>.example.net timed out after <n> s", 1)
    ]  # fmt: skip
    only = (await api.get("/api/failures?type=report", token=own)).data
    assert [each["fingerprint"] for each in only] == [e["fingerprint"] for e in others if e["type"] == "report"]


async def test_failures_are_those_of_the_time_asked(api: Api, jobs: JobMaker) -> None:
    project, own = new_project()
    noon = datetime(2026, 1, 2, 12, tzinfo=UTC)
    await made_at(jobs, project, noon - timedelta(hours=1), noon, noon + timedelta(hours=1))

    async def found(query: str) -> int:
        answer = (await api.get(f"/api/failures?{query}", token=own)).data
        return sum(each["jobs"] for each in answer)

    assert await found("created_after=2026-01-02T11:00:00Z") == 2
    assert await found("created_after=2026-01-02T11:00:00Z&created_before=2026-01-02T13:00:00Z") == 1
    assert await found("created_before=2026-01-02T11:00:00Z") == 0


async def test_at_most_a_hundred_groups_are_shown_of_at_most_ten_thousand_jobs(api: Api, jobs: JobMaker) -> None:
    project, own = new_project()
    await jobs.make(10_001, status="failed", project_id=project)
    await jobs.pool.execute(
        "UPDATE control_plane.jobs SET last_error = 'error ' || chr(65 + n % 20) || chr(65 + n / 20 % 20) FROM "
        "(SELECT id, (row_number() OVER ())::int AS n FROM control_plane.jobs WHERE project_id = $1) AS numbered "
        "WHERE jobs.id = numbered.id",
        project,
    )

    answer = (await api.get("/api/failures", token=own)).json

    assert (len(answer["data"]), answer["sampled"], answer["truncated"]) == (100, 10_000, True)


@pytest.mark.parametrize(
    ("query", "parameter"),
    [("type=", "type"), ("created_after=1", "created_after"), ("status=failed", "status"), ("limit=1", "limit")],
)
async def test_failures_name_a_parameter_that_they_do_not_take(api: Api, query: str, parameter: str) -> None:
    answer = await api.get(f"/api/failures?{query}")

    assert (answer.status, answer.json["parameter"]) == (400, parameter)


# -- a large project without the second index


async def test_what_takes_too_long_is_counted_over_the_newest_jobs(
    api: Api, jobs: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, own = new_project()
    await jobs.many_failed(3, project_id=project)
    await jobs.completed(project_id=project)
    fetch_within = Database.fetch_within

    async def first_too_slow(self: Database, seconds: float, sql: str, *args: object) -> list[Row]:
        if not NAMES[sql].endswith("_of_newest"):
            raise StatementTimeout("canceling statement due to statement timeout")
        return await fetch_within(self, seconds, sql, *args)

    monkeypatch.setattr(Database, "fetch_within", first_too_slow)

    with statements_sent() as sent:
        stats = await api.get("/api/jobs/stats", token=own)
        series = await api.get("/api/jobs/series", token=own)
        failures = await api.get("/api/failures", token=own)

    assert {
        "overview.stats_of_newest",
        "overview.series_of_newest",
        "overview.failures_of_newest",
    } <= sent.keys()
    assert {name: each["count"] for name, each in stats.data.items() if each["count"]} == {"failed": 3, "completed": 1}
    assert not any(each["capped"] for each in stats.data.values())
    assert sum(each["failed"]["count"] for each in series.data) == 3
    assert (failures.data[0]["jobs"], failures.json["truncated"]) == (3, False)


async def test_numbers_of_a_table_that_takes_too_long_to_read_are_capped_and_not_503(api: Api, jobs: JobMaker) -> None:
    project, own = new_project()
    await jobs.many_failed(3, project_id=project)
    async with jobs.locked():
        stats = await api.get("/api/jobs/stats", token=own)

    assert stats.status == 200
    assert all(each["capped"] and each["count"] == 0 for each in stats.data.values())


# -- retries


async def test_retry_numbers_tell_what_waits_what_was_settled_and_how_long_it_took(api: Api, jobs: JobMaker) -> None:
    project, own = new_project()
    _, of_nothing = new_project()
    nothing = {"count": 0, "capped": False}
    assert (await api.get("/api/retries/stats", token=of_nothing)).data == {
        "queued": nothing, "oldest_requested_at": None, "wait_ms": None,
        "last_hour": dict.fromkeys(("applied", "rejected", "cancelled", "dead_lettered"), nothing),
    }  # fmt: skip
    made = await jobs.many_failed(6, project_id=project)
    retries = [(await api.post(f"/api/jobs/{job.id}/retry", token=own)).data for job in made]
    await api.call("DELETE", f"/api/retries/{retries[5]['id']}", token=own)
    for retry, ago, took_ms in zip(retries[:4], ("1 min", "5 min", "10 min", "2 hours"), (10, 20, 500, 9), strict=True):
        await jobs.pool.execute(
            f"UPDATE redrive.retry_requests SET state = 'applied', outcome = 'applied',"
            f" requested_at = now() - interval '{ago}',"
            f" processed_at = now() - interval '{ago}' + {took_ms} * interval '1 ms' WHERE id = $1",
            retry["id"],
        )

    answer = await api.get("/api/retries/stats", token=own)

    assert answer.data["queued"] == {"count": 1, "capped": False}
    assert answer.data["oldest_requested_at"] == retries[4]["requested_at"]
    assert {name: each["count"] for name, each in answer.data["last_hour"].items()} == {
        "applied": 3, "rejected": 0, "cancelled": 1, "dead_lettered": 0
    }  # fmt: skip
    assert answer.data["wait_ms"] == {"p50": 10, "p95": 500}
    assert datetime.fromisoformat(answer.json["as_of"]) <= datetime.now(UTC)


async def test_the_last_hour_is_capped_where_older_requests_were_settled_in_it(
    api: Api, jobs: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "LOOKED_AT", 20)
    await jobs.pool.execute(  # those of other tests
        "UPDATE redrive.retry_requests SET processed_at = processed_at - interval '1 day' WHERE state <> 'queued'"
    )

    async def applied(settled_late: int) -> tuple[int, bool]:
        """What is said of 25 requests that are older than an hour; so many of them, the oldest, were settled in it."""
        project, own = new_project()
        await jobs.pool.execute(
            """
            INSERT INTO redrive.retry_requests (
                id, project_id, job_id, state, outcome, actor, requested_at, processed_at
            )
            SELECT
                gen_random_uuid(), $1, gen_random_uuid(), 'applied', 'applied', 'alice',
                now() - interval '2 hours' + n * interval '1 second',
                now() - CASE WHEN n <= $2::int THEN interval '5 minutes' ELSE interval '90 minutes' END
            FROM generate_series(1, 25) AS n
            """,
            project,
            settled_late,
        )
        cell = (await api.get("/api/retries/stats", token=own)).data["last_hour"]["applied"]
        return cell["count"], cell["capped"]

    assert await applied(0) == (0, False)
    assert await applied(2) == (0, True)  # both are older than those that are looked at
    assert await applied(25) == (20, True)
    assert await applied(0) == (0, True)  # so many were settled of other projects that it cannot be known


# -- about the token, and the document


async def test_me_says_what_the_token_is_good_for(api: Api) -> None:
    job_id = str(uuid4())
    scoped = (await api.get("/api/me", token=token(scope="jobs:retry jobs:read", exp=4_000_000_000))).data
    narrowed = (await api.get("/api/me", token=token(sub=..., jobs=[job_id.upper()]))).data

    assert scoped == {
        "actor": "alice", "project_id": "p1", "scopes": ["jobs:read", "jobs:retry"], "jobs": None,
        "expires_at": "2096-10-02T07:06:40Z", "read_only": False, "version": scoped["version"],
    }  # fmt: skip
    assert (narrowed["actor"], narrowed["scopes"], narrowed["jobs"]) == ("project:p1", None, [job_id])
    assert (await api.get("/api/me", token=NO_TOKEN)).code == "authentication-required"
    assert (await api.get("/api/me?a=b")).json["parameter"] == "a"


async def test_me_needs_no_scope_and_no_database(api: Api) -> None:
    with statements_sent() as sent:
        assert (await api.get("/api/me", token=token(scope=""))).data["scopes"] == []
    assert not sent


async def test_a_token_whose_claims_no_answer_could_show_is_refused(api: Api) -> None:
    for name in ("scope", "scp", "sub"):
        made = forged({"alg": "HS256"}, claims(**{name: "jobs:read \ud800"}))
        assert (await api.get("/api/me", token=made)).code == "invalid-token"


async def test_the_document_is_served_without_a_token(api: Api) -> None:
    answer = await api.get("/api/openapi.json", token=NO_TOKEN)

    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.json == DOCUMENT
    assert (await api.get("/api/openapi.json?a=b", token=NO_TOKEN)).json["parameter"] == "a"
    assert (await api.post("/api/openapi.json", token=NO_TOKEN)).code == "method-not-allowed"
