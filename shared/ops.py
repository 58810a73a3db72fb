"""The ops port of both programs: `/livez`, `/readyz` and `/metrics`, for the platform, never for clients.

`/livez` checks only that the process runs: restarting it would not bring a database back. `/readyz` says whether to
send work to it, and answers 503 as soon as the program is told to stop. A request with `Transfer-Encoding` ends its
connection, as on the api's port.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from enum import StrEnum

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

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
Exposition = Callable[[], Awaitable[bytes]]
"""Metrics in Prometheus's text format."""


def exposition_of(registry: CollectorRegistry) -> Exposition:
    """A function that returns the metrics of `registry` as text."""

    async def text() -> bytes:
        return generate_latest(registry)

    return text


@asynccontextmanager
async def serve_ops(
    *, ready: Ready, metrics: Exposition, host: str = "", port: int = 0, path: str | None = None
) -> AsyncIterator[None]:
    """Serve the ops port until the block ends: on `host` and `port`, or on the Unix socket at `path`.

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

    async def expose(_request: web.Request) -> web.Response:
        return web.Response(body=await metrics(), headers={"Content-Type": CONTENT_TYPE_LATEST})

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
