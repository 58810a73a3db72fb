"""Probation: after a session was lost, the next one takes one message at a time, until it has settled fifty.

A message can be what ends a session: where the client library cannot decode the properties of one, it closes the
connection. Every message in hand then returns to the queue, and RabbitMQ counts a failed delivery of each; after twenty
it gives a message up. With one message in hand, only the bad one is counted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from shared.errors import DatabaseUnavailable

MESSAGES: Final = 50


class Probation:
    """Whether a queue's sessions are on probation."""

    def __init__(self) -> None:
        self._next = False

    @contextmanager
    def session(self) -> Iterator[bool]:
        """Put this block around a session; it gets whether the session is on probation.

        The next session is, where this one raises; a database that is away says nothing of messages, and changes
        nothing.
        """
        this, self._next = self._next, True
        try:
            yield this
        except DatabaseUnavailable:
            self._next = this
            raise
        self._next = False
