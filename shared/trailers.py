"""aiohttp's server, where a request with `Transfer-Encoding` is the last one of its connection.

aiohttp's parser (3.14.5) adds the trailer fields of a body in chunks to the headers of the next request on the
connection, which behind a proxy is another client's. So there is no next one: what was parsed already is dropped,
unanswered. tests/integration/api/test_trailers.py fails once aiohttp mends it.
"""

import asyncio
from collections.abc import Callable
from typing import Any, cast

from aiohttp import hdrs, web
from aiohttp.web_protocol import RequestHandler


def end_connection(answer: web.StreamResponse) -> None:
    """Close the connection after this answer, and say so, in HTTP/1.0 too."""
    answer.force_close()
    answer.headers[hdrs.CONNECTION] = "close"


class Connection(RequestHandler):
    """One connection."""

    __slots__ = ()

    def refusal_of(self, _request: web.BaseRequest, refused: web.HTTPException) -> web.StreamResponse:
        """The answer to what aiohttp refuses: an exception that is an answer."""
        return refused

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer; the last one of the connection where the request has `Transfer-Encoding`."""
        if isinstance(resp, Exception):  # not HTTPException: a look through its metaclass takes ten times as long
            resp = self.refusal_of(request, cast("web.HTTPException", resp))
        if hdrs.TRANSFER_ENCODING in request.headers:
            end_connection(resp)
        return await super().finish_response(request, resp, start_time)


class _Server(web.Server):
    """Makes connections by `connect`."""

    def __init__(self, made: web.Server, connect: Callable[[web.Server], RequestHandler]) -> None:
        super().__init__(made.request_handler, request_factory=made.request_factory)
        self._connect = connect

    def __call__(self) -> RequestHandler:
        return self._connect(self)


class Runner(web.AppRunner):
    """An AppRunner whose connections are ours. `options` are the RequestHandler's."""

    def __init__(self, app: web.Application, *, shutdown_timeout_s: float, **options: Any) -> None:  # noqa: ANN401
        self._options = options
        super().__init__(app, shutdown_timeout=shutdown_timeout_s, **options)

    def connect(self, server: web.Server) -> RequestHandler:
        """One more connection of `server`."""
        return Connection(server, loop=asyncio.get_running_loop(), **self._options)

    async def _make_server(self) -> web.Server:
        """Private to aiohttp, which has no public way to choose the protocol; called once, when the program starts."""
        return _Server(await super()._make_server(), self.connect)
