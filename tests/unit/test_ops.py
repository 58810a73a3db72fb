"""The ops port: on it, too, nothing of one request reaches another."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import hdrs
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from shared.ops import Readiness, Status, metrics_of, serve_ops
from tests.servers.reusing import answers_over
from tests.trailers import FIELDS, LEAKED, with_trailer

NEXT = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
async def ops(tmp_path: Path) -> AsyncIterator[str]:
    """An ops port, on the Unix socket at the path."""

    async def ready() -> Readiness:
        return Readiness(Status.OK, {})

    registry = CollectorRegistry()
    Histogram("wait_seconds", "Waits.", registry=registry).observe(1, {"trace_id": "4bf92f35"})
    path = str(tmp_path / "ops")
    async with serve_ops(ready=ready, metrics=metrics_of(registry), path=path):
        yield path


async def answers_to(ops: str, *pieces: bytes) -> list[bytes]:
    return await answers_over(*await asyncio.open_unix_connection(ops), *pieces)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/livez", 200), ("GET", "/readyz", 200), ("GET", "/metrics", 200), ("GET", "/nowhere", 404),
     ("POST", "/livez", 405)],
)  # fmt: skip
@pytest.mark.parametrize("apart", ["at once", "in pieces"])
async def test_chunks_end_their_connection_whatever_they_are_answered(
    ops: str, method: str, path: str, status: int, apart: str
) -> None:
    request = with_trailer(path, "X-Request-Id", bearer="none", method=method)
    at = request.index(b"0\r\nX-Request-Id")

    pieces = [request + NEXT] if apart == "at once" else [request[:at], request[at:], NEXT]
    (answer,) = await answers_to(ops, *pieces)

    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"\r\nConnection: close\r\n" in answer


@pytest.mark.parametrize("name", FIELDS)
async def test_no_trailer_is_a_header_of_the_next_request(ops: str, name: str) -> None:
    (answer,) = await answers_to(ops, with_trailer("/livez", name, bearer="none", method="GET") + NEXT)

    assert LEAKED.encode() not in answer


async def test_other_requests_share_a_connection(ops: str) -> None:
    last = NEXT.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")

    answers = await answers_to(ops, NEXT + NEXT + last)

    assert [answer.split(b" ")[1] for answer in answers] == [b"200"] * 3


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /livez HTTP/1.1\r\nHost: a\r\nExpect: \xff\xfe\r\n\r\n", 417),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\nExpect: canary\r\n\r\n", 417),
        (b"canary \xff\r\n\r\n", 400),
    ],
)
async def test_what_cannot_be_read_is_answered_plainly_and_not_repeated(
    ops: str, request_: bytes, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    (answer,) = await answers_to(ops, request_)

    assert answer.split()[1] == str(status).encode()
    assert b"canary" not in answer
    assert b"\xff" not in answer
    assert "Traceback" not in "".join(capfd.readouterr())


async def metrics_at(ops: str, accept: str) -> tuple[str, str]:
    """The type of the metrics, and their text."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(ops)) as session,
        session.get("http://ops/metrics", headers={hdrs.ACCEPT: accept}) as answer,
    ):
        return answer.content_type, await answer.text()


async def test_metrics_have_exemplars_for_a_client_that_accepts_openmetrics(ops: str) -> None:
    accepted = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"

    content_type, text = await metrics_at(ops, accepted)

    (family,) = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    assert content_type == "application/openmetrics-text"
    assert [each.exemplar.labels for each in family.samples if each.exemplar] == [{"trace_id": "4bf92f35"}]


@pytest.mark.parametrize(
    "accepted", ["*/*", "text/plain;version=0.0.4", "text/html", "openmetrics", "text/plain;version=new"]
)
async def test_metrics_are_plain_text_for_any_other_client(ops: str, accepted: str) -> None:
    content_type, text = await metrics_at(ops, accepted)

    assert content_type == "text/plain"
    assert 'wait_seconds_bucket{le="1.0"} 1.0\n' in text
    assert "trace_id" not in text
