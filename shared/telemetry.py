"""Telemetry: structured logs, and a registry for metrics.

A log line is a constant text with facts as fields, written as one JSON object a line, so that no input of a client can
break a line. Metrics are registered once, in the composition root of each program; their labels come from closed sets,
never an id or a project.
"""

import asyncio
import logging
import re
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import structlog
from prometheus_client import CollectorRegistry, Gauge, GCCollector, PlatformCollector, ProcessCollector

from shared.otel_log import OtelLog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shared.tracing import Tracing

_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)

# At INFO these log what our programs log themselves, once and with more facts.
_QUIET: Final = ("aio_pika", "aiormq", "aiohttp.access", "asyncio")

_EXPORTING: Final = ("opentelemetry", "urllib3")
"""What makes spans and sends them; urllib3 is its HTTP client."""


def configure_logging(*, level: str, json: bool) -> None:
    """Send all logs, other libraries' too, to stderr: JSON lines, or colours for a person."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    rendering: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if json
        else [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                exception_formatter=structlog.dev.plain_traceback,  # the default shows local variables: secrets
            )
        ]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.DEBUG if level == "DEBUG" else logging.CRITICAL)
    otel_log = OtelLog()
    for name in _EXPORTING:
        logger = logging.getLogger(name)
        logger.handlers[:] = [otel_log]
        logger.setLevel(logging.WARNING)
        logger.propagate = False


def metrics_registry() -> CollectorRegistry:
    """A registry of one program's own, with the process's figures in it; to be read inside its event loop."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    tasks = Gauge("redrive_tasks", "asyncio tasks that have not ended.", registry=registry)
    tasks.set_function(lambda: len(asyncio.all_tasks()))
    return registry


@asynccontextmanager
async def tracing_of(program: str, share: float | None) -> "AsyncIterator[Tracing | None]":
    """Tracing for the length of the block; None, and nothing of OpenTelemetry is imported, where `share` is None."""
    if share is None:
        yield None
        return
    from shared.tracing import opened  # noqa: PLC0415 - an extra, and it takes long to load

    async with opened(program, share=share) as tracing:
        yield tracing


def traceparent_of(header: str | None) -> str | None:
    """The header's value where it is a W3C trace context (https://www.w3.org/TR/trace-context/), else None."""
    return header if header is not None and _TRACEPARENT.fullmatch(header) else None


def trace_id_of(traceparent: str) -> str:
    """The trace of a W3C trace context, 32 hex digits."""
    return traceparent[3:35]
