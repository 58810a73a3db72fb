"""Requesting a retry: what is accepted, what is refused and why, and that no job gets two."""

import asyncio
import json
from uuid import UUID, uuid4

import pytest

from tests.api_server import Api, Reply
from tests.eventually import eventually
from tests.integration.retrying.operators import RETRY_FIELDS, path_of
from tests.jobs import JobMaker, MadeJob
from tests.logs import Log
from tests.tokens import token

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def rows_for(jobs: JobMaker, job: MadeJob) -> int:
    return int(await jobs.pool.fetchval("SELECT count(*) FROM redrive.retry_requests WHERE job_id = $1", job.id))


async def test_an_accepted_retry_is_answered_with_the_fields_of_the_contract(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()

    answer = await api.post(
        path_of(job), {"reason": "smtp is back — endlich", "delay_seconds": 60, "extra_attempts": 2}
    )

    assert answer.status == 202
    assert answer.json.keys() == {"data", "deduplicated"}
    assert answer.json["deduplicated"] is False
    data = answer.data
    assert data.keys() == RETRY_FIELDS
    assert UUID(data["id"]).version == 7
    assert answer.headers["Location"] == f"/api/retries/{data['id']}"
    assert {name: data[name] for name in RETRY_FIELDS - {"id", "requested_at"}} == {
        "job_id": str(job.id), "batch_id": None, "state": "queued", "outcome": None, "actor": "alice",
        "cancelled_by": None, "redriven_by": None, "redriven_at": None,
        "reason": "smtp is back — endlich", "delay_seconds": 60, "extra_attempts": 2, "processed_at": None,
        "attempts_before": None, "max_attempts_before": None, "started_at_before": None, "completed_at_before": None,
        "error_before": None, "error_before_truncated": False, "done": False,
        "links": {"self": answer.headers["Location"], "job": f"/api/jobs/{job.id}?fresh=true"},
    }  # fmt: skip
    assert data["requested_at"].endswith("Z")


async def test_an_accepted_retry_can_be_looked_at(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()
    accepted = await api.post(path_of(job))

    seen = await api.get(accepted.headers["Location"])
    again = await api.get(accepted.headers["Location"], headers={"If-None-Match": seen.headers["ETag"]})
    job_now = (await api.get(f"/api/jobs/{job.id}")).data
    history = await api.get(f"/api/jobs/{job.id}/retries")

    assert seen.data == accepted.data
    assert seen.headers["Retry-After"] == "1"
    assert (again.status, again.body) == (304, b"")
    assert history.data == [accepted.data]
    assert job_now["pending_retry"] == {"id": accepted.data["id"], "requested_at": accepted.data["requested_at"]}
    assert (job_now["done"], job_now["retryable"], job_now["retry_blocked_by"]) == (False, False, "retry_queued")


async def test_a_job_that_was_never_retried_has_an_empty_history(api: Api, jobs: JobMaker) -> None:
    assert (await api.get(f"/api/jobs/{(await jobs.failed()).id}/retries")).json == {"data": [], "next_cursor": None}


async def test_the_ledger_keeps_who_asked_and_for_which_version(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

    answer = await api.post(path_of(job), token=token(sub="bob"), headers={"traceparent": trace})

    row = await jobs.ledger_row(UUID(answer.data["id"]))
    assert row is not None
    assert (row["actor"], row["job_version"], row["traceparent"]) == ("bob", job.version, trace)


async def test_an_administrator_is_the_actor_in_another_project(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed(project_id="p2")

    answer = await api.post(f"{path_of(job)}?project_id=p2", token=token(sub="root", scope="jobs:retry jobs:admin"))

    assert (answer.status, answer.data["actor"]) == (202, "root")
    row = await jobs.ledger_row(UUID(answer.data["id"]))
    assert row is not None
    assert row["project_id"] == "p2"


async def test_a_second_request_is_the_first_one(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()
    first = await api.post(path_of(job), {"reason": "first"})

    second = await api.post(path_of(job), {"reason": "second"}, token=token(sub="bob"))

    assert (second.status, second.json["deduplicated"], second.data) == (202, True, first.data)
    assert await rows_for(jobs, job) == 1


async def test_a_thousand_requests_at_once_for_one_job_are_one_row(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()

    answers = await asyncio.gather(*(api.post(path_of(job)) for _ in range(1000)))

    assert {answer.status for answer in answers} == {202}
    assert len({answer.data["id"] for answer in answers}) == 1
    assert [answer.json["deduplicated"] for answer in answers].count(False) == 1
    assert await rows_for(jobs, job) == 1


async def test_many_jobs_at_once_each_have_their_own_row(api: Api, jobs: JobMaker) -> None:
    made = await jobs.many_failed(300)

    answers = await asyncio.gather(*(api.post(path_of(job), {"reason": str(job.id)}) for job in made))

    assert [answer.data["job_id"] for answer in answers] == [str(job.id) for job in made]
    assert [answer.data["reason"] for answer in answers] == [str(job.id) for job in made]


@pytest.mark.parametrize("status", ["pending", "running", "completed"])
async def test_a_job_that_has_not_failed_is_not_retried(api: Api, jobs: JobMaker, status: str) -> None:
    (job,) = await jobs.make(1, status=status)

    answer = await api.post(path_of(job))

    assert (answer.status, answer.code) == (409, "job-not-failed")
    assert await rows_for(jobs, job) == 0


@pytest.mark.parametrize(("attempts", "max_attempts"), [(3, 3), (3, None), (1, 1), (0, 0)])
async def test_a_job_without_attempts_left_needs_extra_ones(
    api: Api, jobs: JobMaker, attempts: int, max_attempts: int | None
) -> None:
    job = await jobs.failed(attempts=attempts, max_attempts=max_attempts)

    refused = await api.post(path_of(job))
    accepted = await api.post(path_of(job), {"extra_attempts": 1})

    assert (refused.status, refused.code) == (409, "attempts-exhausted")
    assert (accepted.status, accepted.data["extra_attempts"]) == (202, 1)


async def test_extra_attempts_have_a_scope_of_their_own(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()

    refused = await api.post(path_of(job), {"extra_attempts": 1}, token=token(scope="jobs:retry"))
    accepted = await api.post(path_of(job), {"extra_attempts": 1}, token=token(scope="jobs:retry jobs:retry:extend"))

    assert (refused.status, refused.code) == (403, "insufficient-scope")
    assert accepted.status == 202


async def test_a_condition_holds_only_for_the_version_that_was_seen(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()
    seen = (await api.get(f"/api/jobs/{job.id}")).headers["ETag"]
    full = (await api.get(f"/api/jobs/{job.id}?include=payload")).headers["ETag"]
    await jobs.fail_again(job)
    now = (await api.get(f"/api/jobs/{job.id}")).headers["ETag"]

    for stale in (seen, full, f"W/{seen}", f'{seen[:-1]}-gzip"', '"1", "2"', "rubbish", ""):
        answer = await api.post(path_of(job), headers={"If-Match": stale})
        assert (answer.status, answer.code) == (412, "job-changed")
    assert await rows_for(jobs, job) == 0
    assert (await api.post(path_of(job), headers={"If-Match": f'"1", {now}'})).status == 202
    for same in (now, f"W/{now}", f'{now[:-1]}-gzip"', f'W/{now[:-1]}-br"'):
        assert (await api.post(f"{path_of(job)}?dry_run=true", headers={"If-Match": same})).status == 200
    assert (await api.post(path_of(job), headers={"If-Match": now})).json["deduplicated"]
    assert (await api.post(path_of(job), headers={"If-Match": "*"})).json["deduplicated"]


async def test_a_foreign_job_is_not_found_and_nothing_is_written(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed(project_id="p2")

    answers = [await api.post(path_of(job), {"reason": "mine"}) for _ in range(3)]

    assert {(answer.status, answer.code) for answer in answers} == {(404, "job-not-found")}
    assert await rows_for(jobs, job) == 0


# -- bodies


@pytest.mark.parametrize("body", [b"", b"{}", b'{"reason":null}', b'{"delay_seconds":0}'])
async def test_a_body_is_optional(api: Api, jobs: JobMaker, body: bytes) -> None:
    assert (await api.post(path_of(await jobs.failed()), body=body)).status == 202


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        (b"{}", "text/plain", 415, "unsupported-media-type"),
        (b"reason=x", "application/x-www-form-urlencoded", 415, "unsupported-media-type"),
        (b"{", "application/json", 400, "invalid-json"),
        (b"canary", "application/json", 400, "invalid-json"),
        (b"\xff\xfe", "application/json", 400, "invalid-json"),
        (b'{"reason":"\\ud800"}', "application/json", 400, "invalid-json"),
        (b"[]", "application/json", 422, "invalid-body"),
        (b"null", "application/json", 422, "invalid-body"),
        (b'{"canary":1}', "application/json", 422, "invalid-body"),
        (b'{"reason":1}', "application/json", 422, "invalid-body"),
        (b'{"reason":"canary\\u0000"}', "application/json", 422, "invalid-body"),
        (b'{"reason":"%s"}' % (b"c" * 501), "application/json", 422, "invalid-body"),
        (b'{"delay_seconds":-1}', "application/json", 422, "invalid-body"),
        (b'{"delay_seconds":86401}', "application/json", 422, "invalid-body"),
        (b'{"delay_seconds":1.5}', "application/json", 422, "invalid-body"),
        (b'{"delay_seconds":1e300}', "application/json", 422, "invalid-body"),
        (b'{"extra_attempts":0}', "application/json", 422, "invalid-body"),
        (b'{"extra_attempts":11}', "application/json", 422, "invalid-body"),
        (b'{"extra_attempts":true}', "application/json", 422, "invalid-body"),
        (b"[" * 4000, "application/json", 422, "invalid-body"),
        (b'{"reason":"%s"}' % (b"c" * 4097), "application/json", 413, "payload-too-large"),
        (b" " * 100_000, "application/json", 413, "payload-too-large"),
    ],
    ids=lambda value: value[:30].decode("latin-1") if isinstance(value, bytes) else None,
)
async def test_a_body_of_the_wrong_kind_is_refused(  # noqa: PLR0917 - a table
    api: Api, jobs: JobMaker, body: bytes, content_type: str, status: int, code: str
) -> None:
    job = await jobs.failed()

    answer = await api.post(path_of(job), body=body, headers={"Content-Type": content_type})

    assert (answer.status, answer.code) == (status, code)
    assert b"canary" not in answer.body
    assert ("errors" in answer.json) == (status == 422)
    assert await rows_for(jobs, job) == 0


async def test_a_body_within_the_limits_is_taken_whole(api: Api, jobs: JobMaker) -> None:
    reason = "ü" * 500
    body = json.dumps({"reason": reason, "delay_seconds": 86_400, "extra_attempts": 10}, ensure_ascii=False).encode()

    answer = await api.post(path_of(await jobs.failed()), body=body + b" " * (4096 - len(body)))

    assert (answer.status, answer.data["reason"]) == (202, reason)


@pytest.mark.parametrize("query", ["force=true", "dry_run=yes", "dry_run=", "dry_run=true&dry_run=true"])
async def test_a_retry_takes_no_other_parameters(api: Api, jobs: JobMaker, query: str) -> None:
    job = await jobs.failed()

    assert (await api.post(f"{path_of(job)}?{query}")).code == "invalid-parameter"
    assert await rows_for(jobs, job) == 0


async def test_a_rehearsal_says_what_would_happen_and_writes_nothing(api: Api, jobs: JobMaker) -> None:
    fresh, used_up, done = await jobs.failed(), await jobs.failed(attempts=3), await jobs.completed()

    async def dry_run(job: MadeJob) -> object:
        return (await api.post(f"{path_of(job)}?dry_run=true")).data

    assert await dry_run(fresh) == {"would_retry": True, "blocked_by": None}
    assert await dry_run(used_up) == {"would_retry": False, "blocked_by": "attempts_exhausted"}
    assert await dry_run(done) == {"would_retry": False, "blocked_by": "not_failed"}
    assert await rows_for(jobs, fresh) == 0


async def test_what_the_database_objects_to_is_logged_and_not_explained(api: Api, jobs: JobMaker, log: Log) -> None:
    job = await jobs.failed()
    await jobs.pool.execute("ALTER TABLE redrive.retry_requests ADD CONSTRAINT canary CHECK (reason <> 'refuse me')")

    answer = await api.post(path_of(job), {"reason": "refuse me"})

    assert (answer.status, answer.code) == (500, "internal")
    assert b"canary" not in answer.body
    (error,) = (line for line in log.lines if line["level"] == "error")
    assert error["request_id"] == answer.headers["X-Request-Id"]


# -- clients that leave


async def test_a_client_that_leaves_right_after_asking_causes_one_row_and_no_error(
    api: Api, jobs: JobMaker, log: Log
) -> None:
    made = await jobs.many_failed(50, project_id="p-left")
    bearer = token(project_id="p-left")

    async def ask_and_leave(job: MadeJob) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(
            f"POST {path_of(job)} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {bearer}\r\n"
            "Content-Length: 0\r\n\r\n".encode()
        )
        await writer.drain()
        writer.transport.abort()

    await asyncio.gather(*map(ask_and_leave, made))

    async def those_that_arrived_are_answered() -> bool:
        waiting = await api.get("/api/retries?state=queued&limit=200", token=bearer)
        return len(waiting.data) > 0

    await eventually(those_that_arrived_are_answered)
    counts = [await rows_for(jobs, job) for job in made]
    assert set(counts) <= {0, 1}
    assert log.troubles() == []


async def test_a_client_that_leaves_in_the_middle_of_its_body_causes_nothing(
    api: Api, jobs: JobMaker, log: Log
) -> None:
    job = await jobs.failed()
    labels = {"method": "POST", "route": "/api/jobs/{id}/retry", "status": "400"}
    before = api.counted("redrive_http_requests_total", **labels)
    _, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(
        f"POST {path_of(job)} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token()}\r\n"
        'Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"reason":'.encode()
    )
    await writer.drain()
    writer.transport.abort()

    await eventually(lambda: api.counted("redrive_http_requests_total", **labels) == before + 1)
    assert await rows_for(jobs, job) == 0
    assert log.troubles() == []


async def test_a_key_stands_for_one_request(api: Api, jobs: JobMaker) -> None:
    made = await jobs.many_failed(3)

    async def ask(number: int) -> Reply:
        return await api.post(path_of(made[number // 20]), headers={"Idempotency-Key": f"{made[0].id}-{number // 20}"})

    answers = await asyncio.gather(*map(ask, range(60)))
    other = await api.post(path_of(made[1]), headers={"Idempotency-Key": f"{made[0].id}-0"})

    assert {answer.status for answer in answers} == {202}
    assert [await rows_for(jobs, job) for job in made] == [1, 1, 1]
    assert [answer.headers.get("Idempotent-Replayed") for answer in answers].count(None) == 3
    assert (other.status, other.code) == (422, "idempotency-key-reused")


async def test_a_retry_that_is_queued_can_be_taken_back_once(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()
    location = (await api.post(path_of(job))).headers["Location"]

    taken_back = await api.call("DELETE", location)
    again = await api.call("DELETE", location)

    assert (taken_back.status, taken_back.data["state"], taken_back.data["outcome"]) == (200, "cancelled", "cancelled")
    assert (again.status, again.code) == (409, "retry-already-settled")
    assert (await api.call("DELETE", f"/api/retries/{uuid4()}")).code == "retry-not-found"
