"""The api, put together by hand: what stands on what, and in which order it opens. api/serving.py runs it."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import hdrs, http_parser, web

from api.auth import Authenticator
from api.background import Background
from api.door import Cost, Door
from api.keys import KeySet, keys_of
from api.metrics import Metrics
from api.origins import Origins
from api.pages import Cursors
from api.ratelimit import ClientAddresses, RateLimit
from api.relay import Relay
from api.routes import Stores, Watches, add_routes
from api.watch import Waiters
from shared.batches import Batches
from shared.cursor_key import cursor_key
from shared.database import Database
from shared.job_ids import job_ids
from shared.jobs import Jobs
from shared.outbox import Outbox
from shared.overview import Overview
from shared.retries import Retries

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from shared.setting_types import Limit
    from shared.settings import ApiSettings
    from shared.tracing import Tracing


@dataclass(frozen=True, slots=True)
class Api:
    """One api: the application, and the parts of it that are run, watched and stopped from outside."""

    app: web.Application
    door: Door
    database: Database
    replica: Database | None
    keys: KeySet | None
    relay: Relay | None
    watches: Watches
    background: Background


def create_app(settings: "ApiSettings", registry: "CollectorRegistry", tracing: "Tracing | None" = None) -> Api:
    """Make an api; it opens nothing before its application starts. Raises SettingsError where no key is set."""
    _require_c_parser()
    metrics = Metrics(registry)
    database = _database_of(settings, "database_url", writes=not settings.read_only)
    reading = database
    if settings.database_read_url is not None:
        reading = _database_of(settings, "database_read_url", writes=False, replica=True)
    ids = job_ids(settings.job_id, settings.job_id_versions)
    jobs = Jobs(database, ids, final_statuses=settings.final_statuses)
    relay = None if settings.amqp_url is None else Relay(Outbox(database, ids), settings.url("amqp_url"), metrics)
    stores = Stores(
        jobs=jobs,
        readable_jobs=jobs if reading is database else Jobs(reading, ids, final_statuses=settings.final_statuses),
        retries=Retries(database, jobs, ids, relay),
        batches=Batches(database, ids),
        overview=Overview(reading, ids),
        ledger_overview=Overview(database, ids),
    )
    keys = keys_of(settings)
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
        tracing=tracing,
    )
    waiters = Waiters(settings.max_waiters)
    metrics.watch(waiters)
    watches = Watches.over(stores, interval_s=settings.watch_interval, waiters=waiters)

    background = Background()

    # Opened in this order, and closed in the opposite one.
    app = web.Application(middlewares=[door.middleware])
    app.cleanup_ctx.append(_opened(database))
    if reading is not database:
        app.cleanup_ctx.append(_opened(reading))
    replica = None if reading is database else reading
    app.cleanup_ctx.append(background.context(lambda stop: metrics.database.run(database, replica, stop=stop)))
    if isinstance(keys, KeySet):
        metrics.watch_keys(keys)
        app.cleanup_ctx.append(background.context(lambda stop: keys.run(stop=stop)))
    if relay is not None:
        app.cleanup_ctx.append(
            background.context(lambda stop: relay.run(stop=stop), grace_s=settings.shutdown_grace / 4)
        )

    async def hide_server(_request: web.Request, response: web.StreamResponse) -> None:
        response.headers.popall(hdrs.SERVER, None)

    async def release_waiters(_app: web.Application) -> None:
        watches.close()

    app.on_response_prepare.append(hide_server)  # of streams: an Answer never names the server
    app.on_shutdown.append(release_waiters)
    add_routes(
        app.router,
        door,
        stores,
        watches,
        ids=ids,
        cursors=Cursors(lambda: cursor_key(database)),
        max_wait_s=settings.max_wait,
        read_only=settings.read_only,
        console=settings.console == "on",
        poke=_no_relay if relay is None else relay.poke,
        poke_bulk=_no_relay if relay is None else relay.poke_bulk,
    )
    return Api(
        app=app,
        door=door,
        database=database,
        replica=replica,
        keys=keys if isinstance(keys, KeySet) else None,
        relay=relay,
        watches=watches,
        background=background,
    )


def _database_of(settings: "ApiSettings", field: str, *, writes: bool, replica: bool = False) -> Database:
    return Database(
        settings.url(field),
        program="redrive api",
        timeout_s=settings.db_timeout,
        pool_size=settings.db_pool_size,
        writes=writes,
        replica=replica,
        pooled=settings.database_pooled,
    )


def _rate_limit(name: str, limit: "Limit | None") -> RateLimit | None:
    return None if limit is None else RateLimit(name, limit)


def _no_relay() -> None:
    """Do nothing: without a broker, the workers look at the ledger themselves."""


def _require_c_parser() -> None:
    """Raise RuntimeError with aiohttp's pure-Python HTTP parser: it is ten times slower, and lenient in other ways."""
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise RuntimeError("aiohttp was installed without its C extensions")


def _opened(database: Database) -> Callable[[web.Application], AsyncIterator[None]]:
    async def context(_app: web.Application) -> AsyncIterator[None]:
        async with database.opened():
            yield

    return context
