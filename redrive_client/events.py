"""Server-sent events (https://html.spec.whatwg.org/#server-sent-events): the fields of each event, as they come."""

from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from redrive_client.problems import UnexpectedAnswer

MAX_EVENT_BYTES: Final = 8 * 1024 * 1024


class Event(NamedTuple):
    """One event, or only a word on when to connect again: `retry_s`, where the server has named a time."""

    kind: str
    id: str
    data: bytes
    retry_s: float | None


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
                if b"data" in fields or b"retry" in fields:
                    yield Event(
                        kind=_text(fields, b"event"),
                        id=_text(fields, b"id"),
                        data=fields.get(b"data", b""),
                        retry_s=_seconds_of(fields.get(b"retry", b"")),
                    )
                fields = {}
            elif not line.startswith(b":"):
                name, _, value = line.partition(b":")
                value = value.removeprefix(b" ")
                fields[name] = fields[b"data"] + b"\n" + value if name == b"data" and b"data" in fields else value


def _text(fields: dict[bytes, bytes], name: bytes) -> str:
    return fields.get(name, b"").decode("utf-8", "replace")


def _seconds_of(milliseconds: bytes) -> float | None:
    return int(milliseconds) / 1000 if milliseconds.isdigit() and len(milliseconds) <= 9 else None
