"""Unread: what clients were answered and do not read, counted over all connections of a process, and bounded.

An answer that does not fit into the kernel's buffers stays in memory until its client reads. The time alone bounds
nothing: before the first client is cut off, a hundred others may have asked for a page.
"""

import asyncio
import time

import structlog

log = structlog.stdlib.get_logger(__name__)

_NOTED_EVERY_S = 1.0


class Unread:
    """The connections that hold bytes which their clients do not read, at most `max_bytes` together.

    Beyond that the one is cut off that began first: an honest client has long read on by then. The most bytes would be
    those of an answer that was given just now. One connection alone may hold more than `max_bytes`: an answer is not
    cut off for its own size.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: dict[asyncio.Transport, int] = {}
        self._noted_at = -_NOTED_EVERY_S
        self.total_bytes = 0
        """As it was when each connection was counted last: never less than it is."""

    def add(self, transport: asyncio.Transport) -> None:
        """Count what a connection holds from now on, and cut others off where it is too much."""
        held = self._held[transport] = transport.get_write_buffer_size()
        self.total_bytes += held
        if self.total_bytes > self._max_bytes:
            self._recount()
            self._cut_off()

    def remove(self, transport: asyncio.Transport) -> None:
        """Count it no longer: its client has read on, or has gone."""
        self.total_bytes -= self._held.pop(transport, 0)

    def _recount(self) -> None:
        for transport in self._held:
            self._held[transport] = transport.get_write_buffer_size()
        self.total_bytes = sum(self._held.values())

    def _cut_off(self) -> None:
        cut_off = 0
        while self.total_bytes > self._max_bytes and len(self._held) > 1:
            oldest = next(iter(self._held))
            self.remove(oldest)
            oldest.abort()
            cut_off += 1
        now = time.monotonic()
        if cut_off and now - self._noted_at >= _NOTED_EVERY_S:
            self._noted_at = now
            log.warning("clients cut off for unread bytes", cut_off=cut_off, unread_bytes=self.total_bytes)
