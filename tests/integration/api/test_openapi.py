"""Everything that `api/openapi.yaml` says of an answer, compared with answers.

For each operation and status that is documented, requests provoke it, one for every problem's code at least; each
answer must be of the documented schema, carry the headers that are always there, and none that the document does not
know; and each header that is sometimes there must have been there once.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import uuid4

import pytest

from api import door
from shared.database import Database, Row, Session
from shared.errors import StatementRefused
from tests.api_server import NO_TOKEN, Api, Reply, Serve
from tests.integration.api.conftest import module_fixture
from tests.jobs import JobMaker, MadeJob
from tests.openapi import DOCUMENT, ELSEWHERE, OPERATIONS, Documented, Operation, check, check_header, check_problem
from tests.servers.proxy import Proxy
from tests.tokens import token

pytestmark = pytest.mark.asyncio(loop_scope="module")

TRANSPORT: Final = {"Date", "Connection", "Content-Length", "Content-Type", "Transfer-Encoding"}
PROJECT: Final = "p-openapi"
ALL_SCOPES: Final = "jobs:read jobs:payload jobs:retry jobs:retry:bulk jobs:retry:extend jobs:admin"


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent; `raw_line` is a header line that no client library would send."""

    method: str
    path: str
    query: str = ""
    token: str = token(project_id=PROJECT, scope=ALL_SCOPES, exp=4_000_000_000)
    headers: Mapping[str, str] | None = None
    body: bytes | None = None
    raw_line: bytes = b""

    async def to(self, api: Api) -> Reply:
        target = self.path + (f"?{self.query}" if self.query else "")
        if not self.raw_line:
            return await api.call(self.method, target, token=self.token, headers=self.headers, body=self.body)
        head = (
            f"{self.method} {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer {self.token}\r\n"
        )
        return Reply.parsed(await api.raw(head.encode() + self.raw_line + b"\r\n\r\n"))


class World:
    """What requests are about, and the apis that they go to: one with limits that are far, and others."""

    def __init__(self, apis: Mapping[str, Api], jobs: JobMaker, proxy: Proxy) -> None:
        self.apis = apis
        self.jobs = jobs
        self.proxy = proxy

    @property
    def api(self) -> Api:
        return self.apis["limited far"]

    async def failed(self, **made: Any) -> MadeJob:  # noqa: ANN401 - passed on
        return await self.jobs.failed(project_id=PROJECT, **made)

    async def accepted(self) -> str:
        """The path of a retry that is queued."""
        job = await self.failed()
        return (await Request("POST", f"/api/jobs/{job.id}/retry").to(self.api)).headers["Location"]

    async def given_up(self) -> str:
        """The path of a retry that was dead-lettered."""
        path = await self.accepted()
        await self.jobs.pool.execute(
            "UPDATE redrive.retry_requests SET state = 'dead_lettered', outcome = 'poison', processed_at = now()"
            " WHERE id = $1",
            path.rpartition("/")[2],
        )
        return path

    async def batch(self) -> str:
        """The path of a bulk retry."""
        job = await self.failed()
        request = Request("POST", "/api/jobs/retry", body=b'{"ids":["%b"]}' % str(job.id).encode())
        return (await request.to(self.api)).headers["Location"]

    async def good(self, operation: Operation) -> Request:
        """A request that the operation answers with success."""
        method, body, path = operation.method, None, operation.path
        match operation.id:
            case "get_retry" | "delete_retry":
                path = await self.accepted()
            case "post_redrive":
                path = f"{await self.given_up()}/redrive"
            case "get_batch" | "delete_batch":
                path = await self.batch()
            case "post_batch":
                body = b'{"ids":["%b"]}' % str((await self.failed()).id).encode()
            case "get_many_events":
                return Request(method, path, f"ids={(await self.failed()).id}")
            case "get_stats" | "get_types" | "get_series" | "get_failures" | "get_retry_stats":
                return Request(method, path, f"project_id=p-{uuid4()}")  # of another, the numbers may be known already
            case _:
                path = path.replace("{id}", str((await self.failed()).id))
        return Request(method, path, body=body)


@module_fixture
async def world(proxied_url: str, database_proxy: Proxy, jobs: JobMaker, serve: Serve) -> World:
    far: dict[str, object] = {f"limit_{name}": "100000/60" for name in ("ip", "read", "retry", "bulk")}
    near: dict[str, object] = {f"limit_{name}": "1/3600" for name in ("read", "retry", "bulk")}
    apis = {
        "limited far": await serve(proxied_url, **far),
        "read only": await serve(proxied_url, **far, read_only=True),
        "project's limit": await serve(proxied_url, **near),
        "address's limit": await serve(proxied_url, limit_ip="1/3600"),
    }
    return World(apis, jobs, database_proxy)


Provoking = Callable[[World, Operation, pytest.MonkeyPatch], Awaitable[list[Reply]]]


# -- successes: (operation, status) → requests


async def _with_headers(world: World, path: str, *headers: dict[str, str]) -> list[Reply]:
    return [await Request("GET", path, headers=each).to(world.api) for each in headers]


async def _lists(world: World, path: str, *queries: str) -> list[Reply]:
    return [await Request("GET", path, query).to(world.api) for query in queries]


async def _jobs_of_each_kind(world: World) -> list[MadeJob]:
    await world.accepted()
    made = [await world.failed(), await world.failed(attempts=3), await world.failed(attempts=None, max_attempts=None)]
    make = (world.jobs.pending, world.jobs.running, world.jobs.completed)
    return [*made, *[await each(project_id=PROJECT) for each in make]]


async def get_jobs_200(world: World) -> list[Reply]:
    made = await _jobs_of_each_kind(world)
    ids = ",".join(str(job.id) for job in made)
    return await _lists(world, "/api/jobs", "", "limit=1", "limit=200&status=failed", f"ids={ids},{uuid4()}")


async def get_stats_200(world: World) -> list[Reply]:
    await _jobs_of_each_kind(world)
    return await _lists(world, "/api/jobs/stats", "", "type=nothing", "project_id=another")


async def _many_kinds(world: World) -> str:
    """The name of a project whose overview is large enough to be compressed."""
    project = f"p-{uuid4()}"
    for number in range(60):
        await world.jobs.failed(project_id=project, kind=f"kind-{number:060}", last_error=f"{'x' * 60}: no route")
    return project


async def get_types_200(world: World) -> list[Reply]:
    return await _lists(world, "/api/jobs/types", f"project_id={await _many_kinds(world)}", "project_id=another")


async def get_series_200(world: World) -> list[Reply]:
    await _jobs_of_each_kind(world)
    spans = "from=2026-01-01T00:00:00Z&to=2026-01-02T00:00:00%2B00:00&by=1h", "by=1d&type=nothing"
    return await _lists(world, "/api/jobs/series", "", *spans)


async def get_failures_200(world: World) -> list[Reply]:
    queries = f"project_id={await _many_kinds(world)}", "type=nothing&created_after=2026-01-01T00:00:00Z"
    return await _lists(world, "/api/failures", *queries)


async def get_retry_stats_200(world: World) -> list[Reply]:
    await world.accepted()
    await world.given_up()
    await world.jobs.pool.execute(
        "UPDATE redrive.retry_requests SET state = 'applied', outcome = 'applied', processed_at = now() WHERE id = $1",
        (await world.accepted()).rpartition("/")[2],
    )
    return await _lists(world, "/api/retries/stats", "", "project_id=another")


async def get_me_200(world: World) -> list[Reply]:
    return [
        *await _lists(world, "/api/me", "", "project_id=another"),
        await world.api.get("/api/me", token=token(jobs=[str(uuid4())])),
    ]


async def get_openapi_200(world: World) -> list[Reply]:
    return [await Request("GET", "/api/openapi.json", token=NO_TOKEN).to(world.api)]


async def get_job_200(world: World) -> list[Reply]:
    answers: list[Reply] = []
    for job in await _jobs_of_each_kind(world):
        path = f"/api/jobs/{job.id}"
        answers += await _lists(world, path, "", "include=payload")
        answers += await _with_headers(world, path, {"Prefer": "wait=0"})
    return answers


async def get_job_304(world: World) -> list[Reply]:
    jobs = await _jobs_of_each_kind(world)
    headers = {"If-None-Match": "*"}, {"If-None-Match": "*", "Prefer": "wait=0"}
    return [each for job in jobs for each in await _with_headers(world, f"/api/jobs/{job.id}", *headers)]


async def get_events_200(world: World) -> list[Reply]:
    return await _lists(world, f"/api/jobs/{(await world.failed()).id}/events", "")


async def get_many_events_200(world: World) -> list[Reply]:
    job = await world.jobs.completed(project_id=PROJECT)
    return await _lists(world, "/api/jobs/events", f"ids={job.id},{uuid4()}")


async def get_many_events_204(world: World) -> list[Reply]:
    (first,) = await get_many_events_200(world)
    last = first.body.decode().rpartition("\nid: ")[2].partition("\n")[0]
    job_id = first.body.decode().rpartition('"id":"')[2][:36]
    return await _with_headers(world, f"/api/jobs/events?ids={job_id}", {"Last-Event-ID": last})


async def get_events_204(world: World) -> list[Reply]:
    path = f"/api/jobs/{(await world.failed()).id}"
    tag = (await Request("GET", path).to(world.api)).headers["ETag"]
    return await _with_headers(world, f"{path}/events", {"Last-Event-ID": tag.strip('"')})


async def get_job_retries_200(world: World) -> list[Reply]:
    job = await world.failed()
    for _ in range(6):
        path = (await Request("POST", f"/api/jobs/{job.id}/retry").to(world.api)).headers["Location"]
        await Request("DELETE", path).to(world.api)
    return await _lists(world, f"/api/jobs/{job.id}/retries", "", "limit=1")


async def post_batch_200(world: World) -> list[Reply]:
    ids = ",".join(f'"{job.id}"' for job in await _jobs_of_each_kind(world)) + f',"{uuid4()}"'
    by_filter = b'{"filter":{"type":"email"},"max":1,"reason":"r"}'
    bodies = {b'{"ids":[%b]}' % ids.encode(): "dry_run=true", by_filter: ""}
    return [await Request("POST", "/api/jobs/retry", query, body=body).to(world.api) for body, query in bodies.items()]


async def post_batch_202(world: World) -> list[Reply]:
    ids = ",".join(f'"{job.id}"' for job in await _jobs_of_each_kind(world)) + f',"{uuid4()}"'
    body, headers = b'{"ids":[%b],"reason":"r"}' % ids.encode(), {"Idempotency-Key": str(uuid4())}
    of_ids = Request("POST", "/api/jobs/retry", body=body, headers=headers)
    await world.jobs.make(40, status="failed", attempts=3, project_id=PROJECT)  # enough skipped to be compressed
    by_filter = Request("POST", "/api/jobs/retry", "dry_run=false", body=b'{"filter":{},"max":10000,"reason":"r"}')
    return [await of_ids.to(world.api), await of_ids.to(world.api), await by_filter.to(world.api)]


async def post_retry_200(world: World) -> list[Reply]:
    jobs = await _jobs_of_each_kind(world)
    return [await Request("POST", f"/api/jobs/{job.id}/retry", "dry_run=true").to(world.api) for job in jobs]


async def post_retry_202(world: World) -> list[Reply]:
    path = f"/api/jobs/{(await world.failed()).id}/retry"
    body = b'{"reason":"r","delay_seconds":1,"extra_attempts":2}'
    keyed = Request("POST", path, body=body, headers={"Idempotency-Key": str(uuid4())})
    plain = Request("POST", path)
    return [await keyed.to(world.api), await keyed.to(world.api), await plain.to(world.api)]


async def get_retries_200(world: World) -> list[Reply]:
    await world.batch()
    for _ in range(6):  # enough to be compressed
        await world.accepted()
    return await _lists(world, "/api/retries", "", "limit=1", "state=queued&actor=alice")


async def get_retry_200(world: World) -> list[Reply]:
    path = await world.accepted()
    answers = await _with_headers(world, path, {}, {"Prefer": "wait=0"})
    await Request("DELETE", path).to(world.api)
    return [*answers, *await _with_headers(world, path, {})]


async def get_retry_304(world: World) -> list[Reply]:
    headers = {"If-None-Match": "*"}, {"If-None-Match": "*", "Prefer": "wait=0"}
    return await _with_headers(world, await world.accepted(), *headers)


async def delete_retry_200(world: World) -> list[Reply]:
    return [await Request("DELETE", await world.accepted()).to(world.api)]


async def post_redrive_202(world: World) -> list[Reply]:
    return [
        await Request("POST", f"{await world.given_up()}/redrive", body=body).to(world.api) for body in (None, b"{}")
    ]


async def get_batches_200(world: World) -> list[Reply]:
    for _ in range(8):  # enough to be compressed
        await world.batch()
    filtered = b'{"filter":{"type":"email","created_after":"2026-01-01T00:00:00Z"},"max":10000,"reason":"r"}'
    await world.failed()
    await Request("POST", "/api/jobs/retry", "dry_run=false", body=filtered).to(world.api)
    return await _lists(world, "/api/retry-batches", "", "limit=1", "actor=alice")


async def delete_batch_200(world: World) -> list[Reply]:
    delete = Request("DELETE", await world.batch())
    return [await delete.to(world.api), await delete.to(world.api)]


async def get_batch_200(world: World) -> list[Reply]:
    return await _with_headers(world, await world.batch(), {}, {"Prefer": "wait=0"})


async def get_batch_304(world: World) -> list[Reply]:
    headers = {"If-None-Match": "*"}, {"If-None-Match": "*", "Prefer": "wait=0"}
    return await _with_headers(world, await world.batch(), *headers)


SUCCESSES: Final[dict[tuple[str, int], Callable[[World], Awaitable[list[Reply]]]]] = {
    ("get_jobs", 200): get_jobs_200, ("get_stats", 200): get_stats_200, ("get_job", 200): get_job_200,
    ("get_job", 304): get_job_304, ("get_events", 200): get_events_200, ("get_events", 204): get_events_204,
    ("get_job_retries", 200): get_job_retries_200,
    ("post_batch", 200): post_batch_200, ("post_batch", 202): post_batch_202, ("post_retry", 200): post_retry_200,
    ("post_retry", 202): post_retry_202, ("get_retries", 200): get_retries_200, ("get_retry", 200): get_retry_200,
    ("get_retry", 304): get_retry_304, ("delete_retry", 200): delete_retry_200, ("get_batch", 200): get_batch_200,
    ("get_batch", 304): get_batch_304, ("post_redrive", 202): post_redrive_202,
    ("get_types", 200): get_types_200, ("get_series", 200): get_series_200, ("get_failures", 200): get_failures_200,
    ("get_many_events", 200): get_many_events_200, ("get_many_events", 204): get_many_events_204,
    ("get_retry_stats", 200): get_retry_stats_200, ("get_me", 200): get_me_200, ("get_openapi", 200): get_openapi_200,
    ("get_batches", 200): get_batches_200, ("delete_batch", 200): delete_batch_200,
}  # fmt: skip


# -- refusals: code → requests, by every operation that documents it


async def bad_request(world: World, operation: Operation, _: pytest.MonkeyPatch) -> list[Reply]:
    good = await world.good(operation)
    answers = [await replace(good, raw_line=b"X-A: \x00", body=None).to(world.api)]
    if good.method == "POST":  # and one that the door refuses, not the parser: it ends within a chunk
        cut = replace(good, raw_line=b"Transfer-Encoding: chunked\r\n\r\nno chunk", body=None)
        answers.append(await cut.to(world.api))
    return answers


async def invalid_parameter(world: World, operation: Operation, _: pytest.MonkeyPatch) -> list[Reply]:
    return [await replace(await world.good(operation), query="colour=blue").to(world.api)]


async def invalid_job_id(world: World, operation: Operation, _: pytest.MonkeyPatch) -> list[Reply]:
    good = await world.good(operation)
    match operation.id:
        case "get_jobs" | "get_many_events":
            bad = replace(good, query="ids=1")
        case "get_retries":
            bad = replace(good, query="job_id=1")
        case "post_batch":
            bad = replace(good, body=b'{"ids":["1"]}')
        case _:
            bad = replace(good, path=operation.path.replace("{id}", "1"))
    return [await bad.to(world.api)]


async def invalid_cursor(world: World, operation: Operation, _: pytest.MonkeyPatch) -> list[Reply]:
    return [await replace(await world.good(operation), query="cursor=AAAA").to(world.api)]


async def authentication_required(world: World, operation: Operation, _: pytest.MonkeyPatch) -> list[Reply]:
    return [await replace(await world.good(operation), token=NO_TOKEN).to(world.api)]


async def invalid_token(world: World, operation: Operation, _: pytest.MonkeyPatch) -> list[Reply]:
    return [await replace(await world.good(operation), token="a.b.c").to(world.api)]


async def insufficient_scope(world: World, operation: Operation, _: pytest.MonkeyPatch) -> list[Reply]:
    query = "project_id=another" if operation.id == "get_me" else ""  # all else of it is for every token
    return [await replace(await world.good(operation), query=query, token=token(scope="other")).to(world.api)]


async def read_only(world: World, operation: Operation, _: pytest.MonkeyPatch) -> list[Reply]:
    return [await (await world.good(operation)).to(world.apis["read only"])]


async def cross_site(world: World, operation: Operation, _: pytest.MonkeyPatch) -> list[Reply]:
    headers = {"Sec-Fetch-Site": "cross-site"}
    return [await replace(await world.good(operation), headers=headers).to(world.api)]


async def not_found(world: World, operation: Operation, _: pytest.MonkeyPatch) -> list[Reply]:
    path = operation.path.replace("{id}", str(uuid4()))
    return [await Request(operation.method, path).to(world.api)]


async def job_not_failed(world: World, operation: Operation, _: pytest.MonkeyPatch) -> list[Reply]:
    job = await world.jobs.completed(project_id=PROJECT)
    return [await Request(operation.method, operation.path.replace("{id}", str(job.id))).to(world.api)]


async def attempts_exhausted(world: World, operation: Operation, _: pytest.MonkeyPatch) -> list[Reply]:
    job = await world.failed(attempts=3)
    return [await Request(operation.method, operation.path.replace("{id}", str(job.id))).to(world.api)]


async def retry_already_settled(world: World, operation: Operation, _: pytest.MonkeyPatch) -> list[Reply]:
    good = await world.good(operation)
    await good.to(world.api)
    return [await good.to(world.api)]


async def retry_not_dead_lettered(world: World, _: Operation, __: pytest.MonkeyPatch) -> list[Reply]:
    return [await Request("POST", f"{await world.accepted()}/redrive").to(world.api)]


async def retry_queued(world: World, _: Operation, __: pytest.MonkeyPatch) -> list[Reply]:
    path = await world.given_up()
    retry = (await Request("GET", path).to(world.api)).data
    await Request("POST", f"/api/jobs/{retry['job_id']}/retry").to(world.api)
    return [await Request("POST", f"{path}/redrive").to(world.api)]


async def too_many_matches(world: World, _: Operation, __: pytest.MonkeyPatch) -> list[Reply]:
    await world.jobs.many_failed(2, project_id=PROJECT)
    body = b'{"filter":{},"max":1,"reason":"r"}'
    return [await Request("POST", "/api/jobs/retry", "dry_run=false", body=body).to(world.api)]


async def job_unreadable(world: World, operation: Operation, monkeypatch: pytest.MonkeyPatch) -> list[Reply]:
    good = await world.good(operation)
    fetch, fetch_within = Database.fetch, Session.fetch
    by_row = ("left(jobs.last_error", "jobs.created_at IS NULL", "looked_at", "AS sampled", "AS id, place")

    def refuse(sql: str, args: tuple[object, ...]) -> None:
        of_no_row = any(value in ([], 0, -1) for value in args)
        if "THEN 'not_failed'" in sql or (any(part in sql for part in by_row) and not of_no_row):
            raise StatementRefused("22012")

    async def refused(self: Database, sql: str, *args: object) -> list[Row]:
        refuse(sql, args)
        return await fetch(self, sql, *args)

    async def refused_within(self: Session, sql: str, *args: object) -> list[Row]:
        refuse(sql, args)
        return await fetch_within(self, sql, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Database, "fetch", refused)
        patch.setattr(Session, "fetch", refused_within)
        return [await good.to(world.api)]


async def job_changed(world: World, operation: Operation, _: pytest.MonkeyPatch) -> list[Reply]:
    return [await replace(await world.good(operation), headers={"If-Match": '"1"'}).to(world.api)]


async def payload_too_large(world: World, operation: Operation, _: pytest.MonkeyPatch) -> list[Reply]:
    return [await replace(await world.good(operation), body=b" " * 65_537).to(world.api)]


async def unsupported_media_type(world: World, operation: Operation, _: pytest.MonkeyPatch) -> list[Reply]:
    good = await world.good(operation)
    return [await replace(good, body=b"a=b", headers={"Content-Type": "text/plain"}).to(world.api)]


async def length_required(world: World, operation: Operation, _: pytest.MonkeyPatch) -> list[Reply]:
    return [await replace(await world.good(operation), raw_line=b"Transfer-Encoding: chunked").to(world.api)]


async def expectation_failed(world: World, operation: Operation, _: pytest.MonkeyPatch) -> list[Reply]:
    return [await replace(await world.good(operation), raw_line=b"Expect: a miracle", body=None).to(world.api)]


async def invalid_json(world: World, operation: Operation, _: pytest.MonkeyPatch) -> list[Reply]:
    return [await replace(await world.good(operation), body=b"{").to(world.api)]


async def invalid_body(world: World, operation: Operation, _: pytest.MonkeyPatch) -> list[Reply]:
    good = await world.good(operation)
    bodies = (b"[]", b'{"colour":"blue"}', b'{"delay_seconds":-1}')
    return [await replace(good, body=body).to(world.api) for body in bodies]


async def idempotency_key_reused(world: World, operation: Operation, _: pytest.MonkeyPatch) -> list[Reply]:
    headers = {"Idempotency-Key": str(uuid4())}
    await replace(await world.good(operation), headers=headers).to(world.api)
    return [await replace(await world.good(operation), headers=headers).to(world.api)]


def good_for_a_project(operation: Operation) -> bool:
    """Whether the operation is charged to a project, too."""
    return bool(operation.node.get("security", True))


async def rate_limited(world: World, operation: Operation, _: pytest.MonkeyPatch) -> list[Reply]:
    good = await world.good(operation)
    near = [world.apis["project's limit"], world.apis["address's limit"]]
    if not good_for_a_project(operation):
        near = near[1:]
    for api in near:
        await good.to(api)
    return [await good.to(api) for api in near]


async def internal(world: World, operation: Operation, monkeypatch: pytest.MonkeyPatch) -> list[Reply]:
    def broken(*_: object) -> None:
        raise RuntimeError("on purpose")

    good = await world.good(operation)
    with monkeypatch.context() as patch:
        patch.setattr(door, "_require_scope", broken)
        return [await good.to(world.api)]


async def unavailable(world: World, operation: Operation, _: pytest.MonkeyPatch) -> list[Reply]:
    good = await world.good(operation)
    await world.proxy.refuse()
    await world.proxy.reset()
    try:
        return [await good.to(world.api)]
    finally:
        await world.proxy.heal()


REFUSALS: Final[dict[str, Provoking]] = {
    "bad-request": bad_request, "invalid-parameter": invalid_parameter, "invalid-job-id": invalid_job_id,
    "invalid-cursor": invalid_cursor, "authentication-required": authentication_required,
    "invalid-token": invalid_token, "insufficient-scope": insufficient_scope, "read-only": read_only,
    "cross-site": cross_site,
    "not-found": not_found, "job-not-found": not_found, "retry-not-found": not_found,
    "job-unreadable": job_unreadable, "job-not-failed": job_not_failed, "attempts-exhausted": attempts_exhausted,
    "retry-not-dead-lettered": retry_not_dead_lettered, "retry-queued": retry_queued,
    "retry-already-settled": retry_already_settled, "too-many-matches": too_many_matches, "job-changed": job_changed,
    "payload-too-large": payload_too_large, "unsupported-media-type": unsupported_media_type,
    "expectation-failed": expectation_failed, "length-required": length_required,
    "invalid-json": invalid_json, "invalid-body": invalid_body,
    "idempotency-key-reused": idempotency_key_reused, "rate-limited": rate_limited, "internal": internal,
    "unavailable": unavailable,
}  # fmt: skip


async def provoked(
    world: World, operation: Operation, documented: Documented, monkeypatch: pytest.MonkeyPatch
) -> list[Reply]:
    if not documented.codes:
        return await SUCCESSES[operation.id, documented.status](world)
    answers = []
    for code in sorted(documented.codes):
        refused = await REFUSALS[code](world, operation, monkeypatch)
        assert [each.code for each in refused] == [code] * len(refused)
        answers += refused
    return answers


def compare(answer: Reply, documented: Documented) -> None:
    """What holds for every single answer."""
    assert answer.status == documented.status
    for name, header in documented.headers.items():
        if name in answer.headers:
            check_header(answer.headers[name], header)
        else:
            assert not header.get("required"), f"{name} is missing"
    assert {name.title() for name in answer.headers} <= {name.title() for name in documented.headers} | TRANSPORT
    if documented.content is None:
        assert answer.body == b""
        return
    media_type, schema = documented.content
    assert answer.headers["Content-Type"] == media_type
    check(answer.json if media_type.endswith("json") else answer.body.decode(), schema)
    if documented.codes:
        check_problem(answer.json, documented.codes)


PAIRS: Final = [
    pytest.param(operation, documented, id=f"{operation.id}-{documented.status}")
    for operation in OPERATIONS.values()
    for documented in operation.documented.values()
]


@pytest.mark.parametrize(("operation", "documented"), PAIRS)
async def test_an_answer_is_as_it_is_documented(
    world: World, operation: Operation, documented: Documented, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = await provoked(world, operation, documented, monkeypatch)

    for answer in answers:
        compare(answer, documented)
    seen = {name.title() for answer in answers for name in answer.headers}
    assert {name for name in documented.headers if name.title() not in seen} == set(), "documented, and never seen"


@pytest.mark.parametrize(("name", "method", "path"), [
    ("NotFound", "GET", "/nowhere"), ("NotFound", "POST", "/api/jobs/a/b/c"), ("MethodNotAllowed", "PUT", "/api/jobs"),
    ("MethodNotAllowed", "GET", "/api/jobs/retry/retry"),
])  # fmt: skip
async def test_where_there_is_no_operation_the_answer_is_as_documented_too(
    world: World, name: str, method: str, path: str
) -> None:
    answer = await Request(method, path).to(world.api)

    compare(answer, Documented(answer.status, ELSEWHERE[name]))


async def test_an_event_carries_a_documented_job(world: World) -> None:
    answer = await Request("GET", f"/api/jobs/{(await world.failed()).id}/events").to(world.api)

    *_, data = answer.body.decode().strip().split("\n")
    check(
        Reply(200, answer.headers, data.removeprefix("data: ").encode()).json, DOCUMENT["components"]["schemas"]["Job"]
    )
