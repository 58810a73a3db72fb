"""Sources: where the worker takes its batches from, a queue on RabbitMQ or the ledger itself.

1. A session lasts until the worker stops, or until it loses the broker or the database. It is never repaired; another
   one follows (worker/sessions.py). After a lost one, that one is on probation (worker/probation.py).
2. On RabbitMQ, a session is one connection, one channel, one consumer and one batch in hand, so that one
   `ack(multiple=True)` acknowledges exactly that batch:

       deliveries → batch → one transaction, committed → dead letters, confirmed → ack

3. A message of several requests that was delivered before is taken apart: its queued requests are published again, each
   alone. A worker may have died of one of them, and the others must not share its deliveries.
4. Each queue has sessions of its own: bulk retries share neither a socket nor a batch with single ones.
"""

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from shared.backoff import wait_for_any
from shared.broker import Nodes, connected, is_cluster, translated
from shared.errors import BrokerUnavailable
from shared.failpoints import Failpoint, reach
from shared.messages import MOST_REQUESTS, LedgerMessage
from shared.models import Outcome
from shared.telemetry import traceparent_of
from shared.topology import RETRIES, RETRIES_BULK
from worker import dead_letters, probation
from worker.bypass import Lag
from worker.consumers import Consumer
from worker.dead_letters import Letter
from worker.deliveries import Delivery
from worker.probation import Probation

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from shared.job_ids import JobIds
    from shared.models import RetryId
    from shared.secret import Url
    from shared.settlement import Settled
    from shared.topology import Topology
    from worker.metrics import Metrics
    from worker.settling import Settler

log = structlog.stdlib.get_logger(__name__)

QUEUES: Final = (RETRIES, RETRIES_BULK)
POLL_S: Final = 0.1
WATCHDOG_S: Final = 15.0
PING_S: Final = 2.0
"""How often an idle consumer asks its node for an answer: a node that is frozen closes no connection."""
_REFUSED: Final = "refused by the database"


class Source(Protocol):
    """What `sessions.supervise` keeps sessions with."""

    name: str
    settler: "Settler"

    @property
    def is_ready(self) -> bool:
        """Whether requests come from here now."""

    async def session(self, stop: asyncio.Event) -> None:
        """Settle batches until `stop` is set, and the one in hand. Raises BrokerUnavailable, DatabaseUnavailable."""

    async def drain(self) -> None:
        """Take nothing new, so that the session under way ends; call it once `stop` is set."""


class LedgerSource:
    """Takes queued requests straight from the ledger: dispatch without a broker."""

    name = "ledger"

    def __init__(self, settler: "Settler", *, batch_size: int) -> None:
        self.settler = settler
        self._batch_size = batch_size

    @property
    def is_ready(self) -> bool:
        """Always: the worker checks the database by itself."""
        return True

    async def session(self, stop: asyncio.Event) -> None:
        """Look for queued requests ten times a second, and again at once after a full batch."""
        while not stop.is_set():
            if await self.settler.settle_queued(self._batch_size) < self._batch_size:
                await wait_for_any(stop, timeout_s=POLL_S)

    async def drain(self) -> None:
        """Do nothing: no request is taken before its batch."""


class QueueSource:
    """Takes retry messages from one queue."""

    def __init__(
        self,
        url: "Url",
        queue: str,
        settler: "Settler",
        metrics: "Metrics",
        topology: "Topology",
        *,
        ids: "JobIds",
        batch_size: int,
        batch_wait_s: float,
    ) -> None:
        self.name = queue
        self._topology = topology
        self._ids = ids
        self._url = url
        self.settler = settler
        self._metrics = metrics
        self._batch_size = batch_size
        self._batch_wait_s = batch_wait_s
        self._prefetch = _prefetch_for(queue, batch_size)
        self._consumer: Consumer | None = None
        self._nodes = Nodes()
        self._probation = Probation()
        self._idle_since: float | None = None
        self.lag = Lag()

    @property
    def idle_s(self) -> float:
        """For how long the queue has delivered nothing to a consumer that waits; 0 while none waits."""
        if self._consumer is None or self._idle_since is None:
            return 0.0
        return asyncio.get_running_loop().time() - self._idle_since

    @property
    def is_ready(self) -> bool:
        """Whether a consumer is on the queue, as far as RabbitMQ has said."""
        return self._consumer is not None

    async def session(self, stop: asyncio.Event) -> None:
        """Consume until `stop` is set, and settle what was delivered until then. On probation it may end early.

        Raises BrokerUnavailable, DatabaseUnavailable; the messages in hand then return to the queue.
        """
        with self._probation.session() as on_probation, translated():
            size, prefetch = (1, 1) if on_probation else (self._batch_size, self._prefetch)
            reading = asyncio.Event()
            reading.set()
            name = f"redrive worker: {self.name}"
            async with connected(self._url, name=name, reading=reading, nodes=self._nodes) as connection:
                consumer = await self._topology.needed_by(
                    connection,
                    lambda: Consumer.on(connection, self.name, self._ids, prefetch=prefetch, reading=reading),
                )
                if stop.is_set():
                    return
                self._consumer = consumer
                self._metrics.consumers.inc()
                log.info("consuming", queue=self.name)
                try:
                    while batch := await self._take_batch(consumer, size):
                        reach(Failpoint.AFTER_RECEIVE)
                        with self.lag.settling():
                            await self._settle(batch)
                        reach(Failpoint.BEFORE_ACK)
                        await consumer.ack(batch)
                        if on_probation and consumer.acked == probation.MESSAGES:
                            await consumer.cancel()
                finally:
                    self._consumer = None
                    self._metrics.consumers.dec()

    async def drain(self) -> None:
        """Cancel the consumer; the session ends once everything that was delivered is settled."""
        if self._consumer is not None:
            await self._consumer.cancel()

    async def _take_batch(self, consumer: "Consumer", size: int) -> list[Delivery]:
        """Take the next batch; empty at the end.

        Raises BrokerUnavailable where the consumer has starved at two looks in a row. One look may see a message that
        has just arrived. Where there is another node to go to, raises it also when this one does not answer.
        """
        starved = False
        look_s = PING_S if is_cluster(self._url) else WATCHDOG_S
        idle_s = 0.0
        self._idle_since = asyncio.get_running_loop().time()
        while True:
            try:
                batch = await consumer.inbox.take_batch(max_size=size, max_wait_s=self._batch_wait_s, timeout_s=look_s)
            except TimeoutError:
                idle_s += look_s
                if idle_s < WATCHDOG_S:
                    await consumer.ping()
                    continue
                idle_s = 0.0
                starved_before, starved = starved, await consumer.is_starved()
                if starved_before and starved:
                    raise BrokerUnavailable("messages wait, but none is delivered") from None
            else:
                self._idle_since = None
                return batch

    async def _settle(self, batch: list[Delivery]) -> None:
        letters = [Letter(each.message, *part) for each in batch for part in each.contents.unreadable]
        unreadable = len(letters)
        poison: set[RetryId] = set()
        if apart := [each for each in batch if each.is_to_be_taken_apart]:
            requests = [request for each in apart for request in each.contents.requests]
            poison |= await self.settler.take_apart(requests, messages=len(apart))
        whole = [each for each in batch if not each.is_to_be_taken_apart]
        requests = [request for each in whole for request in each.contents.requests]
        settled = await self.settler.settle(requests) if requests else {}
        self.lag.note(settled[each.id] for each in requests if isinstance(each, LedgerMessage) and each.id in settled)
        poison |= {each for each, (outcome, _) in settled.items() if outcome is Outcome.POISON}
        dead = await self.settler.dead_among(poison)
        letters += _letters_of(batch, poison - {each for each, found in dead.items() if found.has_letter})
        if letters:
            await dead_letters.put_aside(self._url, letters, self._topology)
            self._metrics.unreadable.inc(unreadable)
            reasons = sorted({letter.reason for letter in letters})
            log.warning("messages dead-lettered", queue=self.name, messages=len(letters), reasons=reasons)
            await self.settler.mark_letters(dead)
        if logging.getLogger(__name__).isEnabledFor(logging.DEBUG):
            for each in whole:
                _log_settled(each, settled)


def _prefetch_for(queue: str, batch_size: int) -> int:
    """How many messages to have in hand: two batches, so that the next one waits while one is settled.

    A message of bulk requests holds as many as fit. Single requests may come one by one.
    """
    most = MOST_REQUESTS if queue == RETRIES_BULK else 1
    return max(2, math.ceil(2 * batch_size / most))


def _letters_of(deliveries: "Sequence[Delivery]", refused: "Collection[RetryId]") -> list[Letter]:
    """The refused requests of these deliveries, each a letter of its own.

    Two messages of one row are one letter. Two of another program's may differ, and the ledger has neither.
    """
    letters: list[Letter] = []
    seen: set[RetryId] = set()
    for each in deliveries:
        for request in each.contents.requests:
            if request.id in refused and request.id not in seen:
                letters.append(Letter(each.message, each.body_of(request), _REFUSED))
                if isinstance(request, LedgerMessage):
                    seen.add(request.id)
    return letters


def _log_settled(delivery: Delivery, settled: "Mapping[RetryId, Settled]") -> None:
    header = (delivery.message.header.properties.headers or {}).get("traceparent")
    trace = traceparent_of(header if isinstance(header, str) else None)
    for request in delivery.contents.requests:
        outcome = settled[request.id].outcome.value if request.id in settled else "deferred"
        log.debug("retry request settled", request_id=str(request.id), outcome=outcome, traceparent=trace)
