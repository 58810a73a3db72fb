"""Reading a request's body: JSON of one known shape, bounded in bytes and in time."""

import asyncio
import re
from typing import Final, TypeVar

import msgspec
from aiohttp import hdrs, web

from api.problems import BadRequest, Fault, InvalidBody, InvalidJson, PayloadTooLarge, UnsupportedMediaType

READ_TIMEOUT_S: Final = 5.0
_PATH: Final = re.compile(r"(.*?)(?: - at `\$([^`]*)`)?", re.DOTALL)
_UNKNOWN_FIELD: Final = "Object contains unknown field"
_BROKEN_OFF: Final = (web.RequestPayloadError, OSError, RuntimeError)
"""What reading raises when a body is malformed, late or cut off; RuntimeError when the client left before it came."""

T = TypeVar("T", bound=msgspec.Struct)


async def body_of(request: web.Request, decoder: msgspec.json.Decoder[T], *, max_bytes: int) -> T | None:
    """The decoded body; None without one.

    Raises PayloadTooLarge, UnsupportedMediaType (also for a content coding, which could unpack to any size), BadRequest
    for a body that does not come in time, InvalidJson, InvalidBody.
    """
    if not request.body_exists:
        return None
    if hdrs.CONTENT_ENCODING in request.headers:
        raise UnsupportedMediaType
    raw = await _read(request, max_bytes)
    if not raw:
        return None
    if request.content_type != "application/json":
        raise UnsupportedMediaType
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise InvalidBody((_fault_of(error, decoder.type.__struct_fields__),)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidJson from error


async def _read(request: web.Request, max_bytes: int) -> bytes:
    if request.content_length is not None and request.content_length > max_bytes:
        raise PayloadTooLarge
    raw = bytearray()
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            while chunk := await request.content.readany():
                raw += chunk
                if len(raw) > max_bytes:
                    raise PayloadTooLarge
    except _BROKEN_OFF as error:
        raise BadRequest from error
    return bytes(raw)


def _fault_of(error: msgspec.ValidationError, fields: tuple[str, ...]) -> Fault:
    """The reason and path from msgspec, without the name of an unknown field, which is the client's text."""
    words = str(error)
    found = _PATH.fullmatch(words)
    reason, path = (found[1], found[2] or "") if found else ("", "")
    if words.startswith(_UNKNOWN_FIELD):
        # The name is part of the message, and may look like a path; only a known field is taken for one.
        _, _, place = words.rpartition(" - at `$.")
        reason, path = _UNKNOWN_FIELD, next((f".{field}" for field in fields if place == f"{field}`"), "")
    pointer = path.replace("[", ".").replace("]", "").replace(".", "/")
    return Fault(pointer, f"{reason}.")
