"""aiohttp's server, with plain answers in place of its own refusals. `Transfer-Encoding` ends a connection.

aiohttp's parser (3.14.5) adds the trailer fields of a body in chunks to the headers of the next request on the
connection, which behind a proxy is another client's. So there is no next one: what was parsed already is dropped,
unanswered. So are the requests before a chunk that cannot be read, where they came in one segment with it.
tests/integration/api/test_trailers.py fails once aiohttp mends it.
"""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import structlog
from aiohttp import ClientConnectionResetError, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

log = structlog.stdlib.get_logger(__name__)


def end_connection(answer: web.StreamResponse) -> None:
    """Close the connection after this answer, and say so, in HTTP/1.0 too."""
    answer.force_close()
    answer.headers[hdrs.CONNECTION] = "close"


class Connection(RequestHandler):
    """One connection."""

    __slots__ = ()

    def plain_answer(self, _request: web.BaseRequest, status: int) -> web.StreamResponse:
        """The answer to a request that aiohttp could not read (400), expects too much (417), or made it fail (500)."""
        return web.Response(status=status, text=f"{status}\n")

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - the parser's message echoes what was sent
    ) -> web.StreamResponse:
        """Answer what aiohttp itself could not handle, and close the connection.

        aiohttp would answer with its version, repeat the bytes that it could not read, and log a traceback for each.
        Raises the error of a client that hung up before it was told to go on with its body: that ends the connection.
        """
        if isinstance(exc, ClientConnectionResetError):
            raise exc
        expects = isinstance(exc, UnicodeEncodeError) and hdrs.EXPECT in request.headers  # it cannot write its refusal
        if isinstance(exc, HttpProcessingError) or status == 400 or expects:
            log.debug("request unreadable", error=type(exc).__name__)
            answer = self.plain_answer(request, 417 if expects else 400)
        else:
            log.error("request failed outside the door", status=status, exc_info=exc)
            answer = self.plain_answer(request, 500)
        if request.writer.output_size > 0:
            raise ConnectionError("part of another answer was sent already")
        end_connection(answer)
        return answer

    def refusal_of(self, request: web.BaseRequest, refused: web.HTTPException) -> web.StreamResponse:
        """Our answer in place of aiohttp's refusal of an `Expect`, which repeats it; another refusal stays.

        It ends the connection: whether a body follows is for the client to know.
        """
        if refused.status != 417:
            return refused
        answer = self.plain_answer(request, 417)
        end_connection(answer)
        return answer

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
