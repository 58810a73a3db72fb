"""The ops port of both programs: `/livez`, `/readyz` and `/metrics`, for the platform, never for clients.

`/livez` checks only that the process runs: restarting it would not bring a database back. `/readyz` says whether to
send work to it, and answers 503 as soon as the program is told to stop. A request with `Transfer-Encoding` ends its
connection, as on the api's port.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from enum import StrEnum

import msgspec
from aiohttp import hdrs, web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from shared.trailers import Runner


class Status(StrEnum):
    """The status of a program, or of a part that it needs."""

    OK = "ok"
    DEGRADED = "degraded"
    UNAVAILABLE = "unavailable"


class Readiness(msgspec.Struct, frozen=True):
    """Whether to send work here; `checks` has the parts. A degraded program is ready: it does the work, only later."""

    status: Status
    checks: dict[str, Status]


Ready = Callable[[], Awaitable[Readiness]]
Metrics = Callable[[], Awaitable[CollectorRegistry]]


def metrics_of(registry: CollectorRegistry) -> Metrics:
    """A function that returns `registry`, for a program whose metrics are its own."""

    async def metrics() -> CollectorRegistry:
        return registry

    return metrics


@asynccontextmanager
async def serve_ops(
    *, ready: Ready, metrics: Metrics, host: str = "", port: int = 0, path: str | None = None
) -> AsyncIterator[None]:
    """Serve the ops port until the block ends: on `host` and `port`, or on the Unix socket at `path`.

    Metrics are in Prometheus's text format, or in OpenMetrics, which has exemplars, for a client that accepts it.
    Raises OSError when the port is taken.
    """

    async def livez(_request: web.Request) -> web.Response:
        return web.Response(body=b'{"status":"ok"}', content_type="application/json")

    async def readyz(_request: web.Request) -> web.Response:
        readiness = await ready()
        return web.Response(
            body=msgspec.json.encode(readiness),
            content_type="application/json",
            status=503 if readiness.status is Status.UNAVAILABLE else 200,
        )

    async def expose(request: web.Request) -> web.Response:
        try:
            encode, content_type = choose_encoder(request.headers.get(hdrs.ACCEPT, ""))
        except TypeError:  # the version that it asks for is none, and the library compares it with numbers
            encode, content_type = choose_encoder("")
        return web.Response(body=encode(await metrics()), headers={hdrs.CONTENT_TYPE: content_type})

    app = web.Application()
    app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", expose)])
    runner = Runner(app, access_log=None, shutdown_timeout_s=1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port) if path is None else web.UnixSite(runner, path)
        await site.start()
        yield
    finally:
        await runner.cleanup()
