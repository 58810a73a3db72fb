"""The worker, put together by hand: a database, its settlement, and supervised sessions with each source of requests.

1. With RabbitMQ, there is a source for each queue, and, with a cluster of it, a bypass (worker/bypass.py); without, the
   ledger is the source.
2. Beside them run a look at the backlog, for its gauges, and the watch over dead letters.
3. To stop, the worker turns `/readyz` to 503, cancels its consumers, settles and acknowledges what is in hand, and
   closes its connections. A request that it has no time to settle is still queued, in the ledger and in its queue.
"""

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from shared.broker import is_cluster
from shared.database import Database
from shared.dead_letters import DeadLetters
from shared.errors import DatabaseUnavailable
from shared.job_ids import job_ids
from shared.migrations import SchemaWatch
from shared.ops import Readiness, Ready, Status, metrics_of, serve_ops
from shared.outbox import Outbox
from shared.relation import Guard
from shared.settlement import Settlement
from shared.telemetry import metrics_registry, tracing_of
from shared.topology import RETRIES_BULK, Topology
from worker.bypass import Bypass
from worker.dead_watch import DeadWatch
from worker.metrics import Metrics
from worker.sessions import supervise
from worker.settling import Settler
from worker.sources import QUEUES, LedgerSource, QueueSource, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shared.job_ids import JobIds
    from shared.settings import WorkerSettings

log = structlog.stdlib.get_logger(__name__)

_SHARE_OF_GRACE: Final = 0.75  # for what is in hand; the rest is for closing connections


async def run(settings: "WorkerSettings", *, stop: asyncio.Event, ops: bool = True) -> None:
    """Settle retry requests until `stop` is set; then return within `settings.shutdown_grace`.

    Waits for servers that are away, now or later. `ops=False`: without an ops port, for several workers in one process.
    Raises OSError when the ops port is taken.
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
    ids = job_ids(settings.job_id)
    settlement = Settlement(database, ids)
    guard = Guard(database, job_id=settings.job_id, updates=True)
    schema = SchemaWatch(database)
    topology = None if settings.amqp_url is None else Topology.of(settings.amqp_url.get_secret_value())
    async with AsyncExitStack() as stack:
        tracing = await stack.enter_async_context(tracing_of("worker", settings.tracing))
        await stack.enter_async_context(database.opened())
        settler = partial(Settler, settlement, metrics, tracing)
        queues = [] if topology is None else _queue_sources(settings, settler, metrics, topology, ids)
        for_bypass = partial(Settler, settlement, metrics, tracing, dead_letters=False)
        sources: list[Source] = [*queues, *_bypasses(settings, settlement, for_bypass, metrics, queues)]
        sources = sources or [LedgerSource(settler(), batch_size=settings.worker_batch_size)]
        if ops:
            ready = _ready(database, guard, schema, sources, stop, broker=topology is not None)
            await stack.enter_async_context(
                serve_ops(host=settings.host, port=settings.ops_port, ready=ready, metrics=metrics_of(registry))
            )
        async with asyncio.TaskGroup() as tasks:
            watching = [
                tasks.create_task(metrics.database.run(database, stop=stop)),
                tasks.create_task(schema.run()),
                tasks.create_task(guard.run()),
            ]
            await guard.first_look()
            if topology is not None:
                dead = DeadWatch(
                    settings.url("amqp_url"),
                    settlement,
                    Outbox(database, ids),
                    DeadLetters(database, ids),
                    metrics,
                    ids=ids,
                    topology=topology,
                    sources=queues,
                )
                watching.append(tasks.create_task(dead.run(stop=stop)))
            working = [tasks.create_task(supervise(source, metrics, stop=stop)) for source in sources]
            log.info("worker started", sources=[source.name for source in queues or sources])
            await stop.wait()
            for watch in watching:
                watch.cancel()  # a look that is under way is not waited for
            await _drain(sources, working, within_s=settings.shutdown_grace * _SHARE_OF_GRACE)
    log.info("worker stopped")


def _queue_sources(
    settings: "WorkerSettings", settler: "Callable[[], Settler]", metrics: Metrics, topology: Topology, ids: "JobIds"
) -> list[QueueSource]:
    return [
        QueueSource(
            settings.url("amqp_url"),
            queue,
            settler(),
            metrics,
            topology,
            ids=ids,
            batch_size=settings.worker_batch_size,
            batch_wait_s=settings.worker_batch_wait,
        )
        for queue in QUEUES
    ]


def _bypasses(
    settings: "WorkerSettings",
    settlement: Settlement,
    settler: "Callable[[], Settler]",
    metrics: Metrics,
    queues: "Sequence[QueueSource]",
) -> list[Bypass]:
    """One for each queue of a cluster; of a single node, none."""
    if not queues or not is_cluster(settings.url("amqp_url")):
        return []
    return [
        Bypass(
            queue.name,
            queue.lag,
            settlement,
            settler(),
            metrics,
            bulk=queue.name == RETRIES_BULK,
            batch_size=settings.worker_batch_size,
        )
        for queue in queues
    ]


def _ready(
    database: Database,
    guard: Guard,
    schema: SchemaWatch,
    sources: "Sequence[Source]",
    stop: asyncio.Event,
    *,
    broker: bool,
) -> Ready:
    """What `/readyz` asks.

    The worker is unavailable before its first look at the jobs, while migrations are missing, once `stop` is set, while
    its database does not answer or takes no writes, and, where there is a `broker`, while a source has no consumer. It
    is degraded while a settler is.
    """

    async def ready() -> Readiness:
        checks: dict[str, Status] = {}
        try:
            await database.probe()
            checks["database"] = Status.OK
        except DatabaseUnavailable:
            checks["database"] = Status.UNAVAILABLE
        if not schema.is_complete:
            checks["schema"] = Status.UNAVAILABLE
        if any(source.settler.is_degraded for source in sources):
            checks["settling"] = Status.DEGRADED
        if broker:
            checks["broker"] = Status.OK if all(source.is_ready for source in sources) else Status.UNAVAILABLE
        if not guard.has_looked or stop.is_set() or Status.UNAVAILABLE in checks.values():
            return Readiness(Status.UNAVAILABLE, checks)
        return Readiness(Status.DEGRADED if Status.DEGRADED in checks.values() else Status.OK, checks)

    return ready


async def _drain(sources: "Sequence[Source]", working: "Sequence[asyncio.Task[None]]", *, within_s: float) -> None:
    """Let the sessions settle what they have in hand; cancel those that need longer."""
    try:
        async with asyncio.timeout(within_s):
            await asyncio.gather(*(source.drain() for source in sources))
            await asyncio.gather(*working)
    except TimeoutError:
        for task in working:
            task.cancel()
        log.warning("worker stopped with work in hand", within_s=within_s)
