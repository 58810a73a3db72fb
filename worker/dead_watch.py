"""DeadWatch: requests whose message RabbitMQ itself has given up on, marked in the ledger.

What the worker puts aside it marks itself. What remains are messages that killed their worker twenty times: RabbitMQ
moves them to the dead-letter queue and tells nobody, and their requests would stay `queued`. They must also stay in
that queue, for operators to look at. So this is no consumer that holds or removes letters: it asks the ledger, and only
where a request is overdue does it connect and look, for as long as it takes to read the letters' ids.

A letter that nobody else takes care of is marked within a few seconds of a worker being well again.
"""

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from shared.errors import BrokerUnavailable, DatabaseUnavailable, RedriveError
from worker.dead_queue import DeadQueue

if TYPE_CHECKING:
    from shared.dead_letters import DeadLetters
    from shared.models import RetryId
    from shared.retries import RetryLedger
    from worker.metrics import Metrics

log = structlog.stdlib.get_logger(__name__)

EVERY_S: Final = 2.0
OVERDUE_S: Final = 2.0
AGAIN_S: Final = 30.0
"""How soon to look through the same number of letters again."""
LONGEST_REST_S: Final = 3600.0
AT_ONCE: Final = 10_000


class DeadWatch:
    """Marks the requests of dead letters. Any number of workers may do it at once."""

    def __init__(self, url: str, ledger: "RetryLedger", letters: "DeadLetters", metrics: "Metrics") -> None:
        self._url = url
        self._ledger = ledger
        self._letters = letters
        self._metrics = metrics
        self._seen = 0
        self._again_at = 0.0
        self._rested_at = 0.0
        self._rest_s = AGAIN_S

    async def watch(self, *, stop: asyncio.Event) -> None:
        """Look again and again until `stop` is set. What is away, the database or the broker, is waited for."""
        trouble: type[RedriveError] | None = None
        while not stop.is_set():
            try:
                if await self._letters.any_overdue(OVERDUE_S):
                    await self.look()
                trouble = None
            except (BrokerUnavailable, DatabaseUnavailable) as error:
                if type(error) is not trouble:
                    log.warning("dead letters not looked at", reason=str(error))
                trouble = type(error)
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await stop.wait()

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
            async with DeadQueue.opened(self._url, name="redrive worker: dead letters") as queue:
                count = await queue.count()
                if count == 0 or (count == self._seen and loop.time() < self._again_at):
                    return
                taking = True
                ids = [each.message.id async for each in queue.letters(AT_ONCE) if each.message is not None]
                await queue.give_back()  # before anything else: others may be looking for them
        except BrokerUnavailable:
            if taking:
                self._rested_at = loop.time() + self._rest_s
                self._rest_s = min(LONGEST_REST_S, 2 * self._rest_s)
            raise
        self._rest_s = AGAIN_S
        await self._mark(ids)
        self._seen, self._again_at = count, loop.time() + AGAIN_S

    async def _mark(self, ids: "list[RetryId]") -> None:
        overdue = await self._letters.overdue_among(ids, OVERDUE_S) if ids else []
        if overdue:
            settled = await self._ledger.dead_letter(overdue)
            self._metrics.settled(settled.values())
            log.warning("requests dead-lettered", requests=len(settled), reason="delivered too often")
