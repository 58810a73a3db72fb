"""One job's retry in all its forms, taking it back, and the trail that it leaves."""

import asyncio
from datetime import UTC, datetime, timedelta
from urllib.parse import quote
from uuid import UUID, uuid4

import pytest

from shared.bounds import MAX_ACTOR
from tests.api_server import Api, Serve
from tests.integration.retrying.operators import RETRY_FIELDS, bulk, done_with, operator, path_of, rows_for, settle
from tests.jobs import JobMaker
from tests.ledger import Ledger
from tests.tokens import token

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_delayed_retry_is_scheduled_for_as_much_later_as_asked(
    api: Api, jobs: JobMaker, ledger: Ledger
) -> None:
    delayed, longest, at_once = await jobs.many_failed(3)
    accepted = await api.post(path_of(delayed), {"delay_seconds": 600})
    await api.post(path_of(longest), {"delay_seconds": 86_400})
    await api.post(path_of(at_once))

    began = datetime.now(UTC)
    await settle(ledger)

    for job, delay_s in ((delayed, 600), (longest, 86_400), (at_once, 0)):
        row = await jobs.row(job)
        assert row["status"] == "pending"
        assert abs(row["scheduled_at"] - began - timedelta(seconds=delay_s)) < timedelta(seconds=5)
    assert (await done_with(api, accepted))["delay_seconds"] == 600
    assert 290 <= int((await api.get(f"/api/jobs/{delayed.id}")).headers["Retry-After"]) <= 300


@pytest.mark.parametrize(
    ("attempts", "max_attempts", "extra", "raised_to"),
    [
        (3, 3, 1, 4), (3, 3, 10, 13), (1, 3, 1, 3), (1, 3, 5, 6), (0, 0, 1, 1), (None, None, 1, 3), (None, None, 5, 5),
        (3, None, 1, 4), (None, 2, 1, 2), (1, None, None, None), (1, 3, None, 3), (None, None, None, None),
    ],
)  # fmt: skip
async def test_extra_attempts_raise_the_cap_to_exactly_what_is_needed(  # noqa: PLR0917 - a table
    api: Api,
    jobs: JobMaker,
    ledger: Ledger,
    attempts: int | None,
    max_attempts: int | None,
    extra: int | None,
    raised_to: int | None,
) -> None:
    job = await jobs.failed(attempts=attempts, max_attempts=max_attempts)

    accepted = await api.post(path_of(job), {} if extra is None else {"extra_attempts": extra})
    assert (await jobs.row(job))["max_attempts"] == max_attempts  # not before it is applied
    await settle(ledger)

    row = await jobs.row(job)
    assert (row["status"], row["attempts"], row["max_attempts"]) == ("pending", attempts, raised_to)
    settled = await done_with(api, accepted)
    assert (settled["extra_attempts"], settled["attempts_before"]) == (extra or 0, attempts or 0)
    kept = await jobs.ledger_row(UUID(settled["id"]))
    assert kept is not None
    assert kept["max_attempts_before"] == (3 if max_attempts is None else max_attempts)


async def test_a_condition_is_on_the_job_not_on_how_it_was_read(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()
    plain = (await api.get(f"/api/jobs/{job.id}")).headers["ETag"]
    full = (await api.get(f"/api/jobs/{job.id}?include=payload")).headers["ETag"]

    assert (await api.post(f"{path_of(job)}?dry_run=true", headers={"If-Match": full})).data["would_retry"]
    first = await api.post(path_of(job), headers={"If-Match": full})
    queued = (await api.get(f"/api/jobs/{job.id}")).headers["ETag"]
    again = [await api.post(path_of(job), headers={"If-Match": tag}) for tag in (plain, full, queued)]

    assert first.status == 202
    assert queued != plain
    assert {(answer.status, answer.data["id"]) for answer in again} == {(202, first.data["id"])}


async def test_a_condition_may_be_spread_over_several_lines(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()
    tag = (await api.get(f"/api/jobs/{job.id}")).headers["ETag"]

    async def rehearsed(*lines: str) -> int:
        headers = [("If-Match", line) for line in lines]
        return (await api.post(f"{path_of(job)}?dry_run=true", headers=headers)).status  # type: ignore[arg-type] # a multidict

    assert await rehearsed('"1"', tag) == 200
    assert await rehearsed(tag, '"1"') == 200
    assert await rehearsed('"1"', '"2"') == 412
    assert await rehearsed('"1"', f"W/{tag}") == 200  # a proxy on the way has made it weak
    assert await rehearsed("*") == 200


async def test_a_condition_that_fails_writes_nothing_whatever_else_holds(api: Api, jobs: JobMaker) -> None:
    job, queued = await jobs.many_failed(2)
    await api.post(path_of(queued))
    stale = {"If-Match": '"1"'}

    for answer in (
        await api.post(path_of(job), headers=stale),
        await api.post(f"{path_of(job)}?dry_run=true", headers=stale),
        await api.post(path_of(queued), headers=stale),
        await api.post(path_of(await jobs.completed()), headers=stale),
    ):
        assert (answer.status, answer.code) == (412, "job-changed")
    assert await rows_for(jobs, job) == 0
    assert (await api.post(f"/api/jobs/{uuid4()}/retry", headers=stale)).code == "job-not-found"


async def test_a_rehearsal_names_what_stands_against_it(api: Api, jobs: JobMaker) -> None:
    queued, spent, foreign = await jobs.failed(), await jobs.failed(attempts=3), await jobs.failed(project_id="p2")
    await api.post(path_of(queued))

    async def dry_run(path: str, order: object = ...) -> object:
        return (await api.post(f"{path}?dry_run=true", order)).data

    assert await dry_run(path_of(queued)) == {"would_retry": False, "blocked_by": "retry_queued"}
    assert await dry_run(path_of(spent)) == {"would_retry": False, "blocked_by": "attempts_exhausted"}
    assert await dry_run(path_of(spent), {"extra_attempts": 1}) == {"would_retry": True, "blocked_by": None}
    assert (await api.post(f"{path_of(foreign)}?dry_run=true")).code == "job-not-found"
    assert await rows_for(jobs, spent, foreign) == 0


# -- taking it back


async def test_what_is_settled_or_foreign_cannot_be_taken_back(api: Api, jobs: JobMaker, ledger: Ledger) -> None:
    applied, rejected, foreign = await jobs.failed(), await jobs.failed(), await jobs.failed(project_id="p2")
    accepted = [await api.post(path_of(job)) for job in (applied, rejected)]
    await jobs.pool.execute("UPDATE control_plane.jobs SET status = 'completed' WHERE id = $1", rejected.id)
    await settle(ledger)
    theirs = await api.post(path_of(foreign), token=token(project_id="p2"))

    for answer in accepted:
        refused = await api.call("DELETE", answer.headers["Location"])
        assert (refused.status, refused.code) == (409, "retry-already-settled")
    assert (await api.call("DELETE", theirs.headers["Location"])).code == "retry-not-found"
    assert (await done_with(api, theirs, bearer=token(project_id="p2")))["state"] == "queued"
    assert (await done_with(api, accepted[0]))["state"] == "applied"


async def test_what_is_taken_back_is_in_the_trail_and_leaves_room_for_another(
    api: Api, jobs: JobMaker, ledger: Ledger
) -> None:
    job = await jobs.failed()
    first = await api.post(path_of(job))

    taken_back = await api.call("DELETE", first.headers["Location"])
    await settle(ledger)

    assert await jobs.effects_of(job) == 0
    assert taken_back.data.keys() == RETRY_FIELDS
    assert (taken_back.data["state"], taken_back.data["outcome"], taken_back.data["done"]) == (
        "cancelled", "cancelled", True
    )  # fmt: skip
    assert taken_back.data["processed_at"]
    seen = (await api.get(f"/api/jobs/{job.id}")).data
    assert (seen["pending_retry"], seen["retryable"], seen["last_error"]) == (None, True, "it broke")
    second = await api.post(path_of(job))
    assert (second.json["deduplicated"], second.data["id"] != first.data["id"]) == (False, True)
    await settle(ledger)
    assert await jobs.effects_of(job) == 1


async def test_of_many_who_take_it_back_at_once_one_does(api: Api, jobs: JobMaker) -> None:
    location = (await api.post(path_of(await jobs.failed()))).headers["Location"]

    answers = await asyncio.gather(*(api.call("DELETE", location) for _ in range(20)))

    assert sorted(answer.status for answer in answers) == [200] + [409] * 19


async def test_a_retry_is_taken_back_or_applied_never_both(api: Api, jobs: JobMaker, ledger: Ledger) -> None:
    made = await jobs.many_failed(60)
    accepted = await asyncio.gather(*(api.post(path_of(job)) for job in made))

    async def settle() -> None:
        while await ledger.settlement.apply_queued(7):
            pass

    *answers, _ = await asyncio.gather(
        *(api.call("DELETE", answer.headers["Location"]) for answer in accepted), settle()
    )

    cancelled = [answer.status == 200 for answer in answers if answer is not None]
    assert [effects == 0 for effects in await jobs.effects(made)] == cancelled


# -- the trail


async def test_the_trail_is_found_by_state_job_batch_and_actor(api: Api, jobs: JobMaker, ledger: Ledger) -> None:
    project = "p-trail"
    made = await jobs.many_failed(6, project_id=project)
    by_actor = {
        actor: [
            (await api.post(path_of(job), token=operator(project, sub=actor))).data["id"]
            for job in made[start : start + 2]
        ]
        for actor, start in (("ann", 0), ("b & c/d ü", 2))
    }
    batch = (await bulk(api, {"ids": [str(job.id) for job in made[4:]]}, project=project, sub="ann")).data["batch_id"]
    await api.call("DELETE", f"/api/retries/{by_actor['ann'][0]}", token=operator(project))
    await jobs.pool.execute("UPDATE control_plane.jobs SET status = 'completed' WHERE id = $1", made[2].id)
    await settle(ledger)
    last = (await api.post(path_of(made[0]), token=operator(project, sub="zoe"))).data["id"]

    async def found(query: str) -> set[str]:
        """All that match, walked through one by one."""
        seen: list[str] = []
        path: str | None = f"/api/retries?limit=1{query}"
        while path is not None:
            answer = await api.get(path, token=operator(project))
            assert answer.status == 200
            assert all(each.keys() == RETRY_FIELDS for each in answer.data)
            seen += [each["id"] for each in answer.data]
            link = answer.headers.get("Link")
            assert (link is None) == (answer.json["next_cursor"] is None)
            path = None if link is None else link[1 : link.index(">")]
        assert len(seen) == len(set(seen))
        return set(seen)

    everything = await found("")
    of_batch = await found(f"&batch_id={batch}")
    assert len(everything) == 7
    assert len(of_batch) == 2
    assert await found("&state=queued") == {last}
    assert await found("&state=cancelled") == {by_actor["ann"][0]}
    assert await found("&state=rejected") == {by_actor["b & c/d ü"][0]}
    assert len(await found("&state=applied")) == 4
    assert await found("&state=dead_lettered") == set()
    assert await found(f"&job_id={made[0].id}") == {by_actor["ann"][0], last}
    assert await found(f"&job_id={made[0].id}&actor=zoe") == {last}
    assert await found(f"&job_id={made[4].id}&batch_id={batch}") < of_batch
    assert await found(f"&actor={quote('b & c/d ü')}") == set(by_actor["b & c/d ü"])
    assert await found("&actor=ann") == {*by_actor["ann"], *of_batch}
    assert await found(f"&actor=ann&state=applied&batch_id={batch}") == of_batch
    assert await found(f"&batch_id={uuid4()}") == set()
    assert await found("&actor=another") == set()
    newest_first = [each["requested_at"] for each in (await api.get("/api/retries", token=operator(project))).data]
    assert newest_first == sorted(newest_first, reverse=True)
    for query in (f"job_id={made[0].id}", f"batch_id={batch}", "state=applied"):  # another project sees none of it
        assert (await api.get(f"/api/retries?{query}&actor=ann", token=operator("p-other"))).data == []


async def test_an_actor_is_found_however_long_the_name(api: Api, jobs: JobMaker) -> None:
    longest = "ü" * MAX_ACTOR
    accepted = await api.post(path_of(await jobs.failed(project_id="p-long")), token=operator("p-long", sub=longest))

    found = (await api.get(f"/api/retries?actor={quote(longest)}", token=operator("p-long"))).data

    assert [each["id"] for each in found] == [accepted.data["id"]]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("state=lost", "invalid-parameter"), ("state=", "invalid-parameter"), ("job_id=1", "invalid-job-id"),
        ("batch_id=1", "invalid-parameter"), ("batch_id=", "invalid-parameter"), ("actor=", "invalid-parameter"),
        ("actor=%00", "invalid-parameter"), (f"actor={'a' * 256}", "invalid-parameter"),
        ("reason=x", "invalid-parameter"), ("limit=0", "invalid-parameter"), ("limit=201", "invalid-parameter"),
        ("cursor=x", "invalid-cursor"), ("state=queued&state=queued", "invalid-parameter"),
    ],
)  # fmt: skip
async def test_a_trail_takes_no_other_questions(api: Api, query: str, code: str) -> None:
    answer = await api.get(f"/api/retries?{query}")

    assert (answer.status, answer.code) == (400, code)


async def test_a_walk_through_a_job_s_trail_sees_each_request_once(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()
    asked = []
    for _ in range(7):
        asked.append((await api.post(path_of(job))).data["id"])
        await api.call("DELETE", f"/api/retries/{asked[-1]}")
    seen: list[str] = []
    path: str | None = f"/api/jobs/{job.id}/retries?limit=2"
    while path is not None:
        answer = await api.get(path)
        seen += [each["id"] for each in answer.data]
        link = answer.headers.get("Link")
        path = None if link is None else link[1 : link.index(">")]

    assert seen == asked[::-1]


async def test_a_read_only_deployment_answers_and_changes_nothing(
    api: Api, database_url: str, jobs: JobMaker, serve: Serve
) -> None:
    job, other = await jobs.many_failed(2)
    accepted = await api.post(path_of(job))
    read_only = await serve(database_url, read_only=True)
    for answer in (
        await read_only.post(path_of(other)),
        await read_only.post(f"{path_of(other)}?dry_run=true"),
        await read_only.call("DELETE", accepted.headers["Location"]),
        await bulk(read_only, {"ids": [str(other.id)]}),
        await bulk(read_only, {"filter": {}, "max": 1, "reason": "r"}),
        await read_only.post("/api/jobs/not-an-id/retry"),
    ):
        assert (answer.status, answer.code) == (403, "read-only")
    assert (await read_only.get(f"/api/jobs/{job.id}")).status == 200
    assert (await done_with(read_only, accepted))["state"] == "queued"
    assert (await read_only.get("/api/retries")).status == 200
    assert await rows_for(jobs, other) == 0


async def test_who_may_not_retry_is_told_so_before_anything_is_looked_at(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()
    location = (await api.post(path_of(job))).headers["Location"]
    reader, unscoped = token(scope="jobs:read"), token(scope="")

    for answer in (
        await api.post(path_of(job), token=reader),
        await api.post(f"{path_of(job)}?dry_run=true", token=reader),
        await api.post(f"/api/jobs/{uuid4()}/retry", token=reader),
        await api.call("DELETE", location, token=reader),
        await api.get(location, token=unscoped),
        await api.get("/api/retries", token=token(scope="jobs:retry")),
    ):
        assert (answer.status, answer.code) == (403, "insufficient-scope")
    listed = token(scp=["jobs:read", "jobs:retry"])
    assert (await api.call("DELETE", location, token=listed)).status == 200


async def test_an_administrator_acts_in_another_project_under_his_own_name(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed(project_id="p-of-others")
    admin = token(sub="root", project_id="p-admin", scope="jobs:read jobs:retry jobs:admin")
    there = "?project_id=p-of-others"

    assert (await api.post(path_of(job), token=admin)).code == "job-not-found"
    accepted = await api.post(f"{path_of(job)}{there}", {"reason": "for them"}, token=admin)
    assert accepted.data["actor"] == "root"
    assert (await api.get(accepted.headers["Location"], token=admin)).code == "retry-not-found"
    seen = await api.get(accepted.headers["Location"], token=token(project_id="p-of-others"))
    assert (seen.data["actor"], seen.data["reason"]) == ("root", "for them")
    assert (await api.get(f"/api/retries{there}", token=admin)).data == [seen.data]
    assert (await api.call("DELETE", f"{accepted.headers['Location']}{there}", token=admin)).data[
        "state"
    ] == "cancelled"
    assert (await api.post(f"{path_of(job)}{there}", token=token(scope="jobs:retry"))).code == "insufficient-scope"
