"""Traces, with OpenTelemetry: one from the POST through the ledger and RabbitMQ to the effect. Off by default.

    SERVER  POST /api/jobs/{id}/retry    the api, one for each sampled request that the door has let in
    └ PRODUCER  create                   its context stands in the ledger as the request's `traceparent`
      └ CONSUMER  process                the worker: from the batch's begin to its commit, with the outcome
    INTERNAL  settle                     the batch; it links to the requests in it, and they link to it

Only this module imports OpenTelemetry, and a program imports this module only with REDRIVE_TRACING. Whether something
is sampled is decided here, before anything is made: of what a client has sampled (the flag of its `traceparent`) all is
traced, of what comes without one, a share is.

A span is made when it has ended, with the times that were noted, and given to the SDK's processor as it is. A span that
the SDK's tracer makes can be changed while it is open, has locks and bounds of its own, and is copied in the end: ten
times the work (19 µs against 2), and nothing here is changed while it is open. The worker makes its spans after the
commit. A message of several requests has no trace: the ledger has one for each.
"""

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    format_span_id,
    format_trace_id,
)

from shared.telemetry import traceparent_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.util.types import AttributeValue

FLUSH_S: Final = 2.0
_SERVER_ERROR: Final = 500
_NAMELESS: Final = "unknown_service"
"""How the name begins that the SDK gives to a service without one."""
_SCOPE: Final = InstrumentationScope("redrive", "")
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_SAMPLED_DIGITS: Final = frozenset("13579bdf")
_UNSET: Final = Status(StatusCode.UNSET)
_ERROR: Final = Status(StatusCode.ERROR)


Processed = tuple[str, str, str, bool]
"""A request that a batch has settled: its `traceparent` in the ledger, its id, its outcome, and whether it was settled
before, by an earlier delivery."""


class Tracing:
    """Makes spans for what is sampled, and gives them to `processor`.

    `share`: of the requests that come without a `traceparent`, from 0 to 1.
    """

    def __init__(self, processor: "SpanProcessor", *, program: str, share: float) -> None:
        self._processor = processor
        self._resource = _resource_of(program)
        self._share = share

    def begin_request(self, header: str | None) -> "RequestSpan | None":
        """Begin the span of a request with this `traceparent`; None where it is not sampled."""
        if header is None:
            if random.random() >= self._share:  # noqa: S311 - whom it picks is no secret
                return None
            return RequestSpan(self, None)
        # The sampled flag is the last bit (https://www.w3.org/TR/trace-context/#sampled-flag).
        if header[-1:] not in _SAMPLED_DIGITS or (parent := traceparent_of(header)) is None:
            return None
        return RequestSpan(self, _context_of(parent))

    def add_batch(self, processed: Sequence[Processed], *, requests: int, began_ns: int, ended_ns: int) -> None:
        """Add the spans of a batch that is committed: its own, and one for each request that it settled first."""
        if not processed:
            return
        contexts = [_context_of(traceparent) for traceparent, *_ in processed]
        batch = _new_context(None)
        link = Link(batch)
        for (_, request_id, outcome, repeated), context in zip(processed, contexts, strict=True):
            if repeated:
                continue  # it has its span; this delivery is a link of the batch
            self.add(
                "process redrive.retries",
                SpanKind.CONSUMER,
                _new_context(context),
                context,
                {
                    "messaging.operation.type": "process",
                    "messaging.destination.name": "redrive.retries",
                    "redrive.retry_id": request_id,
                    "redrive.outcome": outcome,
                },
                began_ns=began_ns,
                ended_ns=ended_ns,
                links=[link],
            )
        self.add(
            "settle redrive.retries",
            SpanKind.INTERNAL,
            batch,
            None,
            {"messaging.batch.message_count": requests},
            began_ns=began_ns,
            ended_ns=ended_ns,
            links=[Link(context) for context in contexts],
        )

    def add(
        self,
        name: str,
        kind: SpanKind,
        context: SpanContext,
        parent: SpanContext | None,
        attributes: "dict[str, AttributeValue]",
        *,
        began_ns: int,
        ended_ns: int,
        links: Sequence[Link] = (),
        failed: bool = False,
    ) -> None:
        """Add a span that has ended. It never waits: what the processor cannot take, it drops."""
        self._processor.on_end(
            ReadableSpan(
                name,
                context,
                parent,
                self._resource,
                attributes,
                links=links,
                kind=kind,
                status=_ERROR if failed else _UNSET,
                start_time=began_ns,
                end_time=ended_ns,
                instrumentation_scope=_SCOPE,
            )
        )


class RequestSpan:
    """The span of a request that is traced: its context from now on, the span itself once the request has ended."""

    __slots__ = ("_context", "_parent", "_tracing")

    def __init__(self, tracing: Tracing, parent: SpanContext | None) -> None:
        self._tracing = tracing
        self._parent = parent
        self._context = _new_context(parent)

    @property
    def trace_id(self) -> str:
        """32 hex digits."""
        return format_trace_id(self._context.trace_id)

    @contextmanager
    def create_span(self) -> Iterator[str]:
        """A span of the block, in which retries are accepted. Yields their `traceparent` for the ledger."""
        context, began_ns = _new_context(self._context), time.time_ns()
        try:
            yield f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-01"
        finally:
            self._tracing.add(
                "create redrive.retries",
                SpanKind.PRODUCER,
                context,
                self._context,
                {"messaging.operation.type": "create", "messaging.destination.name": "redrive.retries"},
                began_ns=began_ns,
                ended_ns=time.time_ns(),
            )

    def end(self, method: str, route: str, status: int | None, *, took_s: float) -> None:
        """End the span: the request has taken so long until now. `status` is None where it got no answer."""
        attributes: dict[str, AttributeValue] = {"http.request.method": method, "http.route": route}
        if status is not None:
            attributes["http.response.status_code"] = status
        ended_ns = time.time_ns()
        self._tracing.add(
            f"{method} {route}",
            SpanKind.SERVER,
            self._context,
            self._parent,
            attributes,
            began_ns=ended_ns - round(took_s * 1e9),
            ended_ns=ended_ns,
            failed=status is not None and status >= _SERVER_ERROR,
        )


@asynccontextmanager
async def opened(program: str, *, share: float, processor: "SpanProcessor | None" = None) -> AsyncIterator[Tracing]:
    """Tracing for one program; `processor` takes the spans, by default in batches to where OTEL_EXPORTER_OTLP_* says.

    In the end what is left is sent, for two seconds at most.
    """
    processor = processor or _exporting()
    try:
        yield Tracing(processor, program=program, share=share)
    finally:
        # A thread of its own: a collector that does not answer would keep one of asyncio's, and with it the program.
        ending = threading.Thread(target=processor.shutdown, daemon=True)
        ending.start()
        await asyncio.to_thread(ending.join, FLUSH_S)


def _resource_of(program: str) -> Resource:
    """What OpenTelemetry's variables say that this program is; `redrive-…` where they give it no name.

    An attribute that is given to `Resource.create` goes before what its detectors find, so the name is not given to it.
    """
    found = Resource.create()
    if str(found.attributes["service.name"]).startswith(_NAMELESS):
        found = found.merge(Resource({"service.name": f"redrive-{program}"}))
    return found


def _exporting() -> "SpanProcessor":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - takes long to load

    return BatchSpanProcessor(OTLPSpanExporter())


def _new_context(parent: SpanContext | None) -> SpanContext:
    """The context of a new span, in the trace of `parent` or in a new one."""
    trace_id = _random_id(128) if parent is None else parent.trace_id
    return SpanContext(trace_id, _random_id(64), is_remote=False, trace_flags=_SAMPLED)


def _random_id(bits: int) -> int:
    return random.getrandbits(bits) or 1


def _context_of(traceparent: str) -> SpanContext:
    _, trace_id, span_id, flags = (int(part, 16) for part in traceparent.split("-"))
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
