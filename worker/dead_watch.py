"""DeadWatch: requests whose message no worker gets any more: marked in the ledger, or published again from it.

What the worker puts aside it marks itself. What remains:
- messages that killed their worker twenty times. RabbitMQ moves them to the dead-letter queue and tells no program, and
  their requests would stay `queued`. They are marked, and their letters stay, for operators to look at;
- messages that expired, or were dropped because the queue was full (a policy of the operator's): no worker has failed
  with them. They are published again, and their letters removed: the ledger has all that they say;
- messages that are in no queue any more: with such a policy, the dead letter expires, too. Where a queue delivers
  nothing to a worker that waits for it, what was published to it some time ago is published again.

So this is no consumer that holds letters: it asks the ledger, and only where a request is overdue does it connect and
look, for as long as it takes to read the letters' ids.

A letter that nothing else takes care of is marked within a few seconds of a worker being well again.
"""

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from shared.backoff import Outage, wait_for_any
from shared.errors import BrokerUnavailable, DatabaseUnavailable
from shared.topology import RETRIES_BULK
from worker.dead_queue import DeadQueue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shared.dead_letters import DeadLetters
    from shared.models import RetryId
    from shared.outbox import Outbox
    from shared.secret import Url
    from shared.settlement import Settlement
    from shared.topology import Topology
    from worker.dead_queue import Letter
    from worker.metrics import Metrics
    from worker.sources import QueueSource

log = structlog.stdlib.get_logger(__name__)

EVERY_S: Final = 2.0
OVERDUE_S: Final = 2.0
AGAIN_S: Final = 30.0
"""How soon to look through the same number of letters again."""
LONGEST_REST_S: Final = 3600.0
AT_ONCE: Final = 10_000
LOST_S: Final = 10.0
"""How long ago a request was published that counts as lost, where its queue has delivered nothing for half as long."""
LOST_AT_ONCE: Final = 1_000


class DeadWatch:
    """Marks the requests of dead letters. Any number of workers may do it at once."""

    def __init__(
        self,
        url: "Url",
        settlement: "Settlement",
        outbox: "Outbox",
        letters: "DeadLetters",
        metrics: "Metrics",
        *,
        topology: "Topology",
        sources: "Sequence[QueueSource]" = (),
    ) -> None:
        self._url = url
        self._topology = topology
        self._sources = sources
        self._settlement = settlement
        self._outbox = outbox
        self._letters = letters
        self._metrics = metrics
        self._seen = 0
        self._again_at = 0.0
        self._rested_at = 0.0
        self._rest_s = AGAIN_S

    async def run(self, *, stop: asyncio.Event) -> None:
        """Look again and again until `stop` is set. What is away, the database or the broker, is waited for."""
        outage = Outage()
        while not stop.is_set():
            try:
                if await self._letters.any_overdue(OVERDUE_S):
                    await self.look()
                    await self._republish_lost()
                outage.end()
            except (BrokerUnavailable, DatabaseUnavailable) as error:
                if outage.begin(type(error)):
                    log.warning("dead letters not looked at", reason=str(error))
            await wait_for_any(stop, timeout_s=EVERY_S)

    async def look(self) -> None:
        """Look through the dead letters, unless there are none, or as many as were looked through just before.

        A look that breaks off is not soon tried again. There are letters whose properties no client library decodes;
        they take the connection with them, and RabbitMQ counts that against every letter in hand.
        """
        loop = asyncio.get_running_loop()
        if loop.time() < self._rested_at:
            return
        taking = False
        try:
            async with DeadQueue.opened(
                self._url, name="redrive worker: dead letters", topology=self._topology
            ) as queue:
                taking = True
                try:
                    count = await queue.count()
                    if count == 0 or (count == self._seen and loop.time() < self._again_at):
                        return
                    found = [each async for each in queue.letters(AT_ONCE) if each.message is not None]
                    poison = await self._sorted(queue, found)
                finally:
                    await queue.give_back()  # before anything else: others may be looking for them
        except BrokerUnavailable:
            if taking:
                self._rested_at = loop.time() + self._rest_s
                self._rest_s = min(LONGEST_REST_S, 2 * self._rest_s)
            raise
        self._rest_s = AGAIN_S
        await self._mark(poison)
        self._seen, self._again_at = count, loop.time() + AGAIN_S

    async def _sorted(self, queue: DeadQueue, letters: "Sequence[Letter]") -> "list[RetryId]":
        """Publish again what was put aside before a worker had failed with it; answers the other overdue requests."""
        by_id = {letter.message.id: letter for letter in letters if letter.message is not None}
        overdue = await self._letters.overdue_among(list(by_id), OVERDUE_S) if by_id else []
        if aside := [each for each in overdue if not by_id[each].is_poison]:
            again = await self._letters.republish(aside)
            for letter in letters:
                if letter.message is not None and letter.message.id in again and not letter.is_poison:
                    await queue.ack(letter)
            reasons = sorted({by_id[each].reason for each in again})
            log.warning("requests to be published again", requests=len(again), reasons=reasons)
        return [each for each in overdue if by_id[each].is_poison]

    async def _mark(self, overdue: "list[RetryId]") -> None:
        if overdue:
            settled = await self._settlement.dead_letter(overdue)
            self._metrics.settled(settled.values())
            log.warning("requests dead-lettered", requests=len(settled), reason="delivered too often")

    async def _republish_lost(self) -> None:
        """Let be published again what must have been lost: its queue is empty, and it is no dead letter."""
        for source in self._sources:
            if source.idle_s >= LOST_S / 2:
                bulk = source.name == RETRIES_BULK
                if lost := await self._outbox.republish_stale(LOST_AT_ONCE, age_s=LOST_S, bulk=bulk):
                    log.warning(
                        "requests to be published again",
                        requests=lost,
                        reasons=["their messages are in no queue: expired, dropped, or lost with it"],
                    )
