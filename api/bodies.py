"""Reading a request's body: bounded in bytes and in time, plain JSON of one known shape."""

import asyncio
import re
from typing import Final, TypeVar

import msgspec
from aiohttp import hdrs, web

from api.problems import BadRequest, Fault, InvalidBody, InvalidJson, PayloadTooLarge, UnsupportedMediaType

READ_TIMEOUT_S: Final = 5.0
_PATH: Final = re.compile(r"^(.*?)(?: - at `\$(.*)`)?$", re.DOTALL)
_UNKNOWN_FIELD: Final = "Object contains unknown field"

T = TypeVar("T", bound=msgspec.Struct)


async def body_of(request: web.Request, decoder: msgspec.json.Decoder[T], *, max_bytes: int) -> T | None:
    """The decoded body; None where there is none.

    Raises PayloadTooLarge, UnsupportedMediaType (a content coding too: it could unpack to anything), BadRequest for a
    body that does not come in time, InvalidJson, InvalidBody.
    """
    if not request.body_exists:
        return None
    raw = await _read(request, max_bytes)
    if not raw:
        return None
    if request.content_type != "application/json" or hdrs.CONTENT_ENCODING in request.headers:
        raise UnsupportedMediaType
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise InvalidBody((_fault_of(error),)) from error
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
    except TimeoutError as error:
        raise BadRequest from error
    return bytes(raw)


def _fault_of(error: msgspec.ValidationError) -> Fault:
    """Msgspec's reason and place, without anything of what was sent: a field's name may be the sender's."""
    found = _PATH.match(str(error))
    reason, path = (found[1], found[2] or "") if found else ("", "")
    if reason.startswith(_UNKNOWN_FIELD):
        reason = _UNKNOWN_FIELD
    pointer = path.replace("[", ".").replace("]", "").replace(".", "/")
    return Fault(pointer, f"{reason}.")
