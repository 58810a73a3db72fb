"""Traces: what is sampled, what a repeated delivery leaves, and that nothing of it is loaded while they are off."""

import subprocess
import sys

import pytest
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from pytest_aiohttp import AiohttpClient

from api.spans import traced
from shared.errors import SettingsError
from shared.settings import WorkerSettings, read
from shared.tracing import Tracing

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider.get_tracer("test"), share=0)


def test_a_repeated_delivery_is_a_link_of_its_batch_and_no_second_span(
    exporter: InMemorySpanExporter, tracing: Tracing
) -> None:
    requests = [(TRACE, "1", "applied", True), (TRACE, "2", "rejected", False)]

    tracing.add_batch(requests, requests=5, began_ns=10, ended_ns=20)

    process, batch = exporter.get_finished_spans()
    assert (process.kind, batch.kind) == (SpanKind.CONSUMER, SpanKind.INTERNAL)
    assert len(batch.links) == 2
    assert (process.start_time, process.end_time) == (batch.start_time, batch.end_time) == (10, 20)
    assert process.attributes is not None
    assert process.attributes["redrive.retry_id"] == "2"


def test_a_batch_without_a_sampled_request_has_no_span(exporter: InMemorySpanExporter, tracing: Tracing) -> None:
    tracing.add_batch([], requests=5, began_ns=10, ended_ns=20)

    assert exporter.get_finished_spans() == ()


async def test_log_lines_of_a_traced_request_have_its_trace_and_the_next_request_s_have_none(
    tracing: Tracing, aiohttp_client: AiohttpClient
) -> None:
    bound = []

    @web.middleware
    async def door(request: web.Request, handler: Handler) -> web.StreamResponse:  # noqa: ARG001
        bound.append(structlog.contextvars.get_contextvars())
        return web.Response()

    client = await aiohttp_client(web.Application(middlewares=[traced(door, tracing)]))
    await client.get("/", headers={"traceparent": TRACE})
    await client.get("/")

    assert bound == [{"trace_id": TRACE[3:35]}, {}]


def test_a_request_that_is_cut_off_ends_its_span(exporter: InMemorySpanExporter, tracing: Tracing) -> None:
    span = tracing.begin_request("GET", TRACE)
    assert span is not None
    span.end()

    (ended,) = exporter.get_finished_spans()
    assert ended.name == "GET"


@pytest.mark.parametrize("header", [TRACE, None])
def test_a_disabled_sdk_traces_no_request(header: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    disabled = Tracing(TracerProvider(shutdown_on_exit=False).get_tracer("test"), share=1)

    assert disabled.begin_request("GET", header) is None


def test_nothing_of_opentelemetry_is_imported_while_traces_are_off() -> None:
    code = "import sys, api.serving, worker.app, cli.main; print(*sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "api.spans" in done.stdout.split()
    assert "opentelemetry" not in done.stdout.split()


@pytest.mark.parametrize(("value", "share"), [("off", None), ("0", 0.0), ("0.01", 0.01), ("1", 1.0)])
def test_the_share_is_a_number_or_off(value: str, share: float | None) -> None:
    assert read(WorkerSettings, database_url="postgresql://", tracing=value).tracing == share


@pytest.mark.parametrize("value", ["2", "-0.1", "on", "nan"])
def test_any_other_share_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match="REDRIVE_TRACING"):
        read(WorkerSettings, database_url="postgresql://", tracing=value)


def test_a_share_without_opentelemetry_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.setting_types.find_spec", lambda _name: None)

    with pytest.raises(SettingsError, match=r"install redrive\[otel\]"):
        read(WorkerSettings, database_url="postgresql://", tracing="0.1")
