"""Failed jobs by their errors and their retries: a list shows what a bulk retry of the same filter would take."""

from collections.abc import Mapping, Sequence
from urllib.parse import urlencode
from uuid import uuid4

import pytest

from shared import failed
from shared.jobs import Jobs
from shared.models import Job, JobKey, UnreadableJob
from tests.api_server import Api
from tests.jobs import JobMaker
from tests.tokens import token

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCOPES = "jobs:read jobs:retry jobs:retry:bulk"


def new_project() -> tuple[str, str]:
    project = f"p-{uuid4()}"
    return project, token(project_id=project, scope=SCOPES, exp=4_000_000_000)


async def listed(api: Api, own: str, **filters: str) -> list[str]:
    answer = await api.get(f"/api/jobs?{urlencode({'status': 'failed', **filters})}", token=own)
    assert answer.json["truncated"] is False
    return sorted(job["id"] for job in answer.data)


async def matched(api: Api, own: str, wanted: Mapping[str, object]) -> tuple[int, list[str]]:
    """How many jobs a bulk retry would take, and which."""
    body = {"filter": wanted, "max": 100, "reason": "r"}
    preview = (await api.post("/api/jobs/retry", body, token=own)).data
    return preview["matched"], sorted(preview["sample"])


async def test_a_group_is_listed_and_retried_by_its_fingerprint(api: Api, jobs: JobMaker) -> None:
    project, own = new_project()
    made = [await jobs.failed(project_id=project, last_error=f"timed out after {n} s") for n in range(3)]
    group = sorted(str(job.id) for job in made)
    await jobs.failed(project_id=project, last_error="no route to host")
    await jobs.failed(project_id=project, kind="report", last_error="timed out after 1 s")
    (fingerprint,) = [
        each["fingerprint"] for each in (await api.get("/api/failures", token=own)).data if each["jobs"] == 3
    ]

    assert await listed(api, own, fingerprint=fingerprint) == group
    assert await matched(api, own, {"fingerprint": fingerprint}) == (3, group)
    body = {"filter": {"fingerprint": fingerprint}, "max": 10, "reason": "it is back"}
    accepted = (await api.post("/api/jobs/retry?dry_run=false", body, token=own)).data
    batch = (await api.get(f"/api/retry-batches/{accepted['batch_id']}", token=own)).data
    assert (accepted["accepted"], batch["filter"]) == (3, {"fingerprint": fingerprint})
    assert await listed(api, own, fingerprint=fingerprint, retryable="true") == []
    assert await listed(api, own, fingerprint=fingerprint, retryable="false") == group


async def test_an_error_is_searched_for_as_it_is_written(api: Api, jobs: JobMaker) -> None:
    project, own = new_project()
    wanted = str((await jobs.failed(project_id=project, last_error="Timeout: 100% of _it_")).id)
    for other in ("timeout: 100% of _it_", "Timeout: 100x of _it_", ""):
        await jobs.failed(project_id=project, last_error=other)

    assert await listed(api, own, error_contains="100% of") == sorted(
        [wanted, *(await listed(api, own, error_contains="timeout"))]
    )
    assert await listed(api, own, error_contains="Timeout: 100%") == [wanted]
    assert (await matched(api, own, {"error_contains": "Timeout: 100%"}))[1] == [wanted]


async def test_jobs_that_were_retried_often_of_late_are_left_out(api: Api, jobs: JobMaker) -> None:
    project, own = new_project()
    made = await jobs.many_failed(3, project_id=project)
    for job, ages in zip(made, ([], ["1 minute"], ["1 minute", "2 hours", "2 hours"]), strict=True):
        for age in ages:
            await jobs.pool.execute(
                "INSERT INTO redrive.retry_requests (id, project_id, job_id, state, outcome, actor, processed_at)"
                f" VALUES (gen_random_uuid(), $1, $2, 'applied', 'applied', 'a', now() - interval '{age}')",
                project,
                job.id,
            )
    never, once, thrice = (str(job.id) for job in made)

    assert await listed(api, own, retried_fewer_than="1/3600") == [never]
    assert await listed(api, own, retried_fewer_than="2/3600") == sorted([never, once, thrice])
    assert await listed(api, own, retried_fewer_than="3/604800") == sorted([never, once])
    wanted = {"retried_fewer_than": {"times": 1, "within_seconds": 3600}}
    assert await matched(api, own, wanted) == (1, [never])
    body = {"filter": wanted, "max": 10, "reason": "it is back"}
    accepted = (await api.post("/api/jobs/retry?dry_run=false", body, token=own)).data
    batch = (await api.get(f"/api/retry-batches/{accepted['batch_id']}", token=own)).data
    assert batch["filter"] == wanted


async def test_retryable_jobs_are_those_that_nothing_stands_against(api: Api, jobs: JobMaker) -> None:
    project, own = new_project()
    free = await jobs.failed(project_id=project)
    exhausted = await jobs.failed(project_id=project, attempts=3)
    queued = await jobs.failed(project_id=project)
    await api.post(f"/api/jobs/{queued.id}/retry", token=own)

    assert await listed(api, own, retryable="true") == [str(free.id)]
    assert await listed(api, own, retryable="false") == sorted([str(exhausted.id), str(queued.id)])


async def test_a_list_of_some_failed_jobs_goes_on_page_by_page(api: Api, jobs: JobMaker) -> None:
    project, own = new_project()
    group = {str((await jobs.failed(project_id=project, last_error=f"late by {n} s")).id) for n in range(5)}
    await jobs.many_failed(5, project_id=project)
    path = "/api/jobs?status=failed&error_contains=late&limit=2"
    pages = [await api.get(path, token=own)]
    while (cursor := pages[-1].json["next_cursor"]) is not None:
        pages.append(await api.get(f"{path}&cursor={cursor}", token=own))

    assert [len(page.data) for page in pages] == [2, 2, 1]
    assert {job["id"] for page in pages for job in page.data} == group
    assert all(page.data == sorted(page.data, key=lambda job: job["created_at"], reverse=True) for page in pages)
    assert (await api.get(f"{path}x&cursor={pages[0].json['next_cursor']}", token=own)).code == "invalid-parameter"


async def test_a_page_whose_jobs_are_all_deleted_between_the_choice_and_the_look_leads_on(
    api: Api, jobs: JobMaker
) -> None:
    project, own = new_project()
    for n in range(4):
        await jobs.failed(project_id=project, last_error=f"late by {n} s")
    find_listed = Jobs._find_listed

    async def delete_and_find(self: Jobs, keys: Sequence[JobKey]) -> dict[JobKey, Job | UnreadableJob]:
        await jobs.pool.execute("DELETE FROM control_plane.jobs WHERE id = ANY ($1)", [key.id for key in keys])
        return await find_listed(self, keys)

    path = "/api/jobs?status=failed&error_contains=late&limit=2"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Jobs, "_find_listed", delete_and_find)
        first = await api.get(path, token=own)
    second = await api.get(f"{path}&cursor={first.json['next_cursor']}", token=own)

    assert (first.status, first.data) == (200, [])
    assert (len(second.data), second.json["next_cursor"]) == (2, None)


async def test_what_takes_a_look_at_each_job_looks_at_the_newest_and_says_where_there_are_more(
    api: Api, jobs: JobMaker
) -> None:
    project, own = new_project()
    (old,) = await jobs.many_failed(1, project_id=project)
    await jobs.pool.execute("UPDATE control_plane.jobs SET created_at = '2026-01-01 00:00Z' WHERE id = $1", old.id)
    newer = await jobs.make(10_000, status="failed", project_id=project, last_error="new")

    answer = await api.get("/api/jobs?status=failed&error_contains=broke", token=own)
    body = {"filter": {"error_contains": "broke"}, "max": 100, "reason": "r"}
    preview = (await api.post("/api/jobs/retry", body, token=own)).data
    before = (
        await api.get("/api/jobs?status=failed&error_contains=broke&created_before=2026-02-01T00:00:00Z", token=own)
    ).json

    assert (answer.data, answer.json["truncated"]) == ([], True)
    assert (preview["matched"], preview["truncated"]) == (0, True)
    assert ([job["id"] for job in before["data"]], before["truncated"]) == ([str(old.id)], False)
    assert len(newer) == failed.LOOKED_AT


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("fingerprint=3f9c01ab77d2e410", "fingerprint"), ("retryable=true", "retryable"),
        ("status=pending&error_contains=a", "error_contains"), ("retried_fewer_than=1/1", "retried_fewer_than"),
        *[(f"status=failed&fingerprint={bad}", "fingerprint") for bad in ("", "abc", "3F9C01AB77D2E410", "g" * 16)],
        *[(f"status=failed&error_contains={bad}", "error_contains") for bad in ("", "%00", "a" * 201)],
        *[(f"status=failed&retryable={bad}", "retryable") for bad in ("", "1", "True")],
        *[
            (f"status=failed&retried_fewer_than={bad}", "retried_fewer_than")
            for bad in ("", "1", "0/1", "101/1", "1/0", "1/604801", "1/1/1", "-1/1", "1/+1", "%D9%A1/1", "01/1")
        ],
        ("status=failed&retryable=true&retryable=true", "retryable"),
    ],
)  # fmt: skip
async def test_a_filter_that_cannot_be_is_named(api: Api, query: str, parameter: str) -> None:
    answer = await api.get(f"/api/jobs?{query}")

    assert (answer.status, answer.code, answer.json["parameter"]) == (400, "invalid-parameter", parameter)


@pytest.mark.parametrize(
    "wanted",
    [
        {"fingerprint": "abc"}, {"fingerprint": 1}, {"retried_fewer_than": "1/1"}, {"retried_fewer_than": {"times": 1}},
        {"retried_fewer_than": {"times": 0, "within_seconds": 1}}, {"retryable": True},
        {"retried_fewer_than": {"times": 1, "within_seconds": 604_801}},
        {"retried_fewer_than": {"times": 1, "within_seconds": 1, "more": 1}},
    ],
)  # fmt: skip
async def test_a_bulk_retry_refuses_a_filter_that_cannot_be(api: Api, wanted: object) -> None:
    _, own = new_project()
    answer = await api.post("/api/jobs/retry", {"filter": wanted, "max": 1, "reason": "r"}, token=own)

    assert (answer.status, answer.code) == (422, "invalid-body")
