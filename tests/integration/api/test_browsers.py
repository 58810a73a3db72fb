"""What pages of browsers may do: those of listed origins call, those of other sites change nothing."""

from collections.abc import Mapping

import pytest

from tests.api_server import NO_TOKEN, Api, Serve
from tests.integration.api.conftest import module_fixture
from tests.jobs import JobMaker

pytestmark = pytest.mark.asyncio(loop_scope="module")

APP = "https://app.example.com"
LOCAL = "http://localhost:5173"
OTHER = "https://evil.example.com"
ASKED = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
RETRY = "/api/jobs/6ba7b810-9dad-41d1-80b4-00c04fd430c8/retry"


@module_fixture
async def listing(database_url: str, serve: Serve) -> Api:
    """An api that lists two origins, and lets an address make a few requests only."""
    return await serve(database_url, cors_origins=(APP, LOCAL))


def allowed(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower().startswith("access-control-")}


async def test_a_page_of_a_listed_origin_is_told_what_it_may_send(listing: Api) -> None:
    answer = await listing.call("OPTIONS", RETRY, token=NO_TOKEN, headers={"Origin": APP, **ASKED})
    several = await listing.call("OPTIONS", "/api/retries/x", token=NO_TOKEN, headers={"Origin": LOCAL, **ASKED})

    assert (answer.status, answer.body) == (204, b"")
    assert allowed(answer.headers) == {
        "Access-Control-Allow-Origin": APP,
        "Access-Control-Allow-Methods": "POST",
        "Access-Control-Allow-Headers": "Authorization, Content-Type, If-Match, If-None-Match, Prefer, Idempotency-Key,"
        " Last-Event-ID, X-Request-Id, traceparent",
        "Access-Control-Max-Age": "7200",
        "Access-Control-Expose-Headers": allowed(answer.headers)["Access-Control-Expose-Headers"],
    }
    assert answer.headers["Vary"] == "Origin"
    assert several.headers["Access-Control-Allow-Methods"] == "DELETE, GET"
    assert several.headers["Access-Control-Allow-Origin"] == LOCAL


@pytest.mark.parametrize(
    "origin", [OTHER, "null", f"{APP}:8443", "https://APP.example.com", f"{APP}.evil.com", "http://app.example.com"]
)
async def test_a_page_of_another_origin_is_told_nothing(listing: Api, origin: str) -> None:
    preflight = await listing.call("OPTIONS", RETRY, token=NO_TOKEN, headers={"Origin": origin, **ASKED})
    answer = await listing.get("/api/jobs", headers={"Origin": origin})

    assert (preflight.status, allowed(preflight.headers), preflight.headers["Vary"]) == (204, {}, "Origin")
    assert (answer.status, allowed(answer.headers)) == (200, {})


async def test_a_preflight_is_charged_to_nothing_and_needs_a_path_that_is_there(
    database_url: str, serve: Serve
) -> None:
    api = await serve(database_url, cors_origins=(APP,), limit_ip="1/3600")
    answers = [await api.call("OPTIONS", RETRY, token=NO_TOKEN, headers={"Origin": APP, **ASKED}) for _ in range(5)]
    unknown = await api.call("OPTIONS", "/api/nowhere", token=NO_TOKEN, headers={"Origin": APP, **ASKED})
    charged = [await api.get("/api/me", headers={"Origin": APP}) for _ in range(2)]

    assert {answer.status for answer in answers} == {204}
    assert (unknown.status, unknown.code, unknown.headers["Access-Control-Allow-Origin"]) == (404, "not-found", APP)
    assert [answer.status for answer in charged] == [200, 429]
    assert charged[1].headers["Access-Control-Allow-Origin"] == APP  # else the page could not read why


async def test_a_preflight_in_chunks_is_none(listing: Api) -> None:
    answer = await listing.raw(
        f"OPTIONS {RETRY} HTTP/1.1\r\nHost: a\r\nOrigin: {APP}\r\nAccess-Control-Request-Method: POST\r\n"
        "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode()
    )

    assert answer.startswith(b"HTTP/1.1 411 ")
    assert f"\r\nAccess-Control-Allow-Origin: {APP}\r\n".encode() in answer


async def test_answers_to_a_listed_origin_may_be_read_and_all_answers_vary(listing: Api, jobs: JobMaker) -> None:
    job = await jobs.completed()
    path = f"/api/jobs/{job.id}"
    etag = (await listing.get(path)).headers["ETag"]
    answers = {
        "job": await listing.get(path, headers={"Origin": APP}),
        "304": await listing.get(path, headers={"Origin": APP, "If-None-Match": etag}),
        "stream": await listing.get(f"{path}/events", headers={"Origin": APP}),
        "404": await listing.get("/nowhere", headers={"Origin": APP}),
        "405": await listing.call("PUT", path, headers={"Origin": APP}),
        "401": await listing.get(path, headers={"Origin": APP}, token=NO_TOKEN),
    }
    compressed = await listing.get("/api/openapi.json")
    unparsed = await listing.raw(b"GET / HTTP/1.1\r\nHost: a\r\nOrigin: https://app.example.com\r\nX-A: \x00\r\n\r\n")

    for name, answer in answers.items():
        assert answer.headers["Access-Control-Allow-Origin"] == APP, name
        assert "ETag, Location, Link, Retry-After" in answer.headers["Access-Control-Expose-Headers"], name
        assert answer.headers["Vary"] == "Origin", name
        assert "Access-Control-Allow-Credentials" not in answer.headers, name
    assert compressed.headers["Vary"] == "Accept-Encoding, Origin"
    assert b"400 Bad Request" in unparsed
    assert b"\r\nVary: Origin\r\n" in unparsed


async def test_without_listed_origins_no_answer_speaks_of_them(api: Api) -> None:
    preflight = await api.call("OPTIONS", "/api/jobs", headers={"Origin": APP, **ASKED})
    answer = await api.get("/api/jobs", headers={"Origin": APP})

    assert (preflight.status, preflight.code, preflight.headers["Allow"]) == (405, "method-not-allowed", "GET")
    assert (answer.status, allowed(answer.headers), answer.headers.get("Vary")) == (200, {}, None)


async def test_what_is_no_preflight_is_a_method_that_is_not_there(listing: Api) -> None:
    for headers in ({"Origin": APP}, ASKED):
        assert (await listing.call("OPTIONS", "/api/jobs", headers=headers)).code == "method-not-allowed"


# -- changes from other sites


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({}, True), ({"Sec-Fetch-Site": "same-origin"}, True), ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False), ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": ""}, False), ({"Sec-Fetch-Site": "same-origin, cross-site"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://api.example.com"}, False),
        ({"Sec-Fetch-Site": "same-site", "Origin": APP}, True), ({"Origin": APP}, True),
        ({"Origin": "http://api.example.com"}, True), ({"Origin": "http://api.example.com:80"}, True),
        ({"Origin": "https://api.example.com"}, True), ({"Origin": "http://API.example.com"}, True),
        ({"Origin": "http://api.example.com:8080"}, False), ({"Origin": "http://www.api.example.com"}, False),
        ({"Origin": "http://example.com"}, False), ({"Origin": "null"}, False), ({"Origin": ""}, False),
        ({"Origin": "http://api.example.com@evil.example.com"}, False), ({"Origin": OTHER}, False),
        ({"Origin": "http://api.example.com:8080", "Host": "api.example.com:8080"}, True),
        ({"Origin": "https://api.example.com", "Host": "api.example.com:443"}, True),
        ({"Origin": "https://api.example.com", "Host": "api.example.com:80"}, False),
        ({"Origin": "http://[::1]:8080", "Host": "[::1]:8080"}, True),
        ({"Origin": "http://[::1]", "Host": "[::2]"}, False),
    ],
)  # fmt: skip
async def test_a_page_of_another_site_changes_nothing(
    listing: Api,
    jobs: JobMaker,
    headers: dict[str, str],
    passes: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    job = await jobs.failed()
    retry = f"/api/jobs/{job.id}/retry"
    given = {"Host": "api.example.com", **headers}

    answer = await listing.post(retry, headers=given)
    reading = await listing.get(f"/api/jobs/{job.id}", headers=given)

    assert answer.status == (202 if passes else 403)
    assert passes or answer.code == "cross-site"
    assert reading.status == 200
    if passes:
        cancelled = await listing.call("DELETE", answer.headers["Location"], headers=given)
        assert cancelled.status == 200


async def test_a_change_from_another_site_is_refused_before_its_token_is_looked_at(api: Api) -> None:
    headers = {"Sec-Fetch-Site": "cross-site"}

    assert (await api.post(RETRY, token=NO_TOKEN, headers=headers)).code == "cross-site"
    assert (await api.call("DELETE", "/api/retries/x", token="a.b.c", headers=headers)).code == "cross-site"
    assert (await api.post("/api/nowhere", token=NO_TOKEN, headers=headers)).code == "not-found"
    assert (await api.post("/api/me", token=NO_TOKEN, headers=headers)).code == "method-not-allowed"


async def test_what_cannot_be_parsed_is_answered_behind_a_proxy_too(database_url: str, serve: Serve) -> None:
    api = await serve(database_url, cors_origins=(APP,), trusted_proxies="127.0.0.1", limit_ip="100/60")
    answer = await api.raw(b"GET / HTTP/1.1\r\nHost: a\r\nX-A: \x00\r\n\r\n")

    assert answer.startswith(b"HTTP/1.0 400 ")
