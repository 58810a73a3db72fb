"""The spans of both programs, as processes, arrive at a collector that speaks OpenTelemetry's protocol over HTTP."""

import gzip
import signal
import socket
from contextlib import ExitStack

import aiohttp
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from pytest_aiohttp import AiohttpServer

from tests.acceptance.programs import Program
from tests.eventually import eventually
from tests.jobs import JobMaker
from tests.servers.processes import free_port
from tests.tokens import SECRET, token

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector:
    """The spans that arrived: the name of the program, the name of the span, and its trace."""

    def __init__(self) -> None:
        self.spans: set[tuple[str, str, str]] = set()

    async def receive(self, request: web.Request) -> web.Response:
        body = await request.read()
        sent = ExportTraceServiceRequest()
        sent.ParseFromString(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
        for of_program in sent.resource_spans:
            program = {each.key: each.value.string_value for each in of_program.resource.attributes}["service.name"]
            for scope in of_program.scope_spans:
                self.spans |= {(program, span.name.partition(" ")[0], span.trace_id.hex()) for span in scope.spans}
        return web.Response(content_type="application/x-protobuf")


@pytest.fixture
async def collector(aiohttp_server: AiohttpServer, monkeypatch: pytest.MonkeyPatch) -> Collector:
    """Both programs find it by OpenTelemetry's own variable."""
    collector = Collector()
    app = web.Application()
    app.add_routes([web.post("/v1/traces", collector.receive)])
    server = await aiohttp_server(app)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.port}")
    return collector


async def test_the_spans_of_a_retry_arrive_from_both_programs_at_the_latest_when_they_stop(
    database_url: str, collector: Collector
) -> None:
    port = free_port()
    settings = {"DATABASE_URL": database_url, "TRACING": "0"}
    async with (
        JobMaker.on(database_url) as jobs,
        Program.started("api", **settings, JWT_SECRET=SECRET, PORT=str(port)) as api,
        Program.started("worker", **settings) as worker,
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {token()}", "traceparent": TRACE}) as client,
    ):
        await api.until_ready()
        await worker.until_ready()
        job = await jobs.failed()
        async with client.post(f"http://127.0.0.1:{port}/api/jobs/{job.id}/retry") as answer:
            assert answer.status == 202, await answer.text()

        async def put_back() -> bool:
            return await jobs.effects_of(job) == 1

        await eventually(put_back, within_s=30)
        for program in (api, worker):
            program.send(signal.SIGTERM)
            assert await program.ended() == 0, program.err

    assert {(program, name) for program, name, trace in collector.spans if trace == TRACE[3:35]} == {
        ("redrive-api", "POST"), ("redrive-api", "create"), ("redrive-worker", "process"),
    }  # fmt: skip
    assert {(program, name) for program, name, trace in collector.spans if trace != TRACE[3:35]} == {
        ("redrive-worker", "settle")
    }


@pytest.mark.parametrize(
    ("listens", "timeout_s", "trouble"), [(False, "10", "connection refused"), (True, "300", "Queue full")]
)
async def test_a_collector_that_is_away_or_hangs_is_told_in_plain_lines_and_keeps_no_program_from_ending(
    *, listens: bool, timeout_s: str, trouble: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    with ExitStack() as stack:
        collector = stack.enter_context(socket.socket())
        collector.bind(("127.0.0.1", 0))
        if listens:
            collector.listen()  # it takes connections, and never answers
        collector_port = collector.getsockname()[1]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://user:canary@127.0.0.1:{collector_port}/key-canary")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", timeout_s)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "4")
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")
        settings = {"DATABASE_URL": database_url, "TRACING": "1"}
        async with (
            JobMaker.on(database_url) as jobs,
            Program.started("api", **settings, JWT_SECRET=SECRET, PORT=str(port)) as api,
            Program.started("worker", **settings) as worker,
            aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {token()}"}) as client,
        ):
            await api.until_ready()
            await worker.until_ready()
            job = await jobs.failed()
            async with client.post(f"/api/jobs/{job.id}/retry") as answer:
                assert answer.status == 202

            async def told() -> bool:
                async with client.get("/api/me") as answer:
                    assert answer.status == 200
                assert any(trouble in line.get("reason", "") for line in api.log)
                return await jobs.effects_of(job) == 1

            await eventually(told, within_s=30)
            for program in (api, worker):
                program.send(signal.SIGTERM)
                assert await program.ended() == 0, program.err

    lines = [line for line in api.log + worker.log if line["event"] == "opentelemetry reported trouble"]
    assert all(line["level"] == "warning" and "exception" not in line for line in lines)
    assert not any(secret in api.err + worker.err for secret in ("canary", str(collector_port)))
