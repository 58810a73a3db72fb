"""Settler: settles batches of retry requests, and finds the one request that makes a batch fail.

1. A batch is one transaction, `Settlement.apply`. As a rule that is all.
2. The database may refuse a batch because of one job (StatementRefused): a constraint, or a trigger of the table's
   owner. The batch is bisected: the refused request is rejected as `blocked`, and all others are settled.
3. A batch may also fail for a reason that lies with the server or with Redrive: a slow trigger, a lock, a missing right
   (DatabaseUnavailable). Then the settler probes: it runs the same statements for no request.
   - The probe succeeds: the batch is bisected, and a request that fails alone is deferred. It stays queued and comes
     again within a minute. The log says why, and `/readyz` is degraded until 90 s after the last one.
   - The probe fails: the database is away. `settle` raises, and the session ends.
4. A batch for which the database was away is kept here, while its messages return to the queue. `catch_up` settles it
   before the next session takes a message. So an outage costs a message one of the twenty deliveries that its queue
   allows, however long the outage lasts.

An error of case 2 says something of the one job. Its SQLSTATE is of a class 22, 23, 38, 39, P0, 09, 20, 21, 27, 2F, 44
or 54, or made up by the table's owner. `shared/database.py` lists those of case 3.
"""

import logging
import math
import time
from typing import TYPE_CHECKING, Final

import structlog

from shared.bisection import bisect
from shared.errors import DatabaseUnavailable, DatabaseUnfit, RedriveError, StatementRefused
from shared.models import Outcome, RetryId
from shared.settlement import Settled
from worker.deferrals import Deferrals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shared.messages import RetryMessage
    from shared.settlement import Settlement
    from worker.metrics import Metrics

log = structlog.stdlib.get_logger(__name__)

DEGRADED_S: Final = 90.0
"""For so long after a request was deferred, the settler is degraded: a deferred request comes again within a minute."""


class Settler:
    """Settles batches for one source."""

    def __init__(self, settlement: "Settlement", metrics: "Metrics") -> None:
        self._settlement = settlement
        self._metrics = metrics
        self._unsettled: list[RetryMessage] = []
        self._deferrals = Deferrals(settlement)
        self._deferred_at = -math.inf
        self._unfit = False

    @property
    def is_degraded(self) -> bool:
        """Whether the server, or a missing right, keeps requests from being settled: all, or one deferred of late."""
        return self._unfit or time.monotonic() - self._deferred_at < DEGRADED_S

    async def settle(self, messages: "Sequence[RetryMessage]") -> dict[RetryId, Settled]:
        """Settle requests; every distinct id has its outcome in the answer, except the deferred ones.

        `poison` is the outcome of another program's request that cannot be inserted into the ledger. A deferred request
        comes again in a message of its own, so that this one may be acknowledged.

        Raises DatabaseUnavailable; then `catch_up` must succeed before anything else is settled.
        """
        began = time.perf_counter()
        try:
            settled, failing = await self._apply(messages)
        except DatabaseUnavailable:
            self._unsettled.extend(messages)
            raise
        deferred = {message.id for message in messages} - settled.keys()
        self._report(settled, len(messages), began, deferred=len(deferred))
        await self._deferrals.warn(settled, deferred - failing)
        return settled

    async def settle_queued(self, limit: int) -> int:
        """Settle up to `limit` requests straight from the ledger; return how many. Raises DatabaseUnavailable."""
        began = time.perf_counter()
        locked: set[RetryId] = set()
        try:
            settled = await self._settlement.apply_queued(limit, deferred=locked)
        except (StatementRefused, DatabaseUnavailable):  # where the database is away, the next call says so
            settled, _ = await self._apply(await self._settlement.queued(limit))
        if settled:
            self._report(settled, len(settled), began)
            if logging.getLogger(__name__).isEnabledFor(logging.DEBUG):  # looked up once, not for each request
                for request_id, (outcome, _) in settled.items():
                    log.debug("retry request settled", request_id=str(request_id), outcome=outcome.value)
        await self._deferrals.warn(settled, locked)
        return len(settled)

    async def catch_up(self) -> None:
        """Probe the database, then settle the batch that it was away for. Raises DatabaseUnavailable."""
        try:
            await self._settlement.probe()
        except DatabaseUnavailable as failed:
            self._unfit = isinstance(failed, DatabaseUnfit)
            raise
        self._unfit = False
        if messages := self._unsettled:
            self._unsettled = []
            await self.settle(messages)

    async def _apply(self, messages: "Sequence[RetryMessage]") -> tuple[dict[RetryId, Settled], set[RetryId]]:
        """Settle what can be settled; block or defer the rest. Returns the outcomes, and the ids deferred here.

        A request whose job is locked is in neither: the ledger has deferred it.
        """
        results, faults = await bisect(messages, self._attempt)
        if len(messages) == 1 and faults and isinstance(faults[0][1], DatabaseUnavailable):
            # It has failed only once: the database may have been away then, and back for the probe.
            results, faults = await bisect(messages, self._attempt)
        settled = dict(results)
        deferred: set[RetryId] = set()
        for message, fault in faults:
            if message.id in settled:
                continue  # a batch may hold a message twice
            refused = isinstance(fault, StatementRefused)
            outcome = await (self._block(message, str(fault)) if refused else self._defer(message, str(fault)))
            if outcome is None:
                deferred.add(message.id)
            else:
                settled[message.id] = outcome
        return settled, deferred

    async def _attempt(self, messages: "Sequence[RetryMessage]") -> dict[RetryId, Settled] | RedriveError:
        try:
            return await self._settlement.apply(messages)
        except StatementRefused as refused:
            return refused
        except DatabaseUnavailable as failed:
            await self._settlement.probe()  # raises where no request at all can be settled
            return failed

    async def _block(self, message: "RetryMessage", sqlstate: str) -> Settled:
        try:
            settled = await self._settlement.block(message)
        except StatementRefused as refused:
            return self._refuse(message, str(refused))
        log.warning("retry request blocked", request_id=str(message.id), sqlstate=sqlstate)
        return settled

    async def _defer(self, message: "RetryMessage", reason: str) -> Settled | None:
        try:
            await self._settlement.defer(message)
        except StatementRefused as refused:
            return self._refuse(message, str(refused))
        self._deferred_at = time.monotonic()
        deferred_for_s = round(self._deferrals.note([message.id]))
        if self._deferrals.claim_warning(reason):
            log.warning(
                "retry request deferred", request_id=str(message.id), deferred_for_s=deferred_for_s, reason=reason
            )
        return None

    def _refuse(self, message: "RetryMessage", sqlstate: str) -> Settled:
        """The outcome of another program's request that cannot even be inserted: its message is dead-lettered."""
        log.warning("retry request refused by the ledger", request_id=str(message.id), sqlstate=sqlstate)
        return Settled(Outcome.POISON, None)

    def _report(self, settled: dict[RetryId, Settled], messages: int, began: float, *, deferred: int = 0) -> None:
        elapsed_s = time.perf_counter() - began
        self._metrics.batches.inc()
        self._metrics.batch_seconds.observe(elapsed_s)
        self._metrics.batch_messages.observe(messages)
        self._metrics.count_settled(settled.values())
        fresh = [outcome for outcome, waited_s in settled.values() if waited_s is not None]
        applied = fresh.count(Outcome.APPLIED)
        log.info(
            "retry batch settled",
            messages=messages,
            applied=applied,
            rejected=len(fresh) - applied,
            repeated=messages - len(fresh) - deferred,
            deferred=deferred,
            elapsed_ms=round(elapsed_s * 1000, 1),
        )
