"""Compression of large answers with gzip, where the client accepts it (RFC 9110, 12.5.3). They are lists.

An answer with an entity tag is not compressed: a strong tag names these bytes, and other bytes would need another tag.
"""

import asyncio
import re
import zlib
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs

from api.answers import Answer

if TYPE_CHECKING:
    from multidict import CIMultiDictProxy

LEAST_BYTES: Final = 2048
APART_BYTES: Final = 32 * 1024
"""A larger body is compressed in a thread: compressing it (0.15 ms) takes longer than starting a thread's work."""
APART_AT_ONCE_BYTES: Final = 32 * 1024 * 1024
"""How many bytes may wait for threads. Further bodies are sent as they are, and count as unread (api/unread.py)."""
LEVEL: Final = 1
"""Of 200 jobs (115 KB) level 1 leaves 16 % in 0.5 ms, level 6 leaves 14 % in 1 ms, level 9 the same in 2.3 ms."""
_TAG_NAMES: Final = frozenset({hdrs.ETAG, "ETag"})
"""Both spellings: an answer's headers are a plain dict."""
_GZIP: Final = 16 + zlib.MAX_WBITS
_CODING: Final = re.compile(
    r"[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*(?:;[ \t]*[qQ]=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)[ \t]*)?"
)


@lru_cache(maxsize=256)
def allows_gzip(accept_encoding: str | None) -> bool:
    """Whether the header names gzip, or else `*`, with a weight above zero. Unreadable parts are ignored."""
    if accept_encoding is None:
        return False
    weights: dict[str, float] = {}
    for part in accept_encoding.split(","):
        if (coding := _CODING.fullmatch(part)) is not None:
            name, weight = coding[1].lower(), float(coding[2] or 1)
            weights["gzip" if name == "x-gzip" else name] = weight
    return weights.get("gzip", weights.get("*", 0.0)) > 0


class Compressor:
    """Compresses answers: small ones at once, large ones in threads."""

    def __init__(self) -> None:
        self._waiting_bytes = 0

    async def compress(self, answer: Answer, headers: "CIMultiDictProxy[str]") -> None:
        """Compress the body if it is large, has no tag, and the request's `headers` accept gzip."""
        body = answer.body
        if body is None or len(body) < LEAST_BYTES or not _TAG_NAMES.isdisjoint(answer.headers):
            return
        vary = answer.headers.get(hdrs.VARY)
        answer.headers[hdrs.VARY] = hdrs.ACCEPT_ENCODING if vary is None else f"{vary}, {hdrs.ACCEPT_ENCODING}"
        given = headers.getall(hdrs.ACCEPT_ENCODING, ())
        if not allows_gzip(", ".join(given) if given else None):
            return
        if len(body) < APART_BYTES:
            answer.replace_body(_gzipped(body), coding="gzip")
        elif self._waiting_bytes + len(body) <= APART_AT_ONCE_BYTES:
            self._waiting_bytes += len(body)
            try:
                answer.replace_body(await asyncio.to_thread(_gzipped, body), coding="gzip")
            finally:
                self._waiting_bytes -= len(body)


def _gzipped(body: bytes) -> bytes:
    return zlib.compress(body, LEVEL, _GZIP)
