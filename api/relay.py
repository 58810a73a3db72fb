"""Ledger → RabbitMQ: publishes what the ledger says is not published yet.

One path for the normal case and for recovery: the relay asks the ledger, never its own memory. Rows are leased while
they are published, so relays in several processes take different ones; a relay that dies gives its rows back when the
lease ends, and the worker ignores the copy that this may cost.

    publishable (lease) → publish, mandatory, confirmed → a second later: mark_published
                                     └── anything else → give_back, and a new session

Single retries and bulk ones have a lane each, which share neither a session nor a place in line: ten thousand of a
batch are published beside the next single one, not before it.

What is confirmed is marked a second later, and only if it is still queued then. Most of it is settled by that time, and
marked by that: it costs no write more, and never makes the worker, who has it in hand at once, wait for our commit.
"""

import asyncio
import random
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import structlog

from shared import broker
from shared.broker import connected, translated
from shared.errors import BrokerUnavailable, RedriveError, TopologyMissing
from shared.failpoints import Failpoint, reach
from shared.messages import CONTENT_TYPE, encoded
from shared.secret import current
from shared.topology import KEY_BULK, KEY_RETRY, LEDGER_HEADER, Topology, publishing_on

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from aio_pika.abc import AbstractChannel, AbstractExchange

    from api.metrics import Metrics
    from shared.retries import Lease, Publishable, RetryLedger
    from shared.secret import Url

log = structlog.stdlib.get_logger(__name__)

BATCH: Final = 256
"""Published at a time, each waiting for its confirm: bounded, because a `multiple` confirm walks all that wait."""
BATCHES: Final = 3
"""Under way at once: while one waits for its confirms, the next is leased, and the one before is marked."""
LEASE_S: Final = 30.0
PUBLISH_TIMEOUT_S: Final = 10.0
POLL_S: Final = 1.0
MARK_AFTER_S: Final = 1.0
MARK: Final = 1_000
"""So many are marked at once; as many may wait for it, or the second is not waited for."""
SWEEP_EVERY_S: Final = 60.0
STALE_S: Final = 3600.0
SWEEP: Final = 1_000
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 5.0
_LONGEST_KNOCK_S: Final = 1.0
"""Between attempts to reach a broker: they cost it next to nothing, and once it is back it is wanted at once."""
_HEALTHY_S: Final = 10.0
"""A session that has lasted so long, with nothing to be confirmed, is a good one."""


class Relay:
    """Publishes in the background until told to stop; `poke` and `poke_bulk` tell it that there is something new."""

    def __init__(self, ledger: "RetryLedger", amqp_url: "Url", metrics: "Metrics") -> None:
        self._metrics = metrics
        topology = Topology.of(current(amqp_url))
        self._singles, self._bulk = self._lanes = [
            _Lane(ledger, amqp_url, metrics, topology, bulk=bulk, changed=self._show) for bulk in (False, True)
        ]

    @property
    def connected(self) -> bool:
        """Whether everything can be published."""
        return all(lane.connected for lane in self._lanes)

    def _show(self) -> None:
        self._metrics.relay_connected.set(self.connected)

    def poke(self) -> None:
        """Look for single retries now, not only at the next poll."""
        self._singles.poke()

    def poke_bulk(self) -> None:
        """Look for those of batches now."""
        self._bulk.poke()

    def stop(self) -> None:
        """Publish what is there, then let `run` return."""
        for lane in self._lanes:
            lane.stop()

    async def run(self) -> None:
        """Publish until stopped, whatever becomes of the broker and the database.

        What is not published by then stays in the ledger, for the next relay.
        """
        async with asyncio.TaskGroup() as tasks:
            for lane in self._lanes:
                tasks.create_task(lane.run())


class _Lane:
    """Publishes one kind of retries; `changed` is called when `connected` has changed."""

    def __init__(
        self,
        ledger: "RetryLedger",
        amqp_url: "Url",
        metrics: "Metrics",
        topology: Topology,
        *,
        bulk: bool,
        changed: "Callable[[], None]",
    ) -> None:
        self._ledger = ledger
        self._url = amqp_url
        self._metrics = metrics
        self._topology = topology
        self._missing = False
        self._bulk = bulk
        self._key = KEY_BULK if bulk else KEY_RETRY
        self._changed = changed
        self._news = asyncio.Event()
        self._stopping = False
        self._confirmed: list[Lease] = []
        self._mark_at = 0.0
        self._sweep_at = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self._trouble: type[Exception] | None = None
        self.connected = False

    def poke(self) -> None:
        self._news.set()

    def stop(self) -> None:
        self._stopping = True
        self._news.set()

    async def run(self) -> None:
        """Hold a session with the broker, and start a new one after any loss, until stopped.

        Pauses grow until a session turns out to be good: one that begins well may still get nothing published. An
        outage is two lines in the log, its beginning and the `relay connected` that ends it.
        """
        while not self._stopping:
            longest_s = _LONGEST_KNOCK_S
            try:
                async with self._session() as (channel, exchange):
                    longest_s = _LONGEST_PAUSE_S
                    await self._publish_until_stopped(channel, exchange)
            except Exception as error:
                self._missing = isinstance(error, TopologyMissing)  # a queue or its binding: declared by the next
                self._metrics.publish_failures.inc()
                if type(error) is not self._trouble:
                    # A server that is away is no news of ours; anything else is a mistake of ours, with its trace.
                    trace = not isinstance(error, RedriveError)
                    log.warning(
                        "relay session ended",
                        key=self._key,
                        error=type(error).__name__,
                        reason=str(error),
                        exc_info=trace,
                    )
                self._trouble = type(error)
            with suppress(TimeoutError):
                async with asyncio.timeout(
                    min(longest_s, self._pause_s) * random.uniform(0.5, 1.0)  # noqa: S311 - spreading, not secrecy
                ):
                    await self._wait_for_stop()
            self._pause_s = min(longest_s, self._pause_s * 2)

    def _went_well(self) -> None:
        """The session is good: the next one follows soon, and what ends this one is news."""
        if self._trouble is not None:
            log.info("relay connected", key=self._key)
        self._trouble = None
        self._pause_s = _FIRST_PAUSE_S

    async def _wait_for_stop(self) -> None:
        while not self._stopping:
            self._news.clear()
            await self._news.wait()

    @asynccontextmanager
    async def _session(self) -> "AsyncIterator[tuple[AbstractChannel, AbstractExchange]]":
        with translated():
            async with connected(self._url, name=f"redrive api: relay, {self._key}") as connection:
                if self._missing:
                    await self._topology.mend(connection)
                    self._missing = False
                channel, exchange = await self._topology.needed_by(connection, lambda: publishing_on(connection))
                channel.close_callbacks.add(self._look_up)
                self._set_connected(connected=True)
                if self._trouble is None:
                    log.info("relay connected", key=self._key)
                try:
                    yield channel, exchange
                finally:
                    self._set_connected(connected=False)

    def _set_connected(self, *, connected: bool) -> None:
        self.connected = connected
        self._changed()

    def _look_up(self, *_: object) -> None:
        """Let a session that waits for news see that its channel is closed, and end."""
        self._news.set()

    async def _publish_until_stopped(self, channel: "AbstractChannel", exchange: "AbstractExchange") -> None:
        """Lease a batch and publish it, while those before it wait for their confirms; a few at a time.

        Raises the first failure, once all that is under way has ended: confirmed, or given back.
        """
        loop = asyncio.get_running_loop()
        healthy_at = loop.time() + _HEALTHY_S
        self._sweep_at = 0.0  # at once: a session that begins may follow the loss of a queue
        publishing: set[asyncio.Task[None]] = set()
        try:
            while True:
                self._news.clear()
                if channel.is_closed:  # a broker that left is to be missed though there is nothing to publish
                    raise BrokerUnavailable("channel closed")
                await self._keep_books()
                while rows := await self._ledger.publishable(BATCH, lease_s=LEASE_S, bulk=self._bulk):
                    publishing.add(asyncio.create_task(self._publish(exchange, rows)))
                    publishing = await self._room(publishing)
                    if len(rows) < BATCH:
                        break
                if self._stopping:
                    break
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await self._news.wait()
                publishing = _still_going(publishing)
                if not publishing and loop.time() >= healthy_at:
                    self._went_well()
            await asyncio.gather(*publishing)
            await self._mark()
        except asyncio.CancelledError:
            for task in publishing:
                task.cancel()
            raise
        finally:
            await asyncio.gather(*publishing, return_exceptions=True)

    async def _room(self, publishing: "set[asyncio.Task[None]]") -> "set[asyncio.Task[None]]":
        """Wait until another batch may be published; answers those that are under way. Raises what one of them has."""
        while len(publishing := _still_going(publishing)) >= BATCHES:
            await asyncio.wait(publishing, return_when=asyncio.FIRST_COMPLETED)
        return publishing

    async def _publish(self, exchange: "AbstractExchange", rows: "Sequence[Publishable]") -> None:
        """Publish rows at once; those that the broker has confirmed will be marked, whatever became of the others."""
        reach(Failpoint.BEFORE_PUBLISH)
        results = await asyncio.gather(*(_published(exchange, self._key, row) for row in rows), return_exceptions=True)
        confirmed: list[Lease] = []
        failed: list[Lease] = []
        failure: BaseException | None = None
        for row, result in zip(rows, results, strict=True):
            if result is None:
                confirmed.append(row.lease)
            else:
                failed.append(row.lease)
                failure = result
        if confirmed:
            reach(Failpoint.AFTER_CONFIRM)
            self._confirmed += confirmed
            self._metrics.published.inc(len(confirmed))
        if failed:
            await self._ledger.give_back([lease.id for lease in failed])
        if failure is not None:
            self._news.set()  # the session is to end now, not at the next poll
            raise failure
        self._went_well()
        if len(self._confirmed) >= MARK:
            await self._mark()

    async def _keep_books(self) -> None:
        """What is due now and then: marking, and letting be published again what must have been lost."""
        now = asyncio.get_running_loop().time()
        if now >= self._mark_at:
            self._mark_at = now + MARK_AFTER_S
            await self._mark()
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_EVERY_S
            if stale := await self._ledger.republish_stale(SWEEP, age_s=STALE_S, bulk=self._bulk):
                log.warning("requests to be published again", requests=stale, unsettled_for_s=STALE_S)

    async def _mark(self) -> None:
        """Mark what was confirmed. Where that fails, its lease ends, and it is published again."""
        confirmed, self._confirmed = self._confirmed, []
        if confirmed:
            await self._ledger.mark_published(confirmed)


async def _published(exchange: "AbstractExchange", key: str, row: "Publishable") -> None:
    """Publish one; return once the broker has it on disk. Raises BrokerUnavailable."""
    await broker.publish(
        exchange,
        key,
        encoded(row.message),
        content_type=CONTENT_TYPE,
        headers={LEDGER_HEADER: True} | ({"traceparent": row.traceparent} if row.traceparent else {}),
        within_s=PUBLISH_TIMEOUT_S,
    )


def _still_going(publishing: "set[asyncio.Task[None]]") -> "set[asyncio.Task[None]]":
    """The tasks that are not done. Raises what one that is has raised."""
    for task in publishing:
        if task.done():
            task.result()
    return {task for task in publishing if not task.done()}
