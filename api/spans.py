"""The spans of requests that are traced: around the door, which knows nothing of them."""

from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import structlog
from aiohttp import web
from multidict import istr

from shared.telemetry import traceparent_of

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler, Middleware

    from shared.tracing import RequestSpan, Tracing

_TRACEPARENT: Final = istr("traceparent")
_SPAN: "Final[web.RequestKey[RequestSpan]]" = web.RequestKey("span")


def traced(door: "Middleware", tracing: "Tracing") -> "Middleware":
    """The door, with a span around each request that is sampled; the log lines of these have a `trace_id`."""

    @web.middleware
    def traced_door(request: web.Request, handler: "Handler") -> "Awaitable[web.StreamResponse]":
        """No coroutine of its own: a request that is not sampled pays for the question alone."""
        span = tracing.begin_request(request.method, request.headers.get(_TRACEPARENT))
        return door(request, handler) if span is None else answered(span, request, handler)

    async def answered(span: "RequestSpan", request: web.Request, handler: "Handler") -> web.StreamResponse:
        request[_SPAN] = span
        try:
            with structlog.contextvars.bound_contextvars(trace_id=span.trace_id):
                answer = await door(request, handler)
            resource = request.match_info.route.resource
            span.note_answer(request.method, None if resource is None else resource.canonical, answer.status)
            return answer
        finally:
            span.end()

    return traced_door


@contextmanager
def start_create_span(request: web.Request) -> Iterator[str | None]:
    """Start a span for the block, in which retries are accepted. Yields their `traceparent` for the ledger.

    That is the context of the span. A request that is not traced has no span: then it is what the client sent, if that
    is a trace context.
    """
    span = request.get(_SPAN)
    if span is None:
        yield traceparent_of(request.headers.get(_TRACEPARENT))
    else:
        with span.start_create_span() as traceparent:
            yield traceparent
