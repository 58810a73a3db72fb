"""Rows that cannot be read, where many are chosen or counted at once: each is left out alone, and the others go on."""

from typing import Any

import pytest

from shared import overview
from tests.api_server import Api, Serve
from tests.integration.test_odd_rows import FREE, READER, SPOIL_BEHIND_VIEW, UNREADABLE, all_listed, connected, insert
from tests.statements import statements_sent

WITHIN_VIEW = """
ALTER TABLE control_plane.jobs RENAME TO all_jobs;
ALTER TABLE control_plane.all_jobs ADD odd boolean NOT NULL DEFAULT false;
CREATE VIEW control_plane.jobs AS SELECT
    id, project_id, CASE WHEN odd AND '{column}' = 'type' THEN (type::int)::text ELSE type END AS type, payload,
    CASE WHEN odd AND '{column}' = 'status' THEN (type::int)::text ELSE status END AS status,
    CASE WHEN odd AND '{column}' = 'attempts' THEN type::int ELSE attempts END AS attempts, max_attempts, last_error,
    CASE WHEN odd AND '{column}' = 'scheduled_at' THEN type::timestamptz ELSE scheduled_at END AS scheduled_at,
    started_at, completed_at, created_at
FROM control_plane.all_jobs;
"""
REFUSED = {
    f"a view's {column} that cannot be cast": (WITHIN_VIEW.format(column=column), SPOIL_BEHIND_VIEW)
    for column in ("type", "status", "attempts")
}
LEFT_UNREAD = (WITHIN_VIEW.format(column="scheduled_at"), SPOIL_BEHIND_VIEW)
"""What no filter and no count reads, but a retry does."""
ALL = UNREADABLE | REFUSED
BULK = "/api/jobs/retry"


def filtered(**chosen: str) -> dict[str, Any]:
    return {"filter": chosen, "max": 100, "reason": "mended"}


async def read(api: Api, path: str) -> Any:  # noqa: ANN401 - JSON
    answer = await api.get(path, token=READER)
    assert answer.status == 200, (path, answer.body)
    return answer.json


@pytest.mark.parametrize(("prepare", "spoil"), ALL.values(), ids=ALL)
async def test_a_bulk_retry_by_a_filter_leaves_out_the_row_that_cannot_be_read_and_takes_the_others(
    database_url: str, prepare: str, spoil: str, serve: Serve
) -> None:
    async with connected(database_url) as connection:
        jobs = await insert(connection, 6, last_error="'smtp 1'")
        bad, good = jobs[2], [*jobs[:2], *jobs[3:]]
        await connection.execute(prepare)
        await connection.execute(spoil, bad)
        api = await serve(database_url)
        (group,) = (await read(api, "/api/failures"))["data"]
        for chosen in ({"error_contains": "smtp"}, {"fingerprint": group["fingerprint"]}, {"type": "email"}):
            dry = await api.post(BULK, filtered(**chosen), token=READER)
            assert (dry.status, dry.data["retryable"]) == (200, 5), (chosen, dry.body)
            assert sorted(dry.data["sample"]) == sorted(map(str, good))
        dry = await api.post(BULK, filtered(), token=READER)
        done = await api.post(f"{BULK}?dry_run=false", filtered(), token=READER)
        queued = await connection.fetch("SELECT job_id FROM redrive.retry_requests WHERE state = 'queued'")

    assert (done.status, done.data["accepted"]) == (202, 5), done.body
    if "status = NULL" not in spoil:  # that job is not among the failed ones
        assert done.data["skipped"] == [{"job_id": str(bad), "code": "job-unreadable"}]
        assert (dry.data["matched"], dry.data["skipped"]["job_unreadable"]) == (6, 1)
    assert {row["job_id"] for row in queued} == set(good)


@pytest.mark.parametrize(("prepare", "spoil"), ALL.values(), ids=ALL)
async def test_lists_and_counts_go_on_without_the_row_that_cannot_be_read(
    database_url: str, prepare: str, spoil: str, serve: Serve
) -> None:
    async with connected(database_url) as connection:
        jobs = await insert(connection, 6, last_error="'smtp 1'")
        await insert(connection, 2, status="'completed'", type="'report'", created_at="now() - interval '1 hour'")
        bad, good = jobs[2], [*jobs[:2], *jobs[3:]]
        await connection.execute(prepare)
        await connection.execute(spoil, bad)
        api = await serve(database_url)
        failures = await read(api, "/api/failures")
        types = await read(api, "/api/jobs/types")
        stats = await read(api, "/api/jobs/stats?type=email")
        series = await read(api, "/api/jobs/series?from=2026-11-23T00:00:00Z&to=2026-11-24T00:00:00Z&by=6h&type=email")
        (group,) = failures["data"]
        for query in (
            "status=failed&error_contains=smtp",
            f"status=failed&fingerprint={group['fingerprint']}",
            "status=failed&retried_fewer_than=1/60",
            "status=failed&type=email",
            "status=failed",
        ):
            for limit in (2, 50):
                rows = await all_listed(api, f"{query}&limit={limit}")
                shown = [row["id"] for row in rows if "status" in row]
                assert shown == list(map(str, good)), query
                assert [row for row in rows if "status" not in row] in ([], [{"id": str(bad), "unreadable": True}])
        retryable = await all_listed(api, "status=failed&retryable=true")

    assert (group["jobs"], group["retryable"], group["sample"]) == (5, 5, list(map(str, good)))
    counted = {each["type"]: each["jobs"] for each in types["data"]}
    assert (counted["report"], counted["email"] in (5, 6)) == (2, True)
    assert stats["data"]["failed"]["count"] in (5, 6)
    assert sum(bucket["failed"]["count"] for bucket in series["data"]) in (5, 6)
    assert [row["id"] for row in retryable] == list(map(str, good))


async def test_a_series_that_is_read_apart_says_in_each_cell_that_there_may_be_more(
    database_url: str, monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    prepare, spoil = REFUSED["a view's type that cannot be cast"]
    monkeypatch.setattr(overview, "LOOKED_AT", 3)
    async with connected(database_url) as connection:
        jobs = await insert(connection, 6)
        await insert(connection, created_at="'2026-11-23 10:30:00+00'")
        await connection.execute(prepare)
        await connection.execute(spoil, jobs[0])
        api = await serve(database_url)
        span = "from=2026-11-23T10:00:00Z&to=2026-11-23T12:00:00Z&by=1h"
        series = await read(api, f"/api/jobs/series?{span}&type=email")

    cells = [cell for bucket in series["data"] for cell in bucket.values() if isinstance(cell, dict)]
    assert (len(cells), {cell["capped"] for cell in cells}) == (10, {True})
    assert sum(cell["count"] for cell in cells) == 3  # of the newest four, one cannot be read


async def test_a_row_that_only_the_retry_itself_cannot_read_is_left_out_also_of_the_dry_run(
    database_url: str, serve: Serve
) -> None:
    prepare, spoil = LEFT_UNREAD
    async with connected(database_url) as connection:
        jobs = await insert(connection, 6)
        await connection.execute(prepare)
        await connection.execute(spoil, jobs[2])
        api = await serve(database_url)
        dry = await api.post(BULK, filtered(), token=READER)
        done = await api.post(f"{BULK}?dry_run=false", filtered(), token=READER)

    assert (dry.data["matched"], dry.data["retryable"], dry.data["skipped"]["job_unreadable"]) == (6, 5, 1)
    assert str(jobs[2]) not in dry.data["sample"]
    assert (done.status, done.data["accepted"]) == (202, 5)
    assert done.data["skipped"] == [{"job_id": str(jobs[2]), "code": "job-unreadable"}]


async def test_failed_jobs_without_a_time_or_with_an_odd_one_are_listed_grouped_and_retried_alike(
    database_url: str,
    serve: Serve,
) -> None:
    times = ["'infinity'", "'2026-11-23'", "'0044-03-15 BC'", "'-infinity'", "NULL", "NULL"]
    async with connected(database_url) as connection:
        await connection.execute(FREE)
        made = [(await insert(connection, created_at=time, last_error="'smtp'"))[0] for time in times]
        timeless = sorted(made[4:], reverse=True)
        expected = [str(job_id) for job_id in (*made[:4], *timeless)]
        api = await serve(database_url)
        plain = [row["id"] for row in await all_listed(api, "status=failed")]
        ((group,), before) = (
            (await read(api, "/api/failures"))["data"],
            await api.post(BULK, filtered(error_contains="smtp"), token=READER),
        )
        for query in ("error_contains=smtp", f"fingerprint={group['fingerprint']}", "retried_fewer_than=1/60"):
            for limit in (1, 2, 3, 4, 5, 50):
                rows = await all_listed(api, f"status=failed&{query}&limit={limit}")
                assert [row["id"] for row in rows] == plain == expected, (query, limit)
        for retryable, wanted in (("true", expected[:4]), ("false", expected[4:])):
            rows = await all_listed(api, f"status=failed&retryable={retryable}&limit=1")
            assert [row["id"] for row in rows] == wanted
        since = await all_listed(api, "status=failed&retryable=true&created_after=2026-11-22T00:00:00Z")
        done = await api.post(f"{BULK}?dry_run=false", filtered(error_contains="smtp"), token=READER)

    assert (group["jobs"], group["retryable"]) == (4, 4)
    assert (before.data["matched"], before.data["retryable"], before.data["skipped"]["job_unreadable"]) == (6, 4, 2)
    assert [row["id"] for row in since] == expected[:2]
    assert (done.data["accepted"], {skipped["job_id"] for skipped in done.data["skipped"]}) == (4, set(expected[4:]))


async def test_numbers_that_no_integer_holds_cost_no_statement_more(database_url: str, serve: Serve) -> None:
    prepare, spoil = UNREADABLE["attempts that no integer holds"]
    async with connected(database_url) as connection:
        jobs = await insert(connection, 60, last_error="'smtp'")
        await connection.execute(prepare)
        for job_id in jobs[::2]:
            await connection.execute(spoil, job_id)
        api = await serve(database_url)
        with statements_sent() as sent:
            listed = await api.get("/api/jobs?status=failed&retryable=false&limit=200", token=READER)
            dry = await api.post(BULK, filtered(error_contains="smtp"), token=READER)
            groups = await read(api, "/api/failures")

    assert (dry.data["retryable"], dry.data["skipped"]["job_unreadable"]) == (30, 30)
    assert [row for row in listed.data if "status" in row] == []
    assert len(listed.data) == 30
    assert groups["data"][0]["jobs"] == 30
    assert "rows.facts" not in sent


async def test_more_rows_that_are_refused_than_can_be_told_apart_are_a_refusal_of_the_whole(
    database_url: str, serve: Serve
) -> None:
    prepare, spoil = REFUSED["a view's type that cannot be cast"]
    async with connected(database_url) as connection:
        jobs = await insert(connection, 40)
        await connection.execute(prepare)
        for job_id in jobs:
            await connection.execute(spoil, job_id)
        api = await serve(database_url)
        answers = [
            await api.get("/api/jobs/types", token=READER),
            await api.post(BULK, filtered(), token=READER),
        ]

    assert [(answer.status, answer.code) for answer in answers] == [(409, "job-unreadable")] * 2
