"""Server-sent events (https://html.spec.whatwg.org/#server-sent-events): the fields of each event, as they come."""

from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from redrive_client.problems import UnexpectedAnswer

MAX_EVENT_BYTES: Final = 8 * 1024 * 1024


class Event(NamedTuple):
    """One event; without data it is not worth telling."""

    kind: str
    id: str
    data: bytes


async def events_in(pieces: AsyncIterator[bytes]) -> AsyncIterator[Event]:
    """Yield the events in a stream, however it is cut into pieces. One that is cut off at the end is left out."""
    rest = b""
    fields: dict[bytes, bytes] = {}
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) + sum(map(len, fields.values())) > MAX_EVENT_BYTES:
            raise UnexpectedAnswer("an event without end")
        for line in (line.removesuffix(b"\r") for line in lines):
            if not line:
                if b"data" in fields:
                    yield Event(_text(fields, b"event"), _text(fields, b"id"), fields[b"data"])
                fields = {}
            elif not line.startswith(b":"):
                name, _, value = line.partition(b":")
                value = value.removeprefix(b" ")
                fields[name] = fields[b"data"] + b"\n" + value if name == b"data" and b"data" in fields else value


def _text(fields: dict[bytes, bytes], name: bytes) -> str:
    return fields.get(name, b"").decode("utf-8", "replace")
