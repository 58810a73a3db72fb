"""One trace from the POST through ledger and RabbitMQ to the effect, taken with OpenTelemetry's in-memory exporter."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any
from uuid import uuid4

import msgspec
import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, SpanKind
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from api.answers import Answer
from api.compression import LEAST_BYTES
from api.door import Call
from api.routes import READ
from shared import tracing
from shared.tracing import Tracing
from tests.api_server import NO_TOKEN, Serve
from tests.eventually import eventually
from tests.jobs import JobMaker, a_retry_of
from tests.ledger import Ledger
from tests.tokens import token
from tests.workers import a_worker
from worker.metrics import Metrics
from worker.settling import MOST_TRACED, Settler

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = TRACE[:-1] + "0"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What all programs of this process export to."""
    exporter = InMemorySpanExporter()
    monkeypatch.setattr("shared.tracing._exporting", lambda: SimpleSpanProcessor(exporter))
    return exporter


@pytest.fixture
async def of_api(exporter: InMemorySpanExporter) -> AsyncIterator[Tracing]:  # noqa: ARG001 - what it exports to
    async with tracing.opened("api", share=0) as opened:
        yield opened


def context_of(span: ReadableSpan) -> SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context


def attributes_of(span: ReadableSpan) -> Mapping[str, Any]:
    return span.attributes or {}


def parent_of(span: ReadableSpan) -> int:
    assert span.parent is not None
    return span.parent.span_id


async def spans_of(exporter: InMemorySpanExporter, *, processed: int) -> dict[str, list[ReadableSpan]]:
    """The finished spans by the first word of their name, once so many requests were processed."""

    async def there() -> bool:
        spans = exporter.get_finished_spans()
        return len([span for span in spans if span.kind is SpanKind.CONSUMER]) == processed

    await eventually(there, what=f"{processed} spans of requests")
    found: dict[str, list[ReadableSpan]] = {}
    for span in exporter.get_finished_spans():
        found.setdefault(span.name.partition(" ")[0], []).append(span)
    return found


@pytest.mark.parametrize("dispatch", ["rabbitmq", "ledger"])
@pytest.mark.parametrize("jobs_retried", [1, 3])
async def test_a_retry_is_one_trace_from_the_request_to_the_effect(
    *,
    dispatch: str,
    jobs_retried: int,
    database_url: str,
    amqp_url: str,
    jobs: JobMaker,
    serve: Serve,
    exporter: InMemorySpanExporter,
    of_api: Tracing,
) -> None:
    broker = amqp_url if dispatch == "rabbitmq" else None
    failed = await jobs.many_failed(jobs_retried)
    api = await serve(database_url, amqp_url=broker, traced_by=of_api)
    async with a_worker(database_url, broker, tracing=0.0):
        if jobs_retried == 1:
            answer = await api.post(f"/api/jobs/{failed[0].id}/retry", headers={"traceparent": TRACE})
        else:
            ids = {"ids": [str(job.id) for job in failed]}
            bulk = token(scope="jobs:retry:bulk")
            answer = await api.post("/api/jobs/retry", ids, token=bulk, headers={"traceparent": TRACE})
        assert answer.status == 202
        spans = await spans_of(exporter, processed=jobs_retried)

    (served,), (created,), batches = spans["POST"], spans["create"], spans["settle"]
    assert {context_of(span).trace_id for span in (served, created, *spans["process"])} == {int(TRACE[3:35], 16)}
    assert parent_of(served) == int(TRACE[36:52], 16)
    assert parent_of(created) == context_of(served).span_id
    assert {parent_of(span) for span in spans["process"]} == {context_of(created).span_id}
    assert (served.kind, created.kind) == (SpanKind.SERVER, SpanKind.PRODUCER)
    assert re.fullmatch(r"POST /api/jobs/(\{id\}/)?retry", served.name)
    assert attributes_of(served)["http.response.status_code"] == 202
    for span in spans["process"]:
        assert attributes_of(span)["redrive.outcome"] == "applied"
        (link,) = span.links
        assert link.context.span_id in {context_of(batch).span_id for batch in batches}
    assert [link.context.span_id for batch in batches for link in batch.links] == [
        context_of(created).span_id for _ in failed
    ]
    rows = await jobs.pool.fetch("SELECT traceparent FROM redrive.retry_requests")
    assert {row["traceparent"] for row in rows} == {f"00-{TRACE[3:35]}-{context_of(created).span_id:016x}-01"}


@pytest.mark.parametrize(("share", "header", "spans"), [(0, None, 0), (1, UNSAMPLED, 0), (0, TRACE, 1), (1, None, 1)])
async def test_a_read_has_a_span_only_where_it_is_sampled(
    *,
    share: float,
    header: str | None,
    spans: int,
    database_url: str,
    jobs: JobMaker,
    serve: Serve,
    exporter: InMemorySpanExporter,
) -> None:
    job = await jobs.failed()
    async with tracing.opened("api", share=share) as opened:
        api = await serve(database_url, traced_by=opened)
        answer = await api.get(f"/api/jobs/{job.id}", headers={} if header is None else {"traceparent": header})

        assert answer.status == 200
        assert [span.name for span in exporter.get_finished_spans()] == ["GET /api/jobs/{id}"] * spans


async def test_what_a_client_has_not_sampled_keeps_its_context_in_the_ledger_and_makes_no_span(
    database_url: str, jobs: JobMaker, serve: Serve, exporter: InMemorySpanExporter, of_api: Tracing
) -> None:
    job = await jobs.failed()
    api = await serve(database_url, traced_by=of_api)
    async with a_worker(database_url, tracing=1.0):
        answer = await api.post(f"/api/jobs/{job.id}/retry", headers={"traceparent": UNSAMPLED})
        assert answer.status == 202

        async def settled() -> bool:
            return await jobs.queued() == 0

        await eventually(settled)

    assert await jobs.pool.fetchval("SELECT traceparent FROM redrive.retry_requests") == UNSAMPLED
    assert exporter.get_finished_spans() == ()


@pytest.mark.parametrize(
    ("method", "path", "scope", "status"),
    [
        ("GET", "/api/jobs/{id}", None, 401),
        ("GET", "/api/jobs/{id}", "jobs:retry", 403),
        ("GET", "/api/jobs/{id}", "jobs:read", 429),
        ("POST", "/api/jobs/{id}/retry", None, 401),
        ("GET", "/api/openapi.json", None, 200),
        ("GET", "/nowhere", "jobs:read", 404),
        ("PUT", "/api/jobs/{id}", "jobs:read", 405),
    ],
)
async def test_what_the_door_does_not_let_in_is_not_traced(
    *,
    method: str,
    path: str,
    scope: str | None,
    status: int,
    database_url: str,
    jobs: JobMaker,
    serve: Serve,
    exporter: InMemorySpanExporter,
    of_api: Tracing,
) -> None:
    job = await jobs.failed()
    limit = "1/3600" if status == 429 else None
    api = await serve(database_url, traced_by=of_api, require_scopes=True, limit_read=limit)
    given = NO_TOKEN if scope is None else token(scope=scope)
    if status == 429:
        assert (await api.get(f"/api/jobs/{job.id}", token=given)).status == 200

    answer = await api.call(method, path.format(id=job.id), token=given, headers={"traceparent": TRACE})

    assert answer.status == status
    assert exporter.get_finished_spans() == ()


async def test_what_a_handler_refuses_is_traced(
    database_url: str, serve: Serve, exporter: InMemorySpanExporter, of_api: Tracing
) -> None:
    api = await serve(database_url, traced_by=of_api)

    answer = await api.get(f"/api/jobs/{uuid4()}", headers={"traceparent": TRACE})

    (span,) = exporter.get_finished_spans()
    assert (answer.status, attributes_of(span)["http.response.status_code"]) == (404, 404)


async def test_log_lines_of_a_traced_request_have_its_trace_and_the_next_requests_have_none(
    database_url: str, serve: Serve, of_api: Tracing
) -> None:
    bound = []
    door = (await serve(database_url, traced_by=of_api)).parts.door

    async def handler(_call: Call) -> web.Response:
        bound.append(structlog.contextvars.get_contextvars())
        return web.Response()

    for headers in ({"traceparent": TRACE}, {}):
        request = make_mocked_request("GET", "/", headers={"Authorization": f"Bearer {token()}", **headers})
        await door.middleware(request, door.guarded(READ, handler))

    assert bound == [{"trace_id": TRACE[3:35]}, {}]


async def test_a_request_that_is_cut_off_has_a_span_without_a_status(
    database_url: str, serve: Serve, exporter: InMemorySpanExporter, of_api: Tracing
) -> None:
    door = (await serve(database_url, traced_by=of_api)).parts.door
    let_in = asyncio.Event()

    async def handler(_call: Call) -> web.Response:
        let_in.set()
        await asyncio.Event().wait()
        raise AssertionError

    headers = {"Authorization": f"Bearer {token()}", "traceparent": TRACE}
    request = make_mocked_request("GET", "/", headers=headers)
    answering = asyncio.ensure_future(door.middleware(request, door.guarded(READ, handler)))
    await let_in.wait()
    answering.cancel()
    await asyncio.wait([answering])

    (span,) = exporter.get_finished_spans()
    assert "http.response.status_code" not in attributes_of(span)
    assert answering.cancelled()


async def test_a_request_that_is_cut_off_while_its_answer_is_compressed_has_a_span(
    database_url: str,
    serve: Serve,
    exporter: InMemorySpanExporter,
    of_api: Tracing,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compressing = asyncio.Event()

    async def compress(*_: object) -> None:
        compressing.set()
        await asyncio.Event().wait()

    monkeypatch.setattr("api.compression.Compressor.compress", compress)
    door = (await serve(database_url, traced_by=of_api)).parts.door

    async def handler(_call: Call) -> Answer:
        return Answer(body=bytes(LEAST_BYTES))

    headers = {"Authorization": f"Bearer {token()}", "traceparent": TRACE}
    request = make_mocked_request("GET", "/", headers=headers)
    answering = asyncio.ensure_future(door.middleware(request, door.guarded(READ, handler)))
    await compressing.wait()
    answering.cancel()
    await asyncio.wait([answering])

    (span,) = exporter.get_finished_spans()
    assert "http.response.status_code" not in attributes_of(span)
    assert answering.cancelled()


async def test_a_traced_request_is_the_exemplar_of_its_bucket_and_another_is_none(
    database_url: str, jobs: JobMaker, serve: Serve, of_api: Tracing
) -> None:
    job = await jobs.failed()
    api = await serve(database_url, traced_by=of_api)
    for headers in ({}, {"traceparent": TRACE}, {"traceparent": UNSAMPLED}):
        assert (await api.get(f"/api/jobs/{job.id}", headers=headers)).status == 200

    (took,) = (metric for metric in api.registry.collect() if metric.name == "redrive_http_request_seconds")
    (exemplar,) = (sample.exemplar for sample in took.samples if sample.exemplar is not None)
    assert exemplar.labels == {"trace_id": TRACE[3:35]}


async def test_a_traced_retry_is_the_exemplar_of_its_wait(
    database_url: str, jobs: JobMaker, serve: Serve, exporter: InMemorySpanExporter, of_api: Tracing
) -> None:
    first, second = await jobs.many_failed(2)
    api = await serve(database_url, traced_by=of_api)
    async with a_worker(database_url, tracing=0.0) as working:
        for job, headers in ((first, {"traceparent": TRACE}), (second, {})):
            assert (await api.post(f"/api/jobs/{job.id}/retry", headers=headers)).status == 202
        await spans_of(exporter, processed=1)
        await working.sampled("redrive_retry_wait_seconds_count", 2)
        text = await working.metrics(accept="application/openmetrics-text")

    families = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    (exemplar,) = (sample.exemplar for family in families for sample in family.samples if sample.exemplar is not None)
    assert exemplar.labels == {"trace_id": TRACE[3:35]}


async def test_a_message_that_is_delivered_again_is_a_link_of_another_batch_and_no_second_span(
    jobs: JobMaker, ledger: Ledger, exporter: InMemorySpanExporter, of_api: Tracing
) -> None:
    job = await jobs.failed()
    await ledger.retries.accept(msgspec.structs.replace(a_retry_of(job), traceparent=TRACE))
    messages = await ledger.settlement.queued(1)
    settler = Settler(ledger.settlement, Metrics(CollectorRegistry()), of_api)

    await settler.settle(messages)
    await settler.settle(messages)

    spans = exporter.get_finished_spans()
    assert [span.kind for span in spans] == [SpanKind.CONSUMER, SpanKind.INTERNAL, SpanKind.INTERNAL]
    assert [parent_of(spans[0]), *(link.context.span_id for span in spans[1:] for link in span.links)] == [
        int(TRACE[36:52], 16)
    ] * 3


async def test_of_a_batch_so_many_requests_are_traced_and_all_are_settled(
    jobs: JobMaker, ledger: Ledger, exporter: InMemorySpanExporter, of_api: Tracing
) -> None:
    for job in await jobs.many_failed(MOST_TRACED + 1):
        await ledger.retries.accept(msgspec.structs.replace(a_retry_of(job), traceparent=TRACE))
    settler = Settler(ledger.settlement, Metrics(CollectorRegistry()), of_api)

    assert await settler.settle_queued(MOST_TRACED + 1) == MOST_TRACED + 1

    *processed, batch = exporter.get_finished_spans()
    assert {span.kind for span in processed} == {SpanKind.CONSUMER}
    assert (len(processed), len(batch.links)) == (MOST_TRACED, MOST_TRACED)
    assert batch.kind is SpanKind.INTERNAL
