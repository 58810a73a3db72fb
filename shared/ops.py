"""The ops port of both programs: `/livez`, `/readyz` and `/metrics`, for the platform, never for clients.

Livez looks at nothing but the process: a database that is away is no reason to restart it. Readyz says whether to send
it work; it turns 503 as soon as the program is told to stop.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from enum import StrEnum

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest


class Status(StrEnum):
    """What a program or a part that it needs says of itself."""

    OK = "ok"
    DEGRADED = "degraded"
    UNAVAILABLE = "unavailable"


class Readiness(msgspec.Struct, frozen=True):
    """Whether to send work here; `checks` names the parts. Degraded is ready: the work is done, only later."""

    status: Status
    checks: dict[str, Status]


Ready = Callable[[], Awaitable[Readiness]]


@asynccontextmanager
async def serve_ops(*, host: str, port: int, ready: Ready, registry: CollectorRegistry) -> AsyncIterator[None]:
    """Serve the ops port until the block ends. Raises OSError when the port is taken."""

    async def livez(_request: web.Request) -> web.Response:
        return web.Response(body=b'{"status":"ok"}', content_type="application/json")

    async def readyz(_request: web.Request) -> web.Response:
        readiness = await ready()
        return web.Response(
            body=msgspec.json.encode(readiness),
            content_type="application/json",
            status=503 if readiness.status is Status.UNAVAILABLE else 200,
        )

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield
    finally:
        await runner.cleanup()
