"""Dead letters: messages that no worker can read, and requests that the database refuses, put aside with the reason.

A dead letter keeps its body as it came. It is confirmed by the broker before the original is acknowledged; between the
two a crash makes a second copy, never none.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from shared import broker
from shared.broker import connected, translated
from shared.errors import TopologyMissing
from shared.topology import EXCHANGE, KEY_DEAD, LEDGER_HEADER, REASON_HEADER, Topology

if TYPE_CHECKING:
    from aio_pika.abc import AbstractExchange
    from aiormq.abc import DeliveredMessage
    from pamqp.common import FieldTable

    from shared.secret import Url

_IN_FLIGHT: Final = 128  # a `multiple` confirm walks all that wait for theirs
# Not all: CC and BCC, for two, would send copies elsewhere.
_KEPT_HEADERS: Final = ("traceparent", "tracestate", LEDGER_HEADER)


class DeadLetter(NamedTuple):
    """A delivery to put aside, and why, in words that hold nothing of it."""

    delivery: "DeliveredMessage"
    reason: str


async def publish(url: "Url", letters: Sequence[DeadLetter], topology: Topology) -> None:
    """Publish to the dead-letter queue; every letter is on disk there once this returns.

    On a connection of its own, opened when there is something to publish: the broker stops reading from a connection
    that publishes while memory or disk is short, and acknowledgements would be stuck behind it.

    Raises BrokerUnavailable, after which some of them may have been published.
    """
    async with connected(url, name="redrive worker: dead letters") as connection:

        async def publish_all() -> None:
            async with asyncio.timeout(broker.CALL_S):
                channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
                exchange = await channel.get_exchange(EXCHANGE, ensure=False)
            for start in range(0, len(letters), _IN_FLIGHT):
                await asyncio.gather(*(_publish(exchange, each) for each in letters[start : start + _IN_FLIGHT]))

        with translated():
            try:
                with translated():
                    await publish_all()
            except TopologyMissing:
                await topology.mend(connection)
                await publish_all()


async def _publish(exchange: "AbstractExchange", letter: DeadLetter) -> None:
    properties = letter.delivery.header.properties
    headers: FieldTable = {REASON_HEADER: letter.reason}
    for name in _KEPT_HEADERS:
        if properties.headers and name in properties.headers:
            headers[name] = properties.headers[name]
    await broker.publish(
        exchange, KEY_DEAD, letter.delivery.body, content_type=properties.content_type, headers=headers
    )
