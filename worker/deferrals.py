"""Deferrals: which requests are deferred, for how long, and a warning of it once a minute for each reason.

A request is deferred while its job is locked, or while the server fails for this request alone. It stays queued and
comes again, however often that is. Without a warning, the worker would look as if it had nothing to do.
"""

import time
from typing import TYPE_CHECKING, Final

import structlog

from shared.errors import DatabaseUnavailable, StatementRefused
from shared.models import Outcome

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from shared.models import RetryId
    from shared.settlement import Settled, Settlement

log = structlog.stdlib.get_logger(__name__)

LONG_S: Final = 20.0
"""From here on, a locked job is worth a warning: by then its request comes again every five seconds."""
WARN_EVERY_S: Final = 60.0
FORGET_S: Final = 900.0
"""A request that was not seen for so long was settled by another worker."""
_MOST: Final = 10_000

_MISSING: Final = Outcome.JOB_NOT_FOUND
LOCKED: Final = "their jobs stay locked by another transaction"
HIDDEN: Final = (
    "row-level security lets this role see their jobs, and not update them, or they are locked: "
    "run `redrive check worker`"
)


class Deferrals:
    """The requests that are deferred, as far as this worker has seen."""

    def __init__(self, settlement: "Settlement") -> None:
        self._settlement = settlement
        self._seen: dict[RetryId, tuple[float, float]] = {}  # when first, and when last
        self._warned_at: dict[str, float] = {}

    def note(self, ids: "Collection[RetryId]") -> float:
        """Note that these requests are deferred; return for how many seconds the longest of them has been."""
        now = time.monotonic()
        if len(self._seen) > _MOST:
            self._seen = {each: times for each, times in self._seen.items() if now - times[1] < FORGET_S}
        longest_s = 0.0
        for each in ids:
            first, last = self._seen.get(each, (now, now))
            if now - last >= FORGET_S:
                first = now
            self._seen[each] = first, now
            longest_s = max(longest_s, now - first)
        return longest_s

    def forget(self, ids: "Collection[RetryId]") -> None:
        """Forget requests that are settled."""
        if self._seen:
            for each in ids:
                self._seen.pop(each, None)

    def claim_warning(self, reason: str) -> bool:
        """Return whether to warn for this reason now; if so, not again for a minute."""
        now = time.monotonic()
        if now - self._warned_at.get(reason, -WARN_EVERY_S) < WARN_EVERY_S:
            return False
        if len(self._warned_at) > _MOST:
            self._warned_at.clear()
        self._warned_at[reason] = now
        return True

    async def warn(self, settled: "Mapping[RetryId, Settled]", locked: "Collection[RetryId]") -> None:
        """Warn of jobs that stay locked, and of jobs that row-level security hides; both look like an idle worker."""
        self.forget(settled)
        if locked:
            longest_s = self.note(locked)
            if longest_s >= LONG_S and self.claim_warning(LOCKED):
                reason = HIDDEN if await self._is_under_row_security() else LOCKED
                log.warning("retry requests deferred", requests=len(locked), longest_s=round(longest_s), reason=reason)
        missing = sum(1 for outcome, waited_s in settled.values() if outcome is _MISSING and waited_s is not None)
        if missing and self.claim_warning(_MISSING) and await self._is_under_row_security():
            log.warning(
                "jobs not found",
                requests=missing,
                reason="row-level security may hide them from this role: run `redrive check worker`",
            )

    async def _is_under_row_security(self) -> bool:
        try:
            return await self._settlement.is_under_row_security()
        except (DatabaseUnavailable, StatementRefused):
            return False  # the batch is settled all the same; only the warning says less
