"""Deliveries: messages as they came from RabbitMQ, with the requests that were read from them."""

from typing import TYPE_CHECKING, NamedTuple, Self

from shared.errors import UnreadableMessage
from shared.messages import Contents, RetryMessage, UnreadableRequest, decoded, encoded
from shared.topology import LEDGER_HEADER

if TYPE_CHECKING:
    from aiormq.abc import DeliveredMessage

    from shared.job_ids import JobIds


class Delivery(NamedTuple):
    """A message, and what it holds."""

    message: "DeliveredMessage"
    contents: Contents

    @classmethod
    def of(cls, message: "DeliveredMessage", ids: "JobIds") -> Self:
        """Read a message; one that cannot be read holds one unreadable request, its whole body."""
        from_ledger = LEDGER_HEADER in (message.header.properties.headers or {})
        try:
            return cls(message, decoded(message.body, ids, from_ledger=from_ledger))
        except UnreadableMessage as error:
            return cls(message, Contents((), [UnreadableRequest(message.body, str(error))]))

    @property
    def size(self) -> int:
        """How many requests it adds to a batch; at least one, so that a batch of unreadable messages ends, too."""
        return max(1, len(self.contents.requests))

    @property
    def is_to_be_taken_apart(self) -> bool:
        """Whether a worker may have failed with one of its several requests: it was delivered before.

        Quorum queues say so by the flag and by a count. RabbitMQ 4.3 does not count every return, so both are read.
        """
        if not self.contents.together:
            return False
        count = (self.message.header.properties.headers or {}).get("x-delivery-count", 0)
        return bool(self.message.redelivered) or (isinstance(count, int) and count >= 1)

    def body_of(self, request: RetryMessage) -> bytes:
        """The body of a message with one of its requests alone; as it came, where it holds only this one."""
        return encoded(request) if self.contents.together else self.message.body
