"""The api, wired by hand: what stands on what, in which order it opens, and how it stops."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

import structlog
from aiohttp import http_parser, web

from api.auth import Authenticator
from api.door import Cost, Door
from api.ids import JobIds
from api.keys import KeySet, keys_of
from api.metrics import Metrics
from api.origins import Origins
from api.pages import Cursors
from api.ratelimit import ClientAddresses, RateLimit
from api.relay import Relay
from api.routes import Stores, Watches, add_routes
from api.server import Runner
from api.watch import Waiters
from shared.batches import RetryBatches
from shared.cursor_key import cursor_key
from shared.database import Database
from shared.errors import DatabaseUnavailable
from shared.jobs import JobStore
from shared.migrations import warn_of_missing
from shared.ops import Readiness, Status, exposition_of, serve_ops
from shared.outbox import Outbox
from shared.overview import Overview
from shared.retries import Retries
from shared.telemetry import metrics_registry

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from shared.settings import ApiSettings, Limit

log = structlog.stdlib.get_logger(__name__)

_Context = Callable[[web.Application], AsyncIterator[None]]


class _Failure:
    """What ended a task that was to last as long as the program; the program ends with it, to be started again."""

    def __init__(self) -> None:
        self.happened = asyncio.Event()
        self.cause: BaseException | None = None

    def watch(self, task: "asyncio.Task[None]") -> None:
        """Take the end of `task`, unless it was cancelled, for a failure of the program."""
        task.add_done_callback(self._note)

    def _note(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (cause := task.exception()) is not None:
            self.cause = cause
            self.happened.set()


DATABASE: Final = web.AppKey("database", Database)
REPLICA: Final = web.AppKey("replica", Database)
DOOR: Final = web.AppKey("door", Door)
KEYS: Final = web.AppKey("keys", KeySet)
RELAY: Final = web.AppKey("relay", Relay)
WATCHES: Final = web.AppKey("watches", Watches)
FAILURE: Final = web.AppKey("failure", _Failure)

DRAIN_S: Final = 0.5
"""How long, once told to stop, answers ask clients to come back elsewhere, before connections are closed."""


def create_app(settings: "ApiSettings", registry: "CollectorRegistry") -> web.Application:
    """The application; nothing is open before it starts. Raises SettingsError for settings that name no key."""
    _require_c_parser()
    metrics = Metrics(registry)
    database = _database_of(settings, "database_url", writes=not settings.read_only)
    reading = database
    if settings.database_read_url is not None:
        reading = _database_of(settings, "database_read_url", writes=False)
    jobs = JobStore(database, final_statuses=settings.final_statuses)
    stores = Stores(
        jobs=jobs,
        readable_jobs=jobs if reading is database else JobStore(reading, final_statuses=settings.final_statuses),
        retries=Retries(database, jobs),
        batches=RetryBatches(database),
        overview=Overview(reading),
        ledger_overview=Overview(database),
    )
    keys = keys_of(settings)
    relay = None if settings.amqp_url is None else Relay(Outbox(database), settings.url("amqp_url"), metrics)
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
        origins=Origins(settings.cors_origins),
        metrics=metrics,
    )
    waiters = Waiters(settings.max_waiters)
    metrics.watch(waiters)
    watches = Watches.over(stores, interval_s=settings.watch_interval, waiters=waiters)

    app = web.Application(middlewares=[door.middleware])
    app[DATABASE] = database
    app[FAILURE] = _Failure()
    app[DOOR] = door
    app[WATCHES] = watches
    app.on_shutdown.append(_let_go)
    app.cleanup_ctx.append(_opened(database))
    if reading is not database:
        app[REPLICA] = reading
        app.cleanup_ctx.append(_opened(reading))
    if isinstance(keys, KeySet):
        app[KEYS] = keys
        metrics.watch_keys(keys)
        app.cleanup_ctx.append(_in_background(lambda: keys.run(stop=asyncio.Event())))
    if relay is not None:
        app[RELAY] = relay
        app.cleanup_ctx.append(_relaying(relay, settings.shutdown_grace / 4))

    add_routes(
        app.router,
        door,
        stores,
        watches,
        ids=JobIds(settings.job_id_versions),
        cursors=Cursors(lambda: cursor_key(database)),
        max_wait_s=settings.max_wait,
        read_only=settings.read_only,
        poke=_nobody_waits if relay is None else relay.poke,
        poke_bulk=_nobody_waits if relay is None else relay.poke_bulk,
    )
    return app


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

    `ops_path` puts the ops port on a Unix socket, and `share_port` lets other processes listen on the same port: one of
    several apis that `redrive api --processes` keeps going. `started` is set once requests are answered.

    Raises SettingsError, and OSError when a port is taken.
    """
    for note in settings.notes:
        log.warning("setting ignored", reason=note)
    registry = metrics_registry()
    app = create_app(settings, registry)
    app.cleanup_ctx.append(_in_background(lambda: warn_of_missing(app[DATABASE])))
    runner = Runner(
        app,
        app[DOOR],
        keepalive_timeout_s=settings.keepalive_timeout,
        shutdown_timeout_s=max(0.1, (settings.shutdown_grace - DRAIN_S) / 4),
    )
    async with AsyncExitStack() as stack:
        if ops:
            await stack.enter_async_context(
                serve_ops(
                    host=settings.host,
                    port=settings.ops_port,
                    path=ops_path,
                    ready=lambda: _readiness(app),
                    metrics=exposition_of(registry),
                )
            )
        await runner.setup()
        _calm_the_collector()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, settings.host, settings.port, backlog=1024, reuse_port=share_port or None)
        await site.start()
        log.info("api started", host=settings.host, port=settings.port, dispatch=_dispatch(app))
        if started is not None:
            started.set()
        await _any_of(stop, app[FAILURE].happened)
        app[DOOR].closing = True
        await _let_go(app)
        drain_s = min(DRAIN_S, settings.shutdown_grace / 4)
        await asyncio.sleep(drain_s)
        await asyncio.sleep(0)  # one turn more: whoever stands in the queue comes in
        await site.stop()
        await asyncio.sleep(drain_s / 2)  # and has time to say what they came for, before what is idle is closed
    log.info("api stopped")
    if (cause := app[FAILURE].cause) is not None:
        raise cause


async def _readiness(app: web.Application) -> Readiness:
    """Ready while the database takes writes, or is read where only that is done, and the replica is read.

    Without keys every request is refused; once fetched, they stay good while their issuer is away. A broker that is
    away only delays retries, so it degrades.
    """
    databases = {"database": app[DATABASE]} | ({"replica": app[REPLICA]} if REPLICA in app else {})
    standings = await asyncio.gather(*map(_standing, databases.values()))
    checks = dict(zip(databases, standings, strict=True))
    if (keys := app.get(KEYS)) is not None:
        checks["keys"] = Status.OK if keys.ready else Status.UNAVAILABLE
    if (relay := app.get(RELAY)) is not None:
        checks["broker"] = Status.OK if relay.connected else Status.DEGRADED
    if app[DOOR].closing:
        checks["process"] = Status.UNAVAILABLE
    worst = max(checks.values(), key=list(Status).index)
    return Readiness(worst, checks)


async def _standing(database: Database) -> Status:
    try:
        await database.probe()
    except DatabaseUnavailable:
        return Status.UNAVAILABLE
    return Status.OK


async def _let_go(app: web.Application) -> None:
    """Answer everybody who waits, now, and end the streams."""
    app[WATCHES].close()


def _database_of(settings: "ApiSettings", field: str, *, writes: bool) -> Database:
    return Database(
        settings.url(field),
        program="redrive api",
        timeout_s=settings.db_timeout,
        pool_size=settings.db_pool_size,
        writes=writes,
        pooled=settings.database_pooled,
    )


async def _any_of(*events: asyncio.Event) -> None:
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()


def _dispatch(app: web.Application) -> str:
    return "rabbitmq" if RELAY in app else "ledger"


def _rate_limit(name: str, limit: "Limit | None") -> RateLimit | None:
    return None if limit is None else RateLimit(name, limit)


def _nobody_waits() -> None:
    """Without a broker the workers look at the ledger themselves."""


def _calm_the_collector() -> None:
    """Let the cyclic collector leave alone what lives as long as the program, and look at the rest less often.

    A request leaves no cycles behind, however long it was held (there is a test), but makes hundreds of short-lived
    containers: with the default threshold, a tenth of the time of a status read goes into looking for cycles among
    them. What the collector is there for are requests that no resource is for, or that were broken off.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _require_c_parser() -> None:
    """Refuse to run on aiohttp's pure-Python HTTP parser: it is some ten times slower, and lenient in other ways."""
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise RuntimeError("aiohttp was installed without its C extensions")


def _opened(database: Database) -> _Context:
    async def context(_app: web.Application) -> AsyncIterator[None]:
        async with database.opened():
            yield

    return context


def _in_background(work: Callable[[], Coroutine[None, None, None]]) -> _Context:
    """`work` for as long as the program runs; its failure ends the program."""

    async def context(app: web.Application) -> AsyncIterator[None]:
        working = asyncio.create_task(work())
        app[FAILURE].watch(working)
        yield
        working.cancel()
        await asyncio.wait([working])

    return context


def _relaying(relay: Relay, grace_s: float) -> _Context:
    async def context(app: web.Application) -> AsyncIterator[None]:
        stop = asyncio.Event()
        running = asyncio.create_task(relay.run(stop=stop))
        app[FAILURE].watch(running)
        yield
        stop.set()
        await asyncio.wait([running], timeout=grace_s)
        running.cancel()
        await asyncio.wait([running])

    return context
