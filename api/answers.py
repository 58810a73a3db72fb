"""The one kind of response that this API gives: bytes that are ready, sent in one write, and no `Server` banner.

aiohttp's own `web.Response` is built for bodies of any kind: it looks for every answer at whether to compress it, to
chunk it or to let it go on. All that ours ever are is bytes of a known length, and to know that saves time in each.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, cast

from aiohttp import HttpVersion10, hdrs, web
from aiohttp.helpers import rfc822_formatted_time

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter
    from multidict import CIMultiDict

_STATUS_LINES: Final = {status.value: f" {status.value} {status.phrase}" for status in HTTPStatus}
_APART_BYTES: Final = 64 * 1024
"""A body that is larger is sent apart from its headers: joined with them it would be copied, and held twice."""
_OF_1_1: Final = {status: f"HTTP/1.1{line}" for status, line in _STATUS_LINES.items()}


class Answer(web.StreamResponse):
    """A whole body, encoded before, with its headers. `body` is None where there is none to describe, as in a 304."""

    def __init__(
        self,
        body: bytes | None,
        *,
        status: int = 200,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        # A plain dict serves, and costs less: every name is written in one way here, and none stands twice.
        fields = {} if headers is None else dict(headers)
        if body is not None:
            fields[hdrs.CONTENT_TYPE] = content_type
            fields[hdrs.CONTENT_LENGTH] = str(len(body))
        super().__init__(status=status, _real_headers=cast("CIMultiDict[str]", fields))
        self.body = body

    def replace_body(self, body: bytes, *, coding: str) -> None:
        """Send the same in a content coding."""
        self.body = body
        self._headers[hdrs.CONTENT_LENGTH] = str(len(body))
        self._headers[hdrs.CONTENT_ENCODING] = coding

    async def prepare(self, request: web.BaseRequest) -> "AbstractStreamWriter | None":
        """Send all of it."""
        if self._eof_sent:
            return None
        self._eof_sent = True
        headers, status = self._headers, self._status
        headers[hdrs.DATE] = rfc822_formatted_time()
        if self._keep_alive is None:
            self._keep_alive = request.keep_alive
        if request.version != HttpVersion10:
            line = _OF_1_1[status]
            if not self._keep_alive:
                headers[hdrs.CONNECTION] = "close"
        else:
            line = f"HTTP/1.0{_STATUS_LINES[status]}"
            if self._keep_alive:
                headers[hdrs.CONNECTION] = "keep-alive"
        writer = request.writer
        await writer.write_headers(line, headers)  # refuses what would break out of its line
        body = b"" if self.body is None or request.method == hdrs.METH_HEAD else self.body
        if len(body) > _APART_BYTES:
            writer.send_headers()
        await writer.write_eof(body)
        return writer

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing more: `prepare` has sent it all. `data` is for responses that go on."""
