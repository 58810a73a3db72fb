"""Holding: a warning where requests are held for long, with the reason, once a minute for each.

A request is held while its job is locked, or while the server fails for it alone. It stays queued and comes again, for
as long as it takes; without a word that would look like a worker with nothing to do.
"""

import time
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import Collection

    from shared.models import RetryId

log = structlog.stdlib.get_logger(__name__)

LONG_S: Final = 20.0
"""From here on it is worth a warning that a job is locked: it comes again every five seconds by then."""
TELL_EVERY_S: Final = 60.0
FORGET_S: Final = 900.0
"""A request that was not seen for so long has been settled by another worker."""
_MOST: Final = 10_000

LOCKED: Final = "their jobs stay locked by another transaction"
HIDDEN: Final = (
    "row-level security lets this role see their jobs, and not update them, or they are locked: "
    "run `redrive check worker`"
)


class Holding:
    """Which requests are held, and since when, as far as this worker has seen."""

    def __init__(self) -> None:
        self._seen: dict[RetryId, tuple[float, float]] = {}
        self._told: dict[str, float] = {}

    def note(self, ids: "Collection[RetryId]") -> float:
        """Note requests that are held; answers for how many seconds the longest of them has been."""
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

    def is_due(self, cause: str) -> bool:
        """Whether a cause may be told again; from then on it is not, for a minute."""
        now = time.monotonic()
        if now - self._told.get(cause, -TELL_EVERY_S) < TELL_EVERY_S:
            return False
        if len(self._told) > _MOST:
            self._told.clear()
        self._told[cause] = now
        return True
