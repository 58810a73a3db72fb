"""Polling a job: what an answer holds, and how cheaply the same one is given again."""

import asyncio
import json
from collections.abc import Sequence
from uuid import uuid4

import pytest

from shared.errors import RedriveError
from shared.jobs import WHOLE_AT_ONCE, Jobs
from shared.models import MAX_LISTED_ERROR, Job, JobKey
from tests.api_server import Api, Reply, Serve
from tests.jobs import JobMaker, MadeJob
from tests.tokens import token

pytestmark = pytest.mark.asyncio(loop_scope="module")

FIELDS = {
    "id", "type", "status", "attempts", "max_attempts", "last_error", "last_error_truncated", "scheduled_at",
    "started_at", "completed_at", "created_at", "done", "retryable", "retry_blocked_by", "pending_retry", "links",
}  # fmt: skip
SAME_ON_304 = {"ETag", "Cache-Control", "X-Content-Type-Options", "X-Request-Id", "Retry-After"}


def rfc3339(value: str) -> bool:
    return value.endswith("Z") and value[10] == "T"


async def test_a_job_is_answered_with_the_fields_of_the_contract(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed(attempts=1, max_attempts=3, last_error="smtp: 421 — später")
    row = await jobs.row(job)

    answer = await api.get(f"/api/jobs/{job.id}")

    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json.keys() == {"data"}
    data = answer.data
    assert data.keys() == FIELDS
    assert {name: data[name] for name in ("id", "type", "status", "attempts", "max_attempts", "last_error")} == {
        "id": str(job.id), "type": "email", "status": "failed", "attempts": 1, "max_attempts": 3,
        "last_error": "smtp: 421 — später",
    }  # fmt: skip
    for name in ("scheduled_at", "started_at", "completed_at", "created_at"):
        assert rfc3339(data[name])
        assert data[name].startswith(row[name].strftime("%Y-%m-%dT%H:%M:%S"))
    assert (data["done"], data["retryable"], data["retry_blocked_by"], data["pending_retry"]) == (
        True,
        True,
        None,
        None,
    )
    path = f"/api/jobs/{job.id}"
    assert data["links"] == {
        "self": path, "retry": f"{path}/retry", "retries": f"{path}/retries", "events": f"{path}/events"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("status", "attempts", "done", "blocked_by"),
    [
        ("pending", 0, False, "not_failed"),
        ("running", 1, False, "not_failed"),
        ("completed", 1, True, "not_failed"),
        ("failed", 1, True, None),
        ("failed", 3, True, "attempts_exhausted"),
    ],
)
async def test_a_job_says_whether_it_is_done_and_can_be_retried(  # noqa: PLR0917 - a table
    api: Api, jobs: JobMaker, status: str, attempts: int, done: bool, blocked_by: str | None  # noqa: FBT001
) -> None:  # fmt: skip
    (job,) = await jobs.make(1, status=status, attempts=attempts)

    data = (await api.get(f"/api/jobs/{job.id}")).data

    assert (data["done"], data["retryable"], data["retry_blocked_by"]) == (done, blocked_by is None, blocked_by)


async def test_what_the_table_leaves_open_has_a_value(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed(attempts=None, max_attempts=None)
    await jobs.pool.execute("UPDATE control_plane.jobs SET payload = NULL WHERE id = $1", job.id)

    data = (await api.get(f"/api/jobs/{job.id}?include=payload")).data

    assert (data["attempts"], data["max_attempts"], data["payload"]) == (0, 3, {})


async def test_a_status_that_the_owner_has_promised_not_to_use_harms_no_other_job(api: Api, jobs: JobMaker) -> None:
    good = await jobs.failed(project_id="odd")
    (odd,) = await jobs.make(1, status="running", project_id="odd")
    await jobs.pool.execute("ALTER TABLE control_plane.jobs DROP CONSTRAINT jobs_status_check")
    await jobs.pool.execute("UPDATE control_plane.jobs SET status = 'archived' WHERE id = $1", odd.id)
    theirs = token(project_id="odd")

    at_once = await asyncio.gather(*(api.get(f"/api/jobs/{job.id}", token=theirs) for job in (good, odd)))
    listed = await api.get("/api/jobs", token=theirs)
    refused = await api.post(f"/api/jobs/{odd.id}/retry", token=theirs)

    assert [answer.data["status"] for answer in at_once] == ["failed", "archived"]
    assert (at_once[1].data["done"], at_once[1].data["retry_blocked_by"]) == (False, "not_failed")
    assert {job["id"]: job["status"] for job in listed.data} == {str(good.id): "failed", str(odd.id): "archived"}
    assert refused.code == "job-not-failed"


async def test_the_payload_comes_only_when_asked_for_and_is_the_stored_json(api: Api, jobs: JobMaker) -> None:
    payload = {"to": "ü@example.org", "n": [1, 1.5, None, {"deep": True}], "big": 10**30, "text": 'a"b\\c\n\u2028'}
    (job,) = await jobs.make(1, status="pending", attempts=0, payload=json.dumps(payload))

    plain = await api.get(f"/api/jobs/{job.id}")
    full = await api.get(f"/api/jobs/{job.id}?include=payload")

    assert "payload" not in plain.data
    assert full.data.pop("payload") == payload
    assert plain.headers["ETag"] != full.headers["ETag"]


async def test_the_payload_has_a_scope_of_its_own(api: Api, jobs: JobMaker) -> None:
    job = await jobs.pending()
    path = f"/api/jobs/{job.id}?include=payload"

    assert (await api.get(path, token=token(scope="jobs:read"))).code == "insufficient-scope"
    assert (await api.get(path, token=token(scope="jobs:read jobs:payload"))).status == 200


async def test_no_query_reads_more_than_one_payload(
    database_url: str, jobs: JobMaker, monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    read_at_once: list[tuple[int, bool]] = []
    load = Jobs._find_with_payload

    async def counted(
        store: Jobs, keys: Sequence[JobKey], most: int = MAX_LISTED_ERROR, *, whole: bool = False
    ) -> dict[JobKey, Job | RedriveError]:
        read_at_once.append((len(keys), whole))
        return await load(store, keys, most, whole=whole)

    monkeypatch.setattr(Jobs, "_find_with_payload", counted)
    made = await jobs.make(50, status="pending", attempts=0)
    api = await serve(database_url)
    answers = await asyncio.gather(*(api.get(f"/api/jobs/{job.id}?include=payload") for job in made))

    assert {answer.status for answer in answers} == {200}
    assert sum(keys for keys, whole in read_at_once if whole) == 50
    assert max(keys for keys, whole in read_at_once if whole) == 1
    assert max(keys for keys, whole in read_at_once) <= WHOLE_AT_ONCE


async def test_an_id_may_be_written_in_either_case(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()

    assert (await api.get(f"/api/jobs/{str(job.id).upper()}")).body == (await api.get(f"/api/jobs/{job.id}")).body


@pytest.mark.parametrize("form", ["{}", "W/{}", '"1", {}', "*", '"1",W/{} , "2"'])
async def test_who_has_it_already_gets_the_same_headers_and_no_body(api: Api, jobs: JobMaker, form: str) -> None:
    job = await jobs.pending()
    first = await api.get(f"/api/jobs/{job.id}", headers={"X-Request-Id": "r1"})

    again = await api.get(
        f"/api/jobs/{job.id}", headers={"X-Request-Id": "r1", "If-None-Match": form.format(first.headers["ETag"])}
    )

    assert (again.status, again.body) == (304, b"")
    assert {name: again.headers[name] for name in SAME_ON_304} == {name: first.headers[name] for name in SAME_ON_304}
    assert "Content-Type" not in again.headers


async def test_the_tag_changes_with_every_change_of_the_job(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()
    path = f"/api/jobs/{job.id}"
    tags = [(await api.get(path)).headers["ETag"]]
    await api.post(f"{path}/retry")
    tags.append((await api.get(path)).headers["ETag"])
    await jobs.fail_again(job)
    tags.append((await api.get(path)).headers["ETag"])

    assert len(set(tags)) == 3
    answer = await api.get(path, headers={"If-None-Match": tags[0]})
    assert answer.status == 200


async def test_the_same_job_is_the_same_bytes(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()
    answers = [await api.get(f"/api/jobs/{job.id}") for _ in range(3)]

    assert len({(answer.body, answer.headers["ETag"]) for answer in answers}) == 1


async def test_only_who_has_something_to_wait_for_is_told_when_to_come_back(api: Api, jobs: JobMaker) -> None:
    later = await jobs.pending()
    await jobs.pool.execute(
        "UPDATE control_plane.jobs SET scheduled_at = now() + interval '1 hour' WHERE id = $1", later.id
    )
    running, failed = await jobs.running(), await jobs.failed()

    assert (await api.get(f"/api/jobs/{later.id}")).headers["Retry-After"] == "300"
    assert (await api.get(f"/api/jobs/{running.id}")).headers["Retry-After"] == "1"
    assert "Retry-After" not in (await api.get(f"/api/jobs/{failed.id}")).headers


async def test_a_foreign_job_and_an_unknown_one_are_the_same_answer_byte_for_byte(api: Api, jobs: JobMaker) -> None:
    foreign = await jobs.failed(project_id="p2")
    for method, ending in (("GET", ""), ("GET", "?include=payload"), ("GET", "/retries"), ("POST", "/retry")):
        answers = [
            (await api.call(method, f"/api/jobs/{job_id}{ending}", headers={"X-Request-Id": "r1"})).without_date
            for job_id in (foreign.id, uuid4())
        ]

        assert answers[0] == answers[1]
        assert answers[0][0] == 404


async def test_a_foreign_retry_and_an_unknown_one_are_the_same_answer_byte_for_byte(api: Api, jobs: JobMaker) -> None:
    foreign = await jobs.failed(project_id="p2")
    accepted = await api.post(f"/api/jobs/{foreign.id}/retry", token=token(project_id="p2"))
    assert accepted.status == 202
    for method in ("GET", "DELETE"):
        answers = [
            (await api.call(method, f"/api/retries/{name}", headers={"X-Request-Id": "r1"})).without_date
            for name in (accepted.data["id"], uuid4(), "not-an-id", "%00", "x" * 4000)
        ]

        assert answers[0][0] == 404
        assert all(answer == answers[0] for answer in answers)


async def test_an_administrator_may_look_into_another_project(api: Api, jobs: JobMaker) -> None:
    foreign = await jobs.failed(project_id="p2")
    admin = token(scope="jobs:read jobs:admin")
    path = f"/api/jobs/{foreign.id}"

    assert (await api.get(path, token=admin)).status == 404
    assert (await api.get(f"{path}?project_id=p2", token=admin)).status == 200
    assert (await api.get(f"{path}?project_id=p3", token=admin)).status == 404
    assert (await api.get(f"{path}?project_id=p2", token=token(scope="jobs:read"))).code == "insufficient-scope"
    assert (await api.get(f"{path}?project_id=p2")).code == "insufficient-scope"
    assert (await api.get(f"{path}?project_id=p2%00", token=admin)).code == "invalid-parameter"
    assert (await api.get(f"{path}?project_id=", token=admin)).code == "invalid-parameter"


async def test_a_client_may_name_its_own_project(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()

    assert (await api.get(f"/api/jobs/{job.id}?project_id=p1")).status == 200


async def test_many_clients_at_once_each_get_their_own_job(api: Api, jobs: JobMaker) -> None:
    made = [*await jobs.many_failed(60), *await jobs.many_failed(60, project_id="p2")]
    tokens = {project: token(project_id=project) for project in ("p1", "p2")}

    async def seen(job: MadeJob, project: str, *, include: str = "") -> Reply:
        return await api.get(f"/api/jobs/{job.id}{include}", token=tokens[project])

    own = await asyncio.gather(*(seen(job, job.project_id) for job in made))
    payload = await asyncio.gather(*(seen(job, job.project_id, include="?include=payload") for job in made))
    foreign = await asyncio.gather(*(seen(job, "p2" if job.project_id == "p1" else "p1") for job in made))

    assert [answer.data["id"] for answer in own] == [str(job.id) for job in made]
    assert all("payload" in answer.data for answer in payload)
    assert {answer.status for answer in foreign} == {404}


async def test_a_list_is_the_newest_of_the_project(api: Api, jobs: JobMaker) -> None:
    made = await jobs.many_failed(5, project_id="p-list")
    of_list = token(project_id="p-list")
    for age, job in enumerate(made):
        await jobs.pool.execute(
            "UPDATE control_plane.jobs SET created_at = now() - $2 * interval '1 hour' WHERE id = $1", job.id, age
        )
    await jobs.completed(project_id="p-list")
    await jobs.failed(project_id="p2")

    answer = await api.get("/api/jobs?status=failed&limit=3", token=of_list)

    assert [each["id"] for each in answer.data] == [job.id for job in made[:3]]
    assert answer.data[0].keys() == FIELDS
    assert len((await api.get("/api/jobs", token=of_list)).data) == 6


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=201", "limit=-1", "limit=1e1", "limit=%D9%A1", "limit=", "limit=0x1", "limit=1&limit=2",
     "status=", "status=" + "x" * 101, "status=%00", "colour=blue", "status[]=failed", "%FF=1", "=", "limit",
     "token=abc", "include=payload", "created_after=yesterday", "cursor=abc", "cursor=", "type=%00"],
)  # fmt: skip
async def test_a_parameter_that_is_unknown_doubled_or_out_of_range_is_refused(api: Api, query: str) -> None:
    answer = await api.get(f"/api/jobs?{query}")

    assert (answer.status, answer.code) in {(400, "invalid-parameter"), (400, "invalid-cursor")}


@pytest.mark.parametrize("query", ["include=", "include=everything", "include=payload&include=payload", "wait=5"])
async def test_a_job_takes_no_other_parameters(api: Api, jobs: JobMaker, query: str) -> None:
    job = await jobs.failed()

    assert (await api.get(f"/api/jobs/{job.id}?{query}")).code == "invalid-parameter"


@pytest.mark.parametrize("time", ["infinity", "20000-01-01 00:00 UTC"])
async def test_times_that_no_calendar_holds_are_the_nearest_that_one_does(api: Api, jobs: JobMaker, time: str) -> None:
    job = await jobs.pending()
    await jobs.pool.execute(
        "UPDATE control_plane.jobs SET scheduled_at = $2::text::timestamptz, created_at = '-infinity' WHERE id = $1",
        job.id,
        time,
    )

    answer = await api.get(f"/api/jobs/{job.id}")

    assert answer.status == 200
    assert (answer.data["scheduled_at"], answer.data["created_at"]) == (
        "9999-12-31T23:59:59.999999Z",
        "0001-01-01T00:00:00Z",
    )
    assert answer.headers["Retry-After"] == "300"


async def test_reading_goes_to_the_replica_where_there_is_one(database_url: str, jobs: JobMaker, serve: Serve) -> None:
    job = await jobs.failed()
    nowhere = "postgresql://postgres@127.0.0.1:9/none"

    api = await serve(nowhere, database_read_url=database_url)
    assert (await api.get(f"/api/jobs/{job.id}")).status == 200
    assert (await api.post(f"/api/jobs/{job.id}/retry")).status == 503
