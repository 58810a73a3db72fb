"""Running the api: starting, readiness, and stopping in an order that cuts off no client.

Stopping, in `shutdown_grace` seconds:
1. `/readyz` answers 503, waiters are answered, streams end, and each answer from now on closes its connection.
2. For half a second requests are still answered: so clients learn that they are to connect elsewhere.
3. The connections in the listen backlog are accepted, and the port is closed. They get time for their first request.
4. Idle connections are closed, requests in hand are answered, the relay publishes what is left, databases are closed.
"""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

import structlog
from aiohttp import web

from api.app import create_app
from api.server import Runner
from shared.backoff import wait_for_any
from shared.errors import DatabaseUnavailable
from shared.migrations import SchemaWatch
from shared.ops import Readiness, Status, metrics_of, serve_ops
from shared.relation import Guard
from shared.telemetry import metrics_registry, tracing_of

if TYPE_CHECKING:
    from api.app import Api
    from shared.database import Database
    from shared.settings import ApiSettings

log = structlog.stdlib.get_logger(__name__)

DRAIN_S: Final = 0.5
"""How long requests are still answered after the stop, before connections close: at most a quarter of the grace."""


async def run(
    settings: "ApiSettings",
    *,
    stop: asyncio.Event,
    ops: bool = True,
    ops_path: str | None = None,
    share_port: bool = False,
    started: asyncio.Event | None = None,
) -> None:
    """Serve until `stop` is set, then finish what is in hand and return, within the grace.

    `ops_path` puts the ops port on a Unix socket, and `share_port` lets other processes listen on the same port: both
    are for `redrive api --processes`. `started` is set once requests are answered.

    Raises SettingsError, OSError when a port is taken, and what a background service has failed with.
    """
    for note in settings.notes:
        log.warning("setting ignored", reason=note)
    registry = metrics_registry()
    listening = asyncio.Event()
    async with AsyncExitStack() as stack:
        tracing = await stack.enter_async_context(tracing_of("api", settings.tracing))
        api = create_app(settings, registry, tracing)
        schema = SchemaWatch(api.database)
        api.app.cleanup_ctx.append(api.background.context(lambda _stop: schema.run()))
        _guard(api, api.database, settings, updates=not settings.read_only)
        if api.replica is not None:
            _guard(api, api.replica, settings, updates=False)
        runner = Runner(
            api.app,
            api.door,
            keepalive_timeout_s=settings.keepalive_timeout,
            shutdown_timeout_s=max(0.1, (settings.shutdown_grace - DRAIN_S) / 4),
        )
        if ops:
            await stack.enter_async_context(
                serve_ops(
                    host=settings.host,
                    port=settings.ops_port,
                    path=ops_path,
                    ready=lambda: readiness(api, schema, listening=listening.is_set()),
                    metrics=metrics_of(registry),
                )
            )
        await runner.setup()
        _tune_gc()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, settings.host, settings.port, backlog=1024, reuse_port=share_port or None)
        await site.start()
        listening.set()
        dispatch = "ledger" if api.relay is None else "rabbitmq"
        log.info("api started", host=settings.host, port=settings.port, dispatch=dispatch)
        if started is not None:
            started.set()
        await wait_for_any(stop, api.background.failed)
        await _drain(api, site, drain_s=min(DRAIN_S, settings.shutdown_grace / 4))
    log.info("api stopped")
    if api.background.failure is not None:
        raise api.background.failure


def _guard(api: "Api", database: "Database", settings: "ApiSettings", *, updates: bool) -> None:
    """Have the api look at the jobs of a database; before it serves it waits for that, a second at most. See Guard."""
    guard = Guard(database, job_id=settings.job_id, updates=updates)

    async def first_look(_app: web.Application) -> AsyncIterator[None]:
        await guard.first_look()
        yield

    api.app.cleanup_ctx.append(api.background.context(lambda _stop: guard.run()))
    api.app.cleanup_ctx.append(first_look)


async def _drain(api: "Api", site: web.TCPSite, *, drain_s: float) -> None:
    """Send clients elsewhere, then stop listening; the numbers are those of this module's first lines."""
    api.door.closing = True  # 1
    api.watches.close()
    await asyncio.sleep(drain_s)  # 2
    await _accept_backlog()  # 3
    await site.stop()
    await _await_first_requests(drain_s / 2)


async def _accept_backlog() -> None:
    """Let the event loop accept the connections that are in the listen backlog."""
    await asyncio.sleep(0)


async def _await_first_requests(pause_s: float) -> None:
    """Give connections that were just accepted time to send a request; without one, they are idle and are closed."""
    await asyncio.sleep(pause_s)


async def readiness(api: "Api", schema: SchemaWatch | None = None, *, listening: bool = True) -> Readiness:
    """Whether to send requests here; not before the api is `listening`, and the `schema` complete.

    The database must take writes, or be read where the api only reads; the replica must be read. Keys must have been
    fetched once: later they stay good while their issuer is away. A broker that is away only delays retries.
    """
    databases = {"database": api.database} | ({} if api.replica is None else {"replica": api.replica})
    health = await asyncio.gather(*map(_health, databases.values()))
    checks = dict(zip(databases, health, strict=True))
    if schema is not None and not schema.is_complete:
        checks["schema"] = Status.UNAVAILABLE
    if api.keys is not None:
        checks["keys"] = Status.OK if api.keys.ready else Status.UNAVAILABLE
    if api.relay is not None:
        checks["broker"] = Status.OK if api.relay.connected else Status.DEGRADED
    if api.door.closing or not listening:
        checks["process"] = Status.UNAVAILABLE
    worst = max(checks.values(), key=list(Status).index)
    return Readiness(worst, checks)


async def _health(database: "Database") -> Status:
    try:
        await database.probe()
    except DatabaseUnavailable:
        return Status.UNAVAILABLE
    return Status.OK


def _tune_gc() -> None:
    """Let the cyclic garbage collector skip what lives as long as the program, and run less often.

    A request leaves no cycles behind, however long it waits (a test says so), but it makes hundreds of short-lived
    containers: with the default threshold, a tenth of the time of a status read is spent looking for cycles among them.
    The collector is still needed for requests without a resource, and for requests that broke off.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
