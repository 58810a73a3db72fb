"""Operators' commands, run in this process against a server that answers as it is told to."""

import asyncio
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import pytest
from rich.cells import cell_len

from api.problems import PROBLEMS
from cli.main import main
from cli.operate import bulk_retrying, filters, retrying
from cli.operate.connection import ABOUT_THE_REQUEST
from tests.commands import commanded

JOB = "8386e689-d8b4-4ed4-91aa-7511b7751106"
RETRY = "01a20749-906d-7433-a393-3683f379119b"
GROUP = "3f9c01ab77d2e410"
BATCH = "01a2075a-2ede-75dc-9d1d-e0d032b2b7bc"
TOKEN = "a.goldfinch.token"


class Answer(NamedTuple):
    status: int
    out: str
    err: str


class Asked(NamedTuple):
    """A request that the server got."""

    method: str
    path: str
    body: object
    token: str | None


Redrive = Callable[..., Answer]


class Api:
    """Answers by method and path; a list is answered one after the other, its last one for good."""

    def __init__(self) -> None:
        self.answers: dict[str, list[tuple[int, object]]] = {}
        self.asked: list[Asked] = []
        self.url = ""

    def on(self, request: str, *answers: object, status: int = 200) -> None:
        self.answers[request] = [(status, answer) for answer in answers]

    def problem(self, request: str, status: int, code: str) -> None:
        self.on(
            request,
            {"title": "No", "detail": "Not so.", "status": status, "code": code, "request_id": "r-1"},
            status=status,
        )

    def answer(self, asked: Asked) -> tuple[int, object]:
        self.asked.append(asked)
        answers = self.answers[f"{asked.method} {urlsplit(asked.path).path}"]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    @property
    def paths(self) -> list[str]:
        return [f"{asked.method} {asked.path}" for asked in self.asked]


@pytest.fixture
def api() -> Iterator[Api]:
    api = Api()

    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = Asked(self.command, self.path, json.loads(body or "null"), self.headers["Authorization"])
            status, answer = api.answer(asked)
            encoded = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(encoded)))
            self.send_header("ETag", f'"{len(api.asked)}"')
            if status == 429:
                self.send_header("Retry-After", "3")
            self.end_headers()
            self.wfile.write(encoded)

        do_GET = do_POST = do_DELETE = _any  # noqa: N815 - as http.server has it

        def log_message(self, *_: object) -> None:
            pass

    # In a thread: a command blocks the test's own, in whose loop pytest-aiohttp's servers would not answer meanwhile.
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    api.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield api
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def redrive(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, api: Api) -> Redrive:
    """Run a command against the server, with a token."""
    for name in [name for name in os.environ if name.startswith("REDRIVE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*args: str, **environment: str) -> Answer:
        given = {"REDRIVE_URL": api.url, "REDRIVE_TOKEN": TOKEN, **environment}
        with monkeypatch.context() as patched:
            for name, value in given.items():
                patched.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                main(args)
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int | None)
        assert "goldfinch" not in out + err
        return Answer(ended.value.code or 0, out, err)

    return run


def a_job(status: str = "failed", **changed: object) -> dict[str, object]:
    job: dict[str, object] = {
        "id": JOB, "type": "email", "status": status, "attempts": 1, "max_attempts": 3, "last_error": None,
        "scheduled_at": None, "started_at": None, "completed_at": None, "created_at": "2026-11-23T04:00:00Z",
        "done": status in ("failed", "completed"), "retryable": status == "failed", "retry_blocked_by": None,
        "pending_retry": None, "links": {},
    }  # fmt: skip
    return {**job, **changed}


def a_retry(state: str, outcome: str | None = None, **changed: object) -> dict[str, object]:
    retry: dict[str, object] = {
        "id": RETRY, "job_id": JOB, "batch_id": None, "state": state, "outcome": outcome, "actor": "ana",
        "reason": "again", "delay_seconds": 0, "extra_attempts": 0, "requested_at": "2026-11-23T04:00:00Z",
        "processed_at": None, "attempts_before": None, "error_before": None, "done": state != "queued", "links": {},
    }  # fmt: skip
    return {**retry, **changed}


def a_batch(**counts: int) -> dict[str, object]:
    all_counts = {"queued": 0, "applied": 0, "rejected": 0, "cancelled": 0, "dead_lettered": 0, **counts}
    batch = {"id": RETRY, "actor": "ana", "reason": "back", "requested_at": "2026-11-23T04:00:00Z"}
    return {**batch, **all_counts, "total": sum(all_counts.values()), "done": all_counts["queued"] == 0}


def accepts(api: Api, state: str, outcome: str | None = None) -> None:
    """Let a retry be accepted, and come to this end."""
    api.on(f"POST /api/jobs/{JOB}/retry", {"data": a_retry("queued"), "deduplicated": False}, status=202)
    api.on(f"GET /api/retries/{RETRY}", {"data": a_retry(state, outcome)})


def previews(api: Api, *, matched: int = 3, retryable: int = 2, truncated: bool = False, **counts: int) -> None:
    """Let a bulk retry be previewed, then accepted, and come to this end."""
    preview = {
        "matched": matched, "retryable": retryable, "truncated": truncated,
        "skipped": {"attempts_exhausted": matched - retryable, "retry_queued": 0}, "sample": [JOB],
    }  # fmt: skip
    left_out = [{"job_id": JOB, "code": "attempts-exhausted"}] * (matched - retryable)
    accepted = {"batch_id": RETRY, "accepted": retryable, "skipped": left_out}
    api.on("POST /api/jobs/retry", {"data": preview}, {"data": accepted})
    api.on(f"GET /api/retry-batches/{RETRY}", {"data": a_batch(**(counts or {"applied": retryable}))})
    api.on("GET /api/retries", {"data": [a_retry("rejected", "superseded")], "next_cursor": None})


def a_group(**changed: object) -> dict[str, object]:
    group: dict[str, object] = {
        "fingerprint": GROUP, "type": "email", "error": "timed out after <n> s", "jobs": 52, "retryable": 40,
        "exhausted": 11, "queued": 1, "first_at": "2026-11-23T04:00:00Z", "last_at": "2026-11-23T04:00:00Z",
        "sample": [JOB],
    }  # fmt: skip
    return {**group, **changed}


FILTER = ("--filter", "type=email,error_contains=421, try later")

# -- jobs


def test_jobs_are_listed_for_people(api: Api, redrive: Redrive) -> None:
    api.on("GET /api/jobs", {"data": [a_job(last_error="it\n broke")], "next_cursor": None})
    answer = redrive("jobs", "list", "--status", "failed", "--created-after", "2026-11-23T00:00:00Z")

    assert answer.status == 0
    assert re.search(rf"{JOB}\s+email\s+failed\s+1/3\s+2026-11-23 04:00:00Z\s+it broke", answer.out)
    assert api.paths == ["GET /api/jobs?status=failed&created_after=2026-11-23T00%3A00%3A00%2B00%3A00&limit=20"]


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00"])
def test_a_time_that_no_datetime_holds_in_utc_is_sent_with_its_offset(api: Api, redrive: Redrive, text: str) -> None:
    api.on("GET /api/jobs", {"data": [], "next_cursor": None})
    answer = redrive("jobs", "list", "--created-after", text)

    assert answer.status == 0
    assert api.paths == [f"GET /api/jobs?created_after={quote(text)}&limit=20"]


def test_what_jobs_say_cannot_command_the_terminal(api: Api, redrive: Redrive) -> None:
    api.on("GET /api/jobs", {"data": [a_job(last_error="\x1b]0;gotcha\x07 [red]x[/red] \u202e")], "next_cursor": None})
    api.on(f"GET /api/jobs/{JOB}", {"data": a_job(last_error="\x1b[2J")})
    out = redrive("jobs", "list").out + redrive("jobs", "get", JOB).out

    assert "·]0;gotcha· [red]x[/red] ·" in out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out)


def test_a_document_cannot_command_the_terminal_and_means_the_same(api: Api, redrive: Redrive) -> None:
    payload = {"text": "\x9b2J \u202e \U000e0001 \x7f \x1b é 障"}
    api.on(f"GET /api/jobs/{JOB}", {"data": a_job(payload=payload)})
    out = redrive("jobs", "get", JOB, "--payload", "--json").out

    assert json.loads(out)["payload"] == payload
    assert out.removesuffix("\n").isprintable()
    assert "é 障" in out


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
async def test_what_a_terminal_has_no_letters_for_is_shown_all_the_same(
    api: Api, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    api.on(f"GET /api/jobs/{JOB}", {"data": a_job(last_error="障")})
    done = await commanded("jobs", "get", JOB, URL=api.url, TOKEN=TOKEN)

    assert (done.status, done.err) == (0, "")
    assert re.search(r"^error +(障|\\u969c)$", done.out, re.MULTILINE)


def test_jobs_are_listed_for_programs_one_a_line(api: Api, redrive: Redrive) -> None:
    api.on("GET /api/jobs", {"data": [a_job()] * 2, "next_cursor": "c"}, {"data": [a_job()] * 2, "next_cursor": None})
    answer = redrive("jobs", "list", "--json", "--limit", "3")

    assert [json.loads(line)["id"] for line in answer.out.splitlines()] == [JOB] * 3


def test_a_job_is_shown(api: Api, redrive: Redrive) -> None:
    api.on(f"GET /api/jobs/{JOB}", {"data": a_job(payload={"pages": 3})})

    shown = redrive("jobs", "get", JOB, "--payload")
    assert re.search(r"^status\s+failed$", shown.out, re.MULTILINE)
    assert '{"pages":3}' in shown.out
    assert json.loads(redrive("jobs", "get", JOB, "--json").out)["status"] == "failed"


def test_numbers_are_shown(api: Api, redrive: Redrive) -> None:
    none = {"count": 0, "capped": False, "oldest_at": None}
    failed = {
        "count": 10_000,
        "capped": True,
        "oldest_at": "2026-11-23T04:00:00Z",
        "retryable": 9000,
        "exhausted": 1000,
    }
    api.on("GET /api/jobs/stats", {"data": {"pending": none, "running": none, "failed": failed, "completed": none}})

    answer = redrive("jobs", "stats")
    assert re.search(r"^failed\s+10000\+\s+2026-11-23 04:00:00Z\s+9000\s+1000", answer.out, re.MULTILINE)
    assert json.loads(redrive("jobs", "stats", "--json").out)["failed"]["exhausted"] == 1000


def test_waiting_for_a_job_ends_by_how_it_ended(api: Api, redrive: Redrive) -> None:
    api.on(f"GET /api/jobs/{JOB}", {"data": a_job("completed")})
    assert redrive("jobs", "wait", JOB).status == 0

    api.on(f"GET /api/jobs/{JOB}", {"data": a_job("failed", last_error="it broke")})
    answer = redrive("jobs", "wait", JOB)
    assert (answer.status, answer.err) == (1, "redrive: the job has failed: it broke\n")

    api.on(f"GET /api/jobs/{JOB}", {"data": a_job("running")})
    answer = redrive("jobs", "wait", JOB, "--timeout", "0")
    assert answer.status == 1
    assert "was not done within 0" in answer.err


def test_a_status_of_the_owner_s_own_is_taken_and_shown(api: Api, redrive: Redrive) -> None:
    cancelled = a_job("cancelled", done=True, retryable=False, retry_blocked_by="not_failed")
    api.on(f"GET /api/jobs/{JOB}", {"data": cancelled})
    got, waited = redrive("jobs", "get", JOB), redrive("jobs", "wait", JOB)
    api.on("GET /api/jobs", {"data": [cancelled], "next_cursor": None})
    listed = redrive("jobs", "list", "--status", "cancelled")
    api.on("GET /api/jobs", {"data": [], "next_cursor": None})
    none = redrive("jobs", "list", "--status", "canceled")

    assert (got.status, listed.status) == (0, 0)
    assert re.search("^status +cancelled$", got.out, re.MULTILINE)
    assert re.search("^" + JOB + " +email +cancelled ", listed.out, re.MULTILINE)
    assert (waited.status, waited.err) == (1, "redrive: the job has ended: it is cancelled\n")
    assert none.err == "redrive: note: no job of these has the status 'canceled'\n"


def test_a_row_that_the_server_cannot_show_stands_in_the_list(api: Api, redrive: Redrive) -> None:
    api.on("GET /api/jobs", {"data": [a_job("completed"), {"id": JOB, "unreadable": True}], "next_cursor": None})

    answer = redrive("jobs", "list")

    assert (answer.status, answer.err) == (0, "")
    assert re.search("^" + JOB + " +- +unreadable ", answer.out, re.MULTILINE)


@pytest.mark.parametrize(("found", "said"), [([], True), ([a_job("completed")], False)])
def test_a_type_that_no_job_has_is_told_from_one_with_no_such_job(
    api: Api, redrive: Redrive, found: list[object], *, said: bool
) -> None:
    nothing: dict[str, object] = {"data": [], "next_cursor": None}
    types = {"data": found, "next_cursor": None}
    api.on("GET /api/jobs", nothing, types)
    listed = redrive("jobs", "list", "--status", "failed", "--type", "emial")
    api.on("GET /api/jobs", types)
    previews(api, matched=0, retryable=0)
    retried = redrive("retry", "--filter", "type=emial", "--reason", "back", "--yes")

    line = "redrive: note: the project has no job of type 'emial' in any status\n"
    assert (listed.status, listed.err) == (0, line if said else "")
    assert (retried.status, retried.err) == (0, (line if said else "") + "redrive: nothing to retry\n")


# -- one retry


def test_a_retry_is_followed_to_its_end(api: Api, redrive: Redrive) -> None:
    accepts(api, "applied", "applied")
    answer = redrive("retry", JOB, "--reason", "it is back", "--delay", "5m", "--extra-attempts", "2")

    assert answer.status == 0
    assert re.search(r"^state\s+applied$", answer.out, re.MULTILINE)
    assert api.asked[0].body == {"reason": "it is back", "delay_seconds": 300, "extra_attempts": 2}
    accepts(api, "applied", "applied")
    assert json.loads(redrive("retry", JOB, "--json").out)["state"] == "applied"


def test_a_retry_need_not_be_waited_for(api: Api, redrive: Redrive) -> None:
    accepts(api, "applied", "applied")
    answer = redrive("retry", JOB, "--no-wait")
    assert (answer.status, api.paths) == (0, [f"POST /api/jobs/{JOB}/retry"])
    assert re.search(r"^state\s+queued$", answer.out, re.MULTILINE)


REFUSALS = [
    (400, "invalid-job-id"), (403, "read-only"), (404, "job-not-found"), (409, "job-not-failed"),
    (409, "attempts-exhausted"), (412, "job-changed"), (422, "invalid-body"), (422, "idempotency-key-reused"),
]  # fmt: skip
SINGLE, BY_IDS, BY_FILTER = ("retry", JOB), ("retry", JOB, RETRY), ("retry", *FILTER, "--reason", "back", "--yes")


@pytest.mark.parametrize("args", [SINGLE, (*SINGLE, "--dry-run"), BY_IDS, (*BY_IDS, "--dry-run"), BY_FILTER])
@pytest.mark.parametrize(("status", "code"), REFUSALS)
def test_a_retry_that_is_refused_is_status_3(
    api: Api, redrive: Redrive, args: tuple[str, ...], status: int, code: str
) -> None:
    for request in (f"POST /api/jobs/{JOB}/retry", "POST /api/jobs/retry"):
        api.problem(request, status, code)
    answer = redrive(*args)
    assert (answer.status, answer.out) == (3, "")
    assert answer.err == f"redrive: No: Not so. [{code}, request r-1]\n"
    assert len(api.asked) == 1


NO_REFUSALS = [
    (401, "invalid-token"), (500, "internal"), (400, "bad-request"), (404, "not-found"), (405, "method-not-allowed"),
    (417, "expectation-failed"),
]  # fmt: skip


@pytest.mark.parametrize("args", [SINGLE, (*SINGLE, "--dry-run"), BY_IDS, BY_FILTER])
@pytest.mark.parametrize(("status", "code"), NO_REFUSALS)
def test_what_is_no_refusal_of_a_retry_is_status_1(
    api: Api, redrive: Redrive, args: tuple[str, ...], status: int, code: str
) -> None:
    for request in (f"POST /api/jobs/{JOB}/retry", "POST /api/jobs/retry"):
        api.problem(request, status, code)

    assert redrive(*args).status == 1


def test_the_codes_that_say_nothing_of_a_retry_are_codes_of_the_api() -> None:
    assert {error.code for error in PROBLEMS} >= ABOUT_THE_REQUEST


def test_a_filter_that_is_refused_after_its_dry_run_is_status_3(api: Api, redrive: Redrive) -> None:
    """More jobs have failed since, for instance."""
    previews(api)
    api.problem("POST /api/jobs/retry", 409, "too-many-matches")
    refused = api.answers["POST /api/jobs/retry"]
    previews(api)
    api.answers["POST /api/jobs/retry"][1:] = refused
    answer = redrive(*BY_FILTER, "--json")

    assert (answer.status, json.loads(answer.out)["code"]) == (3, "too-many-matches")


def test_a_retry_that_was_accepted_and_cannot_be_followed_is_not_refused(api: Api, redrive: Redrive) -> None:
    accepts(api, "applied", "applied")
    api.problem(f"GET /api/retries/{RETRY}", 403, "insufficient-scope")

    assert redrive("retry", JOB).status == 1


def test_a_retry_that_ends_rejected_is_status_3(api: Api, redrive: Redrive) -> None:
    accepts(api, "rejected", "superseded")
    answer = redrive("retry", JOB)
    assert answer.status == 3
    assert answer.err == "redrive: the retry is rejected: superseded\n"


def test_a_dry_run_of_one_tells_by_its_status(api: Api, redrive: Redrive) -> None:
    path = f"POST /api/jobs/{JOB}/retry"
    api.on(path, {"data": {"would_retry": True, "blocked_by": None}})
    assert redrive("retry", JOB, "--dry-run").status == 0
    api.on(path, {"data": {"would_retry": False, "blocked_by": "not_failed"}})
    answer = redrive("retry", JOB, "--dry-run", "--json")
    assert (answer.status, json.loads(answer.out)["blocked_by"]) == (3, "not_failed")
    assert all(asked.path.endswith("?dry_run=true") for asked in api.asked)


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_dry_run_of_one_whose_retry_is_queued_is_no_refusal_as_the_retry_is_none(
    api: Api, redrive: Redrive, more: tuple[str, ...]
) -> None:
    api.on(f"POST /api/jobs/{JOB}/retry", {"data": {"would_retry": False, "blocked_by": "retry_queued"}})
    answer = redrive("retry", JOB, "--dry-run", *more)

    assert (answer.status, bool(answer.out)) == (0, bool(more))
    assert answer.err.startswith("redrive: note: a retry of the job is queued already")


@pytest.mark.parametrize("args", [SINGLE, BY_IDS, BY_FILTER])
@pytest.mark.parametrize(("status", "code"), [(403, "read-only"), (409, "job-not-failed"), (404, "job-not-found")])
def test_a_retry_that_is_refused_prints_the_problem_as_a_document(
    api: Api, redrive: Redrive, args: tuple[str, ...], status: int, code: str
) -> None:
    for request in (f"POST /api/jobs/{JOB}/retry", "POST /api/jobs/retry"):
        api.problem(request, status, code)
    answer = redrive(*args, "--json")

    assert answer.status == 3
    assert json.loads(answer.out) == {"title": "No", "status": status, "code": code, "request_id": "r-1"}
    assert f"[{code}, request r-1]" in answer.err


# -- many retries


def test_a_filter_shows_what_would_happen_then_does_it(api: Api, redrive: Redrive) -> None:
    previews(api)
    answer = redrive("retry", *FILTER, "--reason", "back", "--spread", "10m", "--yes")

    assert answer.status == 0
    assert api.paths[:2] == ["POST /api/jobs/retry?dry_run=true", "POST /api/jobs/retry?dry_run=false"]
    assert api.asked[1].body == {
        "filter": {"type": "email", "error_contains": "421, try later"},
        "max": retrying.DEFAULT_MAX, "reason": "back", "spread_seconds": 600,
    }  # fmt: skip
    assert re.search(r"^retryable\s+2$", answer.out, re.MULTILINE)
    assert re.search(r"^left out\s+1 attempts exhausted$", answer.out, re.MULTILINE)
    assert re.search(r"^applied\s+2$", answer.out, re.MULTILINE)


def test_a_dry_run_of_a_filter_changes_nothing(api: Api, redrive: Redrive) -> None:
    previews(api)
    answer = redrive("retry", *FILTER, "--dry-run", "--json")
    assert (answer.status, json.loads(answer.out)["retryable"]) == (0, 2)
    assert api.paths == ["POST /api/jobs/retry?dry_run=true"]


@pytest.mark.parametrize(("says", "status"), [("yes", 0), ("no", 1)])
def test_a_filter_asks_a_person(
    api: Api, redrive: Redrive, monkeypatch: pytest.MonkeyPatch, says: str, status: int
) -> None:
    previews(api)
    asked: list[str] = []

    def confirm(text: str, **_: object) -> bool:
        asked.append(text)
        return says == "yes"

    monkeypatch.setattr(retrying, "is_terminal", lambda: True)
    monkeypatch.setattr("typer.confirm", confirm)
    answer = redrive("retry", *FILTER, "--reason", "back")

    assert asked == ["Retry 2 jobs?"]
    assert answer.status == status
    assert ("POST /api/jobs/retry?dry_run=false" in api.paths) == (says == "yes")


@pytest.mark.parametrize(("more", "nothing"), [("--yes", "nothing was"), ("--dry-run", "nothing would be")])
def test_more_matches_than_max_are_a_retry_that_is_refused(api: Api, redrive: Redrive, more: str, nothing: str) -> None:
    previews(api, matched=31, retryable=30)
    answer = redrive("retry", *FILTER, "--reason", "back", "--max", "30", more)
    assert answer.status == 3
    assert f"matches 31 failed jobs, --max is 30: {nothing} retried" in answer.err
    assert len(api.asked) == 1


def test_a_filter_that_matches_nothing_is_done(api: Api, redrive: Redrive) -> None:
    previews(api, matched=0, retryable=0)
    answer = redrive("retry", "--fingerprint", GROUP, "--reason", "back", "--yes")
    assert (answer.status, answer.err, len(api.asked)) == (0, "redrive: nothing to retry\n", 1)


@pytest.mark.parametrize("more", ["--yes", "--dry-run"])
def test_a_filter_of_whose_matches_none_can_be_retried_is_refused(api: Api, redrive: Redrive, more: str) -> None:
    previews(api, matched=2, retryable=0)
    answer = redrive("retry", *FILTER, "--reason", "back", more)
    assert (answer.status, len(api.asked)) == (3, 1)
    assert answer.err == "redrive: nothing to retry: of 2 failed jobs, 2 attempts exhausted\n"


@pytest.mark.parametrize(
    ("counts", "more", "status"),
    [({"matched": 1, "retryable": 0}, ["--yes"], 3), ({}, ["--yes", "--max", "2"], 3), ({}, [], 1)],
    ids=["nothing to retry", "more than max", "not confirmed"],
)
def test_a_filter_that_retries_nothing_still_prints_a_document(
    api: Api, monkeypatch: pytest.MonkeyPatch, redrive: Redrive, *, counts: dict[str, int], more: list[str], status: int
) -> None:
    monkeypatch.setattr(retrying, "is_terminal", lambda: True)
    monkeypatch.setattr("typer.confirm", lambda _text, **_: False)
    previews(api, matched=counts.get("matched", 3), retryable=counts.get("retryable", 2))
    answer = redrive("retry", *FILTER, "--reason", "back", "--json", *more)

    assert answer.status == status
    assert json.loads(answer.out)["matched"] == counts.get("matched", 3)
    assert len(api.asked) == 1


def test_what_was_accepted_is_a_document_though_it_is_not_settled_in_time(api: Api, redrive: Redrive) -> None:
    previews(api, queued=2)
    many = redrive("retry", *FILTER, "--reason", "back", "--yes", "--json", "--timeout", "0")
    accepts(api, "queued")
    one = redrive("retry", JOB, "--json", "--timeout", "0")

    assert (many.status, json.loads(many.out)["batch_id"]) == (1, RETRY)
    assert (one.status, json.loads(one.out)["id"]) == (1, RETRY)


def test_a_batch_of_which_some_is_rejected_is_status_3(api: Api, redrive: Redrive) -> None:
    previews(api, applied=1, rejected=1)
    answer = redrive("retry", *FILTER, "--reason", "back", "--yes")
    assert (answer.status, answer.err) == (3, "redrive: 1 of 2 retries were rejected\n")
    assert "superseded" in answer.out
    assert f"GET /api/retries?state=rejected&batch_id={RETRY}&limit=20" in api.paths
    assert redrive("batches", "wait", RETRY).status == 3
    assert redrive("batches", "get", RETRY).status == 0


def test_ids_of_which_some_are_left_out_are_status_3(api: Api, redrive: Redrive) -> None:
    previews(api)
    api.answers["POST /api/jobs/retry"].pop(0)
    answer = redrive("retry", JOB, RETRY, "--json")

    assert (answer.status, answer.err) == (3, "redrive: 1 of 2 jobs were not retried\n")
    told = json.loads(answer.out)
    assert (told["accepted"], told["skipped"], told["batch"]["applied"]) == (
        2, [{"job_id": JOB, "code": "attempts-exhausted"}], 2,
    )  # fmt: skip
    assert api.asked[0].body == {"ids": [JOB, RETRY]}


# -- tables and facts, on terminals


LONG = "webhook.deliver " + "E" * 150
TABLES: dict[str, tuple[str, list[object], list[str]]] = {
    "jobs list": (
        "GET /api/jobs",
        [a_job(type=LONG, last_error=LONG), a_job(last_error="\x1b[2J障\nb")],
        [JOB, "failed", "1/3", "2026-11-23 04:00:00Z"],
    ),
    "retries list": (
        "GET /api/retries",
        [a_retry("dead_lettered", "poison", actor=LONG, reason=LONG, batch_id=BATCH)],
        [RETRY, JOB, BATCH, "dead_lettered", "poison", "2026-11-23 04:00:00Z"],
    ),
    "failures": (
        "GET /api/failures",
        [a_group(type=LONG, error=LONG)],
        ["52", "40", "2026-11-23 04:00:00Z", f"redrive retry --fingerprint {GROUP} --canary 5 --reason '…'"],
    ),
    "batches list": (
        "GET /api/retry-batches",
        [a_batch(queued=1, applied=10_000, rejected=17) | {"actor": LONG, "reason": LONG}],
        [RETRY, "2026-11-23 04:00:00Z", "10018", "10000", "17"],
    ),
}


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("command", TABLES)
def test_a_list_fits_a_terminal_and_keeps_ids_states_and_times(
    api: Api, redrive: Redrive, monkeypatch: pytest.MonkeyPatch, command: str, width: int
) -> None:
    path, data, whole = TABLES[command]
    api.on(
        path, {"data": data, "next_cursor": None, "sampled": 52, "truncated": False, "as_of": "2026-11-23T04:00:00Z"}
    )
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    out = redrive(*command.split(), COLUMNS=str(width)).out

    assert max(map(cell_len, out.splitlines())) <= width
    for cell in whole:
        assert re.search(rf"(^|  ){re.escape(cell)}(  |$)", out, re.MULTILINE), (cell, out)
    assert "webhook.deliver" in out


@pytest.mark.parametrize("command", TABLES)
def test_a_list_in_a_pipe_is_a_line_for_each_row_and_uncut(api: Api, redrive: Redrive, command: str) -> None:
    path, data, whole = TABLES[command]
    api.on(
        path, {"data": data, "next_cursor": None, "sampled": 52, "truncated": False, "as_of": "2026-11-23T04:00:00Z"}
    )
    out = redrive(*command.split(), COLUMNS="80").out

    heading, *rows = (re.split("  +", line) for line in out.splitlines())
    assert [len(row) for row in rows] == [len(heading)] * len(data)
    assert set(whole) <= set(rows[0])
    assert LONG in rows[0]


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [
        ({}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "0"}, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_a_status_has_a_colour_where_colours_are_wanted(
    api: Api, redrive: Redrive, environment: dict[str, str], *, coloured: bool
) -> None:
    api.on(f"GET /api/jobs/{JOB}", {"data": a_job()})
    out = redrive("jobs", "get", JOB, **{"NO_COLOR": "", "TERM": "xterm", **environment}).out

    assert ("\x1b[31mfailed\x1b[0m" in out) == coloured
    assert ("\x1b" in out) == coloured
    assert redrive("jobs", "get", JOB, "--json", **{"NO_COLOR": "", **environment}).out.startswith('{"id"')


# -- retries


def test_the_audit_trail_is_listed(api: Api, redrive: Redrive) -> None:
    api.on("GET /api/retries", {"data": [a_retry("applied", "applied")], "next_cursor": None})
    answer = redrive("retries", "list", "--actor", "ana", "--job", JOB)
    assert re.search(rf"{RETRY}\s+{JOB}\s+applied\s+applied\s+2026-11-23 04:00:00Z\s+-\s+ana\s+again", answer.out)
    assert api.paths == [f"GET /api/retries?job_id={JOB}&actor=ana&limit=20"]


def test_a_retry_is_shown_with_the_error_that_it_cleared(api: Api, redrive: Redrive) -> None:
    api.on(f"GET /api/retries/{RETRY}", {"data": a_retry("applied", "applied", error_before="it broke")})
    assert re.search(r"^error before\s+it broke$", redrive("retries", "show", RETRY).out, re.MULTILINE)


def test_a_retry_is_taken_back_or_was_settled(api: Api, redrive: Redrive) -> None:
    api.on(f"DELETE /api/retries/{RETRY}", {"data": a_retry("cancelled", "cancelled", cancelled_by="li")})
    answer = redrive("retries", "cancel", RETRY)
    assert answer.status == 0
    assert re.search(r"^cancelled by +li$", answer.out, re.MULTILINE)

    api.problem(f"DELETE /api/retries/{RETRY}", 409, "retry-already-settled")
    api.on(f"GET /api/retries/{RETRY}", {"data": a_retry("applied", "applied")})
    answer = redrive("retries", "cancel", RETRY)
    assert answer.status == 1
    assert "[retry-already-settled, request r-1]" in answer.err


# -- batches


def test_a_bulk_retry_is_taken_back(api: Api, redrive: Redrive) -> None:
    batch = a_batch(applied=2, cancelled=3) | {"filter": {"type": "email", "created_after": "2026-11-23T00:00:00Z"}}
    api.on(f"DELETE /api/retry-batches/{RETRY}", {"data": batch})
    answer = redrive("batches", "cancel", RETRY)

    assert (answer.status, answer.err) == (0, "")
    assert re.search(r"^cancelled +3$", answer.out, re.MULTILINE)
    assert re.search(r"^filter +type=email,created_after=2026-11-23T00:00:00Z$", answer.out, re.MULTILINE)
    assert json.loads(redrive("batches", "cancel", RETRY, "--json").out)["cancelled"] == 3
    assert api.paths == [f"DELETE /api/retry-batches/{RETRY}"] * 2


def test_a_bulk_retry_that_was_settled_before_says_that_nothing_was_taken_back(api: Api, redrive: Redrive) -> None:
    api.on(f"DELETE /api/retry-batches/{RETRY}", {"data": a_batch(applied=5)})
    answer = redrive("batches", "cancel", RETRY)
    assert answer.status == 0
    assert answer.err == "redrive: note: none of its retries was queued any more: nothing was cancelled\n"


def test_a_bulk_retry_that_is_unknown_is_status_1(api: Api, redrive: Redrive) -> None:
    for method, command in (("DELETE", "cancel"), ("GET", "get")):
        api.problem(f"{method} /api/retry-batches/{RETRY}", 404, "not-found")
        answer = redrive("batches", command, RETRY)
        assert (answer.status, answer.err) == (1, "redrive: No: Not so. [not-found, request r-1]\n")


def test_bulk_retries_are_listed_page_after_page(api: Api, redrive: Redrive) -> None:
    page = {"data": [a_batch(applied=1)] * 2, "next_cursor": "c"}
    api.on("GET /api/retry-batches", page, {**page, "next_cursor": None})
    out = redrive("batches", "list", "--actor", "ana", "--limit", "3", "--json").out

    assert [json.loads(line)["applied"] for line in out.splitlines()] == [1] * 3
    assert api.paths == [
        "GET /api/retry-batches?actor=ana&limit=3",
        "GET /api/retry-batches?actor=ana&limit=3&cursor=c",
    ]


# -- who asks, and how


def test_the_token_comes_from_a_file_as_up_leaves_it_or_bare(api: Api, redrive: Redrive, tmp_path: Path) -> None:
    api.on(f"GET /api/jobs/{JOB}", {"data": a_job()})
    file = tmp_path / "auth"
    for text in ("Authorization: Bearer a.file.token\n", "a.file.token\n"):
        file.write_text(text)
        redrive("jobs", "get", JOB, "--token-file", str(file))
    redrive("jobs", "get", JOB)
    assert [asked.token for asked in api.asked] == ["Bearer a.file.token"] * 2 + [f"Bearer {TOKEN}"]


def test_two_tokens_are_status_2_unless_one_is_an_option(api: Api, redrive: Redrive, tmp_path: Path) -> None:
    api.on(f"GET /api/jobs/{JOB}", {"data": a_job()})
    (tmp_path / "auth").write_text("a.file.token\n")
    (tmp_path / "other").write_text("another.file.token\n")
    both = {"REDRIVE_TOKEN": TOKEN, "REDRIVE_TOKEN_FILE": str(tmp_path / "auth")}

    answer = redrive("jobs", "get", JOB, **both)
    assert (answer.status, answer.out, api.asked) == (2, "", [])
    assert "  REDRIVE_TOKEN: and REDRIVE_TOKEN_FILE are both set, keep one\n" in answer.err

    assert redrive("jobs", "get", JOB, "--token-file", str(tmp_path / "other"), **both).status == 0
    assert redrive("jobs", "get", JOB, REDRIVE_TOKEN_FILE="").status == 0
    assert [asked.token for asked in api.asked] == ["Bearer another.file.token", f"Bearer {TOKEN}"]


def test_a_limit_that_is_waited_out_says_so_and_for_how_long(
    api: Api, redrive: Redrive, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_pause(_pause_s: float) -> None: ...

    monkeypatch.setattr("redrive_client.transport.sleep", no_pause)
    path = f"GET /api/jobs/{JOB}"
    api.problem(path, 429, "rate-limited")
    api.answers[path].append((200, {"data": a_job()}))
    answer = redrive("jobs", "get", JOB)

    assert answer.status == 0
    assert answer.err == "redrive: note: rate limit of the API reached (429): waiting 3 s\n"


def test_a_limit_that_would_last_too_long_says_when_to_come_back(
    api: Api, redrive: Redrive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.operate.connection._TIMEOUT_S", 2.0)
    api.problem(f"GET /api/jobs/{JOB}", 429, "rate-limited")
    answer = redrive("jobs", "get", JOB)

    assert answer.status == 1
    assert answer.err == "redrive: No: Not so. [rate-limited, request r-1]; try again in 3 s\n"


@pytest.mark.parametrize("token", ["", " ", "two words", "caf\u00e9", "a\x1bb"])
def test_a_token_that_is_none_is_status_2(redrive: Redrive, token: str) -> None:
    answer = redrive("jobs", "stats", REDRIVE_TOKEN=token)
    assert answer.status == 2
    assert "REDRIVE_TOKEN (or --token-file): is" in answer.err
    assert ". .redrive/env" in answer.err


@pytest.mark.parametrize(
    "url", ["canary", "http://u:canary/2@api/", "http://u:canary@api/", "http://canary:65536/", "http://canary\u2100/"]
)
def test_a_url_that_is_none_is_status_2_and_not_shown(redrive: Redrive, url: str) -> None:
    answer = redrive("jobs", "stats", "--url", url)
    assert (answer.status, answer.out) == (2, "")
    assert "REDRIVE_URL: " in answer.err


def test_an_api_that_is_away_is_one_line_and_status_1(redrive: Redrive, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_pause(_pause_s: float) -> None: ...

    monkeypatch.setattr("redrive_client.transport.sleep", no_pause)
    answer = redrive("jobs", "stats", "--url", "http://127.0.0.1:1")
    assert answer.status == 1
    assert re.fullmatch(
        r"redrive: the API at http://127\.0\.0\.1:1 cannot be reached: .+; is `redrive up` .+\n", answer.err
    )


def test_what_the_api_refuses_is_one_line_and_status_1(api: Api, redrive: Redrive) -> None:
    api.problem("GET /api/jobs/stats", 401, "invalid-token")
    answer = redrive("jobs", "stats")
    assert answer.status == 1
    assert answer.err.startswith(
        "redrive: No: Not so. (the token is in --token-file or REDRIVE_TOKEN); for a new one, "
    )
    assert answer.err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "scopes"),
    [
        (["jobs", "stats"], "jobs:read"),
        (["jobs", "get", JOB, "--payload"], "jobs:read jobs:payload"),
        (["retry", JOB], "jobs:read jobs:retry"),
        (["retry", JOB, "--extra-attempts", "1"], "jobs:read jobs:retry jobs:retry:extend"),
        (["retry", "--filter", "type=email", "--reason", "r", "--yes"], "jobs:read jobs:retry:bulk"),
        (["retries", "cancel", RETRY], "jobs:retry"),
        (["batches", "cancel", BATCH], "jobs:read jobs:retry:bulk"),
    ],
)
def test_a_scope_that_is_missing_is_named(api: Api, redrive: Redrive, args: list[str], scopes: str) -> None:
    for request in (
        "GET /api/jobs/stats",
        f"GET /api/jobs/{JOB}",
        f"POST /api/jobs/{JOB}/retry",
        "POST /api/jobs/retry",
        f"DELETE /api/retries/{RETRY}",
        f"DELETE /api/retry-batches/{BATCH}",
    ):
        api.problem(request, 403, "insufficient-scope")

    answer = redrive(*args)

    assert answer.status == (3 if args[0] == "retry" else 1)
    assert answer.err.endswith(f"; this command needs the scopes: {scopes}\n")


def test_an_answer_of_another_program_asks_whether_this_is_redrive(api: Api, redrive: Redrive) -> None:
    api.on("GET /api/jobs/stats", "not found", status=404)
    assert redrive("jobs", "stats").err.endswith("; is this Redrive's API?\n")


@pytest.mark.parametrize("content", [None, "\n"])
def test_a_token_file_without_a_token_is_named_with_what_to_type(
    redrive: Redrive, tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "auth"
    if content is not None:
        file.write_text(content)

    answer = redrive("jobs", "stats", "--token-file", str(file))

    assert answer.status == 2
    assert str(file) in answer.err
    assert ". .redrive/env" in answer.err
    assert "redrive token" in answer.err


@pytest.mark.parametrize(
    "args",
    [
        ["jobs"],
        ["jobs", "get", "not-an-id"],
        ["jobs", "list", "--created-after", "yesterday"],
        ["jobs", "list", "--created-after", "999999w"],
        ["jobs", "list", "--created-after", "2026-11-23T04:00:00"],
        ["jobs", "list", "--limit", "0"],
        ["jobs", "list", "--type", ""],
        ["jobs", "list", "--status", "x" * 101],
        ["jobs", "list", "--error-contains", "x" * 201],
        ["failures", "--type", "x" * 201],
        ["retries", "list", "--actor", "x" * 256],
        ["jobs", "wait", JOB, "--timeout", "soon"],
        ["retry"],
        ["retry", "not-an-id"],
        ["retry", JOB, *FILTER],
        ["retry", *FILTER, "--yes"],
        ["retry", *FILTER, "--reason", "back"],
        ["retry", "--filter", "kind=email", "--reason", "back", "--yes"],
        ["retry", "--filter", "type=", "--reason", "back", "--yes"],
        ["retry", "--filter", "type=a,type=b", "--reason", "back", "--yes"],
        ["retry", *FILTER, "--max", "10001", "--yes"],
        ["retry", JOB, "--extra-attempts", "11"],
        ["retry", JOB, "--spread", "1m"],
        ["retry", JOB, "--delay", "2d"],
        ["retry", JOB, RETRY, "--spread", "2h"],
        ["retry", JOB, "--reason", "x" * 501],
        ["retry", JOB, "--reason", "\udcff"],
        ["retry", "--filter", f"type={'x' * 201}", "--reason", "back", "--yes"],
        ["retry", "--filter", f"error_contains={'x' * 201}", "--reason", "back", "--yes"],
        ["retry", "--filter", "error_contains=\udcff", "--reason", "back", "--yes"],
        ["retry", "--filter", "retried_fewer_than=101/1h", "--reason", "back", "--yes"],
        ["retry", "--filter", "retried_fewer_than=3/8d", "--reason", "back", "--yes"],
        ["retry", "--filter", "retried_fewer_than=3/0", "--reason", "back", "--yes"],
        ["retry", *[JOB] * 1001],
        ["retries", "list", "--state", "lost"],
        ["retries", "show", "x"],
        ["batches", "wait", "x"],
        ["batches", "cancel", "x"],
        ["batches", "list", "--limit", "0"],
        ["dead", "redrive"],
        ["dead", "redrive", "--max", "0"],
        ["dead", "purge"],
        ["prune"],
        ["prune", "--older-than", "23h"],
        ["prune", "--older-than", "forever"],
    ],
)
def test_wrong_usage_is_status_2_and_sends_no_request(api: Api, redrive: Redrive, args: list[str]) -> None:
    answer = redrive(*args)
    assert answer.status == 2
    assert api.asked == []


@pytest.mark.parametrize("args", [["dead", "list"], ["dead", "purge", "--yes"], ["prune", "--older-than", "90d"]])
def test_commands_on_the_servers_need_their_settings(redrive: Redrive, args: list[str]) -> None:
    answer = redrive(*args)
    assert answer.status == 2
    assert "REDRIVE_DATABASE_URL (or REDRIVE_DATABASE_URL_FILE): is required" in answer.err


@pytest.mark.parametrize("actor", ["x" * 256, "a\nb", "\udcff"])
def test_dead_letters_are_redriven_in_the_name_of_an_actor_that_a_token_can_have(redrive: Redrive, actor: str) -> None:
    answer = redrive("dead", "redrive", "--max", "1", "--actor", actor)

    assert answer.status == 2
    assert "an actor has 1 to 255 characters" in answer.err


def test_a_comma_belongs_to_a_value_unless_a_name_follows() -> None:
    wanted = filters.failed_filter_of(["error_contains=a, b=c,type=x,y", "created_after=2026-11-23T04:00:00Z"])
    assert (wanted.error_contains, wanted.type) == ("a, b=c", "x,y")
    assert wanted.created_after is not None


# -- failures, and retrying a group


def test_failures_are_shown_in_groups_with_the_command_that_retries_each(api: Api, redrive: Redrive) -> None:
    groups = [a_group(), a_group(fingerprint="0" * 16, retryable=0)]
    found = {"data": groups, "sampled": 10_000, "truncated": True, "as_of": "2026-11-23T04:00:00Z"}
    api.on("GET /api/failures", found)

    answer = redrive("failures", "--type", "email", "--created-after", "2026-11-23T04:00:00Z")
    document = redrive("failures", "--json", "--limit", "1")

    assert api.asked[0].path == "/api/failures?type=email&created_after=2026-11-23T04%3A00%3A00%2B00%3A00"
    assert answer.out.splitlines()[1].split("  ")[-1] == f"redrive retry --fingerprint {GROUP} --canary 5 --reason '…'"
    assert "0000000000000000" not in answer.out  # none of it can be retried
    assert "only the newest 10000 failed jobs" in answer.err
    assert [json.loads(line)["fingerprint"] for line in document.out.splitlines()] == [GROUP]
    assert "there are 2 groups" in document.err


def test_the_command_for_a_group_that_is_larger_than_the_guard_lifts_it(api: Api, redrive: Redrive) -> None:
    found = {"data": [a_group(jobs=1_001)], "sampled": 1_001, "truncated": False, "as_of": "2026-11-23T04:00:00Z"}
    api.on("GET /api/failures", found)

    assert f"redrive retry --fingerprint {GROUP} --canary 5 --max 10000 --reason '…'" in redrive("failures").out


@pytest.mark.parametrize(
    ("chosen", "status"),
    [
        (["--fingerprint", GROUP], 0),
        (["--filter", "type=email,error_contains=421"], 0),
        (["--filter", "type=email,retried_fewer_than=3/3600"], 0),
        (["--filter", "type=email"], 3),  # these would be over ten thousand
    ],
)
def test_a_search_among_more_failed_jobs_than_are_looked_at_is_retried(
    api: Api, redrive: Redrive, chosen: list[str], status: int
) -> None:
    previews(api, matched=3, retryable=3, truncated=True, applied=3)

    answer = redrive("retry", *chosen, "--reason", "it is back", "--yes", "--wait")

    assert answer.status == status, answer.err
    assert ("only the newest 10000 failed jobs are looked at" in answer.err) == (status == 0)
    assert ("matches more than 3 failed jobs" in answer.err) == (status == 3)


def canaries(api: Api, *statuses: str) -> None:
    """Let two canaries be retried, and end so; then the rest."""
    previews(api, matched=3, retryable=3)
    preview = api.answers["POST /api/jobs/retry"][0]
    few = {"data": {"batch_id": BATCH, "accepted": 2, "skipped": []}}
    rest = {"data": {"batch_id": RETRY, "accepted": 1, "skipped": []}}
    api.answers["POST /api/jobs/retry"] = [preview, (202, few), (202, rest)]
    api.on(f"GET /api/retry-batches/{BATCH}", {"data": a_batch(applied=2) | {"id": BATCH}})
    other = JOB.replace("8386", "8387")
    api.on("GET /api/jobs", {"data": [a_job(), a_job(id=other), a_job(id=RETRY)], "next_cursor": None})
    for job_id, status in zip((JOB, other), statuses, strict=True):
        api.on(f"GET /api/jobs/{job_id}", {"data": a_job(status, id=job_id, last_error="no route")})


RETRY_GROUP = ("retry", "--fingerprint", GROUP, "--canary", "2", "--reason", "it is back", "--yes")


def test_the_rest_of_a_group_is_retried_once_its_canaries_are_completed(api: Api, redrive: Redrive) -> None:
    canaries(api, "completed", "completed")

    answer = redrive(*RETRY_GROUP)

    posted = [asked.body for asked in api.asked if asked.method == "POST"]
    assert answer.status == 0
    assert [body.get("filter") for body in posted if isinstance(body, dict)] == [
        {"fingerprint": GROUP}, None, {"fingerprint": GROUP}
    ]  # fmt: skip
    assert isinstance(posted[1], dict)
    assert len(posted[1]["ids"]) == 2
    listed = next(path for path in api.paths if path.startswith("GET /api/jobs?"))
    assert {"status=failed", "retryable=true", f"fingerprint={GROUP}"} <= set(urlsplit(listed).query.split("&"))
    assert "all canaries are completed (2): now the rest" in answer.err


def test_canaries_are_chosen_among_jobs_without_attempts_where_these_get_more(api: Api, redrive: Redrive) -> None:
    canaries(api, "completed", "completed")
    other = JOB.replace("8386", "8387")
    jobs = [
        a_job(id=job_id, retryable=False, retry_blocked_by=reason)
        for job_id, reason in [(JOB, "attempts_exhausted"), (RETRY, "retry_queued"), (other, "attempts_exhausted")]
    ]
    api.on("GET /api/jobs", {"data": jobs, "next_cursor": None})

    answer = redrive(*RETRY_GROUP, "--extra-attempts", "1")

    posted = [asked.body for asked in api.asked if asked.method == "POST"]
    assert answer.status == 0
    assert isinstance(posted[1], dict)
    assert (posted[1]["ids"], posted[1]["extra_attempts"]) == ([JOB, other], 1)
    assert len(posted) == 3


@pytest.mark.parametrize("more", [(), ("--extra-attempts", "1")])
def test_nothing_is_retried_where_no_job_can_be_a_canary(api: Api, redrive: Redrive, more: tuple[str, ...]) -> None:
    canaries(api, "completed", "completed")
    api.on("GET /api/jobs", {"data": [], "next_cursor": None})

    answer = redrive(*RETRY_GROUP, *more)

    assert answer.status == 3
    assert len([path for path in api.paths if path.startswith("POST")]) == 1  # the dry run
    assert "no job could be chosen as a canary: nothing was retried" in answer.err


def test_no_second_batch_is_made_where_all_jobs_were_canaries(api: Api, redrive: Redrive) -> None:
    canaries(api, "completed", "completed")
    previews(api, matched=2, retryable=2)
    preview = api.answers["POST /api/jobs/retry"][0]
    api.answers["POST /api/jobs/retry"] = [
        preview,
        (202, {"data": {"batch_id": BATCH, "accepted": 2, "skipped": []}}),
        (500, None),
    ]

    answer = redrive(*RETRY_GROUP)

    assert answer.status == 0
    assert len([path for path in api.paths if path.startswith("POST")]) == 2
    assert "all canaries are completed (2), and there are no other jobs to retry" in answer.err
    assert f"accepted 2, left out 0: batch {BATCH}" in answer.out


def test_a_filter_that_does_not_exist_is_named(redrive: Redrive) -> None:
    assert "'foo' is not something to choose by" in redrive("retry", "--filter", "foo=bar", "--dry-run").err


@pytest.mark.parametrize("option", ["--type", "--created-after", "--error-contains", "--retried-fewer-than"])
def test_what_lists_take_as_options_is_said_to_belong_into_the_filter(api: Api, redrive: Redrive, option: str) -> None:
    answer = redrive("retry", option, "email", "--reason", "back", "--yes")

    assert (answer.status, api.asked) == (2, [])
    words = " ".join(re.sub("[│╭╰─╮╯]", " ", answer.err).split())
    assert "are no options here: put them into --filter, such as --filter type=email,created_after=3h" in words


@pytest.mark.parametrize(
    ("args", "form"),
    [
        (["jobs", "get", "42x"], "a UUID such as 0193c9a8-4a5b-4c6d-8e7f-000000000001, or a number where the API has"),
        (["retry", "42x"], "a UUID such as 0193c9a8-4a5b-4c6d-8e7f-000000000001, or a number where the API has"),
        (["retries", "show", "42x"], "a UUID such as 0193c9a8-4a5b-4c6d-8e7f-000000000001"),
        (["batches", "get", "42"], "a UUID such as 0193c9a8-4a5b-4c6d-8e7f-000000000001"),
    ],
)
def test_what_is_not_an_id_is_told_with_what_an_id_looks_like(redrive: Redrive, args: list[str], form: str) -> None:
    words = " ".join(re.sub("[│╭╰─╮╯]", " ", redrive(*args).err).split())

    assert f"'{args[-1]}' is not an id: {form}" in words


EMPTY = {
    "jobs list": ("GET /api/jobs", "jobs"),
    "failures": ("GET /api/failures", "failed jobs"),
    "retries list": ("GET /api/retries", "retries"),
    "batches list": ("GET /api/retry-batches", "batches"),
}


@pytest.mark.parametrize("command", EMPTY)
def test_an_empty_list_says_so_on_a_terminal_alone(
    api: Api, redrive: Redrive, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    path, things = EMPTY[command]
    as_of = "2026-11-23T04:00:00Z"
    api.on(path, {"data": [], "next_cursor": None, "sampled": 0, "truncated": False, "as_of": as_of})
    me = {"actor": "a", "project_id": "demo", "scopes": None, "jobs": None, "expires_at": as_of, "read_only": False}
    api.on("GET /api/me", {"data": {**me, "version": "1"}})

    piped = redrive(*command.split())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    shown = redrive(*command.split())

    assert (piped.status, piped.err) == (0, "")
    assert (shown.status, shown.err) == (0, f"redrive: note: project demo has no {things}\n")


CHOSEN = {
    "jobs list --error-contains x --created-after 1h": "--status failed --created-after 1h --error-contains x",
    "jobs list --watch --status pending": "--status pending",
    "failures --created-before 2h": "--created-before 2h",
    "retries list --state queued --actor ana": "--state queued --actor ana",
    "batches list --actor ana": "--actor ana",
}


@pytest.mark.parametrize("command", CHOSEN)
def test_an_empty_list_says_by_what_it_was_chosen(
    api: Api, redrive: Redrive, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    path, things = EMPTY[" ".join(command.split("--", maxsplit=1)[0].split())]
    as_of = "2026-11-23T04:00:00Z"
    api.on(path, {"data": [], "next_cursor": None, "sampled": 0, "truncated": False, "as_of": as_of})
    me = {"actor": "a", "project_id": "demo", "scopes": None, "jobs": None, "expires_at": as_of, "read_only": False}
    api.on("GET /api/me", {"data": {**me, "version": "1"}})
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)

    async def leave(_pause_s: float) -> None:
        raise OSError("the person has left")

    monkeypatch.setattr("cli.operate.jobs.asyncio.sleep", leave)

    assert f"redrive: note: no {things} in project demo match {CHOSEN[command]}\n" in redrive(*command.split()).err


def test_an_error_of_several_lines_keeps_them(api: Api, redrive: Redrive) -> None:
    error = 'Traceback:\n  File "a.py"\nstatus    completed\x1b[2J'
    api.on(f"GET /api/jobs/{JOB}", {"data": a_job(last_error=error)})

    lines = redrive("jobs", "get", JOB).out.splitlines()

    first = next(number for number, line in enumerate(lines) if line.startswith("error "))
    column = lines[first].index("Traceback:")
    assert [line[column:] for line in lines[first : first + 3]] == [
        "Traceback:", '  File "a.py"', "status    completed\\x1b[2J"
    ]  # fmt: skip
    assert [line[:column].strip() for line in lines[first + 1 : first + 3]] == ["", ""]


def test_an_age_without_a_unit_is_asked_for_one(redrive: Redrive) -> None:
    answer = redrive("prune", "--older-than", "90")
    assert answer.status == 2
    assert "give a unit, such as 90d" in answer.err


def test_the_question_speaks_of_canaries() -> None:
    assert bulk_retrying._question(1, 0) == "Retry 1 job?"
    assert bulk_retrying._question(40, 5).startswith("Retry 40 jobs: 5 as canaries first")
    assert bulk_retrying._question(5, 5) == "Retry 5 jobs, all as canaries?"


def test_a_missing_reason_is_told_with_the_option_that_was_given(redrive: Redrive) -> None:
    assert "--fingerprint needs --reason" in redrive("retry", "--fingerprint", GROUP, "--yes").err
    assert "--filter needs --reason" in redrive("retry", *FILTER, "--yes").err


def test_the_rest_of_a_group_is_left_alone_where_a_canary_fails_again(api: Api, redrive: Redrive) -> None:
    canaries(api, "completed", "failed")

    answer = redrive(*RETRY_GROUP)

    assert answer.status == 3
    assert len([path for path in api.paths if path.startswith("POST")]) == 2
    assert "1 of 2 canaries ended failed (no route): the rest was not retried" in answer.err


def test_a_group_is_listed_by_its_fingerprint(api: Api, redrive: Redrive) -> None:
    api.on("GET /api/jobs", {"data": [a_job()], "next_cursor": None})

    assert redrive("jobs", "list", "--fingerprint", GROUP).status == 0
    assert {"status=failed", f"fingerprint={GROUP}"} <= set(urlsplit(api.asked[0].path).query.split("&"))


@pytest.mark.parametrize(
    "args",
    [
        ["retry", JOB, "--canary", "1"], ["retry", "--fingerprint", "xyz", "--reason", "r", "--yes"],
        ["retry", "--fingerprint", GROUP, "--canary", "1", "--no-wait", "--reason", "r", "--yes"],
        ["retry", "--filter", "retried_fewer_than=3", "--reason", "r", "--yes"],
        ["jobs", "list", "--fingerprint", GROUP, "--status", "pending"], ["jobs", "list", "--fingerprint", "1"],
        ["jobs", "list", "--watch"], ["failures", "--created-after", "yesterday"],
    ],
)  # fmt: skip
def test_wrong_usage_of_groups_is_status_2_and_asks_nothing(api: Api, redrive: Redrive, args: list[str]) -> None:
    assert redrive(*args).status == 2
    assert api.asked == []


def test_jobs_are_shown_again_and_again_until_the_person_leaves(
    api: Api, redrive: Redrive, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.on("GET /api/jobs", *({"data": [a_job(status)], "next_cursor": None} for status in ("failed", "running")))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)

    async def leave_after_two(_pause_s: float) -> None:
        if len(api.asked) == 2:
            raise OSError("the person has left")

    monkeypatch.setattr("cli.operate.jobs.asyncio.sleep", leave_after_two)
    out = redrive("jobs", "list", "--watch").out

    assert out.count("\x1b[H\x1b[2J") == 2
    assert out.index("failed") < out.index("running")


def test_ctrl_c_ends_a_watch_with_status_0(api: Api, redrive: Redrive, monkeypatch: pytest.MonkeyPatch) -> None:
    api.on("GET /api/jobs", {"data": [a_job()], "next_cursor": None})
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)

    async def press_ctrl_c(_pause_s: float) -> None:
        signal.raise_signal(signal.SIGINT)
        await asyncio.Event().wait()

    monkeypatch.setattr("cli.operate.jobs.asyncio.sleep", press_ctrl_c)
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a shell; a test's parent may ignore it
    try:
        answer = redrive("jobs", "list", "--watch")
    finally:
        signal.signal(signal.SIGINT, previous)

    assert (answer.status, answer.err) == (0, "")
    assert JOB in answer.out


def test_what_the_api_takes_at_most_is_taken_by_the_command(api: Api, redrive: Redrive) -> None:
    previews(api)
    api.answers["POST /api/jobs/retry"].pop(0)
    answer = redrive("retry", JOB, RETRY, "--delay", "24h", "--spread", "1h", "--reason", "x" * 500)

    assert answer.status == 3  # one of the two was left out
    assert api.asked[0].body == {
        "ids": [JOB, RETRY], "reason": "x" * 500, "delay_seconds": 86_400, "spread_seconds": 3_600,
    }  # fmt: skip


def test_the_numbers_of_retries_are_shown(api: Api, redrive: Redrive) -> None:
    nothing = {"count": 0, "capped": False}
    numbers = {
        "queued": {"count": 10_000, "capped": True}, "oldest_requested_at": "2026-11-23T04:00:00Z",
        "last_hour": {
            "applied": {"count": 4, "capped": False}, "rejected": nothing, "cancelled": nothing,
            "dead_lettered": nothing,
        },
        "wait_ms": {"p50": 41, "p95": 180},
    }  # fmt: skip
    api.on("GET /api/retries/stats", {"data": numbers, "as_of": "2026-11-23T04:00:00Z"})

    facts = [re.split("  +", line) for line in redrive("retries", "stats").out.splitlines()]

    assert facts == [
        ["queued", "10000+"], ["oldest queued", "2026-11-23 04:00:00Z"], ["applied in the last hour", "4"],
        ["rejected in the last hour", "0"], ["cancelled in the last hour", "0"],
        ["dead_lettered in the last hour", "0"],
        ["waits", "median 41 ms, 95 of 100 within 180 ms"],
    ]  # fmt: skip
