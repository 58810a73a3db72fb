"""DeadWatch: finds requests whose message no worker gets any more, and settles them or has them published again.

The worker marks the requests that it puts aside itself. The watch takes care of the others:

1. Messages that killed their worker twenty times. RabbitMQ moves them to the dead-letter queue and notifies no program;
   their requests would stay `queued`. The watch marks these requests, and leaves their letters for operators.
2. Messages that expired, or were dropped because the queue was full: a policy of the operator's. No worker has failed
   with them. The watch has their requests published again and removes the letters: the ledger holds all they say.
3. Messages of several requests, for whatever reason they are here: which request is at fault is not known. The watch
   has the requests published again, each alone, and removes the letters.
4. Messages that are in no queue: with such a policy, dead letters expire, too; and a standby that takes its primary's
   place may lack what was applied last, whose messages are acknowledged. Where a queue has delivered nothing for some
   time, the watch has requests published again that were published to it before that time. Where it delivers, it has
   delivered all that was published before those that it delivers now: what is older by a minute is published again,
   alone, and once, because a message that kills its worker must not get a new count of deliveries each time.

The watch consumes nothing. Every two seconds it asks the ledger whether a request is overdue. Only then does it
connect, and it has letters in hand only while it reads their ids. Of their bodies it keeps LOOKED_UP_BYTES, and those
that are to be published anew, up to WORN_BYTES: at that bound the look ends, and a later one reads on behind them.
"""

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from shared.backoff import Outage, wait_for_any
from shared.errors import BrokerUnavailable, DatabaseUnavailable
from shared.messages import LedgerMessage
from shared.topology import RETRIES_BULK
from worker.dead_letters import DeadQueue

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from shared.dead_letters import DeadLetters
    from shared.job_ids import JobIds
    from shared.models import RetryId
    from shared.outbox import Outbox
    from shared.secret import Url
    from shared.settlement import Settlement
    from shared.topology import Topology
    from worker.dead_letters import DeadLetter
    from worker.metrics import Metrics
    from worker.sources import QueueSource

log = structlog.stdlib.get_logger(__name__)

EVERY_S: Final = 2.0
OVERDUE_S: Final = 2.0
AGAIN_S: Final = 30.0
"""The same number of letters is looked through again after so long."""
LONGEST_REST_S: Final = 3600.0
AT_ONCE: Final = 10_000
LOOKED_UP_BYTES: Final = 1024 * 1024
"""Letters with so many bytes are looked up in the ledger together; then only the ids of those to be marked are kept."""
LOST_S: Final = 10.0
"""A request that was published so long ago is lost, where its queue has delivered nothing for half as long."""
PASSED_S: Final = 60.0
"""A request that was published so long before what its queue delivers now is lost. Until then a worker may have it."""
LOST_AT_ONCE: Final = 1_000


class DeadWatch:
    """Takes care of the requests of dead letters. Any number of workers may do it at once."""

    def __init__(
        self,
        url: "Url",
        settlement: "Settlement",
        outbox: "Outbox",
        letters: "DeadLetters",
        metrics: "Metrics",
        *,
        ids: "JobIds",
        topology: "Topology",
        sources: "Sequence[QueueSource]" = (),
    ) -> None:
        self._url = url
        self._topology = topology
        self._ids = ids
        self._sources = sources
        self._settlement = settlement
        self._outbox = outbox
        self._letters = letters
        self._metrics = metrics
        self._seen = 0  # letters at the last look
        self._again_at = 0.0  # when to look through the same number again
        self._rest_until = 0.0
        self._rest_s = AGAIN_S

    async def run(self, *, stop: asyncio.Event) -> None:
        """Look every two seconds until `stop` is set. Outages of the database and the broker are waited out."""
        outage = Outage()
        while not stop.is_set():
            try:
                if await self._letters.any_overdue(OVERDUE_S):
                    await self.look()
                    await self._republish_lost()
                outage.end()
            except (BrokerUnavailable, DatabaseUnavailable) as error:
                if outage.begin(type(error)):
                    log.warning("dead letters not read", reason=str(error))
            await wait_for_any(stop, timeout_s=EVERY_S)

    async def look(self) -> None:
        """Look through the dead letters, unless there are none, or as many as at a look less than 30 s ago.

        After a look that breaks off, the watch rests: 30 s, then twice as long each time, up to an hour. The client
        library closes the connection on a letter whose properties it cannot decode, and RabbitMQ counts a delivery of
        every letter in hand.
        """
        loop = asyncio.get_running_loop()
        if loop.time() < self._rest_until:
            return
        taking = False
        try:
            async with DeadQueue.opened(
                self._url, self._ids, name="redrive worker: dead letters", topology=self._topology
            ) as queue:
                taking = True
                try:
                    count = await queue.count()
                    if count == 0 or (count == self._seen and loop.time() < self._again_at):
                        return
                    poison = await self._look_up(queue)
                finally:
                    await queue.give_back()  # before anything else: other readers may look for them
        except BrokerUnavailable:
            if taking:
                self._rest_until = loop.time() + self._rest_s
                self._rest_s = min(LONGEST_REST_S, 2 * self._rest_s)
            raise
        self._rest_s = AGAIN_S
        await self._mark(poison)
        self._seen, self._again_at = count, loop.time() + AGAIN_S

    async def _look_up(self, queue: DeadQueue) -> "list[RetryId]":
        """Read the letters and look their requests up, LOOKED_UP_BYTES at a time; return those to be marked."""
        poison: dict[RetryId, None] = {}
        letters: list[DeadLetter] = []
        size = 0
        async for letter in queue.letters(AT_ONCE):
            if not letter.requests:
                continue
            letters.append(letter)
            size += len(letter.body)
            if size >= LOOKED_UP_BYTES:
                poison |= dict.fromkeys(await self._republish_dropped(queue, letters))
                letters, size = [], 0
        return [*(poison | dict.fromkeys(await self._republish_dropped(queue, letters)))]

    async def _republish_dropped(self, queue: DeadQueue, letters: "Sequence[DeadLetter]") -> "list[RetryId]":
        """Have overdue requests published again with which no worker has failed; return the other overdue ones."""
        by_id = {request.id: letter for letter in letters for request in letter.requests}
        overdue = await self._letters.overdue_among(list(by_id), OVERDUE_S) if by_id else []
        if dropped := [each for each in overdue if not by_id[each].is_poison]:
            alone = [each for each in dropped if by_id[each].together]
            again = await self._letters.republish(dropped, alone=alone)
            for letter in letters:
                if not letter.is_poison and _is_with_the_ledger(letter, again):
                    await queue.ack(letter)
            reasons = sorted({by_id[each].reason for each in again})
            log.warning("requests to be published again", requests=len(again), reasons=reasons)
        return [each for each in overdue if by_id[each].is_poison]

    async def _mark(self, overdue: "list[RetryId]") -> None:
        if overdue:
            settled = await self._settlement.dead_letter(overdue, have_letters=True)
            self._metrics.count_settled(settled)
            log.warning("requests dead-lettered", requests=len(settled), reason="delivered too often")

    async def _republish_lost(self) -> None:
        """Have requests published again that their queue does not have any more."""
        for source in self._sources:
            idle, passed_s = source.idle_s >= LOST_S / 2, source.lag.passed_s
            if not idle and passed_s is None:
                continue
            age_s = LOST_S if idle or passed_s is None else passed_s + PASSED_S
            bulk = source.name == RETRIES_BULK
            if lost := await self._outbox.republish_stale(LOST_AT_ONCE, age_s=age_s, bulk=bulk, once=not idle):
                reason = "their queue delivers nothing" if idle else "their queue has delivered later ones"
                log.warning("requests to be published again", requests=lost, reasons=[reason])


def _is_with_the_ledger(letter: "DeadLetter", again: "Collection[RetryId]") -> bool:
    """Whether the ledger has all that a letter says, and requests of it are published `again`."""
    known = (request.id in again or isinstance(request, LedgerMessage) for request in letter.requests)
    return any(request.id in again for request in letter.requests) and all(known)
