"""Traces: what is sampled, what a repeated delivery leaves, and that nothing of it is loaded while they are off."""

import socket
import subprocess
import sys
import time

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from shared.errors import SettingsError
from shared.settings import WorkerSettings, read
from shared.telemetry import tracing_of
from shared.tracing import Tracing

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    return Tracing(SimpleSpanProcessor(exporter), program="test", share=0)


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


@pytest.mark.parametrize("header", [TRACE, TRACE[:-2] + "03", TRACE.replace("00-0", "cc-0")])
def test_what_a_client_has_sampled_is_traced_at_any_share(header: str, tracing: Tracing) -> None:
    span = tracing.begin_request(header)

    assert span is not None
    assert span.trace_id == TRACE[3:35]


@pytest.mark.parametrize("header", ["", TRACE[:-1] + "0", TRACE[:-1] + "A", TRACE.upper(), "x1", TRACE + "-1"])
def test_what_a_client_has_not_sampled_is_traced_at_no_share(header: str, exporter: InMemorySpanExporter) -> None:
    assert Tracing(SimpleSpanProcessor(exporter), program="test", share=1).begin_request(header) is None


def test_every_request_that_begins_a_trace_has_one_of_its_own(exporter: InMemorySpanExporter) -> None:
    tracing = Tracing(SimpleSpanProcessor(exporter), program="test", share=1)
    spans = [tracing.begin_request(None) for _ in range(100)]

    assert len({span.trace_id for span in spans if span is not None}) == 100


def test_a_span_lasts_as_long_as_its_request_took(exporter: InMemorySpanExporter, tracing: Tracing) -> None:
    span = tracing.begin_request(TRACE)
    assert span is not None
    span.end("GET", "/", 503, took_s=1.5)

    (ended,) = exporter.get_finished_spans()
    assert ended.start_time is not None
    assert ended.end_time is not None
    assert ended.end_time - ended.start_time == 1_500_000_000
    assert ended.status.status_code is StatusCode.ERROR
    assert ended.resource.attributes["service.name"] == "redrive-test"


async def test_a_collector_that_hangs_costs_spans_and_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging:  # it takes connections, and never answers
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{hanging.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "300")
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "4")
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")
        began_at = time.monotonic()
        async with tracing_of("test", 1.0) as tracing:
            assert tracing is not None
            for _ in range(1_000):
                span = tracing.begin_request(None)
                assert span is not None
                span.end("GET", "/", 200, took_s=0.001)

    assert time.monotonic() - began_at < 60  # of the 300 s that the exporter waits


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
