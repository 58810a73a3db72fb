"""Who did what: who took a retry back, who redrove it, and what a bulk retry was asked with."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from tests.api_server import Api, Reply
from tests.integration.retrying.operators import RETRY_FIELDS, bulk, operator, path_of, rows_for, settle
from tests.jobs import JobMaker, MadeJob
from tests.ledger import Ledger
from tests.statements import statements_sent
from tests.tokens import token

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def given_up(api: Api, jobs: JobMaker, ledger: Ledger) -> tuple[MadeJob, str]:
    """A job, and the path of its retry, which was dead-lettered."""
    job = await jobs.failed()
    accepted = await api.post(path_of(job))
    row = await jobs.pool.fetchrow("SELECT id FROM redrive.retry_requests WHERE job_id = $1", job.id)
    assert row is not None
    await ledger.settlement.dead_letter([row["id"]])
    return job, accepted.headers["Location"]


async def redrive(
    api: Api, path: str, *, body: object = ..., sub: str = "carol", scope: str = "jobs:read jobs:retry"
) -> Reply:
    return await api.post(f"{path}/redrive", body, token=token(sub=sub, scope=scope))


# -- taking back


async def test_the_trail_says_who_took_a_retry_back(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()
    accepted = await bulk(api, {"ids": [str(job.id)], "reason": "INC-1"}, sub="alice")
    retry_id = (await api.get(f"/api/jobs/{job.id}/retries")).data[0]["id"]

    answer = await api.call("DELETE", f"/api/retries/{retry_id}", token=token(sub="mallory", scope="jobs:retry"))

    assert answer.status == 200
    assert answer.data.keys() == RETRY_FIELDS
    for seen in (answer.data, (await api.get(f"/api/retries/{retry_id}")).data,
                 (await api.get(f"/api/jobs/{job.id}/retries")).data[0],
                 (await api.get(f"/api/retries?batch_id={accepted.data['batch_id']}")).data[0]):  # fmt: skip
        assert (seen["actor"], seen["state"], seen["cancelled_by"]) == ("alice", "cancelled", "mallory")
        assert (seen["redriven_by"], seen["redriven_at"]) == (None, None)
    assert await jobs.pool.fetchval("SELECT cancelled_by FROM redrive.retry_requests WHERE job_id = $1", job.id)


async def test_the_first_answer_to_a_key_says_nothing_of_what_came_later(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()
    key = {"Idempotency-Key": f"k-{job.id}"}
    first = await api.post(path_of(job), headers=key)
    await api.call("DELETE", first.headers["Location"])

    again = await api.post(path_of(job), headers=key)

    assert again.data == first.data


async def test_a_retry_keeps_what_it_cleared(api: Api, jobs: JobMaker, ledger: Ledger) -> None:
    job = await jobs.failed(last_error="x" * 70_000)
    before = await jobs.row(job)
    path = (await api.post(path_of(job))).headers["Location"]
    await settle(ledger)

    alone = (await api.get(path)).data
    listed = (await api.get(f"/api/jobs/{job.id}/retries")).data[0]

    assert (alone["attempts_before"], alone["max_attempts_before"]) == (1, 3)
    for name in ("started_at", "completed_at"):
        assert datetime.fromisoformat(alone[f"{name}_before"]) == before[name]
    assert (len(alone["error_before"]), alone["error_before_truncated"]) == (65_536, True)
    assert (len(listed["error_before"]), listed["error_before_truncated"]) == (2_000, True)
    short = await jobs.failed(last_error="x" * 2_000)
    path = (await api.post(path_of(short))).headers["Location"]
    await settle(ledger)
    assert (await api.get(path)).data["error_before_truncated"] is False
    assert (await api.get(f"/api/jobs/{short.id}/retries")).data[0]["error_before_truncated"] is False


# -- redriving


async def test_a_redriven_retry_is_queued_again_and_says_by_whom(api: Api, jobs: JobMaker, ledger: Ledger) -> None:
    job, path = await given_up(api, jobs, ledger)
    dead = await api.get(path)

    answer = await redrive(api, path)

    assert answer.status == 202
    assert answer.data.keys() == RETRY_FIELDS
    assert (answer.data["state"], answer.data["outcome"], answer.data["done"]) == ("queued", None, False)
    assert (answer.data["actor"], answer.data["redriven_by"]) == ("alice", "carol")
    at = datetime.fromisoformat(answer.data["redriven_at"])
    assert abs(at - datetime.now(UTC)) < timedelta(minutes=1)
    assert (await api.get(path)).headers["ETag"] != dead.headers["ETag"]
    await settle(ledger)
    settled = (await api.get(path)).data
    assert (settled["state"], settled["redriven_by"]) == ("applied", "carol")
    assert await jobs.effects_of(job) == 1


async def test_a_redriven_retry_has_another_tag_than_before_it_was_given_up(
    api: Api, jobs: JobMaker, ledger: Ledger
) -> None:
    job = await jobs.failed()
    path = (await api.post(path_of(job))).headers["Location"]
    first = await api.get(path)
    await ledger.settlement.dead_letter([(await jobs.pool.fetchval(
        "SELECT id FROM redrive.retry_requests WHERE job_id = $1", job.id))])  # fmt: skip
    await redrive(api, path)

    again = await api.get(path, headers={"If-None-Match": first.headers["ETag"]})

    assert (again.status, again.data["redriven_by"]) == (200, "carol")
    held = await api.get(path, headers={"If-None-Match": first.headers["ETag"], "Prefer": "wait=5"})
    assert held.status == 200


@pytest.mark.parametrize("state", ["queued", "applied", "cancelled", "rejected"])
async def test_what_was_not_given_up_cannot_be_redriven(api: Api, jobs: JobMaker, ledger: Ledger, state: str) -> None:
    job = await jobs.failed()
    path = (await api.post(path_of(job))).headers["Location"]
    if state == "cancelled":
        await api.call("DELETE", path)
    if state == "rejected":
        await jobs.fail_again(job)
    if state in {"applied", "rejected"}:
        await settle(ledger)
    before = (await api.get(path)).data

    answer = await redrive(api, path)

    assert (answer.status, answer.code) == (409, "retry-not-dead-lettered")
    assert before["state"] == state
    assert (await api.get(path)).data == before


async def test_a_retry_is_not_redriven_beside_another_one_of_its_job(api: Api, jobs: JobMaker, ledger: Ledger) -> None:
    job, path = await given_up(api, jobs, ledger)
    await api.post(path_of(job))

    answer = await redrive(api, path)

    assert (answer.status, answer.code) == (409, "retry-queued")
    assert (await api.get(path)).data["state"] == "dead_lettered"
    assert await rows_for(jobs, job) == 2


async def test_redriven_by_many_at_once_a_retry_has_one_effect(api: Api, jobs: JobMaker, ledger: Ledger) -> None:
    job, path = await given_up(api, jobs, ledger)

    answers = await asyncio.gather(*(redrive(api, path, sub=f"u{n}") for n in range(10)))
    await settle(ledger)

    assert sorted(answer.status for answer in answers) == [202, *[409] * 9]
    assert await jobs.effects_of(job) == 1


async def test_redriving_asks_for_the_scope_of_a_retry_and_is_for_the_own_project(
    api: Api, jobs: JobMaker, ledger: Ledger
) -> None:
    _, path = await given_up(api, jobs, ledger)

    assert (await redrive(api, path, scope="jobs:read jobs:retry:bulk")).code == "insufficient-scope"
    foreign = await api.post(f"{path}/redrive", token=token(project_id="p2"))
    unknown = await redrive(api, f"/api/retries/{uuid4()}")
    assert [(answer.status, answer.code) for answer in (foreign, unknown)] == [(404, "retry-not-found")] * 2
    assert (await redrive(api, path, body={"reason": "x"})).code == "invalid-body"
    assert (await api.get(path)).data["state"] == "dead_lettered"
    assert (await redrive(api, path, body={})).status == 202


# -- batches


def matching(**given: str) -> dict[str, object]:
    return {"filter": given, "max": 100, "reason": "back"}


async def test_a_batch_keeps_its_filter_as_it_was_asked(api: Api, jobs: JobMaker) -> None:
    (job,) = await jobs.many_failed(1, project_id="p-filter")
    at = {"created_after": "2026-01-01T02:00:00+02:00", "created_before": "2090-01-01T00:00:00Z"}
    asked = {"type": "email", "error_contains": 'broke "ä" %', **at}

    answers = [
        await bulk(api, matching(**given), project="p-filter", query="?dry_run=false")
        for given in ({**asked, "error_contains": "broke"}, asked, {})
    ]
    answers.append(await bulk(api, {"ids": [str(job.id)]}, project="p-filter"))

    kept = [
        (await api.get(answer.headers["Location"], token=operator("p-filter"))).data["filter"] for answer in answers
    ]
    utc = {**asked, "created_after": "2026-01-01T00:00:00Z"}
    assert kept == [{**utc, "error_contains": "broke"}, utc, {}, None]


async def test_a_projects_batches_are_listed_newest_first_page_by_page(
    api: Api, jobs: JobMaker, ledger: Ledger
) -> None:
    project = "p-batches"
    made = [await jobs.many_failed(2, project_id=project) for _ in range(5)]
    ids = []
    for number, pair in enumerate(made):
        order = {"ids": [str(job.id) for job in pair], "reason": f"r{number}"}
        ids.append((await bulk(api, order, project=project, sub="ann" if number % 2 else "bob")).data["batch_id"])
    await settle(ledger)
    bearer = operator(project)

    pages = [await api.get("/api/retry-batches?limit=2", token=bearer)]
    while (cursor := pages[-1].json["next_cursor"]) is not None:
        assert f"cursor={cursor}" in pages[-1].headers["Link"]
        pages.append(await api.get(f"/api/retry-batches?limit=2&cursor={cursor}", token=bearer))

    listed = [batch for page in pages for batch in page.data]
    assert [batch["id"] for batch in listed] == ids[::-1]
    alone = [(await api.get(f"/api/retry-batches/{each}", token=bearer)).data for each in ids[::-1]]
    assert listed == alone
    assert all((batch["total"], batch["applied"], batch["done"]) == (2, 2, True) for batch in listed)
    of_ann = await api.get("/api/retry-batches?actor=ann", token=bearer)
    assert [batch["id"] for batch in of_ann.data] == [ids[3], ids[1]]
    assert (await api.get("/api/retry-batches", token=operator("p-none"))).json == {"data": [], "next_cursor": None}
    wrong = await api.get(f"/api/retry-batches?actor=ann&cursor={pages[0].json['next_cursor']}", token=bearer)
    assert wrong.code == "invalid-cursor"
    assert (await api.get("/api/retry-batches?state=queued", token=bearer)).code == "invalid-parameter"


async def test_a_page_of_batches_ends_early_where_it_would_count_too_much(
    api: Api, jobs: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.batches.COUNTED", 5)
    project = "p-heavy"
    for _ in range(4):
        made = await jobs.many_failed(3, project_id=project)
        await bulk(api, {"ids": [str(job.id) for job in made]}, project=project)
    (large,) = await jobs.pool.fetch(
        "UPDATE redrive.retry_batches SET total = 9 WHERE id = (SELECT max(id::text)::uuid FROM redrive.retry_batches"
        " WHERE project_id = $1) RETURNING id", project)  # fmt: skip

    sizes, cursor, seen = [], "", []
    while True:
        page = await api.get(f"/api/retry-batches?limit=50{cursor}", token=operator(project))
        sizes.append(len(page.data))
        seen += [batch["id"] for batch in page.data]
        if page.json["next_cursor"] is None:
            break
        cursor = f"&cursor={page.json['next_cursor']}"

    assert sizes == [1, 1, 1, 1]  # the first for its size alone, then two would be six
    assert seen[0] == str(large["id"])
    assert len(set(seen)) == 4


async def cancel(
    api: Api, accepted: Reply, *, project: str = "p1", sub: str = "dave", scope: str | None = None
) -> Reply:
    bearer = operator(project, sub=sub) if scope is None else operator(project, sub=sub, scope=scope)
    return await api.call("DELETE", accepted.headers["Location"], token=bearer)


async def test_what_is_still_queued_of_a_batch_is_taken_back(api: Api, jobs: JobMaker, ledger: Ledger) -> None:
    made = await jobs.many_failed(6)
    alone = await jobs.failed()
    before = await api.post(path_of(alone), token=token(sub="eve"))
    accepted = await bulk(api, {"ids": [str(job.id) for job in (*made, alone)]}, sub="alice")
    other = await bulk(api, {"ids": [str(job.id) for job in await jobs.many_failed(2)]})
    rows = await jobs.pool.fetch(
        "SELECT id FROM redrive.retry_requests WHERE batch_id = $1 ORDER BY id LIMIT 2", accepted.data["batch_id"]
    )
    await jobs.pool.execute("UPDATE redrive.retry_requests SET state = 'applied', outcome = 'applied',"
                            " processed_at = now() WHERE id = ANY ($1)", [row["id"] for row in rows])  # fmt: skip

    answer = await cancel(api, accepted)

    assert answer.status == 200
    assert {name: answer.data[name] for name in ("actor", "total", "queued", "applied", "cancelled", "done")} == {
        "actor": "alice", "total": 6, "queued": 0, "applied": 2, "cancelled": 4, "done": True,
    }  # fmt: skip
    retries = (await api.get(f"/api/retries?batch_id={answer.data['id']}&state=cancelled")).data
    assert {(each["actor"], each["cancelled_by"], each["outcome"]) for each in retries} == {
        ("alice", "dave", "cancelled")
    }
    # A request that was queued before the batch is not of it, and another batch is another.
    assert (await api.get(before.headers["Location"])).data["state"] == "queued"
    assert (await api.get(other.headers["Location"], token=operator())).data["queued"] == 2
    again = await cancel(api, accepted, sub="eve")
    assert (again.status, again.data) == (200, answer.data)
    await settle(ledger)
    assert await jobs.effects(made) == [0] * 6


async def test_a_batch_that_is_unknown_or_of_another_project_is_not_found(api: Api, jobs: JobMaker) -> None:
    (job,) = await jobs.many_failed(1)
    accepted = await bulk(api, {"ids": [str(job.id)]})

    foreign = await cancel(api, accepted, project="p2")
    unknown = await api.call("DELETE", f"/api/retry-batches/{uuid4()}", token=operator())
    odd = await api.call("DELETE", "/api/retry-batches/7", token=operator())

    assert [(answer.status, answer.code) for answer in (foreign, unknown, odd)] == [(404, "not-found")] * 3
    assert (await cancel(api, accepted, scope="jobs:read jobs:retry")).code == "insufficient-scope"
    assert (await api.get(f"/api/jobs/{job.id}")).data["pending_retry"] is not None


async def test_a_large_batch_is_taken_back_in_parts_of_which_each_has_its_time(
    api: Api, jobs: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.batches.CANCELLED_AT_ONCE", 100)
    await jobs.many_failed(450, project_id="p-large")
    order = {"filter": {}, "max": 450, "reason": "wrong one"}
    accepted = await bulk(api, order, project="p-large", query="?dry_run=false")
    assert accepted.data["accepted"] == 450

    with statements_sent() as sent:
        answer = await cancel(api, accepted, project="p-large")

    assert (answer.status, answer.data["cancelled"], answer.data["done"]) == (200, 450, True)
    assert sent["batches.cancel"] == 5
    assert await jobs.pool.fetchval(
        "SELECT count(*) = 0 FROM redrive.retry_requests WHERE project_id = 'p-large' AND state = 'queued'"
    )


async def test_what_workers_and_an_operator_reach_for_at_once_is_applied_or_cancelled_never_both(
    api: Api, jobs: JobMaker, ledger: Ledger
) -> None:
    project = "p-race"
    made = await jobs.many_failed(2_000, project_id=project)
    order = {"filter": {}, "max": 2_000, "reason": "race"}
    accepted = await bulk(api, order, project=project, query="?dry_run=false")

    async def work() -> None:
        while await ledger.settlement.apply_queued(50):
            pass

    answer, *_ = await asyncio.gather(cancel(api, accepted, project=project), work(), work())

    assert (answer.status, answer.data["queued"]) == (200, 0)
    assert answer.data["applied"] + answer.data["cancelled"] == 2_000
    rows = await jobs.pool.fetch(
        "SELECT job_id, state, cancelled_by FROM redrive.retry_requests WHERE batch_id = $1", accepted.data["batch_id"]
    )
    ends = {str(row["job_id"]): row["state"] for row in rows}
    effects = await jobs.effects(made)
    assert [ends[job.id] for job in made] == ["applied" if each else "cancelled" for each in effects]
    assert all((row["state"] == "cancelled") == (row["cancelled_by"] == "dave") for row in rows)
    assert (await api.get(accepted.headers["Location"], token=operator(project))).data == answer.data


async def test_a_request_that_a_worker_has_in_hand_is_left_to_it(api: Api, jobs: JobMaker) -> None:
    made = await jobs.many_failed(3)
    accepted = await bulk(api, {"ids": [str(job.id) for job in made]})
    async with jobs.pool.acquire() as worker, worker.transaction():
        await worker.execute(
            "SELECT FROM redrive.retry_requests WHERE batch_id = $1 AND job_id = $2 FOR UPDATE",
            accepted.data["batch_id"], made[0].id,
        )  # fmt: skip
        answer = await cancel(api, accepted)

        assert (answer.status, answer.data["queued"], answer.data["cancelled"]) == (200, 1, 2)

    assert (await cancel(api, accepted)).data["cancelled"] == 3
    assert await jobs.effects(made) == [0] * 3


# -- dry runs


async def test_a_rehearsal_under_a_condition_is_refused_as_the_retry_would_be(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()
    seen = (await api.get(f"/api/jobs/{job.id}")).headers["ETag"]

    now = await api.post(f"{path_of(job)}?dry_run=true", headers={"If-Match": seen})
    await jobs.fail_again(job)
    later = await api.post(f"{path_of(job)}?dry_run=true", headers={"If-Match": seen})

    assert (now.status, now.json) == (200, {"data": {"would_retry": True, "blocked_by": None}})
    assert (later.status, later.code) == (412, "job-changed")
    assert await rows_for(jobs, job) == 0


async def test_a_rehearsal_that_does_not_count_all_says_so(
    api: Api, jobs: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.batches.MAX_BATCH", 5)
    await jobs.many_failed(6, project_id="p-many")

    preview = (await bulk(api, {"filter": {}, "max": 5, "reason": "r"}, project="p-many")).data

    assert (preview["matched"], preview["retryable"], preview["truncated"]) == (5, 5, True)
