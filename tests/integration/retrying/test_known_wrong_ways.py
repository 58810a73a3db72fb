"""What others get wrong about retries, each by its name."""

import asyncio

import pytest

from tests.api_server import Api
from tests.integration.retrying.operators import bulk, done_with, path_of, retries_of, settle
from tests.jobs import JobMaker
from tests.ledger import Ledger
from tests.tokens import token

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_bulk_retry_is_not_all_or_nothing(api: Api, jobs: JobMaker, ledger: Ledger) -> None:
    good, spent = await jobs.many_failed(3), await jobs.failed(attempts=3)
    running, foreign = await jobs.running(), await jobs.failed(project_id="p2")

    answer = await bulk(api, {"ids": [str(job.id) for job in (*good, spent, running, foreign)]})
    await settle(ledger)

    assert (answer.status, answer.data["accepted"]) == (202, 3)
    assert await jobs.effects([*good, spent, running, foreign]) == [1, 1, 1, 0, 0, 0]


async def test_a_bulk_retry_does_not_answer_ok_without_counts(api: Api, jobs: JobMaker, ledger: Ledger) -> None:
    good, spent, running = await jobs.many_failed(3), await jobs.failed(attempts=3), await jobs.running()
    foreign = await jobs.failed(project_id="p2")

    answer = await bulk(
        api, {"ids": [str(job.id) for job in (running, *good, spent, foreign)], "reason": "smtp is back"}
    )

    assert answer.data["accepted"] == 3
    assert answer.data["skipped"] == [  # each with its reason, in the order asked
        {"job_id": str(running.id), "code": "job-not-failed"},
        {"job_id": str(spent.id), "code": "attempts-exhausted"},
        {"job_id": str(foreign.id), "code": "job-not-found"},
    ]
    await jobs.pool.execute("UPDATE control_plane.jobs SET status = 'completed' WHERE id = $1", good[0].id)
    await settle(ledger)
    batch = (await api.get(answer.headers["Location"])).data
    assert {name: batch[name] for name in ("total", "queued", "applied", "rejected", "done")} == {
        "total": 3, "queued": 0, "applied": 2, "rejected": 1, "done": True
    }  # fmt: skip


async def test_an_exhausted_job_is_not_retried_only_to_fail_again_at_once(
    api: Api, jobs: JobMaker, ledger: Ledger
) -> None:
    spent = await jobs.failed(attempts=3, max_attempts=3)

    assert (await api.post(path_of(spent))).code == "attempts-exhausted"
    assert (await api.post(f"{path_of(spent)}?dry_run=true")).data["blocked_by"] == "attempts_exhausted"
    assert (await bulk(api, {"ids": [str(spent.id)]})).data["accepted"] == 0
    accepted = await api.post(path_of(spent), {"extra_attempts": 2})
    await settle(ledger)

    row = await jobs.row(spent)
    assert (row["status"], row["attempts"], row["max_attempts"]) == ("pending", 3, 5)  # two are left, as asked
    assert (await done_with(api, accepted))["outcome"] == "applied"


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "double-click"}], ids=["without a key", "with a key"])
async def test_a_button_does_not_retry_twice(api: Api, jobs: JobMaker, ledger: Ledger, headers: dict[str, str]) -> None:
    job = await jobs.failed()

    one, other = await asyncio.gather(*(api.post(path_of(job), headers=headers) for _ in range(2)))
    await settle(ledger)
    await settle(ledger)

    assert (one.status, other.status) == (202, 202)
    assert one.data == other.data
    assert await jobs.effects_of(job) == 1
    assert len(await retries_of(api, job)) == 1
    if headers:
        assert one.body == other.body
    else:
        assert {one.json["deduplicated"], other.json["deduplicated"]} == {True, False}


async def test_a_button_pressed_again_after_the_job_moved_on_does_not_retry_with_its_old_key(
    api: Api, jobs: JobMaker, ledger: Ledger
) -> None:
    job = await jobs.failed()
    first = await api.post(path_of(job), headers={"Idempotency-Key": "pressed-again"})
    await settle(ledger)
    await jobs.fail_again(job)

    again = await api.post(path_of(job), headers={"Idempotency-Key": "pressed-again"})
    await settle(ledger)

    assert (again.body, again.headers["Idempotent-Replayed"]) == (first.body, "true")
    assert await jobs.effects_of(job) == 1
    assert await jobs.status_of(job) == "failed"


async def test_success_never_means_that_nothing_happened(api: Api, jobs: JobMaker, ledger: Ledger) -> None:
    pending, completed = await jobs.pending(), await jobs.completed()
    assert {(await api.post(path_of(job))).code for job in (pending, completed)} == {"job-not-failed"}
    # Accepted is not applied: where it comes to nothing after all, it says so, and why.
    moved, superseded, spent, deleted = [await jobs.failed() for _ in range(4)]
    accepted = [await api.post(path_of(job)) for job in (moved, superseded, spent, deleted)]
    assert {answer.data["state"] for answer in accepted} == {"queued"}
    await jobs.pool.execute("UPDATE control_plane.jobs SET status = 'running' WHERE id = $1", moved.id)
    await jobs.fail_again(superseded)
    await jobs.pool.execute("UPDATE control_plane.jobs SET attempts = 3 WHERE id = $1", spent.id)
    await jobs.pool.execute("DELETE FROM control_plane.jobs WHERE id = $1", deleted.id)

    await settle(ledger)

    outcomes = [await done_with(api, answer) for answer in accepted]
    assert [each["state"] for each in outcomes] == ["rejected"] * 4
    assert [each["outcome"] for each in outcomes] == ["superseded", "superseded", "superseded", "job_not_found"]
    assert await jobs.effects([moved, superseded, spent, deleted]) == [0] * 4


async def test_it_is_never_unknown_who_did_it(api: Api, jobs: JobMaker, ledger: Ledger) -> None:
    job, other, third = await jobs.many_failed(3)
    await api.post(path_of(job), {"reason": "smtp is back"}, token=token(sub="bob"))
    await bulk(api, {"ids": [str(other.id)], "reason": "all of them"}, sub="carol")
    await api.post(path_of(third), token=token(sub=...))
    await settle(ledger)

    trail = [(await retries_of(api, each))[0] for each in (job, other, third)]
    assert [(each["actor"], each["reason"]) for each in trail] == [
        ("bob", "smtp is back"), ("carol", "all of them"), ("project:p1", None)
    ]  # fmt: skip
    for each in trail:
        assert each["requested_at"] < each["processed_at"]
        assert each["outcome"] == "applied"


async def test_the_error_is_not_wiped_by_the_retry(api: Api, jobs: JobMaker, ledger: Ledger) -> None:
    job = await jobs.failed(attempts=2, last_error="smtp: 421 — später")
    before = await jobs.row(job)
    accepted = await api.post(path_of(job))
    assert (await api.get(f"/api/jobs/{job.id}")).data["last_error"] == "smtp: 421 — später"  # until it is applied

    await settle(ledger)

    settled = await done_with(api, accepted)
    assert (settled["error_before"], settled["attempts_before"]) == ("smtp: 421 — später", 2)
    row = await jobs.row(job)
    assert (row["status"], row["last_error"], row["started_at"], row["completed_at"]) == ("pending", None, None, None)
    assert row["attempts"] == 2  # the program that runs the job counts
    kept = await jobs.ledger_row(settled["id"])
    assert kept is not None
    assert (kept["max_attempts_before"], kept["started_at_before"], kept["completed_at_before"]) == (
        before["max_attempts"], before["started_at"], before["completed_at"]
    )  # fmt: skip
    await jobs.fail_again(job, last_error="and again")
    await api.post(path_of(job))
    await settle(ledger)
    assert [each["error_before"] for each in await retries_of(api, job)] == ["and again", "smtp: 421 — später"]
