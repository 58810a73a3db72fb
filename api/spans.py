"""The spans of requests that are traced: from the request's headers to its answer, of what the door has let in."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import structlog
from multidict import istr

from shared.telemetry import traceparent_of

if TYPE_CHECKING:
    from aiohttp import web

    from api.door import Call
    from shared.tracing import RequestSpan, Tracing

_TRACEPARENT: Final = istr("traceparent")


def begin_span(tracing: "Tracing", request: "web.Request") -> "RequestSpan | None":
    """Begin the span of a request, if it is sampled. From now on, its log lines have a `trace_id`."""
    span = tracing.begin_request(request.headers.get(_TRACEPARENT))
    if span is not None:
        structlog.contextvars.bind_contextvars(trace_id=span.trace_id)
    return span


def end_span(span: "RequestSpan | None", request: "web.Request", status: int | None, took_s: float) -> None:
    """End the span, if there is one, of a request that was answered with `status`, or was cut off: None."""
    if span is None:
        return
    structlog.contextvars.unbind_contextvars("trace_id")
    resource = request.match_info.route.resource
    assert resource is not None  # noqa: S101 - the door lets in what has a handler
    span.end(request.method, resource.canonical, status, took_s=took_s)


@contextmanager
def create_span(call: "Call") -> Iterator[str | None]:
    """A span of the block, in which retries are accepted. Yields their `traceparent` for the ledger.

    That is the context of the span. A request that is not traced has no span: then it is what the client sent, if that
    is a trace context.
    """
    if call.span is None:
        yield traceparent_of(call.request.headers.get(_TRACEPARENT))
    else:
        with call.span.create_span() as traceparent:
            yield traceparent
