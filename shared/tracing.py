"""Traces, with OpenTelemetry: one from the POST through the ledger and RabbitMQ to the effect. Off by default.

    SERVER  POST /api/jobs/{id}/retry    the api, one for each sampled request
    └ PRODUCER  create                   its context stands in the ledger as the request's `traceparent`
      └ CONSUMER  process                the worker: from the batch's begin to its commit, with the outcome
    INTERNAL  settle                     the batch; it links to the requests in it, and they link to it

Only this module imports OpenTelemetry, and a program imports this module only with REDRIVE_TRACING. Whether something
is sampled is decided here, before OpenTelemetry is asked: a span that is not recorded would cost a sixth of a read.
What a client has sampled (the flag of its `traceparent`) is traced; of what comes without one, a share is.

The worker makes its spans after the commit, with the times that it noted. A message of several requests has no trace:
the ledger has one for each.
"""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from shared.telemetry import traceparent_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

_FLUSH_S: Final = 2.0
_SERVER_ERROR: Final = 500


Processed = tuple[str, str, str, bool]
"""A request that a batch has settled: its `traceparent` in the ledger, its id, its outcome, and whether it was settled
before, by an earlier delivery."""


def is_sampled(traceparent: str) -> bool:
    """Whether its sampled flag is set (https://www.w3.org/TR/trace-context/#sampled-flag)."""
    return int(traceparent[-1], 16) % 2 == 1


class RequestSpan:
    """The span of a request that is traced."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self._span = span

    @property
    def trace_id(self) -> str:
        """32 hex digits."""
        return trace.format_trace_id(self._span.get_span_context().trace_id)

    @contextmanager
    def start_create_span(self) -> Iterator[str]:
        """Start a span for the block, in which retries are accepted. Yields their `traceparent` for the ledger."""
        span = self._tracer.start_span(
            "create redrive.retries",
            context=trace.set_span_in_context(self._span),
            kind=trace.SpanKind.PRODUCER,
            attributes={
                "messaging.operation.type": "create",
                "messaging.destination.name": "redrive.retries",
            },
        )
        try:
            yield _traceparent(span.get_span_context())
        finally:
            span.end()

    def note_answer(self, method: str, route: str | None, status: int) -> None:
        """Name the span after the route, which is known now, and note the answer."""
        self._span.update_name(method if route is None else f"{method} {route}")
        if route is not None:
            self._span.set_attribute("http.route", route)
        self._span.set_attribute("http.response.status_code", status)
        if status >= _SERVER_ERROR:
            self._span.set_status(trace.StatusCode.ERROR)

    def end(self) -> None:
        """End it now, answered or not."""
        self._span.end()


class Tracing:
    """Makes spans for what is sampled. `share`: of the requests that come without a `traceparent`, from 0 to 1."""

    def __init__(self, tracer: trace.Tracer, *, share: float) -> None:
        self._tracer = tracer
        self._share = share

    def begin_request(self, method: str, header: str | None) -> RequestSpan | None:
        """Begin the span of a request with this `traceparent`; None where it is not sampled, or the SDK is disabled."""
        if header is None:
            if random.random() >= self._share:  # noqa: S311 - whom it picks is no secret
                return None
            context = None
        else:
            parent = traceparent_of(header)
            if parent is None or not is_sampled(parent):
                return None
            context = trace.set_span_in_context(trace.NonRecordingSpan(_context_of(parent)))
        span = self._tracer.start_span(
            method,
            context=context or trace.set_span_in_context(trace.INVALID_SPAN),
            kind=trace.SpanKind.SERVER,
            attributes={"http.request.method": method},
        )
        # With OTEL_SDK_DISABLED a span has no ids, or the client's.
        return RequestSpan(self._tracer, span) if span.is_recording() else None

    def add_batch(self, processed: Sequence[Processed], *, requests: int, began_ns: int, ended_ns: int) -> None:
        """Add the spans of a batch that is committed: its own, and one for each request that it settled first."""
        if not processed:
            return
        contexts = [_context_of(traceparent) for traceparent, *_ in processed]
        batch = self._tracer.start_span(
            "settle redrive.retries",
            context=trace.set_span_in_context(trace.INVALID_SPAN),
            links=[trace.Link(context) for context in contexts],
            attributes={"messaging.batch.message_count": requests},
            start_time=began_ns,
        )
        link = trace.Link(batch.get_span_context())
        for (_, request_id, outcome, repeated), context in zip(processed, contexts, strict=True):
            if repeated:
                continue  # it has its span; this delivery is a link of the batch
            span = self._tracer.start_span(
                "process redrive.retries",
                context=trace.set_span_in_context(trace.NonRecordingSpan(context)),
                kind=trace.SpanKind.CONSUMER,
                links=[link],
                attributes={
                    "messaging.operation.type": "process",
                    "messaging.destination.name": "redrive.retries",
                    "redrive.retry_id": request_id,
                    "redrive.outcome": outcome,
                },
                start_time=began_ns,
            )
            span.end(ended_ns)
        batch.end(ended_ns)


@asynccontextmanager
async def opened(program: str, *, share: float, processor: "SpanProcessor | None" = None) -> AsyncIterator[Tracing]:
    """Tracing for one program; `processor` takes the spans, by default in batches to where OTEL_EXPORTER_OTLP_* says.

    In the end what is left is sent, for two seconds at most.
    """
    provider = TracerProvider(
        sampler=ALWAYS_ON,  # what is not sampled makes no span
        resource=Resource.create({"service.name": f"redrive-{program}"}),  # OTEL_SERVICE_NAME goes before it
        shutdown_on_exit=False,
    )
    provider.add_span_processor(processor or _exporting())
    try:
        yield Tracing(provider.get_tracer("redrive"), share=share)
    finally:
        # A thread of its own: a collector that does not answer would keep one of asyncio's, and with it the program.
        ending = threading.Thread(target=provider.shutdown, daemon=True)
        ending.start()
        await asyncio.to_thread(ending.join, _FLUSH_S)


def _exporting() -> "SpanProcessor":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - takes long to load

    return BatchSpanProcessor(OTLPSpanExporter())


def _context_of(traceparent: str) -> trace.SpanContext:
    _, trace_id, span_id, flags = (int(part, 16) for part in traceparent.split("-"))
    return trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(flags))


def _traceparent(context: trace.SpanContext) -> str:
    return f"00-{trace.format_trace_id(context.trace_id)}-{trace.format_span_id(context.span_id)}-01"
