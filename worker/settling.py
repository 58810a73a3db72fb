"""Settler: settles batches of retry requests, and finds the one request that makes a batch fail.

Each source has a Settler of its own. A source is what the worker takes its batches from: a queue on RabbitMQ, or the
ledger (worker/sources.py, worker/bypass.py). It calls `settle` or `settle_queued`; worker/sessions.py calls `catch_up`.

1. A batch is one transaction, `Settlement.apply`. As a rule that is all.
2. The database may refuse a batch because of one job (StatementRefused): a constraint, or a trigger of the table's
   owner. The batch is bisected: the request of that job is rejected as `blocked`, and all others are settled. Where
   the database refuses this rejection, too, the request is dead-lettered. A bypass has no message to become its letter:
   it leaves the request to the message that a relay publishes when the bypass's lease has ended.
3. A batch may also fail for a reason that lies with the server or with Redrive: a slow trigger, a lock, a missing right
   (DatabaseUnavailable). Then the settler probes: it runs the same statements for no request.
   - The probe succeeds: the batch is bisected, and a request that fails alone is deferred. It stays queued and comes
     again within a minute. The log says why, and `/readyz` is degraded until 90 s after the last one.
   - The probe fails: the database is away. `settle` raises, and the session ends.
4. Requests of a message that was delivered before are not settled from it, but published again, each alone:
   `take_apart`.
5. A batch for which the database was away is kept here, while its messages return to the queue. `catch_up` settles it
   before the next session takes a message. So an outage costs a message one of the twenty deliveries that its queue
   allows, however long the outage lasts.

An error of item 2 is the fault of one job. Its SQLSTATE is of a class 22, 23, 38, 39, P0, 09, 20, 21, 27, 2F, 44 or
54, or of a class that PostgreSQL does not use, as a trigger of the table's owner may raise it. `shared/database.py`
lists the errors of item 3.
"""

import logging
import math
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from shared.bisection import bisect
from shared.errors import DatabaseUnavailable, DatabaseUnfit, RedriveError, StatementRefused
from shared.models import Outcome, RetryId
from shared.settlement import Dead, Settled
from shared.telemetry import trace_id_of
from worker.deferrals import Deferrals

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from shared.messages import RetryMessage
    from shared.settlement import Settlement
    from shared.tracing import Tracing
    from worker.metrics import Metrics

log = structlog.stdlib.get_logger(__name__)

_ROUNDS: Final = 5
"""How often `take_apart` tries; each further round needs another request that is queued for one of the jobs."""
MOST_TRACED: Final = 128
"""Requests of one batch that get a span: a bulk retry would make ten thousand."""
DEGRADED_S: Final = 90.0
"""For so long after a request was deferred, the settler is degraded: a deferred request comes again within a minute."""


class _Results(NamedTuple):
    """What became of a batch. A request whose job is locked is in none of these: the ledger has deferred it."""

    settled: dict[RetryId, Settled]
    """Their outcomes; of those that are dead-lettered, too."""
    deferred: set[RetryId]
    """Each failed alone, and comes again; those that are left to their messages, too."""
    dead_lettered: set[RetryId]
    """Each could not even be rejected."""


class Settler:
    """Settles batches for one source.

    `dead_letters`: it gives up a request that cannot even be blocked; or else it leaves such a request as it is.
    """

    def __init__(
        self,
        settlement: "Settlement",
        metrics: "Metrics",
        tracing: "Tracing | None" = None,
        *,
        dead_letters: bool = True,
    ) -> None:
        self._settlement = settlement
        self._metrics = metrics
        self._tracing = tracing
        self._dead_letters = dead_letters
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

        `poison` is the outcome of a request that cannot even be blocked: one that the ledger knows is dead-lettered
        there, and another program's cannot be inserted. A deferred request comes again in a message of its own, so that
        this one may be acknowledged.

        Raises DatabaseUnavailable; then `catch_up` must succeed before anything else is settled.
        """
        began, began_ns = time.perf_counter(), time.time_ns()
        try:
            results = await self._apply(messages)
        except DatabaseUnavailable:
            self._unsettled.extend(messages)
            raise
        settled = results.settled
        deferred = {message.id for message in messages} - settled.keys()
        await self._note(
            settled, len(messages), began, began_ns, deferred=len(deferred), dead_lettered=results.dead_lettered
        )
        await self._deferrals.warn(settled, deferred - results.deferred)
        return settled

    async def take_apart(self, requests: "Sequence[RetryMessage]", *, messages: int) -> set[RetryId]:
        """Have the requests of these messages published again, each alone; returns those that are dead letters.

        These are the ones that the ledger refuses, and the ones that were dead-lettered before.

        Raises DatabaseUnavailable; nothing needs to be caught up with then, as the messages come again.
        """
        results, faults = await bisect(requests, self._attempt_apart)
        settled = {request_id: each for request_id, each in results.items() if each is not None}
        self._metrics.count_settled(settled)
        queued = len(results) - len(settled)
        log.warning("messages taken apart", messages=messages, requests=len(requests), queued=queued)
        dead = {each for each, found in results.items() if found is not None and found.outcome is Outcome.POISON}
        return dead | {request.id for request, _ in faults}

    async def dead_among(self, ids: "Collection[RetryId]") -> dict[RetryId, Dead]:
        """Those of these requests that the ledger has as dead-lettered. Raises DatabaseUnavailable."""
        return await self._settlement.dead_among(ids) if ids else {}

    async def mark_letters(self, dead: "Mapping[RetryId, Dead]") -> None:
        """Try to mark that these requests have their letter: `dead` is what `dead_among` has answered.

        Where the database does not take it, they stay unmarked: another message of one of them, if any comes, is a
        second letter. To raise would bring the whole batch again, and a second letter for each of its letters.
        """
        with suppress(DatabaseUnavailable, StatementRefused):
            await self._settlement.mark_letters(dead)

    async def _attempt_apart(self, requests: "Sequence[RetryMessage]") -> dict[RetryId, Settled | None] | RedriveError:
        for _ in range(_ROUNDS):
            try:
                return await self._settlement.take_apart(requests)
            except StatementRefused as refused:
                if not refused.by_unique_index:
                    return refused  # else a retry was queued for one of the jobs a moment ago; the next round sees it
        raise DatabaseUnavailable("other requests were faster, again and again")

    async def settle_queued(self, limit: int) -> int:
        """Settle up to `limit` requests straight from the ledger; return how many. Raises DatabaseUnavailable.

        Requests that another worker has settled meanwhile do not count: where none is left, the caller must pause.
        """
        began, began_ns = time.perf_counter(), time.time_ns()
        locked: set[RetryId] = set()
        dead_lettered: set[RetryId] = set()
        try:
            settled = await self._settlement.apply_queued(limit, deferred=locked)
        except (StatementRefused, DatabaseUnavailable):  # where the database is away, the next call says so
            settled, _, dead_lettered = await self._apply(await self._settlement.queued(limit))
        if settled:
            await self._note(settled, len(settled), began, began_ns, dead_lettered=dead_lettered)
            if logging.getLogger(__name__).isEnabledFor(logging.DEBUG):  # looked up once, not for each request
                for request_id, (outcome, _) in settled.items():
                    log.debug("retry request settled", request_id=str(request_id), outcome=outcome.value)
        await self._deferrals.warn(settled, locked)
        return sum(1 for _, waited_s in settled.values() if waited_s is not None)

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

    async def _apply(self, messages: "Sequence[RetryMessage]") -> _Results:
        """Settle what can be settled; block, defer or dead-letter the rest."""
        found, faults = await bisect(messages, self._attempt)
        if len(messages) == 1 and faults and isinstance(faults[0][1], DatabaseUnavailable):
            # It has failed only once: the database may have been away then, and back for the probe.
            found, faults = await bisect(messages, self._attempt)
        settled = dict(found)
        deferred: set[RetryId] = set()
        dead_lettered: set[RetryId] = set()
        for message, fault in faults:
            if message.id in settled:
                continue  # a batch may hold a message twice
            try:
                if isinstance(fault, StatementRefused):
                    settled[message.id] = await self._block(message, str(fault))
                else:
                    await self._defer(message, str(fault))
                    deferred.add(message.id)
            except StatementRefused as error:
                if not self._dead_letters:
                    log.warning("retry request left to its message", request_id=str(message.id), sqlstate=str(error))
                    deferred.add(message.id)
                    continue
                settled[message.id] = await self._dead_letter(message, str(error))
                dead_lettered.add(message.id)
        return _Results(settled, deferred, dead_lettered)

    async def _attempt(self, messages: "Sequence[RetryMessage]") -> dict[RetryId, Settled] | RedriveError:
        try:
            return await self._settlement.apply(messages)
        except StatementRefused as refused:
            return refused
        except DatabaseUnavailable as failed:
            await self._settlement.probe()  # raises where no request at all can be settled
            return failed

    async def _block(self, message: "RetryMessage", sqlstate: str) -> Settled:
        settled = await self._settlement.block(message)
        log.warning("retry request blocked", request_id=str(message.id), sqlstate=sqlstate)
        return settled

    async def _defer(self, message: "RetryMessage", reason: str) -> None:
        await self._settlement.defer(message)
        self._deferred_at = time.monotonic()
        deferred_for_s = round(self._deferrals.note([message.id]))
        if self._deferrals.claim_warning(reason):
            log.warning(
                "retry request deferred", request_id=str(message.id), deferred_for_s=deferred_for_s, reason=reason
            )

    async def _dead_letter(self, message: "RetryMessage", sqlstate: str) -> Settled:
        """Give up a request that can be neither blocked nor deferred; its message is dead-lettered, too.

        Another program's request that cannot be inserted is in no row: only its message is left.
        """
        log.warning("retry request refused by the ledger", request_id=str(message.id), sqlstate=sqlstate)
        try:
            settled = await self._settlement.dead_letter([message.id])
        except StatementRefused:
            settled = {}
        return settled.get(message.id, Settled(Outcome.POISON, None))

    async def _note(
        self,
        settled: dict[RetryId, Settled],
        messages: int,
        began: float,
        began_ns: int,
        *,
        deferred: int = 0,
        dead_lettered: "Collection[RetryId]" = (),
    ) -> None:
        """Trace, count and log a batch that is committed."""
        elapsed_s = time.perf_counter() - began
        traced: Mapping[RetryId, str] = {}
        try:
            traced = await self._trace(settled, messages, began_ns)
        finally:  # it is counted also where the worker is told to stop meanwhile
            self._report(settled, messages, elapsed_s, traced, deferred=deferred, dead_lettered=dead_lettered)

    async def _trace(
        self, settled: "Mapping[RetryId, Settled]", messages: int, began_ns: int
    ) -> "Mapping[RetryId, str]":
        """Add the spans of a batch that is committed, if tracing is on; return the trace of each request that has one.

        Where the database is away by now, there are no spans; the batch is settled all the same.
        """
        if self._tracing is None:
            return {}
        ended_ns = time.time_ns()
        with suppress(DatabaseUnavailable):
            traces = await self._settlement.traces(list(settled), most=MOST_TRACED)
            processed = [
                (each, str(request_id), settled[request_id].outcome.value, settled[request_id].waited_s is None)
                for request_id, each in traces.items()
            ]
            self._tracing.add_batch(processed, requests=messages, began_ns=began_ns, ended_ns=ended_ns)
            return {request_id: trace_id_of(each) for request_id, each in traces.items()}
        return {}

    def _report(
        self,
        settled: dict[RetryId, Settled],
        messages: int,
        elapsed_s: float,
        traced: "Mapping[RetryId, str]",
        *,
        deferred: int = 0,
        dead_lettered: "Collection[RetryId]" = (),
    ) -> None:
        self._metrics.batches.inc()
        self._metrics.batch_seconds.observe(elapsed_s)
        self._metrics.batch_messages.observe(messages)
        self._metrics.count_settled(settled, traced)
        fresh = [
            outcome
            for request_id, (outcome, waited_s) in settled.items()
            if waited_s is not None and request_id not in dead_lettered
        ]
        applied = fresh.count(Outcome.APPLIED)
        log.info(
            "retry batch settled",
            messages=messages,
            applied=applied,
            rejected=len(fresh) - applied,
            repeated=messages - len(fresh) - len(dead_lettered) - deferred,
            deferred=deferred,
            refused=len(dead_lettered),
            elapsed_ms=round(elapsed_s * 1000, 1),
        )
