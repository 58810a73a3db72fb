"""The client against a server that answers as it is told to: what is sent again, when, and what never is."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web
from pytest_aiohttp import AiohttpServer

from redrive_client import (
    BadRequest,
    Conflict,
    FailedFilter,
    Forbidden,
    InvalidBody,
    Job,
    JobStatus,
    KeyReused,
    NotFound,
    PreconditionFailed,
    RateLimited,
    Redrive,
    RedriveClientError,
    RedriveProblem,
    ServerFault,
    Unauthenticated,
    Unavailable,
    UnexpectedAnswer,
    Unreachable,
    UnreadableJob,
    WaitTimeout,
    transport,
)

JOB_ID = "8386e689-d8b4-4ed4-91aa-7511b7751106"
RETRY_ID = "01a20749-906d-7433-a393-3683f379119b"
TOKEN = "a-token-that-no-output-may-show"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def a_job(status: str = "failed", **changed: object) -> dict[str, object]:
    job = {
        "id": JOB_ID, "type": "email", "status": status, "attempts": 1, "max_attempts": 3, "last_error": None,
        "scheduled_at": None, "started_at": None, "completed_at": None, "created_at": "2026-11-23T04:00:00Z",
        "done": status in ("failed", "completed"), "retryable": status == "failed", "retry_blocked_by": None,
        "pending_retry": None, "links": {}, "a field of tomorrow": 1,
    }  # fmt: skip
    return {**job, **changed}


def a_retry(state: str = "queued") -> dict[str, object]:
    return {
        "id": RETRY_ID, "job_id": JOB_ID, "batch_id": None, "state": state,
        "outcome": None if state == "queued" else state if state != "rejected" else "superseded", "actor": "ana",
        "reason": None, "delay_seconds": 0, "extra_attempts": 0, "requested_at": "2026-11-23T04:00:00Z",
        "processed_at": None, "attempts_before": None, "error_before": None, "done": state != "queued", "links": {},
    }  # fmt: skip


def answer(data: object, status: int = 200, **headers: str) -> Handler:
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    async def handler(_request: web.Request) -> web.Response:
        return web.json_response(data, status=status, headers=named)

    return handler


def job(status: str = "failed", *, etag: str = '"1"', **headers: str) -> Handler:
    return answer({"data": a_job(status)}, 200, ETag=etag, **headers)


def unchanged(etag: str = '"1"', **headers: str) -> Handler:
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    async def handler(_request: web.Request) -> web.Response:
        return web.Response(status=304, headers={"ETag": etag, **named})

    return handler


def problem(status: int, code: str, **headers: str) -> Handler:
    body = {
        "title": "No", "status": status, "detail": "Not so.", "code": code, "retryable": status in (429, 503),
        "request_id": "r-1", "type": f"/problems/{code}",
    }  # fmt: skip
    return answer(body, status, **headers)


async def hang_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    await request.read()
    request.transport.abort()
    return web.Response()


async def never(_request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


class Server:
    """Answers each request with the next handler; the last one stays."""

    def __init__(self, handlers: Sequence[Handler]) -> None:
        self._handlers = list(handlers)
        self.requests: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        self.bodies.append(await request.read())
        handler = self._handlers.pop(0) if len(self._handlers) > 1 else self._handlers[0]
        return await handler(request)

    def header(self, name: str) -> list[str | None]:
        """What each request said."""
        return [request.headers.get(name) for request in self.requests]


Connect = Callable[..., Awaitable[tuple[Server, Redrive]]]


@pytest.fixture
async def connect(aiohttp_server: AiohttpServer) -> AsyncIterator[Connect]:
    """Starts a server with these handlers, and opens a client for it."""
    async with AsyncExitStack() as clients:

        async def both(*handlers: Handler, **options: Any) -> tuple[Server, Redrive]:  # noqa: ANN401 - the client's own
            server, app = Server(handlers), web.Application()
            app.router.add_route("*", "/{path:.*}", server.answer)
            server.url = str((await aiohttp_server(app, shutdown_timeout=0.01)).make_url(""))
            return server, await clients.enter_async_context(Redrive(server.url, **{"token": TOKEN, **options}))

        yield both


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client has paused; it does not really."""
    taken: list[float] = []

    async def sleep(pause_s: float) -> None:
        taken.append(pause_s)

    monkeypatch.setattr(transport, "sleep", sleep)
    return taken


async def test_a_job_is_read_with_its_etag_and_the_token(connect: Connect) -> None:
    server, redrive = await connect(job("running", etag='"7741"'))
    found = await redrive.get(JOB_ID)

    assert (str(found.id), found.status, found.etag) == (JOB_ID, JobStatus.RUNNING, '"7741"')
    assert found.created_at == datetime(2026, 11, 23, 4, tzinfo=UTC)
    assert server.header("Authorization") == [f"Bearer {TOKEN}"]
    assert server.requests[0].path == f"/api/jobs/{JOB_ID}"


@pytest.mark.parametrize("status", ["cancelled", "", "FAILED", "timed out"])
async def test_a_status_that_the_client_does_not_know_is_taken_as_it_is(status: str, connect: Connect) -> None:
    listed = answer({"data": [a_job(status), a_job("failed")], "next_cursor": None})
    _, redrive = await connect(job(status), listed)
    found = await redrive.get(JOB_ID)
    jobs = [each async for each in redrive.list(status=status or None)]

    assert found.status == status
    assert [each.status for each in jobs if isinstance(each, Job)] == [status, JobStatus.FAILED]
    assert isinstance(jobs[1], Job)
    assert jobs[1].status is JobStatus.FAILED


async def test_a_row_that_the_server_cannot_show_is_told_from_a_job(connect: Connect) -> None:
    rows = [a_job(), {"id": RETRY_ID, "unreadable": True}, a_job("completed", last_error_truncated=True)]
    page, found = answer({"data": rows, "next_cursor": None}), answer({"data": rows, "not_found": []})
    _, redrive = await connect(page, found)
    listed = [each async for each in redrive.list()]
    many = await redrive.get_many([JOB_ID, RETRY_ID, JOB_ID])

    assert [type(each) for each in listed] == [Job, UnreadableJob, Job]
    assert [job.last_error_truncated for job in many.jobs] == [False, True]
    assert (many.not_found, [str(each) for each in many.unreadable]) == ((), [RETRY_ID])


async def test_a_row_that_is_neither_is_no_answer_of_this_protocol(connect: Connect) -> None:
    page = answer({"data": [{"id": JOB_ID}], "next_cursor": None})
    _, redrive = await connect(page)
    with pytest.raises(UnexpectedAnswer):
        [each async for each in redrive.list()]


async def test_a_token_can_be_asked_for_before_each_request(connect: Connect) -> None:
    tokens = iter(["first", "second"])

    async def token() -> str:
        return next(tokens)

    server, redrive = await connect(job(), token=token)
    await redrive.get(JOB_ID)
    await redrive.get(JOB_ID)

    assert server.header("Authorization") == ["Bearer first", "Bearer second"]


@pytest.mark.usefixtures("pauses")
async def test_nothing_that_goes_wrong_shows_the_token(connect: Connect) -> None:
    errors = []
    _, redrive = await connect(problem(401, "invalid-token"), answer("?"), hang_up)
    for _ in range(3):
        with pytest.raises(RedriveClientError) as caught:
            await redrive.get(JOB_ID)
        errors.append(caught.value)

    assert [type(error) for error in errors] == [Unauthenticated, UnexpectedAnswer, Unreachable]
    assert TOKEN not in repr(errors) + str(errors) + repr(redrive) + repr([error.__dict__ for error in errors])


@pytest.mark.parametrize("url", ["ftp://host", "host:80", "http://", "http://ana:secret@host"])
def test_a_url_that_cannot_be_one_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ValueError, match="URL must") as caught:
        Redrive(url, token=TOKEN)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid-job-id", BadRequest),
        (401, "authentication-required", Unauthenticated),
        (403, "insufficient-scope", Forbidden),
        (404, "job-not-found", NotFound),
        (405, "method-not-allowed", BadRequest),
        (409, "job-not-failed", Conflict),
        (412, "job-changed", PreconditionFailed),
        (413, "payload-too-large", InvalidBody),
        (422, "invalid-body", InvalidBody),
        (422, "idempotency-key-reused", KeyReused),
        (500, "internal", ServerFault),
    ],
)
async def test_each_refusal_is_raised_once_as_what_it_means(
    status: int, code: str, kind: type[RedriveProblem], pauses: list[float], connect: Connect
) -> None:
    server, redrive = await connect(problem(status, code))
    with pytest.raises(kind) as caught:
        await redrive.retry(JOB_ID)

    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.code, caught.value.request_id) == (status, code, "r-1")
    assert len(server.requests) == 1
    assert pauses == []


async def test_a_page_that_is_not_ours_is_an_unexpected_answer(connect: Connect) -> None:
    async def page(_request: web.Request) -> web.Response:
        return web.Response(status=404, text="<h1>nginx</h1>")

    _, redrive = await connect(page)
    with pytest.raises(UnexpectedAnswer):
        await redrive.get(JOB_ID)


async def test_the_token_does_not_follow_a_redirect(connect: Connect) -> None:
    elsewhere, _ = await connect(job())

    async def redirect(_request: web.Request) -> web.Response:
        raise web.HTTPFound(elsewhere.url)

    _, redrive = await connect(redirect)
    with pytest.raises(UnexpectedAnswer):
        await redrive.get(JOB_ID)
    assert elsewhere.requests == []


async def test_429_and_503_are_tried_again_after_what_they_say_with_jitter(
    pauses: list[float], connect: Connect
) -> None:
    limited, away = problem(429, "rate-limited", Retry_After="7"), problem(503, "unavailable", Retry_After="1")
    server, redrive = await connect(limited, away, job())
    await redrive.get(JOB_ID)

    assert len(server.requests) == 3
    assert 7 < pauses[0] <= 7.2
    assert 1 < pauses[1] <= 1.4


async def test_pauses_grow_while_the_server_hangs_up(pauses: list[float], connect: Connect) -> None:
    server, redrive = await connect(hang_up)
    with pytest.raises(Unreachable):
        await redrive.retry(JOB_ID)

    assert len(server.requests) == transport.TRIES
    for number, pause_s in enumerate(pauses):
        assert 0.5 * 0.2 * 2**number <= pause_s <= 0.2 * 2**number


async def test_a_pause_that_would_end_after_the_deadline_is_not_begun(pauses: list[float], connect: Connect) -> None:
    limited = problem(429, "rate-limited", Retry_After="60")
    server, redrive = await connect(limited, timeout_s=30)
    with pytest.raises(RateLimited) as caught:
        await redrive.get(JOB_ID)

    assert (len(server.requests), pauses, caught.value.retry_after_s) == (1, [], 60)


async def test_an_answer_that_does_not_come_ends_at_the_deadline(connect: Connect) -> None:
    _, redrive = await connect(never, timeout_s=0.05)
    with pytest.raises(Unreachable, match="no answer in time"):
        await redrive.get(JOB_ID)


@pytest.mark.parametrize("trouble", [hang_up, problem(503, "unavailable"), problem(429, "rate-limited")])
@pytest.mark.usefixtures("pauses")
async def test_a_retry_is_sent_again_with_the_same_key_and_the_same_bytes(trouble: Handler, connect: Connect) -> None:
    accepted = answer({"data": a_retry(), "deduplicated": False}, 202, Idempotent_Replayed="true")
    server, redrive = await connect(trouble, trouble, accepted)
    answered = await redrive.retry(JOB_ID, reason="again", extra_attempts=2, if_match='"7741"')

    (key,) = set(server.header("Idempotency-Key"))
    assert key is not None
    assert uuid.UUID(key).version == 4
    assert len(server.requests) == 3
    assert set(server.bodies) == {b'{"reason":"again","extra_attempts":2}'}
    assert set(server.header("If-Match")) == {'"7741"'}
    assert answered.replayed
    assert not answered.deduplicated


async def test_two_retries_have_two_keys_and_a_given_key_is_kept(connect: Connect) -> None:
    accepted = answer({"data": a_retry(), "deduplicated": False}, 202)
    server, redrive = await connect(accepted)
    await redrive.retry(JOB_ID)
    await redrive.retry(JOB_ID)
    await redrive.retry(JOB_ID, idempotency_key="mine")

    assert len(set(server.header("Idempotency-Key"))) == 3
    assert server.header("Idempotency-Key")[2] == "mine"


async def test_a_dry_run_carries_no_key(connect: Connect) -> None:
    dry_run = answer({"data": {"would_retry": False, "blocked_by": "not_failed"}})
    server, redrive = await connect(dry_run)
    told = await redrive.retry(JOB_ID, dry_run=True)

    assert (told.would_retry, told.blocked_by) == (False, "not_failed")
    assert server.requests[0].query_string == "dry_run=true"
    assert server.header("Idempotency-Key") == [None]


async def test_a_job_is_waited_for_in_one_request_that_the_server_holds(pauses: list[float], connect: Connect) -> None:
    done = job("completed", Preference_Applied="wait=49")
    server, redrive = await connect(done)
    found = await redrive.wait(JOB_ID, timeout_s=50)

    assert found.status is JobStatus.COMPLETED
    assert server.header("Prefer") == ["wait=49"]
    assert pauses == []


@pytest.mark.usefixtures("pauses")
async def test_a_wait_goes_on_from_the_etag_that_it_has_seen(connect: Connect) -> None:
    running = job("running", etag='"2"', Retry_After="1")
    server, redrive = await connect(running, unchanged('"2"', Retry_After="1"), job("completed", etag='"3"'))
    assert (await redrive.wait(JOB_ID, timeout_s=60)).etag == '"3"'

    assert server.header("If-None-Match") == [None, '"2"', '"2"']


async def test_a_server_that_does_not_hold_is_asked_again_after_retry_after(
    pauses: list[float], connect: Connect
) -> None:
    server, redrive = await connect(
        job("running", Retry_After="9"), unchanged(Retry_After="4"), job("completed", etag='"2"')
    )
    await redrive.wait(JOB_ID, timeout_s=60)

    assert len(server.requests) == 3
    assert [int(pause_s) for pause_s in pauses] == [9, 4]


async def test_a_server_that_holds_for_no_second_is_asked_again_after_retry_after(
    pauses: list[float], connect: Connect
) -> None:
    applied = {"Preference_Applied": "wait=0", "Retry_After": "4"}  # as in the last second of a token
    server, redrive = await connect(job("running", **applied), unchanged(**applied), job("completed", etag='"2"'))
    await redrive.wait(JOB_ID, timeout_s=60)

    assert len(server.requests) == 3
    assert [int(pause_s) for pause_s in pauses] == [4, 4]


async def test_news_while_waiting_is_no_reason_to_pause(pauses: list[float], connect: Connect) -> None:
    applied = {"Preference_Applied": "wait=59", "Retry_After": "5"}
    server, redrive = await connect(
        job("running", **applied), job("pending", etag='"2"', **applied), job("completed", etag='"3"')
    )
    await redrive.wait(JOB_ID, timeout_s=60)

    assert len(server.requests) == 3
    assert [int(pause_s) for pause_s in pauses] == [5]  # the first came early, and was none


@pytest.mark.usefixtures("pauses")
async def test_a_wait_outlasts_a_server_that_is_away(connect: Connect) -> None:
    away = [hang_up] * 5 + [problem(503, "unavailable")] * 5
    server, redrive = await connect(*away, job("completed"))
    assert (await redrive.wait(JOB_ID, timeout_s=60)).done
    assert len(server.requests) == 11


async def test_a_wait_ends_at_its_time_with_what_was_seen_last(connect: Connect) -> None:
    _, redrive = await connect(job("running", Retry_After="30"))
    with pytest.raises(WaitTimeout) as caught:
        await redrive.wait(JOB_ID, timeout_s=0.1)
    assert caught.value.last is not None
    assert caught.value.last.status is JobStatus.RUNNING
    assert isinstance(caught.value, TimeoutError)

    _, redrive = await connect(never)
    with pytest.raises(WaitTimeout) as caught:
        await redrive.wait(JOB_ID, timeout_s=0.1)
    assert caught.value.last is None


async def test_a_retry_that_is_rejected_is_not_waited_for_any_further(connect: Connect) -> None:
    accepted = answer({"data": a_retry(), "deduplicated": False}, 202)
    rejected = answer({"data": a_retry("rejected")}, ETag='"r"')
    server, redrive = await connect(accepted, rejected)
    retried = await redrive.retry_and_wait(JOB_ID, timeout_s=60)

    assert (retried.retry.outcome, retried.job) == ("superseded", None)
    assert len(server.requests) == 2


async def test_a_retry_that_is_applied_is_waited_for_until_the_job_is_done(connect: Connect) -> None:
    accepted = answer({"data": a_retry(), "deduplicated": False}, 202)
    applied = answer({"data": a_retry("applied")}, ETag='"a"')
    server, redrive = await connect(accepted, applied, job("completed"))
    retried = await redrive.retry_and_wait(JOB_ID, timeout_s=60)

    assert retried.job is not None
    assert retried.job.status is JobStatus.COMPLETED
    assert [request.path for request in server.requests[1:]] == [f"/api/retries/{RETRY_ID}", f"/api/jobs/{JOB_ID}"]


async def test_a_cancellation_whose_answer_was_lost_has_still_been_made(connect: Connect) -> None:
    settled = problem(409, "retry-already-settled")
    cancelled = answer({"data": a_retry("cancelled")}, ETag='"c"')
    server, redrive = await connect(hang_up, settled, cancelled)
    assert (await redrive.cancel(RETRY_ID)).state == "cancelled"
    assert [request.method for request in server.requests] == ["DELETE", "DELETE", "GET"]


async def test_a_cancellation_that_came_too_late_is_a_conflict(connect: Connect) -> None:
    applied = answer({"data": a_retry("applied")}, ETag='"a"')
    _, redrive = await connect(problem(409, "retry-already-settled"), applied)
    with pytest.raises(Conflict):
        await redrive.cancel(RETRY_ID)


async def test_a_list_follows_its_cursors_and_no_further_than_it_is_read(connect: Connect) -> None:
    def page(cursor: str | None) -> Handler:
        return answer({"data": [a_job(), a_job()], "next_cursor": cursor})

    server, redrive = await connect(page("one"), page("two"), page(None))
    listed = [job async for job in redrive.list(status="failed", type="a b&c", page_size=2)]

    assert len(listed) == 6
    assert [dict(request.query) for request in server.requests] == [
        {"status": "failed", "type": "a b&c", "limit": "2"},
        {"status": "failed", "type": "a b&c", "limit": "2", "cursor": "one"},
        {"status": "failed", "type": "a b&c", "limit": "2", "cursor": "two"},
    ]


async def test_many_ids_are_asked_for_a_hundred_at_a_time(connect: Connect) -> None:
    ids = [uuid.uuid4() for _ in range(250)]
    sizes: list[int] = []

    async def found(request: web.Request) -> web.Response:
        asked = request.query["ids"].split(",")
        sizes.append(len(asked))
        return web.json_response({"data": [a_job(id=asked[0])], "not_found": asked[1:]})

    _, redrive = await connect(found)
    many = await redrive.get_many(ids)

    assert sizes == [100, 100, 50]
    assert [job.id for job in many.jobs] == [str(each) for each in ids[::100]]
    assert list(many.not_found) == [str(each) for number, each in enumerate(ids) if number % 100]


async def test_a_bulk_retry_says_that_it_is_for_real_and_carries_a_key(connect: Connect) -> None:
    batch = answer({"data": {"batch_id": RETRY_ID, "accepted": 2, "skipped": [{"job_id": JOB_ID, "code": "x"}]}}, 202)
    since = datetime(2026, 11, 23, 4, tzinfo=UTC)
    server, redrive = await connect(batch)
    accepted = await redrive.retry_many(
        FailedFilter(type="email", created_after=since), max=10, reason="it is back", spread_seconds=60
    )

    assert (accepted.accepted, accepted.skipped[0].code) == (2, "x")
    assert json.loads(server.bodies[0]) == {
        "filter": {"type": "email", "created_after": "2026-11-23T04:00:00Z"},
        "max": 10, "reason": "it is back", "spread_seconds": 60,
    }  # fmt: skip
    assert server.requests[0].query_string == "dry_run=false"
    assert None not in server.header("Idempotency-Key")


async def test_a_preview_of_a_filter_asks_with_what_a_filter_needs(connect: Connect) -> None:
    preview = answer({"data": {"matched": 0, "retryable": 0, "skipped": {}, "sample": []}})
    server, redrive = await connect(preview)
    await redrive.preview(FailedFilter(type="email"), extra_attempts=2)
    await redrive.preview([JOB_ID])

    assert [json.loads(body) for body in server.bodies] == [
        {"filter": {"type": "email"}, "max": 10_000, "reason": "dry run", "extra_attempts": 2},
        {"ids": [JOB_ID]},
    ]
    assert {request.query_string for request in server.requests} == {"dry_run=true"}
    assert server.header("Idempotency-Key") == [None, None]


async def test_another_project_is_named_in_every_request(connect: Connect) -> None:
    server, redrive = await connect(job(), project_id="p2")
    await redrive.get(JOB_ID, include_payload=True)
    assert dict(server.requests[0].query) == {"include": "payload", "project_id": "p2"}


def events(*ids_and_statuses: tuple[str, str], piece: int = 7, first: str = ": keep-alive\n\n") -> Handler:
    """A stream of them, cut into pieces without regard to anything."""
    text = first + "".join(
        f"event: job\nid: {id_}\ndata: {json.dumps(a_job(status))}\n\n" for id_, status in ids_and_statuses
    )

    async def handler(request: web.Request) -> web.StreamResponse:
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        for start in range(0, len(text), piece):
            await stream.write(text[start : start + piece].encode())
        await stream.write_eof()
        return stream

    return handler


async def test_events_are_yielded_until_the_job_is_done_over_streams_that_break(
    pauses: list[float], connect: Connect
) -> None:
    server, redrive = await connect(
        events(("1", "pending"), ("2", "running")),
        problem(503, "unavailable", Retry_After="3"),
        hang_up,
        events(("2", "running"), ("3", "completed"), ("4", "failed")),
    )
    seen = [(job.etag, str(job.status)) async for job in redrive.events(JOB_ID)]

    assert seen == [('"1"', "pending"), ('"2"', "running"), ('"3"', "completed")]
    assert len(server.requests) == 4
    assert 3 < pauses[1] < 4


@pytest.mark.parametrize("end", ["", "\n"], ids=["with the event", "by itself"])
async def test_a_stream_that_a_full_server_lets_go_is_taken_up_after_the_time_it_names(
    pauses: list[float], end: str, connect: Connect
) -> None:
    full = events(("1", "pending"), first=f"retry: 10000\n{end}")
    _, redrive = await connect(full, full, events(("1", "pending")), events(("2", "completed")))
    seen = [(job.etag, str(job.status)) async for job in redrive.events(JOB_ID)]

    assert seen == [('"1"', "pending"), ('"2"', "completed")]
    assert [pause_s > 10 for pause_s in pauses] == [True, True, False]


@pytest.mark.parametrize("nonsense", ["soon", "-1", "1.5", "9" * 10, ""])
async def test_a_time_to_come_back_that_is_none_is_passed_over(
    pauses: list[float], nonsense: str, connect: Connect
) -> None:
    odd = events(("1", "pending"), first=f"retry: {nonsense}\n")
    _, redrive = await connect(odd, events(("2", "failed")))
    seen = [job.etag async for job in redrive.events(JOB_ID)]

    assert seen == ['"1"', '"2"']
    assert max(pauses) < 1


@pytest.mark.usefixtures("pauses")
async def test_events_of_a_job_that_is_not_there_are_not_asked_for_again(connect: Connect) -> None:
    server, redrive = await connect(problem(404, "job-not-found"))
    with pytest.raises(NotFound):
        await anext(aiter(redrive.events(JOB_ID)))
    assert len(server.requests) == 1


async def test_an_id_cannot_leave_its_place_in_the_path(connect: Connect) -> None:
    server, redrive = await connect(problem(400, "invalid-job-id"))
    with pytest.raises(BadRequest):
        await redrive.get("a/../../x?y=1#z")
    assert server.requests[0].raw_path == "/api/jobs/a%2F..%2F..%2Fx%3Fy%3D1%23z"


@pytest.mark.usefixtures("pauses")
async def test_a_503_ends_in_unavailable_once_the_tries_are_used_up(connect: Connect) -> None:
    server, redrive = await connect(problem(503, "unavailable"))
    with pytest.raises(Unavailable) as caught:
        await redrive.get(JOB_ID)
    assert caught.value.retryable
    assert len(server.requests) == transport.TRIES
