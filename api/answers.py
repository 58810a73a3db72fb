"""Answer: the response of all resources but streams. Its bytes are ready, sent in one write, without `Server`.

aiohttp's `web.Response` looks at each answer whether to compress, to chunk or to continue it. An Answer is always bytes
of a known length. To make and send one takes half the time (27 against 58 µs, with 700 bytes).
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, cast

import msgspec
from aiohttp import HttpVersion10, hdrs, web
from aiohttp.helpers import rfc822_formatted_time

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter
    from multidict import CIMultiDict

_STATUS_LINES: Final = {status.value: f" {status.value} {status.phrase}" for status in HTTPStatus}
_APART_BYTES: Final = 64 * 1024
"""A larger body is sent apart from its headers: to join them would copy it, and hold it twice."""
_OF_1_1: Final = {status: f"HTTP/1.1{line}" for status, line in _STATUS_LINES.items()}


class Enveloped(msgspec.Struct, frozen=True):
    """The body of an answer that is one thing: `{"data": …}`."""

    data: object


class Answer(web.StreamResponse):
    """An encoded body with its headers. `body` is None where there is none to describe, as in a 304."""

    def __init__(
        self,
        body: bytes | None,
        *,
        status: int = 200,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        fields = {} if headers is None else dict(headers)
        if body is not None:
            fields[hdrs.CONTENT_TYPE] = content_type
            fields[hdrs.CONTENT_LENGTH] = str(len(body))
        # A plain dict is enough: each name is spelled in one way here, and comes once. `_real_headers` is private to
        # aiohttp; its public `headers` makes a CIMultiDict, and an answer takes 34 µs instead of 27.
        super().__init__(status=status, _real_headers=cast("CIMultiDict[str]", fields))
        self.body = body
        self._is_sent = False
        self._stays_open: bool | None = None

    @property
    def prepared(self) -> bool:
        """Whether it has been sent."""
        return self._is_sent

    @property
    def keep_alive(self) -> bool | None:
        """Whether the connection stays open after it; None while that is for the request to say."""
        return self._stays_open

    def force_close(self) -> None:
        """Close the connection after it."""
        self._stays_open = False

    def replace_body(self, body: bytes, *, coding: str) -> None:
        """Replace the body by the same in a content coding."""
        self.body = body
        self.headers[hdrs.CONTENT_LENGTH] = str(len(body))
        self.headers[hdrs.CONTENT_ENCODING] = coding

    async def prepare(self, request: web.BaseRequest) -> "AbstractStreamWriter | None":
        """Send all of it."""
        if self._is_sent:
            return None
        self._is_sent = True
        headers, status = self.headers, self.status
        headers[hdrs.DATE] = rfc822_formatted_time()
        if self._stays_open is None:
            self._stays_open = request.keep_alive
        if request.version != HttpVersion10:
            line = _OF_1_1[status]
            if not self._stays_open:
                headers[hdrs.CONNECTION] = "close"
        else:
            line = f"HTTP/1.0{_STATUS_LINES[status]}"
            if self._stays_open:
                headers[hdrs.CONNECTION] = "keep-alive"
        writer = request.writer
        await writer.write_headers(line, headers)  # raises where a value would break out of its line
        body = b"" if self.body is None or request.method == hdrs.METH_HEAD else self.body
        if len(body) > _APART_BYTES:
            writer.send_headers()
        await writer.write_eof(body)
        return writer

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing: `prepare` has sent all of it. `data` is for streams."""
