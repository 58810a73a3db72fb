"""Settler: retry requests in, outcomes out, whatever the database makes of them.

A request that the database refuses (a constraint, a trigger of the jobs table's owner) fails the whole transaction. The
batch is then halved until the refused one stands alone; it is rejected as `blocked`, and the others go through. The
same goes for a batch that it has no time or no right for, if only it can still settle one of no requests: what fails
on its own for a reason of the server's or ours (a slow trigger, a lock that is waited for, a missing right) is held,
stays queued, and comes again later. The log says why, and so does readiness, for as long as it goes on.

`blocked` is what says something of the one job: SQLSTATE classes 22, 23, 38, 39, P0, 09, 20, 21, 27, 2F, 44, 54 and
those that the table's owner has made up. Of the server or ours are those that `shared/database.py` lists.

A batch that the database was away for stays here, without its messages, and is the first thing to go through when the
database is back. Only then are messages taken again, so an outage costs each of them one delivery at most, of the
twenty that a queue allows, however long it lasts and whatever is the matter.
"""

import logging
import math
import time
from typing import TYPE_CHECKING, Final

import structlog

from shared.errors import DatabaseUnavailable, DatabaseUnfit, StatementRefused
from shared.models import Outcome, RetryId
from shared.settlement import Settled
from worker import holding
from worker.holding import Holding

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from shared.messages import RetryMessage
    from shared.settlement import Settlement
    from worker.metrics import Metrics

log = structlog.stdlib.get_logger(__name__)

_MISSING: Final = Outcome.JOB_NOT_FOUND
HELD_FOR_S: Final = 90.0
"""So long after a request was held the settler is `troubled`: what is held comes again within a minute."""


class Settler:
    """Settles batches for one source."""

    def __init__(self, settlement: "Settlement", metrics: "Metrics") -> None:
        self._settlement = settlement
        self._metrics = metrics
        self._unsettled: list[RetryMessage] = []
        self._holding = Holding()
        self._failing: set[RetryId] = set()
        self._held_at = -math.inf
        self._unfit = False

    @property
    def troubled(self) -> bool:
        """Whether the server, or a missing right, keeps requests from being settled: all, or one held of late."""
        return self._unfit or time.monotonic() - self._held_at < HELD_FOR_S

    async def settle(self, messages: "Sequence[RetryMessage]") -> dict[RetryId, Settled]:
        """Settle requests; every distinct id has its outcome in the answer, `blocked` for one that was refused.

        `poison` is one of another program's that cannot be written down. One that is missing is held, its job being
        locked, or not to be updated now: it is still queued, and comes again in a message of its own.

        Raises DatabaseUnavailable; `catch_up` has to succeed before anything else is settled.
        """
        began = time.perf_counter()
        try:
            settled = await self._applied(messages)
        except DatabaseUnavailable:
            self._unsettled.extend(messages)
            raise
        held = {message.id for message in messages} - settled.keys()
        self._report(settled, len(messages), began, held=len(held))
        await self._warn(settled, held)
        return settled

    async def settle_queued(self, limit: int) -> int:
        """Settle up to `limit` requests straight from the ledger; answers how many. Raises DatabaseUnavailable."""
        began = time.perf_counter()
        held: set[RetryId] = set()
        try:
            settled = await self._settlement.apply_queued(limit, deferred=held)
        except (StatementRefused, DatabaseUnavailable):  # if it is away, the next call says so
            settled = await self._applied(await self._settlement.queued(limit))
        if settled:
            self._report(settled, len(settled), began)
            if logging.getLogger(__name__).isEnabledFor(logging.DEBUG):  # asked once, not once a request
                for request_id, (outcome, _) in settled.items():
                    log.debug("retry request settled", request_id=str(request_id), outcome=outcome.value)
        await self._warn(settled, held)
        return len(settled)

    async def _warn(self, settled: dict[RetryId, Settled], held: "Collection[RetryId]") -> None:
        """Say what looks like nothing at all: requests that are held for long, and jobs that this role may not see."""
        self._holding.forget(settled)
        locked = [each for each in held if each not in self._failing]  # the others have a reason of their own
        self._failing.clear()
        if locked:
            longest_s = self._holding.note(locked)
            if longest_s >= holding.LONG_S and self._holding.is_due(holding.LOCKED):
                reason = holding.HIDDEN if await self._is_under_row_security() else holding.LOCKED
                log.warning("retry requests held", requests=len(locked), longest_s=round(longest_s), reason=reason)
        missing = sum(1 for outcome, waited_s in settled.values() if outcome is _MISSING and waited_s is not None)
        if missing and self._holding.is_due(_MISSING) and await self._is_under_row_security():
            log.warning(
                "jobs not found",
                requests=missing,
                reason="row-level security may hide them from this role: run `redrive check worker`",
            )

    async def _is_under_row_security(self) -> bool:
        try:
            return await self._settlement.is_under_row_security()
        except (DatabaseUnavailable, StatementRefused):
            return False  # a warning's second thought; what is settled is settled

    async def catch_up(self) -> None:
        """Look whether the database can settle anything, then settle what it could not. Raises DatabaseUnavailable."""
        try:
            await self._settlement.probe()
        except DatabaseUnavailable as failed:
            self._unfit = isinstance(failed, DatabaseUnfit)
            raise
        self._unfit = False
        if messages := self._unsettled:
            self._unsettled = []
            await self.settle(messages)

    async def _applied(self, messages: "Sequence[RetryMessage]", *, again: bool = False) -> dict[RetryId, Settled]:
        """Settle what can be settled. `again`: it is what remains of a batch that has failed while a probe did not."""
        if not messages:
            return {}
        fault: StatementRefused | DatabaseUnavailable
        try:
            return await self._settlement.apply(messages)
        except StatementRefused as refused:
            fault, again = refused, True
        except DatabaseUnavailable as failed:
            fault = failed
            await self._settlement.probe()  # raises, unless it is these messages that fail
        if len(messages) > 1:
            half = len(messages) // 2
            return await self._applied(messages[:half], again=True) | await self._applied(messages[half:], again=True)
        if not again:  # the database may have been away when it was asked, and back for the probe
            return await self._applied(messages, again=True)
        return await self._set_aside(messages[0], fault)

    async def _set_aside(
        self, message: "RetryMessage", fault: StatementRefused | DatabaseUnavailable
    ) -> dict[RetryId, Settled]:
        match fault:
            case StatementRefused():
                return await self._blocked(message, str(fault))
            case DatabaseUnavailable():
                return await self._held(message, fault)

    async def _held(self, message: "RetryMessage", fault: DatabaseUnavailable) -> dict[RetryId, Settled]:
        try:
            await self._settlement.defer(message)
        except StatementRefused as refused:  # another program's, and it cannot be queued
            return self._given_up(message.id, str(refused))
        self._held_at = time.monotonic()
        self._failing.add(message.id)
        longest_s = self._holding.note([message.id])
        if self._holding.is_due(str(fault)):
            held_for_s = round(longest_s)
            log.warning("retry request held", request_id=str(message.id), held_for_s=held_for_s, reason=str(fault))
        return {}

    async def _blocked(self, message: "RetryMessage", sqlstate: str) -> dict[RetryId, Settled]:
        try:
            settled = await self._settlement.block(message)
        except StatementRefused as refused:  # another program's, and it cannot be written down
            return self._given_up(message.id, str(refused))
        log.warning("retry request blocked", request_id=str(message.id), sqlstate=sqlstate)
        return {message.id: settled}

    def _given_up(self, request_id: RetryId, sqlstate: str) -> dict[RetryId, Settled]:
        log.warning("retry request refused by the ledger", request_id=str(request_id), sqlstate=sqlstate)
        return {request_id: Settled(Outcome.POISON, None)}

    def _report(self, settled: dict[RetryId, Settled], messages: int, began: float, *, held: int = 0) -> None:
        elapsed_s = time.perf_counter() - began
        self._metrics.batches.inc()
        self._metrics.batch_seconds.observe(elapsed_s)
        self._metrics.batch_messages.observe(messages)
        self._metrics.settled(settled.values())
        fresh = [outcome for outcome, waited_s in settled.values() if waited_s is not None]
        applied = fresh.count(Outcome.APPLIED)
        log.info(
            "retry batch settled",
            messages=messages,
            applied=applied,
            rejected=len(fresh) - applied,
            repeated=messages - len(fresh) - held,
            held=held,
            elapsed_ms=round(elapsed_s * 1000, 1),
        )
