"""The relay: publishes to RabbitMQ what the ledger holds as not published yet.

1. A retry is accepted when its row is in the ledger. While the relay publishes well, a single retry is inserted with a
   lease for this process, which hands it to the relay (`take`). All others are free, and the relay leases them: when
   it is woken for them (`poke`), and once a second. The relays of other processes lease other rows.
2. When a relay dies, its leases end, and another relay publishes the rows. The worker ignores the second copy that this
   may cost.
3. A session publishes a batch, packed into messages, and waits until RabbitMQ confirms each. As long as batches are
   full, three may be under way. Otherwise the session begins the next batch only after those under way have ended, and
   20 ms after the last one began: retries that are accepted in these milliseconds then go out together.
4. The session gives back the rows that were not confirmed, and ends with that failure. After a pause the next session
   begins with one row. While nothing is confirmed it leases no other row, so that a worker can take the others from
   the ledger.
5. The session marks confirmed rows as published a second later (bulk ones: three seconds), if they are still queued.
   Most are settled by then, and settling marks them, too. That saves a write, and the worker, which has the message at
   once, never waits for our commit. After a failure of the database they are not marked, and their leases end: another
   server may have taken its place, without the commit that settled them.

Nothing is kept in memory that would be missed: a relay that starts anew finds all that it needs in the ledger, what was
leased to another one when that lease has ended.

Single and bulk retries have a lane each, with a session of its own: a single retry does not wait until the ten
thousand of a bulk retry are published.
"""

import asyncio
from collections import deque
from contextlib import asynccontextmanager, suppress
from itertools import takewhile
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from shared import broker
from shared.backoff import Backoff, Outage, wait_for_any
from shared.broker import Nodes, connected, is_cluster, translated
from shared.errors import BrokerUnavailable, DatabaseUnavailable, RedriveError, TopologyMissing
from shared.failpoints import Failpoint, reach
from shared.messages import CONTENT_TYPE, encoded, packed
from shared.secret import current
from shared.topology import KEY_BULK, KEY_RETRY, LEDGER_HEADER, Topology, publishing_on

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from aio_pika.abc import AbstractChannel, AbstractExchange

    from api.metrics import Metrics
    from shared.outbox import Lease, Leased, Outbox
    from shared.secret import Url

log = structlog.stdlib.get_logger(__name__)

BATCH: Final = 300
"""Requests that are published together, as three messages, or as so many where they must travel alone; bounded,
because a `multiple` confirm walks all unconfirmed messages."""
BATCHES: Final = 3
"""Full ones under way at once: while one waits for its confirms, the next is leased, and the one before is marked. None
follows one with requests that travel alone: it has up to 300 messages."""
GATHER_S: Final = 0.02
"""From the beginning of a batch that is not full to the next one: a message costs much the same whatever it holds, and
a worker waits as long for others. A retry that comes alone does not wait."""
LEASE_S: Final = 30.0
TAKE_LEASE_S: Final = 10.0
"""Of a request that is leased as it is accepted: shorter, because it is published only after that where the answer to
its INSERT is lost, or the process dies right then."""
MOST_TAKEN: Final = 1_000
"""Taken requests that wait. What is accepted beyond is free for other relays; INSERTs under way add some hundreds."""
STALLED_S: Final = 1.0
"""A confirm that takes so long may never come: what is accepted meanwhile is free for other relays and for workers."""
PUBLISH_TIMEOUT_S: Final = 10.0
NODE_TIMEOUT_S: Final = 3.0
"""The same, where another node can be asked."""
POLL_S: Final = 1.0
"""How often it looks, and marks."""
MARK_AFTER_S: Final = 1.0
MARK_BULK_AFTER_S: Final = 3.0
"""After a confirm; a batch of ten thousand is settled by then."""
MARK: Final = 1_000
"""Rows that are marked in one statement."""
MOST_UNMARKED: Final = 20_000
"""Confirmed rows that wait to be marked; beyond that, the oldest are marked at once."""
SWEEP_EVERY_S: Final = 60.0
STALE_S: Final = 3600.0
SWEEP: Final = 1_000
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 2.0
_GIVE_BACK_S: Final = 0.5
"""When the time to stop in is over: for so long it gives back what it has not published."""
_LONGEST_CONNECT_PAUSE_S: Final = 1.0
"""Between attempts to connect: an attempt costs a broker next to nothing, and a broker that is back is used soon."""
_HEALTHY_S: Final = 10.0
"""A session that has lasted so long, with no batch under way, is healthy."""


class Relay:
    """Publishes in the background: what it is given by `take`, and what it finds after `poke` and `poke_bulk`."""

    def __init__(self, outbox: "Outbox", amqp_url: "Url", metrics: "Metrics") -> None:
        self._metrics = metrics
        topology = Topology.of(current(amqp_url))
        self._singles, self._bulk = self._lanes = [
            _Lane(outbox, amqp_url, metrics, topology, bulk=bulk, changed=self._show) for bulk in (False, True)
        ]

    @property
    def connected(self) -> bool:
        """Whether both lanes can publish."""
        return all(lane.connected for lane in self._lanes)

    def _show(self) -> None:
        self._metrics.relay_connected.set(self.connected)

    @property
    def lease_s(self) -> float | None:
        """For how long a single retry that is accepted now is to be leased to this relay; None: it takes none now."""
        return TAKE_LEASE_S if self._singles.keeps_up else None

    def take(self, requests: "Sequence[Leased]") -> None:
        """Publish these single retries, which are leased to this relay for `lease_s`."""
        self._singles.take(requests)

    def poke(self) -> None:
        """Look for single retries now, not at the next poll."""
        self._singles.look()

    def poke_bulk(self) -> None:
        """Look for bulk retries now, not at the next poll."""
        self._bulk.look()

    async def run(self, *, stop: asyncio.Event) -> None:
        """Publish until `stop` is set, whatever becomes of the broker and the database, and then what is left.

        What cannot be published by then stays in the ledger, for the next relay.
        """
        async with asyncio.TaskGroup() as tasks:
            for lane in self._lanes:
                tasks.create_task(lane.run(stop=stop))
            await stop.wait()
            for lane in self._lanes:
                lane.wake()


class _Lane:
    """Publishes the single retries, or the bulk ones; calls `changed` when `connected` has changed."""

    def __init__(
        self,
        outbox: "Outbox",
        amqp_url: "Url",
        metrics: "Metrics",
        topology: Topology,
        *,
        bulk: bool,
        changed: "Callable[[], None]",
    ) -> None:
        self._outbox = outbox
        self._url = amqp_url
        self._metrics = metrics
        self._topology = topology
        self._bulk = bulk
        self._key = KEY_BULK if bulk else KEY_RETRY
        self._changed = changed
        self._nodes = Nodes()
        self._within_s = PUBLISH_TIMEOUT_S
        self._woken = asyncio.Event()  # means: look now; it does not say whether for rows, a failure or the stop
        self._backoff = Backoff(first_s=_FIRST_PAUSE_S, longest_s=_LONGEST_PAUSE_S)
        self._outage = Outage()
        self._topology_missing = False
        self._batches_under_way = 0
        self._begun_at = 0.0  # the last batch
        self._moved_at = 0.0  # when a batch was begun while none was under way, or was confirmed
        self._awaits_batches = False  # begins nothing until those under way have ended
        self._failure: BaseException | None = None
        self._confirm_missing = False  # at the last batch; the next one has one row
        self._taken: deque[Leased] = deque()
        self._looks = True  # there may be free requests in the ledger
        self._behind = True  # the last look found as many as it could take: there may be more
        self._last_leased: Leased | None = None  # the next look begins behind it
        self._confirmed: deque[tuple[float, Lease]] = deque()  # since when, and which
        self._due_at = 0.0  # the next marking and the next look
        self._sweep_at = 0.0
        self.connected = False

    def wake(self) -> None:
        self._woken.set()

    def look(self) -> None:
        """Look into the ledger now."""
        self._looks = True
        self.wake()

    @property
    def keeps_up(self) -> bool:
        """Whether what it is given now is published at once, as nothing older is known to wait."""
        return (
            self.connected
            and self._failure is None
            and not self._confirm_missing
            and not self._behind
            and len(self._taken) < MOST_TAKEN
            and (not self._batches_under_way or asyncio.get_running_loop().time() - self._moved_at < STALLED_S)
        )

    def take(self, requests: "Sequence[Leased]") -> None:
        """Publish these, which are leased to this lane."""
        self._taken.extend(requests)
        self.wake()

    async def run(self, *, stop: asyncio.Event) -> None:
        """Hold a session with the broker, and begin a new one after each loss, until `stop` is set.

        The pauses grow until a session proves healthy: one that connects may still get nothing published. An outage is
        two lines in the log: `relay session ended` begins it, and the next `relay connected` ends it.
        """
        try:
            await self._hold_sessions(stop)
        except asyncio.CancelledError:
            with suppress(TimeoutError):
                async with asyncio.timeout(_GIVE_BACK_S):
                    await self._give_back_taken()
            raise

    async def _hold_sessions(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            longest_pause_s = _LONGEST_CONNECT_PAUSE_S
            try:
                async with self._session() as (channel, exchange):
                    longest_pause_s = _LONGEST_PAUSE_S
                    await self._publish_until_stopped(channel, exchange, stop)
            except Exception as error:
                self._topology_missing = isinstance(error, TopologyMissing)
                if isinstance(error, DatabaseUnavailable):
                    self._confirmed.clear()
                self._metrics.publish_failures.inc()
                if self._outage.begin(type(error)):
                    log.warning(
                        "relay session ended",
                        key=self._key,
                        error=type(error).__name__,
                        reason=str(error),
                        exc_info=not isinstance(error, RedriveError),  # a traceback only for faults of our own
                    )
            await self._mark_or_forget()
            await self._give_back_taken()
            await self._backoff.pause(stop, longest_s=longest_pause_s)

    def _note_success(self) -> None:
        """The session is healthy: its end is worth a line in the log, and the next one follows soon."""
        if self._outage.end():
            log.info("relay connected", key=self._key)
        self._backoff.reset()

    @asynccontextmanager
    async def _session(self) -> "AsyncIterator[tuple[AbstractChannel, AbstractExchange]]":
        """Connect for the length of the block; declare the topology first if the last session found it missing."""
        self._within_s = NODE_TIMEOUT_S if is_cluster(self._url) else PUBLISH_TIMEOUT_S
        with translated():
            async with connected(self._url, name=f"redrive api: relay, {self._key}", nodes=self._nodes) as connection:
                if self._topology_missing:
                    await self._topology.mend(connection)
                    self._topology_missing = False
                channel, exchange = await self._topology.needed_by(connection, lambda: publishing_on(connection))
                channel.close_callbacks.add(self._on_close)
                self._set_connected(connected=True)
                if not self._outage.active:
                    log.info("relay connected", key=self._key)
                try:
                    yield channel, exchange
                finally:
                    self._set_connected(connected=False)

    def _on_close(self, *_: object) -> None:
        self.wake()

    def _set_connected(self, *, connected: bool) -> None:
        self.connected = connected
        self._changed()

    async def _publish_until_stopped(
        self, channel: "AbstractChannel", exchange: "AbstractExchange", stop: asyncio.Event
    ) -> None:
        """Publish what there is until `stop` is set.

        Raises the session's first failure, after each batch under way has been confirmed or given back.
        """
        self._failure, self._batches_under_way = None, 0
        async with asyncio.TaskGroup() as publishing:
            try:
                await self._look_until_stopped(channel, exchange, stop, publishing)
            except Exception as error:  # noqa: BLE001 - raised below; here it would cancel the batches under way
                self._fail(error)
        if self._failure is not None:
            raise self._failure
        await self._mark(len(self._confirmed))

    def _fail(self, failure: BaseException) -> None:
        """Record what ends the session: the first failure, or one of the database, after which nothing is marked."""
        if self._failure is None or isinstance(failure, DatabaseUnavailable):
            self._failure = failure
        self.wake()

    async def _look_until_stopped(
        self,
        channel: "AbstractChannel",
        exchange: "AbstractExchange",
        stop: asyncio.Event,
        publishing: asyncio.TaskGroup,
    ) -> None:
        """Publish what there is when woken, and at each poll; return when `stop` is set or a batch has failed."""
        loop = asyncio.get_running_loop()
        healthy_at = loop.time() + _HEALTHY_S
        room = asyncio.Semaphore(BATCHES)
        self._sweep_at = 0.0  # at once: the session before may have ended with the loss of a queue
        self._looks, self._behind, self._last_leased = True, True, None
        while self._failure is None:
            self._woken.clear()
            if channel.is_closed:  # also when there is nothing to publish
                raise BrokerUnavailable("channel closed")
            if not self._batches_under_way and loop.time() >= healthy_at:
                self._note_success()
            await self._keep_books()
            if stop.is_set():
                self._looks = True
            self._awaits_batches = bool(self._batches_under_way) and not stop.is_set()
            next_at = self._begun_at + GATHER_S
            if not self._awaits_batches and (stop.is_set() or loop.time() >= next_at):
                await self._start_batches(exchange, publishing, room)
                next_at = self._due_at
            if stop.is_set():
                return
            wake_at = self._due_at if self._awaits_batches else min(self._due_at, next_at)
            await wait_for_any(self._woken, timeout_s=max(0.0, wake_at - loop.time()))

    async def _start_batches(
        self, exchange: "AbstractExchange", publishing: asyncio.TaskGroup, room: asyncio.Semaphore
    ) -> None:
        """Start to publish batch after batch, each when there is room, until no full one is left."""
        while True:
            await room.acquire()
            if self._failure is not None:
                return  # keeps its room, which ends with the session: nothing else starts
            rows = await self._next_rows()
            if not rows:
                room.release()
                return
            self._begun_at = asyncio.get_running_loop().time()
            if not self._batches_under_way:
                self._moved_at = self._begun_at
            self._batches_under_way += 1
            publishing.create_task(self._publish(exchange, rows, room))
            if len(rows) < BATCH:  # or one row to try with, whose confirm has the others looked for
                return
            if any(row.alone for row in rows):
                return
            if await self._keep_books():
                self._last_leased = None  # once a second from the oldest on: some were given back meanwhile

    async def _next_rows(self) -> "list[Leased]":
        """Up to a batch of what was taken, and, where the lane is to look, of what it can lease.

        One row, leased, where nothing was confirmed at last.
        """
        if self._confirm_missing:
            await self._give_back_taken()
        limit = 1 if self._confirm_missing else BATCH - min(BATCH, len(self._taken))
        leased: list[Leased] = []
        if self._looks and not limit:
            self._behind = True  # takes no more, so that there is room for the look
        elif self._looks:
            self._looks = False  # before the look: it may miss what is accepted meanwhile
            leased = await self._outbox.lease(limit, lease_s=LEASE_S, bulk=self._bulk, after=self._last_leased)
            self._behind = len(leased) == limit
            self._last_leased = None
            if self._behind and not self._confirm_missing:
                self._looks, self._last_leased = True, leased[-1]
        if self._confirm_missing:
            return leased
        return leased + [self._taken.popleft() for _ in range(min(BATCH - len(leased), len(self._taken)))]

    async def _mark_or_forget(self) -> None:
        """Mark what was confirmed, at once: by the next session another server may have taken the database's place."""
        try:
            await self._mark(len(self._confirmed))
        except RedriveError:
            self._confirmed.clear()

    async def _give_back_taken(self) -> None:
        """Let other relays, and workers, have what was taken and is not published.

        Where the database is away, the next session publishes it, or another relay when the leases have ended.
        """
        if not self._taken:
            return
        taken = list(self._taken)
        self._taken.clear()
        try:
            await self._outbox.give_back([request.lease for request in taken])
        except (RedriveError, asyncio.CancelledError) as error:
            self._taken.extendleft(reversed(taken))
            if isinstance(error, asyncio.CancelledError):
                raise

    async def _publish(self, exchange: "AbstractExchange", rows: "Sequence[Leased]", room: asyncio.Semaphore) -> None:
        """Publish one batch: note the rows that are confirmed, give the others back, and record the failure."""
        in_hand = rows
        try:
            reach(Failpoint.BEFORE_PUBLISH)
            packs = list(_packs_of(rows))
            failures = await asyncio.gather(
                *(self._publish_pack(exchange, pack) for pack in packs), return_exceptions=True
            )
            outcomes = list(zip(packs, failures, strict=True))
            confirmed = [row.lease for pack, failure in outcomes if failure is None for row in pack.rows]
            if confirmed:
                reach(Failpoint.AFTER_CONFIRM)
                now = asyncio.get_running_loop().time()
                self._confirmed += ((now, lease) for lease in confirmed)
                self._moved_at = now
                self._metrics.published.inc(len(confirmed))
                self._metrics.published_batches.inc()
            refused = [(row, failure) for pack, failure in outcomes if failure is not None for row in pack.rows]
            in_hand = [row for row, _ in refused]
            if refused:
                self._confirm_missing = True
                await self._give_back_taken()
                await self._outbox.give_back([row.lease for row in in_hand])
                self._fail(refused[0][1])
                return
            self._note_success()
            if self._confirm_missing:
                self._confirm_missing = False
                self.look()  # for the others
            if len(self._confirmed) > MOST_UNMARKED:
                await self._mark(MARK)
        except asyncio.CancelledError:  # it may be published, and then has two copies; the lane gives it back
            self._taken.extendleft(reversed(in_hand))
            raise
        except Exception as error:  # noqa: BLE001 - the session raises it, after the other batches have ended
            self._fail(error)
        finally:
            self._batches_under_way -= 1
            room.release()
            if self._awaits_batches and not self._batches_under_way:
                self.wake()

    async def _publish_pack(self, exchange: "AbstractExchange", pack: "_Pack") -> None:
        """Publish one message; return once the broker has it on disk. Raises BrokerUnavailable.

        A message of one request has its trace. Where there are several, the ledger has their traces.
        """
        trace = pack.rows[0].traceparent if len(pack.rows) == 1 else None
        await broker.publish(
            exchange,
            self._key,
            pack.body,
            content_type=CONTENT_TYPE,
            headers={LEDGER_HEADER: True} | ({"traceparent": trace} if trace else {}),
            within_s=self._within_s,
        )

    async def _keep_books(self) -> bool:
        """Mark what was confirmed, and ask for a look, once a second; publish again what must be lost, once a minute.

        Returns whether a second was over.
        """
        now = asyncio.get_running_loop().time()
        is_due = now >= self._due_at
        if is_due:
            self._due_at = now + POLL_S
            self._looks = True
            latest = now - (MARK_BULK_AFTER_S if self._bulk else MARK_AFTER_S)
            await self._mark(sum(1 for _ in takewhile(lambda each: each[0] <= latest, self._confirmed)))
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_EVERY_S
            if stale := await self._outbox.republish_stale(SWEEP, age_s=STALE_S, bulk=self._bulk):
                log.warning("requests to be published again", requests=stale, unsettled_for_s=STALE_S)
        return is_due

    async def _mark(self, count: int) -> None:
        """Mark the first `count` that were confirmed. Where this fails, the leases end: they are published again."""
        while count > 0:
            leases = [self._confirmed.popleft()[1] for _ in range(min(MARK, count, len(self._confirmed)))]
            if not leases:
                return
            count -= len(leases)
            await self._outbox.mark_published(leases)


class _Pack(NamedTuple):
    """A message, and the requests that are in it."""

    body: bytes
    rows: "Sequence[Leased]"


def _packs_of(rows: "Sequence[Leased]") -> "Iterator[_Pack]":
    """These requests in as few messages as hold them; those that must travel alone, alone."""
    together = [row for row in rows if not row.alone]
    start = 0
    for body, count in packed([row.message for row in together]):
        yield _Pack(body, together[start : start + count])
        start += count
    for row in rows:
        if row.alone:
            yield _Pack(encoded(row.message), [row])
