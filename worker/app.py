"""The worker, put together by hand: a database, its settlement, and a session loop for each source of requests.

Stopping goes the other way round: readiness off, consumers cancelled, what is in hand settled and acknowledged,
connections closed. What could not be finished in time is where it was: queued, in the ledger and in its queue.
"""

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

import structlog

from shared.backoff import wait_for_any
from shared.database import Database
from shared.dead_letters import DeadLetters
from shared.errors import DatabaseUnavailable
from shared.migrations import warn_of_missing
from shared.ops import Readiness, Ready, Status, exposition_of, serve_ops
from shared.outbox import Outbox
from shared.settlement import Settlement
from shared.telemetry import metrics_registry
from shared.topology import Topology
from worker.dead_watch import DeadWatch
from worker.metrics import Metrics
from worker.sessions import supervise
from worker.settling import Settler
from worker.sources import QUEUES, LedgerSource, QueueSource, Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shared.settings import WorkerSettings

log = structlog.stdlib.get_logger(__name__)

BACKLOG_EVERY_S: Final = 5.0
_SHARE_OF_GRACE: Final = 0.75  # of the time to stop in: for what is in hand; the rest is for closing connections


async def run(settings: "WorkerSettings", *, stop: asyncio.Event, ops: bool = True) -> None:
    """Settle retry requests until `stop` is set; then return within `settings.shutdown_grace`.

    Servers that are away, now or later, are waited for. `ops=False` for several workers in one process: they need no
    port of their own. Raises OSError when the ops port is taken.
    """
    for note in settings.notes:
        log.warning("setting ignored", reason=note)
    registry = metrics_registry()
    metrics = Metrics(registry)
    database = Database(
        settings.url("database_url"),
        program="redrive worker",
        timeout_s=settings.db_timeout,
        pool_size=settings.db_pool_size,
        pooled=settings.database_pooled,
    )
    settlement = Settlement(database)
    topology = None if settings.amqp_url is None else Topology.of(settings.amqp_url.get_secret_value())
    sources = _sources(settings, settlement, metrics, topology)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(database.opened())
        if ops:
            ready = _ready(database, sources, stop)
            await stack.enter_async_context(
                serve_ops(host=settings.host, port=settings.ops_port, ready=ready, metrics=exposition_of(registry))
            )
        async with asyncio.TaskGroup() as tasks:
            watching = [
                tasks.create_task(_watch_backlog(settlement, metrics, stop=stop)),
                tasks.create_task(warn_of_missing(database)),
            ]
            if settings.amqp_url is not None and topology is not None:
                queues = [source for source in sources if isinstance(source, QueueSource)]
                url = settings.url("amqp_url")
                dead = DeadWatch(
                    url,
                    settlement,
                    Outbox(database),
                    DeadLetters(database),
                    metrics,
                    topology=topology,
                    sources=queues,
                )
                watching.append(tasks.create_task(dead.run(stop=stop)))
            working = [tasks.create_task(supervise(source, metrics, stop=stop)) for source in sources]
            log.info("worker started", sources=[source.name for source in sources])
            await stop.wait()
            for watch in watching:
                watch.cancel()
            await _finished(sources, working, within_s=settings.shutdown_grace * _SHARE_OF_GRACE)
    log.info("worker stopped")


def _sources(
    settings: "WorkerSettings", settlement: Settlement, metrics: Metrics, topology: Topology | None
) -> "Sequence[Source]":
    if settings.amqp_url is None or topology is None:
        return [LedgerSource(Settler(settlement, metrics), batch_size=settings.worker_batch_size)]
    return [
        QueueSource(
            settings.url("amqp_url"),
            queue,
            Settler(settlement, metrics),
            metrics,
            topology,
            batch_size=settings.worker_batch_size,
            batch_wait_s=settings.worker_batch_wait,
        )
        for queue in QUEUES
    ]


def _ready(database: Database, sources: "Sequence[Source]", stop: asyncio.Event) -> Ready:
    """Say whether there is a point in waiting for this worker.

    It is to go on, its database takes writes and is migrated, and its consumers are on their queues.
    """

    async def ready() -> Readiness:
        checks: dict[str, Status] = {}
        try:
            await database.probe()
            checks["database"] = Status.OK
        except DatabaseUnavailable:
            checks["database"] = Status.UNAVAILABLE
        if any(source.settler.is_degraded for source in sources):
            checks["settling"] = Status.DEGRADED
        queues = [source for source in sources if isinstance(source, QueueSource)]
        if queues:
            checks["broker"] = Status.OK if all(queue.is_ready for queue in queues) else Status.UNAVAILABLE
        well = not stop.is_set() and Status.UNAVAILABLE not in checks.values()
        if not well:
            return Readiness(Status.UNAVAILABLE, checks)
        return Readiness(Status.DEGRADED if Status.DEGRADED in checks.values() else Status.OK, checks)

    return ready


async def _watch_backlog(settlement: Settlement, metrics: Metrics, *, stop: asyncio.Event) -> None:
    """Keep the backlog's gauges up to date; while the database is away, they show what was last seen."""
    while not stop.is_set():
        try:
            backlog = await settlement.backlog()
        except DatabaseUnavailable:
            pass  # the sessions say so, once
        else:
            metrics.backlog_requests.set(backlog.requests)
            metrics.backlog_oldest_seconds.set(backlog.oldest_s)
        await wait_for_any(stop, timeout_s=BACKLOG_EVERY_S)


async def _finished(sources: "Sequence[Source]", working: "Sequence[asyncio.Task[None]]", *, within_s: float) -> None:
    """Let the sessions end in order; cut off what does not."""
    try:
        async with asyncio.timeout(within_s):
            await asyncio.gather(*(source.drain() for source in sources))
            await asyncio.gather(*working)
    except TimeoutError:
        for task in working:
            task.cancel()
        log.warning("worker stopped with work in hand", within_s=within_s)
