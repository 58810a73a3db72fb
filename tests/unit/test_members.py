"""What `redrive check` says of the members of the queues, by RabbitMQ's management API."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeAlias

import aiohttp
import pytest
from aiohttp import web
from pytest_aiohttp import AiohttpRawServer

from cli.checking.findings import Finding, Verdict
from cli.checking.members import member_findings

AMQP: Final = "amqp://user:pass%2Fword@one/some%2Fhost,amqp://user:pass%2Fword@two/some%2Fhost,amqp://three"
A, B, C = "rabbit@a", "rabbit@b", "rabbit@c"


Management: TypeAlias = Callable[..., Awaitable[tuple[str, list[web.BaseRequest]]]]


@pytest.fixture
def management(aiohttp_raw_server: AiohttpRawServer) -> Management:
    """Starts such an API, which answers all alike: its host and port, and what it was asked."""

    async def start(answer: object, *, status: int = 200) -> tuple[str, list[web.BaseRequest]]:
        asked: list[web.BaseRequest] = []

        async def get(request: web.BaseRequest) -> web.Response:
            asked.append(request)
            return web.json_response(answer, status=status)

        server = await aiohttp_raw_server(get)
        return f"{server.host}:{server.port}", asked

    return start


async def said(url: str | None) -> list[Finding]:
    return [each async for each in member_findings(url, AMQP)]


@pytest.mark.parametrize(
    ("members", "online", "verdict", "text"),
    [
        ([A, B, C], [A, B, C], Verdict.OK, "redrive.retries: 3 of 3 members online"),
        ([A, B, C], [A, C], Verdict.WARNING, "redrive.retries: 2 of 3 members online; away: rabbit@b"),
        ([A, B, C], [A], Verdict.FAILED, "redrive.retries: 1 of 3 members online, too few"),
        ([A, B], [A], Verdict.FAILED, "redrive.retries: 1 of 2 members online, too few"),
        ([A], [A], Verdict.WARNING, "redrive.retries: 1 of 1 members online, though the URLs name 3 nodes"),
    ],
)
async def test_it_says_how_many_members_are_online(
    management: Management, members: list[str], online: list[str], verdict: Verdict, text: str
) -> None:
    address, asked = await management({"type": "quorum", "members": members, "online": online})

    findings = await said(f"http://{address}/prefix/")

    assert findings[0].verdict is verdict
    assert findings[0].text.startswith(f"broker: {text}")
    assert len(findings) == 3
    assert [request.raw_path for request in asked] == [
        f"/prefix/api/queues/some%2Fhost/{name}"
        for name in ("redrive.retries", "redrive.retries.bulk", "redrive.retries.dead")
    ]
    assert {request.headers["Authorization"] for request in asked} == {aiohttp.encode_basic_auth("user", "pass/word")}


async def test_a_user_in_its_own_url_comes_first(management: Management) -> None:
    address, asked = await management({"members": [A], "online": [A]})

    await said(f"http://watch:se%23cret@{address}")

    assert {request.headers["Authorization"] for request in asked} == {aiohttp.encode_basic_auth("watch", "se#cret")}


@pytest.mark.parametrize(
    ("answer", "status", "text"),
    [
        ({}, 401, "answers 401: this user may not ask it"),
        ({}, 404, "answers 404: it knows no such queue"),
        ({}, 302, "answers 302"),
        ({"type": "classic"}, 200, "does not say it of a quorum queue"),
        ([], 200, "does not say it of a quorum queue"),
    ],
)
async def test_what_it_may_not_look_at_is_a_line_and_no_failure(
    management: Management, answer: object, status: int, text: str
) -> None:
    address, _ = await management(answer, status=status)

    (finding,) = await said(f"http://u:canary@{address}")

    assert finding.verdict is Verdict.NOTE
    assert text in finding.text
    assert "canary" not in finding.text


async def test_one_that_is_not_there_or_not_named_is_a_line_too() -> None:
    (nowhere,), (none,) = await said("http://u:canary@127.0.0.1:1"), await said(None)

    assert (nowhere.verdict, none.verdict) == (Verdict.NOTE, Verdict.NOTE)
    assert "does not answer" in nowhere.text
    assert "canary" not in nowhere.text
    assert "REDRIVE_AMQP_MANAGEMENT_URL is not set" in none.text


async def test_a_netrc_file_changes_nothing(
    management: Management, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("default login reader password netrc-canary")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    address, asked = await management({"type": "quorum", "members": [A], "online": [A]})

    findings = await said(f"http://{address}")

    assert len(findings) == len(asked) == 3
    assert {request.headers["Authorization"] for request in asked} == {aiohttp.encode_basic_auth("user", "pass/word")}
