"""The api, wired by hand: what stands on what, in which order it opens, and how it stops."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Final

import structlog
from aiohttp import http_parser, web

from api.auth import Authenticator, Scope
from api.door import Access, Cost, Door
from api.jobs import JobIds, JobResource
from api.keys import KeySet, keys_of
from api.metrics import Metrics
from api.ratelimit import ClientAddresses, RateLimit
from api.relay import Relay
from api.retries import RetryResource
from api.server import Runner
from shared.database import Database
from shared.errors import DatabaseUnavailable
from shared.jobs import JobStore
from shared.ops import Readiness, Status, serve_ops
from shared.retries import RetryLedger
from shared.telemetry import metrics_registry

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from shared.settings import ApiSettings, Limit

log = structlog.stdlib.get_logger(__name__)

_Context = Callable[[web.Application], AsyncIterator[None]]

DATABASE: Final = web.AppKey("database", Database)
DOOR: Final = web.AppKey("door", Door)
RELAY: Final = web.AppKey("relay", Relay)

READ: Final = Access(Cost.READ, Scope.READ)
RETRY: Final = Access(Cost.RETRY, Scope.RETRY, writes=True)
DRAIN_S: Final = 0.5
"""How long, once told to stop, answers ask clients to come back elsewhere, before connections are closed."""


def create_app(settings: "ApiSettings", registry: "CollectorRegistry") -> web.Application:
    """The application; nothing is open before it starts. Raises SettingsError for a key that cannot be used."""
    _require_c_parser()
    metrics = Metrics(registry)
    database = Database(
        settings.database_url.get_secret_value(),
        program="redrive-api",
        timeout_s=settings.db_timeout,
        pool_size=settings.db_pool_size,
    )
    jobs = JobStore(database)
    ledger = RetryLedger(database, jobs)
    keys = keys_of(settings)
    relay = None if settings.amqp_url is None else Relay(ledger, settings.amqp_url.get_secret_value(), metrics)
    door = Door(
        authenticator=Authenticator(settings, keys),
        addresses=ClientAddresses(settings.trusted_proxies),
        by_address=_rate_limit("ip", settings.limit_ip),
        by_project={
            Cost.READ: _rate_limit("read", settings.limit_read),
            Cost.RETRY: _rate_limit("retry", settings.limit_retry),
            Cost.BULK: _rate_limit("bulk", settings.limit_bulk),
        },
        read_only=settings.read_only,
        metrics=metrics,
    )

    app = web.Application(middlewares=[door.middleware])
    app[DATABASE] = database
    app[DOOR] = door
    app.cleanup_ctx.append(_opened(database))
    if isinstance(keys, KeySet):
        app.cleanup_ctx.append(_fetching(keys))
    if relay is not None:
        app[RELAY] = relay
        app.cleanup_ctx.append(_relaying(relay, settings.shutdown_grace / 4))

    ids = JobIds(settings.job_id_versions)
    job = JobResource(jobs, ids)
    retry = RetryResource(ledger, jobs, ids, poke=relay.poke if relay is not None else _nobody_waits)
    for method, path, access, handler in (
        ("GET", "/api/jobs", READ.taking("status", "limit"), job.get_jobs),
        ("GET", "/api/jobs/{id:[^/]+}", READ.taking("include"), job.get_job),
        ("GET", "/api/jobs/{id:[^/]+}/retries", READ.taking("limit"), retry.get_job_retries),
        ("POST", "/api/jobs/{id:[^/]+}/retry", RETRY, retry.post_retry),
        ("GET", "/api/retries/{id:[^/]+}", READ, retry.get_retry),
    ):
        app.router.add_route(method, path, door.guarded(access, handler))
    return app


async def run(
    settings: "ApiSettings", *, stop: asyncio.Event, ops: bool = True, started: asyncio.Event | None = None
) -> None:
    """Serve until `stop` is set, then finish what is in hand and return, within the grace.

    `started` is set once requests are answered. Raises SettingsError, and OSError when a port is taken.
    """
    registry = metrics_registry()
    app = create_app(settings, registry)
    runner = Runner(app, shutdown_timeout_s=max(0.1, (settings.shutdown_grace - DRAIN_S) / 4))
    async with AsyncExitStack() as stack:
        if ops:
            await stack.enter_async_context(
                serve_ops(host=settings.host, port=settings.ops_port, ready=lambda: _readiness(app), registry=registry)
            )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, settings.host, settings.port, backlog=1024).start()
        log.info("api started", host=settings.host, port=settings.port, dispatch=_dispatch(app))
        if started is not None:
            started.set()
        await stop.wait()
        app[DOOR].closing = True
        await asyncio.sleep(min(DRAIN_S, settings.shutdown_grace / 4))
    log.info("api stopped")


async def _readiness(app: web.Application) -> Readiness:
    """Ready while the database answers; a broker that is away only delays retries, so it degrades."""
    try:
        await app[DATABASE].ping()
        database = Status.OK
    except DatabaseUnavailable:
        database = Status.UNAVAILABLE
    checks = {"database": database}
    if (relay := app.get(RELAY)) is not None:
        checks["broker"] = Status.OK if relay.connected else Status.DEGRADED
    if app[DOOR].closing:
        checks["process"] = Status.UNAVAILABLE
    worst = max(checks.values(), key=list(Status).index)
    return Readiness(worst, checks)


def _dispatch(app: web.Application) -> str:
    return "rabbitmq" if RELAY in app else "ledger"


def _rate_limit(name: str, limit: "Limit | None") -> RateLimit | None:
    return None if limit is None else RateLimit(name, limit)


def _nobody_waits() -> None:
    """Without a broker the workers look at the ledger themselves."""


def _require_c_parser() -> None:
    """Refuse to run on aiohttp's pure-Python HTTP parser: it is some ten times slower, and lenient in other ways."""
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise RuntimeError("aiohttp was installed without its C extensions")


def _opened(database: Database) -> _Context:
    async def context(_app: web.Application) -> AsyncIterator[None]:
        async with database.opened():
            yield

    return context


def _fetching(keys: KeySet) -> _Context:
    async def context(_app: web.Application) -> AsyncIterator[None]:
        fetching = asyncio.create_task(keys.keep_fetching())
        yield
        fetching.cancel()
        with suppress(asyncio.CancelledError):
            await fetching

    return context


def _relaying(relay: Relay, grace_s: float) -> _Context:
    async def context(_app: web.Application) -> AsyncIterator[None]:
        running = asyncio.create_task(relay.run())
        yield
        relay.stop()
        await asyncio.wait([running], timeout=grace_s)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    return context
