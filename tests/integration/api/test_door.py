"""The door: its steps in their order, and what each of them keeps from the next."""

import asyncio
from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

import jwt
import pytest

from tests.api_server import NO_TOKEN, Api, Reply, Serve
from tests.hostile import HOSTILE_IDS
from tests.jobs import JobMaker
from tests.servers.proxy import Proxy
from tests.tokens import token

pytestmark = pytest.mark.asyncio(loop_scope="module")

BAD_TOKEN = token(key="another secret, also of 32 bytes or more")


class Signatures:
    """Counts the signatures that are verified."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.verified = 0
        decode = jwt.decode

        def counted(*args: Any, **kwargs: Any) -> object:  # noqa: ANN401 - PyJWT's parameters
            self.verified += 1
            return decode(*args, **kwargs)

        monkeypatch.setattr(jwt, "decode", counted)


@pytest.fixture
def signatures(monkeypatch: pytest.MonkeyPatch) -> Signatures:
    return Signatures(monkeypatch)


async def answers_to(api: Api, times: int, path: str, **given: Any) -> list[Reply]:  # noqa: ANN401 - passed on
    return [await api.get(path, **given) for _ in range(times)]


# -- identification of the request


@pytest.mark.parametrize("given", ["r1", "A.b_c-9", "x" * 64])
async def test_a_request_keeps_the_id_that_it_came_with(api: Api, given: str) -> None:
    answer = await api.get("/nowhere", headers={"X-Request-Id": given})

    assert answer.headers["X-Request-Id"] == answer.json["request_id"] == given


@pytest.mark.parametrize("given", ["", " ", "x" * 65, "a b", "a,b", "é", "<script>", "${jndi:ldap://127.0.0.1/a}"])
async def test_an_id_that_is_not_one_is_replaced(api: Api, given: str) -> None:
    answer = await api.get("/nowhere", headers={"X-Request-Id": given})

    made = answer.headers["X-Request-Id"]
    assert made == answer.json["request_id"] != given
    assert made[14] == "7"


# -- the order


async def test_each_step_comes_before_the_next(api: Api, database_proxy: Proxy, proxied_url: str, serve: Serve) -> None:
    bad_id, wrong, none = "/api/jobs/not-an-id", "?colour=blue", token(scope="other")
    limited = await serve(proxied_url, limit_read="2/3600")
    full = await serve(proxied_url, limit_ip="1/3600")
    await full.get("/nowhere")
    passed = database_proxy.bytes_to_server
    steps = [
        await full.get(f"{bad_id}{wrong}", token=BAD_TOKEN),
        await limited.get(f"{bad_id}{wrong}", token=NO_TOKEN),
        await limited.get(f"{bad_id}{wrong}", token=BAD_TOKEN),
        await limited.get(f"{bad_id}{wrong}", token=none),
        await limited.get(f"{bad_id}{wrong}"),
        await limited.get(f"{bad_id}{wrong}", token=none),
        await api.get(f"{bad_id}{wrong}"),
        await api.get(bad_id),
        await api.post(f"{bad_id}/retry", body=b"not json"),
    ]
    assert [step.code for step in steps] == [
        "rate-limited", "authentication-required", "invalid-token", "insufficient-scope", "invalid-parameter",
        "rate-limited", "invalid-parameter", "invalid-job-id", "invalid-job-id",
    ]  # fmt: skip
    assert database_proxy.bytes_to_server == passed


NARROWED: dict[str, Any] = {"jobs": [str(UUID(int=1, version=4))]}


@pytest.mark.parametrize(
    ("claims", "path"),
    [
        (NARROWED, "/api/jobs?colour=blue"),
        (NARROWED, "/api/jobs?limit=0"),
        (NARROWED, "/api/jobs?status=x&status=y"),
        (NARROWED, "/api/jobs/x?include=payload&colour=blue"),
        (NARROWED, "/api/jobs/x?include=all"),
        (NARROWED, "/api/me?project_id=p2&colour=blue"),
        (NARROWED | {"scope": "jobs:read jobs:admin jobs:payload"}, "/api/jobs/x?colour=blue&project_id=p2"),
        ({"scope": "jobs:read"}, "/api/jobs/x?colour=blue&include=payload"),
        ({"scope": "jobs:read"}, "/api/jobs/x?include=all&include=payload"),
        ({"scope": "jobs:read"}, "/api/jobs?limit=0&project_id=p2"),
        ({}, "/api/jobs?project_id=&colour=blue"),
    ],
)
async def test_what_a_token_may_ask_for_is_decided_before_parameters_are_looked_at(
    api: Api, claims: dict[str, Any], path: str
) -> None:
    answer = await api.get(path, token=token(**claims))

    assert (answer.status, answer.code) == (403, "insufficient-scope")


@pytest.mark.parametrize(
    ("claims", "path"),
    [
        (NARROWED, "/api/jobs?ids=x&colour=blue"),
        (NARROWED, "/api/jobs/x?colour=blue"),
        (NARROWED, "/api/jobs/events"),
        ({"scope": "jobs:read"}, "/api/jobs/x?include=all"),
        ({"scope": "jobs:read"}, "/api/jobs?limit=0&project_id=p1"),
        ({"scope": "jobs:read jobs:admin"}, "/api/jobs/x?project_id=p%20"),
        ({"scope": "jobs:read jobs:admin"}, "/api/jobs/x?project_id=p1&project_id=p2"),
    ],
)
async def test_parameters_are_looked_at_where_the_token_may_ask(api: Api, claims: dict[str, Any], path: str) -> None:
    answer = await api.get(path, token=token(**claims))

    assert (answer.status, answer.code) == (400, "invalid-parameter")


async def test_whose_project_a_token_may_change_is_decided_before_read_only(database_url: str, serve: Serve) -> None:
    path = f"/api/jobs/{uuid4()}/retry?project_id=p2"
    api = await serve(database_url, read_only=True)
    answers = [await api.post(path, token=token(scope=f"jobs:retry{more}")) for more in ("", " jobs:admin")]

    assert [answer.code for answer in answers] == ["insufficient-scope", "read-only"]


@pytest.mark.parametrize("path", ["/nothing", "/api/jobs/x", "/api/jobs/stats"])
async def test_chunks_where_no_body_is_taken_are_refused_after_the_address_and_before_the_path(
    database_url: str, path: str, serve: Serve
) -> None:
    request = f"DELETE {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode()
    api = await serve(database_url, limit_ip="1/3600")
    answers = [Reply.parsed(await api.raw(request)) for _ in range(2)]

    assert [(answer.status, answer.code) for answer in answers] == [(411, "length-required"), (429, "rate-limited")]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/api/jobs/x?colour=blue", "colour"), ("/api/jobs/x?include=all", "include"), ("/api/jobs?limit=0", "limit"),
        ("/api/jobs?limit=5&limit=5", "limit"), ("/api/jobs?created_after=now", "created_after"),
        ("/api/jobs?status=", "status"), ("/api/jobs?type=", "type"), ("/api/jobs?ids=x&limit=5", "limit"),
        ("/api/jobs/x/retries?limit=x", "limit"), ("/api/retries?state=x", "state"),
        ("/api/retries?batch_id=x", "batch_id"), ("/api/retries?actor=", "actor"), ("/api/jobs?Colour=blue", None),
        ("/api/jobs?a1=x", None), ("/api/jobs?" + "a" * 33 + "=x", None), ("/api/jobs?%ff=x", None),
        ("/api/jobs/stats?type=%00", "type"), ("/api/retry-batches/x?cursor=x", "cursor"),
    ],
)  # fmt: skip
async def test_a_wrong_parameter_is_named_before_the_id_is_looked_at(api: Api, path: str, name: str | None) -> None:
    answer = await api.get(path)

    assert (answer.status, answer.code, answer.json["parameter"]) == (400, "invalid-parameter", name)


@pytest.mark.parametrize("path", ["/api/jobs/x/retry", "/api/jobs/retry"])
async def test_parameters_come_before_id_and_body(api: Api, path: str) -> None:
    bearer = token(scope="jobs:retry jobs:retry:bulk")
    flag = await api.post(f"{path}?dry_run=maybe", body=b"{", token=bearer)
    key = await api.post(path, body=b"{", token=bearer, headers={"Idempotency-Key": "a b"})

    assert [(each.code, each.json["parameter"]) for each in (flag, key)] == [
        ("invalid-parameter", "dry_run"), ("invalid-parameter", None),
    ]  # fmt: skip


@pytest.mark.parametrize("spelled", ["+01:00", "%2B01:00", "%2b01:00", " 01:00", "%2001:00", "Z", "-01:00"])
async def test_a_plus_before_an_offset_may_have_come_as_a_space(api: Api, spelled: str) -> None:
    query = f"created_after=2026-11-24T00:00:00{spelled}".replace(" ", "%20")

    assert (await api.get(f"/api/jobs?{query}&limit=1")).status == 200


@pytest.mark.parametrize("text", ["2026-11-24T00:00:00 1:00", "2026-11-24T00:00:00  01:00", "2026-11-24 01:00"])
async def test_no_other_space_makes_a_time(api: Api, text: str) -> None:
    assert (await api.get(f"/api/jobs?created_after={text.replace(' ', '%20')}")).json["parameter"] == "created_after"


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("DELETE", "/api/jobs/stats", "GET"), ("POST", "/api/jobs/stats", "GET"), ("GET", "/api/jobs/retry", "POST"),
        ("DELETE", "/api/jobs/retry", "POST"), ("GET", "/api/jobs/%72etry", "POST"),
    ],
)  # fmt: skip
async def test_another_method_on_a_word_is_not_taken_for_an_id(api: Api, method: str, path: str, allow: str) -> None:
    answer = await api.call(method, path)

    assert (answer.status, answer.code, answer.headers["Allow"]) == (405, "method-not-allowed", allow)


@pytest.mark.parametrize("word", ["stats", "types", "series", "events", "retry"])
async def test_a_word_is_never_an_id(api: Api, word: str) -> None:
    for method, path in (("GET", "jobs"), ("GET", "retries"), ("DELETE", "retries"), ("GET", "retry-batches")):
        answer = await api.call(method, f"/api/{path}/{word}")
        assert answer.status in {200, 400, 404, 405}
        assert answer.status == 200 or answer.code in {"not-found", "method-not-allowed", "invalid-parameter"}


# -- limits


async def test_over_the_limit_of_an_address_no_signature_is_looked_at(
    database_proxy: Proxy, proxied_url: str, signatures: Signatures, serve: Serve
) -> None:
    passed = database_proxy.bytes_to_server
    api = await serve(proxied_url, limit_ip="5/3600")
    answers = await asyncio.gather(*(api.get(f"/api/jobs/{uuid4()}", token=token(key=f"{n:040}")) for n in range(200)))

    codes = [answer.code for answer in answers]
    assert (codes.count("invalid-token"), codes.count("rate-limited")) == (5, 195)
    assert signatures.verified == 5
    assert database_proxy.bytes_to_server == passed


async def test_over_a_limit_says_when_to_come_back(database_url: str, serve: Serve) -> None:
    api = await serve(database_url, limit_ip="2/60")
    *_, refused = await answers_to(api, 3, "/nowhere")

    assert (refused.status, refused.code, refused.json["retryable"]) == (429, "rate-limited", True)
    assert refused.headers["Retry-After"] == "30"
    assert "RateLimit" not in refused.headers


async def test_every_request_is_charged_to_its_address_even_a_wrong_one(database_url: str, serve: Serve) -> None:
    api = await serve(database_url, limit_ip="4/3600")
    for method, path in (("GET", "/nowhere"), ("PUT", "/api/jobs"), ("GET", "/api/jobs"), ("GET", "/api/jobs/x")):
        assert (await api.call(method, path, token=BAD_TOKEN)).status in {404, 405, 401}

    assert (await api.get("/nowhere")).code == "rate-limited"


async def test_what_cannot_be_read_as_http_is_charged_to_its_address_too(database_url: str, serve: Serve) -> None:
    api = await serve(database_url, limit_ip="2/3600")
    unreadable = [Reply.parsed(await api.raw(b"GET / HTTP/1.1\r\n: a\r\n\r\n")).code for _ in range(3)]
    readable = (await api.get("/nowhere")).code
    api = await serve(database_url, limit_ip="1/3600")
    head = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: a miracle\r\n\r\n"
    unmet = [Reply.parsed(await api.raw(head)).code for _ in range(2)]

    assert (unreadable, readable) == (["bad-request", "bad-request", "rate-limited"], "rate-limited")
    assert unmet == ["expectation-failed", "rate-limited"]


async def test_authenticated_answers_have_the_ratelimit_headers_refused_ones_too(
    database_url: str, serve: Serve
) -> None:
    api = await serve(database_url, limit_read="3/60")
    answers = await answers_to(api, 4, f"/api/jobs/{uuid4()}")
    other = await api.get(f"/api/jobs/{uuid4()}", token=token(project_id="p2"))
    stranger = await api.get(f"/api/jobs/{uuid4()}", token=BAD_TOKEN)

    assert [answer.status for answer in answers] == [404, 404, 404, 429]
    assert {answer.headers["RateLimit-Policy"] for answer in answers} == {'"read";q=3;w=60'}
    assert [answer.headers["RateLimit"] for answer in answers] == [
        '"read";r=2;t=20', '"read";r=1;t=40', '"read";r=0;t=60', '"read";r=0;t=60',
    ]  # fmt: skip
    assert answers[3].headers["Retry-After"] == "20"
    assert other.headers["RateLimit"] == '"read";r=2;t=20'
    assert "RateLimit" not in stranger.headers


async def test_reading_and_retrying_are_charged_apart(database_url: str, serve: Serve) -> None:
    api = await serve(database_url, limit_read="1/60", limit_retry="1/60", limit_bulk="1/60")
    path = f"/api/jobs/{uuid4()}"
    calls = [("GET", path), ("POST", f"{path}/retry"), ("POST", "/api/jobs/retry")]
    first = [await api.call(method, where) for method, where in calls]
    second = [await api.call(method, where) for method, where in calls]

    assert [answer.headers["RateLimit-Policy"] for answer in first] == [
        f'"{name}";q=1;w=60' for name in ("read", "retry", "bulk")
    ]
    assert {answer.status for answer in second} == {429}


@pytest.mark.parametrize(("trusted", "charged_apart"), [("127.0.0.0/8", True), ("10.0.0.0/8", False), ("", False)])
async def test_a_forwarded_address_counts_only_from_a_trusted_proxy(
    database_url: str, trusted: str, charged_apart: bool, serve: Serve  # noqa: FBT001 - a table
) -> None:  # fmt: skip
    api = await serve(database_url, limit_ip="1/3600", trusted_proxies=trusted)
    answers = [
        await api.get("/nowhere", headers={"X-Forwarded-For": f"198.51.100.{n}, 203.0.113.{n}"}) for n in range(3)
    ]

    assert [answer.status for answer in answers] == ([404] * 3 if charged_apart else [404, 429, 429])


# -- tokens


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": ""},
        {"Authorization": "Basic cDE6cDE="},
        {"Authorization": "Bearer a b"},
        {"Authorization": f"Bearer {BAD_TOKEN}"},
        {"Authorization": f"Bearer {token(exp=1)}"},
        {"Authorization": f"Bearer {token(pad='x' * 5930)}"},
    ],
    ids=["empty", "Basic", "two words", "forged", "expired", "too long"],
)
async def test_every_bad_token_is_the_same_answer(api: Api, database_proxy: Proxy, headers: Mapping[str, str]) -> None:
    passed = database_proxy.bytes_to_server

    answer = await api.get(f"/api/jobs/{uuid4()}", token=NO_TOKEN, headers={**headers, "X-Request-Id": "r1"})

    assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert answer.json == {
        "type": "/problems/invalid-token", "title": "Invalid token", "status": 401,
        "detail": "The token is not valid here, or it has expired.", "code": "invalid-token", "retryable": False,
        "request_id": "r1",
    }  # fmt: skip
    assert database_proxy.bytes_to_server == passed


async def test_two_authorization_headers_are_not_one(api: Api) -> None:
    line = f"Authorization: Bearer {token()}\r\n".encode()
    path = f"/api/jobs/{uuid4()}".encode()

    answer = Reply.parsed(
        await api.raw(b"GET " + path + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + line + line + b"\r\n")
    )

    assert answer.code == "invalid-token"


async def test_a_token_in_the_query_is_no_token(api: Api) -> None:
    answer = await api.get(f"/api/jobs/{uuid4()}?access_token={token()}", token=NO_TOKEN)

    assert (answer.status, answer.code) == (401, "authentication-required")


async def test_forged_tokens_reach_neither_database_nor_memory(api: Api, database_proxy: Proxy) -> None:
    passed = database_proxy.bytes_to_server

    answers = await asyncio.gather(
        *(api.get(f"/api/jobs/{uuid4()}", token=token(key=f"{n:040}", sub=str(n))) for n in range(300))
    )

    assert {answer.code for answer in answers} == {"invalid-token"}
    assert database_proxy.bytes_to_server == passed


# -- ids


@pytest.mark.parametrize("hostile", HOSTILE_IDS, ids=lambda text: text[:30])
async def test_an_id_that_is_none_is_refused_before_any_query(api: Api, database_proxy: Proxy, hostile: str) -> None:
    passed = database_proxy.bytes_to_server

    for method, path in (("GET", ""), ("POST", "/retry"), ("GET", "/retries"), ("GET", "/events")):
        answer = await api.call(method, f"/api/jobs/{hostile}{path}")
        assert (answer.status, answer.code) == (400, "invalid-job-id")
        assert answer.body.count(b"jndi") + answer.body.count(b"not-a") == 0
    assert database_proxy.bytes_to_server == passed


# -- scopes


@pytest.mark.parametrize(
    ("scope", "method", "path", "allowed"),
    [
        (None, "GET", "", True),
        (None, "POST", "/retry", True),
        ("jobs:read", "GET", "", True),
        ("jobs:read", "GET", "/retries", True),
        ("jobs:read", "POST", "/retry", False),
        ("jobs:retry", "GET", "", False),
        ("jobs:retry", "POST", "/retry", True),
        ("jobs:admin", "GET", "", False),
        ("jobs:admin jobs:payload", "POST", "/retry", False),
        ("", "GET", "", False),
        ("JOBS:READ", "GET", "", False),
        ("jobs:read:all", "GET", "", False),
    ],
)
async def test_a_token_may_do_what_its_scopes_say(  # noqa: PLR0917 - a table
    api: Api, jobs: JobMaker, scope: str | None, method: str, path: str, allowed: bool  # noqa: FBT001
) -> None:  # fmt: skip
    job = await jobs.failed()
    bearer = token() if scope is None else token(scope=scope)

    answer = await api.call(method, f"/api/jobs/{job.id}{path}", token=bearer)

    assert answer.status in {200, 202} if allowed else (answer.status, answer.code) == (403, "insufficient-scope")


async def test_tokens_without_scopes_may_not_retry_in_bulk(api: Api) -> None:
    assert (await api.post("/api/jobs/retry", {"ids": [str(uuid4())]})).code == "insufficient-scope"


async def test_where_scopes_are_required_a_token_without_them_may_do_nothing(
    database_url: str, jobs: JobMaker, serve: Serve
) -> None:
    job = await jobs.failed()

    api = await serve(database_url, require_scopes=True)
    assert (await api.get(f"/api/jobs/{job.id}")).code == "insufficient-scope"
    assert (await api.post(f"/api/jobs/{job.id}/retry")).code == "insufficient-scope"
    assert (await api.get(f"/api/jobs/{job.id}", token=token(scope="jobs:read"))).status == 200


async def test_a_read_only_deployment_reads(database_url: str, jobs: JobMaker, serve: Serve) -> None:
    job = await jobs.failed()

    api = await serve(database_url, read_only=True)
    assert (await api.get(f"/api/jobs/{job.id}")).status == 200
    for method, path in (("POST", f"/api/jobs/{job.id}/retry"), ("DELETE", f"/api/retries/{uuid4()}")):
        answer = await api.call(method, path)
        assert (answer.status, answer.code) == (403, "read-only")
    assert await jobs.pool.fetchval("SELECT count(*) FROM redrive.retry_requests WHERE job_id = $1", job.id) == 0


# -- what is counted


async def test_answers_are_counted_by_route_never_by_path(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()
    labels = {"method": "GET", "route": "/api/jobs/{id}", "status": "200"}
    before, nowhere = (
        api.counted("redrive_http_requests_total", **labels),
        {"method": "any", "route": "none", "status": "404"},
    )
    before_nowhere = api.counted("redrive_http_requests_total", **nowhere)

    await api.get(f"/api/jobs/{job.id}")
    for n in range(5):
        await api.call("GET", f"/nowhere/{n}")

    assert api.counted("redrive_http_requests_total", **labels) == before + 1
    assert api.counted("redrive_http_requests_total", **nowhere) == before_nowhere + 5
