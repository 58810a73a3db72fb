"""Waiting for what is away: pauses that grow, differ and end early, and an outage that is logged once.

A background service is `async def run(self, *, stop: asyncio.Event) -> None`. It works until `stop` is set, and then
returns soon; it raises only what ends the program. Its loop has one shape:

    backoff, outage = Backoff(first_s=0.2, longest_s=5.0), Outage()
    while not stop.is_set():
        try:
            await self._work()               # once it goes well: backoff.reset(), and outage.end()
        except DatabaseUnavailable as error:
            if outage.begin(type(error)):    # the same failure again is not logged again
                log.warning("work failed", reason=str(error))
        await backoff.pause(stop)
"""

import asyncio
import random


async def wait_for_any(*events: asyncio.Event, timeout_s: float | None = None) -> bool:
    """Wait until one of `events` is set, at most `timeout_s`. Returns whether one is."""
    if not any(event.is_set() for event in events):
        waiting = [asyncio.ensure_future(event.wait()) for event in events]
        try:
            await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()
    return any(event.is_set() for event in events)


class Backoff:
    """Pauses between attempts: the first is `first_s`, each one twice the one before, none longer than `longest_s`.

    Where it is jittered, a pause is cut by up to half, so that programs that lost one server do not return together.
    """

    def __init__(self, *, first_s: float, longest_s: float, jittered: bool = True) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._jittered = jittered
        self.next_s = first_s
        """The next pause, before its jitter."""

    def reset(self) -> None:
        """Begin again with the first pause: the last attempt went well."""
        self.next_s = self._first_s

    async def pause(self, *until: asyncio.Event, longest_s: float | None = None) -> None:
        """Pause, until one of the events is set at the longest. `longest_s` bounds this pause, and the next one."""
        longest_s = self._longest_s if longest_s is None else longest_s
        pause_s = min(longest_s, self.next_s)
        self.next_s = min(longest_s, 2 * self.next_s)
        if self._jittered:
            pause_s *= random.uniform(0.5, 1.0)  # noqa: S311 - to spread attempts, not to keep a secret
        await wait_for_any(*until, timeout_s=pause_s)


class Outage:
    """What is wrong now, if anything: each kind of failure is logged when it begins, not at each attempt."""

    def __init__(self) -> None:
        self.kind: object = None
        """What is wrong, as `begin` was given it; None while nothing is."""

    @property
    def active(self) -> bool:
        """Whether the last attempt failed, as far as is known."""
        return self.kind is not None

    def begin(self, kind: object) -> bool:
        """Note a failure. Returns whether it is news: none was noted since the last `end`, or one of another kind."""
        is_news = kind != self.kind
        self.kind = kind
        return is_news

    def end(self) -> bool:
        """Note that all is well. Returns whether it is news."""
        was_active = self.active
        self.kind = None
        return was_active
