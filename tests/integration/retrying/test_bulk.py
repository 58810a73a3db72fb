"""Many retries at once: what is chosen, what is left out and why, and what becomes of the rest."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import UUID, uuid4

import pytest

from shared.batches import AcceptedBatch, Batches, BatchRequest
from shared.database import Session
from shared.models import JobId
from tests.api_server import Api, Reply
from tests.eventually import eventually
from tests.integration.retrying.operators import bulk, operator, path_of, rows_for, settle
from tests.jobs import JobMaker, MadeJob
from tests.ledger import Ledger
from tests.statements import statements_sent
from tests.tokens import token

log = logging.getLogger(__name__)

pytestmark = pytest.mark.asyncio(loop_scope="module")

BATCH_FIELDS = {
    "id", "actor", "reason", "filter", "requested_at", "total", "queued", "applied", "rejected", "cancelled",
    "dead_lettered", "done",
}  # fmt: skip
COUNTS = ("queued", "applied", "rejected", "cancelled", "dead_lettered")


def ids_of(made: Sequence[MadeJob]) -> list[str]:
    return [str(job.id) for job in made]


async def batch_of(api: Api, accepted: Reply, *, project: str = "p1") -> Any:  # noqa: ANN401 - JSON
    return (await api.get(accepted.headers["Location"], token=operator(project))).data


# -- by ids


async def test_a_bulk_retry_is_recorded_with_who_asked_and_why(api: Api, jobs: JobMaker, ledger: Ledger) -> None:
    made = await jobs.many_failed(3)

    answer = await bulk(api, {"ids": ids_of(made), "reason": "smtp is back", "delay_seconds": 60}, sub="bob")

    assert answer.status == 202
    assert answer.json.keys() == {"data"}
    assert answer.data.keys() == {"batch_id", "accepted", "skipped"}
    assert (answer.data["accepted"], answer.data["skipped"]) == (3, [])
    batch_id = answer.data["batch_id"]
    assert UUID(batch_id).version == 7
    assert answer.headers["Location"] == f"/api/retry-batches/{batch_id}"
    batch = await batch_of(api, answer)
    assert batch.keys() == BATCH_FIELDS
    assert (batch["id"], batch["actor"], batch["reason"], batch["total"], batch["queued"], batch["done"]) == (
        batch_id, "bob", "smtp is back", 3, 3, False
    )  # fmt: skip
    for job in made:
        (retry,) = (await api.get(f"/api/jobs/{job.id}/retries")).data
        assert (retry["batch_id"], retry["actor"], retry["reason"], retry["delay_seconds"]) == (
            batch_id, "bob", "smtp is back", 60
        )  # fmt: skip
    await settle(ledger)
    assert await jobs.effects(made) == [1, 1, 1]


async def test_an_id_given_twice_is_one_request(api: Api, jobs: JobMaker) -> None:
    job, spent = await jobs.failed(), await jobs.failed(attempts=3)

    answer = await bulk(api, {"ids": [*ids_of([job, spent]), str(job.id).upper(), *ids_of([spent, job])]})

    assert answer.data["accepted"] == 1
    assert answer.data["skipped"] == [{"job_id": str(spent.id), "code": "attempts-exhausted"}]
    assert await rows_for(jobs, job) == 1


async def test_a_thousand_ids_are_taken_and_one_more_is_refused(api: Api, jobs: JobMaker) -> None:
    made = await jobs.many_failed(1001, project_id="p-thousand")

    refused = await bulk(api, {"ids": ids_of(made)}, project="p-thousand")
    accepted = await bulk(api, {"ids": ids_of(made[:1000])}, project="p-thousand")

    assert (refused.status, refused.code) == (422, "invalid-body")
    assert refused.json["errors"][0]["pointer"] == "/ids"
    assert (accepted.status, accepted.data["accepted"]) == (202, 1000)
    assert await rows_for(jobs, *made) == 1000


async def test_what_cannot_be_retried_is_listed_in_the_order_asked(api: Api, jobs: JobMaker) -> None:
    queued, spent, running = await jobs.failed(), await jobs.failed(attempts=3), await jobs.running()
    completed, foreign, unknown = await jobs.completed(), await jobs.failed(project_id="p2"), uuid4()
    await api.post(path_of(queued))

    answer = await bulk(api, {"ids": [str(unknown), *ids_of([queued, foreign, running, spent, completed])]})

    assert answer.status == 202
    assert answer.data["accepted"] == 0
    assert [(each["job_id"], each["code"]) for each in answer.data["skipped"]] == [
        (str(unknown), "job-not-found"),
        (str(queued.id), "retry-queued"),
        (str(foreign.id), "job-not-found"),
        (str(running.id), "job-not-failed"),
        (str(spent.id), "attempts-exhausted"),
        (str(completed.id), "job-not-failed"),
    ]
    batch = await batch_of(api, answer)
    assert (batch["total"], batch["done"]) == (0, True)
    extended = await bulk(api, {"ids": ids_of([spent]), "extra_attempts": 1})
    assert extended.data["accepted"] == 1


async def test_what_moves_on_between_the_look_and_the_writing_is_left_out_with_its_reason(
    api: Api, jobs: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await jobs.many_failed(20)
    completed, queued, deleted, kept = made[:4], made[4:8], made[8:10], made[10:]
    insert = Batches._insert

    async def insert_late(
        self: Batches, session: Session, request: BatchRequest, blocks: Sequence[tuple[JobId, str | None]]
    ) -> AcceptedBatch:
        await jobs.pool.execute(
            "UPDATE control_plane.jobs SET status = 'completed' WHERE id = ANY ($1)", [job.id for job in completed]
        )
        await jobs.pool.execute("DELETE FROM control_plane.jobs WHERE id = ANY ($1)", [job.id for job in deleted])
        for job in queued:
            assert (await api.post(path_of(job))).status == 202
        return await insert(self, session, request, blocks)

    monkeypatch.setattr(Batches, "_insert", insert_late)
    answer = await bulk(api, {"ids": ids_of(made)})

    assert (answer.status, answer.data["accepted"]) == (202, 10)
    codes = {each["job_id"]: each["code"] for each in answer.data["skipped"]}
    assert codes == (
        dict.fromkeys(ids_of(completed), "job-not-failed")
        | dict.fromkeys(ids_of(queued), "retry-queued")
        | dict.fromkeys(ids_of(deleted), "job-not-found")
    )
    assert (await batch_of(api, answer))["total"] == 10
    assert await rows_for(jobs, *kept) == 10


async def test_what_moves_on_before_it_is_applied_is_rejected_and_counted(
    api: Api, jobs: JobMaker, ledger: Ledger
) -> None:
    made = await jobs.many_failed(12)
    answer = await bulk(api, {"ids": ids_of(made)})
    for job in made[:3]:
        await jobs.fail_again(job)
    await jobs.pool.execute("DELETE FROM control_plane.jobs WHERE id = $1", made[3].id)
    trail = (await api.get(f"/api/retries?batch_id={answer.data['batch_id']}&limit=200")).data
    await api.call("DELETE", next(each["links"]["self"] for each in trail if each["job_id"] == str(made[4].id)))

    await settle(ledger)

    batch = await batch_of(api, answer)
    assert {name: batch[name] for name in ("total", *COUNTS, "done")} == {
        "total": 12, "queued": 0, "applied": 7, "rejected": 4, "cancelled": 1, "dead_lettered": 0, "done": True
    }  # fmt: skip
    settled = (await api.get(f"/api/retries?batch_id={answer.data['batch_id']}&limit=200")).data
    assert Counter(each["outcome"] for each in settled) == {
        "applied": 7, "superseded": 3, "job_not_found": 1, "cancelled": 1
    }  # fmt: skip
    assert await jobs.effects(made) == [0] * 5 + [1] * 7


async def test_two_bulk_retries_of_the_same_jobs_at_once_share_them(api: Api, jobs: JobMaker) -> None:
    made = await jobs.many_failed(300, project_id="p-share")

    answers = await asyncio.gather(
        *(bulk(api, {"ids": ids_of(made[::step])}, project="p-share") for step in (1, -1, 1, -1))
    )

    assert {answer.status for answer in answers} == {202}
    assert sum(answer.data["accepted"] for answer in answers) == 300
    assert {each["code"] for answer in answers for each in answer.data["skipped"]} == {"retry-queued"}
    assert await rows_for(jobs, *made) == 300


# -- by filter


def matching(**chosen: str) -> dict[str, object]:
    """What asks for a rehearsal, unless the query says otherwise."""
    return {"filter": chosen, "max": 10_000, "reason": "r"}


async def failing_project(jobs: JobMaker, project: str) -> dict[str, list[MadeJob]]:
    """Ten jobs that can be retried, of two types and errors, and some that cannot."""
    return {
        "smtp": await jobs.make(6, status="failed", project_id=project, kind="email", last_error="smtp: 421 50% off_x"),
        "disk": await jobs.make(4, status="failed", project_id=project, kind="report", last_error="disk full"),
        "spent": await jobs.make(3, status="failed", project_id=project, attempts=3, last_error="smtp: 421"),
        "running": await jobs.make(2, status="running", project_id=project),
    }


async def test_a_filter_first_says_what_it_would_do(api: Api, jobs: JobMaker) -> None:
    project = "p-preview"
    made = await failing_project(jobs, project)
    for job in made["disk"][:2]:
        await api.post(path_of(job), token=operator(project))
    before = await jobs.queued()

    with statements_sent() as sent:
        answer = await bulk(api, matching(), project=project)
    written = await jobs.queued() - before

    assert sent == {"failed.match": 1, "batches.blocks": 1}
    assert (answer.status, written) == (200, 0)
    assert answer.json.keys() == {"data"}
    preview = answer.data
    sample = preview.pop("sample")
    assert preview == {
        "matched": 13, "retryable": 8, "skipped": {"attempts_exhausted": 3, "retry_queued": 2}, "truncated": False
    }  # fmt: skip
    assert preview["matched"] == preview["retryable"] + sum(preview["skipped"].values())
    assert set(sample) == set(ids_of([*made["smtp"], *made["disk"][2:]]))
    extended = (await bulk(api, {**matching(), "extra_attempts": 1}, project=project)).data
    assert (extended["retryable"], extended["skipped"]) == (11, {"attempts_exhausted": 0, "retry_queued": 2})
    nothing = (await bulk(api, matching(type="none"), project=project)).data
    assert nothing == {
        "matched": 0, "retryable": 0, "skipped": {"attempts_exhausted": 0, "retry_queued": 0}, "sample": [],
        "truncated": False,
    }  # fmt: skip


async def test_a_sample_is_at_most_twenty(api: Api, jobs: JobMaker) -> None:
    await jobs.many_failed(25, project_id="p-sample")

    preview = (await bulk(api, matching(), project="p-sample")).data

    assert (preview["matched"], len(preview["sample"]), len(set(preview["sample"]))) == (25, 20, 20)


async def test_a_rehearsal_with_ids_says_what_it_would_do(api: Api, jobs: JobMaker) -> None:
    good, spent, running = await jobs.failed(), await jobs.failed(attempts=3), await jobs.running()

    answer = await bulk(api, {"ids": [*ids_of([good, spent, running]), str(uuid4())]}, query="?dry_run=true")

    assert answer.status == 200
    preview = answer.data
    assert (preview["matched"], preview["retryable"], preview["sample"]) == (4, 1, [str(good.id)])
    assert preview["skipped"] == {"attempts_exhausted": 1, "retry_queued": 0, "not_failed": 1, "job_not_found": 1}
    assert await rows_for(jobs, good) == 0


async def test_a_filter_chooses_by_type_time_and_error(api: Api, jobs: JobMaker) -> None:
    project = "p-choose"
    made = await failing_project(jobs, project)
    moment = datetime.now(UTC)
    await jobs.pool.execute(
        "UPDATE control_plane.jobs SET created_at = $2 WHERE id = ANY ($1)",
        [job.id for job in made["smtp"][:2]],
        moment - timedelta(days=2),
    )

    async def chosen(**given: str) -> int:
        return int((await bulk(api, matching(**given), project=project)).data["retryable"])

    yesterday = (moment - timedelta(days=1)).isoformat()
    assert await chosen() == 10
    assert await chosen(type="email") == 6
    assert await chosen(error_contains="smtp") == 6
    assert await chosen(error_contains="421 50% off_x") == 6  # as it stands: % and _ are no wildcards
    assert await chosen(error_contains="421 50%x") == 0
    assert await chosen(error_contains="SMTP") == 0
    assert await chosen(type="report", error_contains="smtp") == 0
    assert await chosen(created_before=yesterday) == 2
    assert await chosen(created_after=yesterday) == 8
    assert await chosen(created_after=yesterday, created_before=yesterday) == 0


async def test_a_filter_for_real_retries_what_it_matches(api: Api, jobs: JobMaker, ledger: Ledger) -> None:
    project = "p-for-real"
    made = await failing_project(jobs, project)

    answer = await bulk(
        api,
        {"filter": {"error_contains": "smtp"}, "max": 100, "reason": "smtp is back"},
        project=project,
        query="?dry_run=false",
    )
    await settle(ledger)

    assert (answer.status, answer.data["accepted"]) == (202, 6)
    assert sorted(each["job_id"] for each in answer.data["skipped"]) == sorted(ids_of(made["spent"]))
    assert {each["code"] for each in answer.data["skipped"]} == {"attempts-exhausted"}
    assert await jobs.effects(made["smtp"]) == [1] * 6
    assert await jobs.effects([*made["disk"], *made["spent"]]) == [0] * 7
    assert (await batch_of(api, answer, project=project))["applied"] == 6


@pytest.mark.parametrize(
    ("chosen", "shown"),
    [
        ({"created_after": "0001-01-01T00:00:00+01:00"}, {"created_after": "0001-01-01T00:00:00Z"}),
        ({"created_before": "9999-12-31T23:59:59-01:00"}, {"created_before": "9999-12-31T23:59:59.999999Z"}),
    ],
    ids=["before the first year", "after the last"],
)
async def test_a_time_at_the_ends_of_the_calendar_chooses_alike_in_lists_dry_runs_and_for_real(
    api: Api, jobs: JobMaker, chosen: dict[str, str], shown: dict[str, str]
) -> None:
    project = f"p-{next(iter(chosen)).replace('_', '-')}"
    await jobs.many_failed(2, project_id=project)

    listed = await api.get(f"/api/jobs?status=failed&{urlencode(chosen)}", token=operator(project))
    dry = await bulk(api, matching(**chosen), project=project)
    accepted = await bulk(api, matching(**chosen), project=project, query="?dry_run=false")

    assert (listed.status, dry.status, accepted.status) == (200, 200, 202)
    assert (len(listed.data), dry.data["retryable"], accepted.data["accepted"]) == (2, 2, 2)
    assert (await batch_of(api, accepted, project=project))["filter"] == shown


async def test_more_matches_than_allowed_write_nothing(api: Api, jobs: JobMaker) -> None:
    made = await jobs.many_failed(6, project_id="p-max")
    order = {"filter": {}, "reason": "r"}

    refused = await bulk(
        api, {**order, "max": 5}, project="p-max", query="?dry_run=false", headers={"Idempotency-Key": "max"}
    )
    assert (refused.status, refused.code) == (409, "too-many-matches")
    assert await rows_for(jobs, *made) == 0
    assert await jobs.pool.fetchval("SELECT count(*) FROM redrive.retry_batches WHERE project_id = 'p-max'") == 0
    assert (await bulk(api, {**order, "max": 5}, project="p-max")).data["matched"] == 6  # a rehearsal says how many
    accepted = await bulk(
        api, {**order, "max": 6}, project="p-max", query="?dry_run=false", headers={"Idempotency-Key": "max"}
    )
    assert (accepted.status, accepted.data["accepted"]) == (202, 6)


async def test_a_retry_is_spread_over_the_time_asked_for(api: Api, jobs: JobMaker, ledger: Ledger) -> None:
    made = await jobs.many_failed(200, project_id="p-spread")
    order = {"ids": ids_of(made), "delay_seconds": 100, "spread_seconds": 600}

    began = datetime.now(UTC)
    assert (await bulk(api, order, project="p-spread")).data["accepted"] == 200
    await settle(ledger)
    ended = datetime.now(UTC)

    rows = await jobs.pool.fetch("SELECT scheduled_at FROM control_plane.jobs WHERE project_id = 'p-spread'")
    times = sorted(row["scheduled_at"] for row in rows)
    slack = timedelta(seconds=1) + (ended - began)
    assert began + timedelta(seconds=99) <= times[0]
    assert times[-1] <= ended + timedelta(seconds=700) + slack
    offsets = [(time - began).total_seconds() - 100 for time in times]
    assert [sum(lower <= offset < lower + 150 for offset in offsets) > 20 for lower in (0, 150, 300, 450)] == [True] * 4


async def test_a_retry_that_is_applied_late_is_spread_from_then_on(api: Api, jobs: JobMaker, ledger: Ledger) -> None:
    made = await jobs.many_failed(50, project_id="p-late")
    order = {"ids": ids_of(made), "delay_seconds": 100, "spread_seconds": 600}
    assert (await bulk(api, order, project="p-late")).data["accepted"] == 50
    # The workers, or the broker, were away for longer than the spread.
    await jobs.pool.execute(
        "UPDATE redrive.retry_requests SET requested_at = requested_at - interval '2 h',"
        " run_at = run_at - interval '2 h' WHERE project_id = 'p-late'"
    )

    await settle(ledger)

    rows = await jobs.pool.fetch(
        "SELECT j.scheduled_at - r.processed_at AS waits, r.run_at - r.requested_at AS drawn"
        " FROM control_plane.jobs AS j JOIN redrive.retry_requests AS r ON r.job_id = j.id"
        " WHERE r.project_id = 'p-late'"
    )
    assert [row["waits"] for row in rows] == [row["drawn"] for row in rows]
    assert len({row["waits"] for row in rows}) == 50
    assert all(timedelta(seconds=100) <= row["waits"] <= timedelta(seconds=700) for row in rows)


# -- the batch


async def test_a_batch_counts_live_and_can_be_waited_for(api: Api, jobs: JobMaker, ledger: Ledger) -> None:
    own = operator("p-live")
    answer = await bulk(api, {"ids": ids_of(await jobs.many_failed(6, project_id="p-live"))}, project="p-live")
    location = answer.headers["Location"]
    trail = (await api.get(f"/api/retries?batch_id={answer.data['batch_id']}", token=own)).data
    seen = [await api.get(location, token=own)]

    @asynccontextmanager
    async def heard() -> AsyncIterator[None]:
        """A client waits for the next change while the block lasts, and hears of it."""
        known = {"If-None-Match": seen[-1].headers["ETag"]}
        assert (await api.get(location, token=own, headers=known)).status == 304
        waiting = asyncio.create_task(api.get(location, token=own, headers={**known, "Prefer": "wait=55"}))
        await eventually(lambda: api.counted("redrive_waiters") == 1)
        yield
        async with asyncio.timeout(30):
            seen.append(await waiting)

    for retry in trail[:2]:
        async with heard():
            assert (await api.call("DELETE", retry["links"]["self"], token=own)).status == 200
    async with heard():
        await settle(ledger)

    assert [[reply.data[name] for name in COUNTS] for reply in seen] == [
        [6, 0, 0, 0, 0], [5, 0, 0, 1, 0], [4, 0, 0, 2, 0], [0, 4, 0, 2, 0]
    ]  # fmt: skip
    assert [reply.data["done"] for reply in seen] == [False, False, False, True]
    assert ["Retry-After" in reply.headers for reply in seen] == [True, True, True, False]
    assert {reply.data["total"] for reply in seen} == {6}
    assert len({reply.headers["ETag"] for reply in seen}) == 4
    async with asyncio.timeout(30):
        assert (await api.get(location, token=own, headers={"Prefer": "wait=55"})).data["done"]


async def test_a_batch_belongs_to_its_project(api: Api, jobs: JobMaker) -> None:
    answer = await bulk(api, {"ids": ids_of(await jobs.many_failed(1, project_id="p-own"))}, project="p-own")
    location = answer.headers["Location"]

    paths = (location, f"/api/retry-batches/{uuid4()}", "/api/retry-batches/1", "/api/retry-batches/%00")
    answers = [(await api.get(path, headers={"X-Request-Id": "r1"})).without_date for path in paths]

    assert answers[0][0] == 404
    assert all(each == answers[0] for each in answers)
    admin = token(scope="jobs:read jobs:admin")
    assert (await api.get(f"{location}?project_id=p-own", token=admin)).status == 200


# -- who may, and what is refused


async def test_bulk_retries_have_a_scope_of_their_own(api: Api, jobs: JobMaker) -> None:
    job, foreign = await jobs.failed(), await jobs.failed(project_id="p-bulk-admin")
    order = {"ids": [str(job.id)]}
    extend = {**order, "extra_attempts": 1}
    for bearer, body in (
        (token(), order),  # one that carries no scopes retries single jobs
        (token(scope="jobs:read jobs:retry"), order),
        (token(scope="jobs:admin"), order),
        (token(scope="jobs:retry:bulk"), extend),
    ):
        answer = await api.post("/api/jobs/retry", body, token=bearer)
        assert (answer.status, answer.code) == (403, "insufficient-scope")
    assert await rows_for(jobs, job) == 0
    assert (await api.post("/api/jobs/retry", order, token=token(scope="jobs:retry:bulk"))).status == 202

    there = {"ids": [str(foreign.id)], "reason": "for them"}
    root = token(sub="root", scope="jobs:retry:bulk jobs:admin")
    refused = await api.post("/api/jobs/retry?project_id=p-bulk-admin", there, token=operator())
    assert refused.code == "insufficient-scope"
    answer = await api.post("/api/jobs/retry?project_id=p-bulk-admin", there, token=root)
    assert answer.data["accepted"] == 1
    batch = await batch_of(api, answer, project="p-bulk-admin")
    assert (batch["actor"], batch["reason"]) == ("root", "for them")


REAL = "?dry_run=false"
ONE = "11111111-1111-4111-8111-111111111111"


@pytest.mark.parametrize(
    ("query", "order", "pointers"),
    [
        ("", {}, ""),
        ("", {"reason": "r"}, ""),
        ("", {"ids": [ONE], **matching()}, ", /max"),
        (REAL, {"ids": [ONE], **matching()}, ", /max"),
        ("", {"ids": []}, "/ids"),
        ("", {"ids": [1]}, "/ids/0"),
        ("", {"ids": ONE}, "/ids"),
        ("", {"ids": [ONE], "max": 5}, "/max"),
        (REAL, {"filter": {}, "reason": "r"}, "/max"),
        (REAL, {"filter": {}, "max": 5}, "/reason"),
        ("", {"filter": {}}, "/max, /reason"),
        ("?dry_run=true", {"filter": {}, "reason": "r"}, "/max"),
        ("?dry_run=true", {"filter": {}, "max": 5}, "/reason"),
        (REAL, {"filter": {}, "max": 5, "reason": ""}, "/reason"),
        (REAL, {"filter": {}, "max": 0, "reason": "r"}, "/max"),
        (REAL, {"filter": {}, "max": 10_001, "reason": "r"}, "/max"),
        ("", {"filter": {}, "max": -1}, "/max"),
        ("", {"filter": {"max": 5}}, "/filter"),
        ("", {"filter": {"status": "failed"}}, "/filter"),
        ("", {"filter": {"type": ""}}, "/filter/type"),
        ("", {"filter": {"type": "t" * 201}}, "/filter/type"),
        ("", {"filter": {"error_contains": "a\0b"}}, "/filter/error_contains"),
        ("", {"filter": {"fingerprint": "3f9c01ab77d2e41"}}, "/filter/fingerprint"),
        ("", {"filter": {"fingerprint": "3f9c01ab77d2e410\n"}}, "/filter/fingerprint"),
        ("", {"filter": {"created_after": "yesterday"}}, "/filter/created_after"),
        ("", {"filter": {"created_after": "2026-01-01T00:00:00"}}, "/filter/created_after"),
        ("", {"ids": [ONE], "reason": "r" * 501}, "/reason"),
        ("", {"ids": [ONE], "delay_seconds": 86_401}, "/delay_seconds"),
        ("", {"ids": [ONE], "spread_seconds": 3601}, "/spread_seconds"),
        ("", {"ids": [ONE], "spread_seconds": -1}, "/spread_seconds"),
        ("", {"ids": [ONE], "extra_attempts": 0}, "/extra_attempts"),
        ("", {"ids": [ONE], "extra_attempts": 11}, "/extra_attempts"),
        ("", {"ids": [ONE], "dry_run": True}, ""),
        ("", [ONE], ""),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_an_order_that_makes_no_sense_is_refused_with_the_place(
    api: Api, query: str, order: object, pointers: str
) -> None:
    with statements_sent() as sent:
        answer = await bulk(api, order, query=query)

    assert (answer.status, answer.code) == (422, "invalid-body")
    assert [fault["pointer"] for fault in answer.json["errors"]] == pointers.split(", ")
    assert not sent


@pytest.mark.parametrize("bad", ["1", "", ONE[:-1], f"{{{ONE}}}", "11111111-1111-1111-8111-111111111111", f"{ONE}\n"])
async def test_one_bad_id_refuses_the_whole_order(api: Api, jobs: JobMaker, bad: str) -> None:
    job = await jobs.failed()

    answer = await bulk(api, {"ids": [str(job.id), bad]})

    assert (answer.status, answer.code) == (400, "invalid-job-id")
    assert await rows_for(jobs, job) == 0


@pytest.mark.parametrize("query", ["?dry_run=maybe", "?dry_run=", "?force=true", "?dry_run=true&dry_run=true"])
async def test_a_bulk_retry_takes_no_other_parameters(api: Api, jobs: JobMaker, query: str) -> None:
    job = await jobs.failed()

    assert (await bulk(api, {"ids": [str(job.id)]}, query=query)).code == "invalid-parameter"
    assert await rows_for(jobs, job) == 0


# -- in line


async def test_a_single_retry_is_published_and_settled_before_those_of_a_batch(
    api: Api, jobs: JobMaker, ledger: Ledger
) -> None:
    await settle(ledger)
    made, single = await jobs.many_failed(5), await jobs.failed()
    await bulk(api, {"ids": ids_of(made)})
    await api.post(path_of(single))

    published = [
        {each.message.job_id for each in await ledger.outbox.lease(10, lease_s=-1, bulk=of_batches)}
        for of_batches in (False, True)
    ]
    assert len(await ledger.settlement.apply_queued(1)) == 1

    assert published == [{single.id}, {job.id for job in made}]  # by lanes of their own
    assert await jobs.effects([single, *made]) == [1, 0, 0, 0, 0, 0]


# -- how many statements


async def test_ten_thousand_jobs_are_accepted_in_the_statements_that_ten_are(api: Api, jobs: JobMaker) -> None:
    await jobs.many_failed(10, project_id="p-ten")
    made = await jobs.many_failed(10_000, project_id="p-many")
    order = {"filter": {}, "max": 10_000, "reason": "all of them"}
    many: Counter[str] = Counter()

    async def accepted() -> Reply | None:
        """The answer; None where this machine is too busy for it now, and the client is told to come again."""
        nonlocal many
        with statements_sent() as many:
            began = time.monotonic()
            answer = await bulk(api, order, project="p-many", query=REAL, headers={"Idempotency-Key": "many"})
        log.info("10,000 jobs: answered %s in %.2f s", answer.status, time.monotonic() - began)
        assert answer.status in {202, 503}
        return answer if answer.status == 202 else None

    with statements_sent() as few:
        ten = await bulk(api, order, project="p-ten", query=REAL, headers={"Idempotency-Key": "ten"})
    answer = await eventually(accepted, within_s=30)

    assert (ten.data["accepted"], answer.data["accepted"]) == (10, 10_000)
    assert (
        few
        == many
        == {
            "idempotency.find": 1,
            "failed.match": 1,
            "idempotency.claim": 1,
            "batches.insert_requests": 1,
            "batches.insert_batch": 1,
        }
    )
    assert await rows_for(jobs, *made) == 10_000
    with statements_sent() as counting:
        assert (await batch_of(api, answer, project="p-many"))["queued"] == 10_000
    assert counting == {"batches.find_many": 1}
