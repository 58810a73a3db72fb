"""Unread: bounds the bytes of answers that clients do not read, over all connections of a process.

An answer that is larger than the kernel's buffers stays in memory until its client reads. A time limit is not enough:
before the first client is cut off, a hundred others may have asked for a page.
"""

import asyncio
import time

import structlog

log = structlog.stdlib.get_logger(__name__)

_NOTED_EVERY_S = 1.0


class Unread:
    """The connections with unread bytes, at most `max_bytes` of them together.

    When there are more, the connection that has waited longest is cut off: an honest client would have read by then.
    The one with the most bytes may have been answered just now. A single connection may hold more than `max_bytes`: an
    answer is not cut off for its own size.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: dict[asyncio.Transport, int] = {}
        self._noted_at = -_NOTED_EVERY_S
        self.total_bytes = 0
        """The bytes when each connection was counted last: never less than there are now."""

    def add(self, transport: asyncio.Transport) -> None:
        """Count the unread bytes of a connection, and cut others off when there are too many."""
        held = self._held[transport] = transport.get_write_buffer_size()
        self.total_bytes += held
        if self.total_bytes > self._max_bytes:
            self._recount()
            self._cut_off()

    def remove(self, transport: asyncio.Transport) -> None:
        """Stop counting a connection: its client has read, or has left."""
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
