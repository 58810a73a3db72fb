"""aiohttp's server, with the answers of its own making replaced by ours.

What the HTTP parser refuses never reaches a middleware: aiohttp would answer with its version, echo the bytes that it
could not read, and log a traceback for each.
"""

import asyncio

import structlog
from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from api.answers import Answer
from api.door import request_id_of
from api.problems import BadRequest, ExpectationFailed, problem_answer
from shared.errors import RedriveError

log = structlog.stdlib.get_logger(__name__)

KEEPALIVE_S = 75
"""Longer than a proxy's usual 60 s, so that it is the proxy that hangs up."""
LINGERING_S = 2.0
"""How long what is left of a body that was refused is still read, so that the client sees the answer, not a reset."""
MAX_HEADERS = 64
UNREAD_S = 30.0
"""How often to look whether a client reads an answer that is too large for the buffers; aiohttp would wait for ever."""
LEAST_READ_BYTES = 64 * 1024
"""What a client must have read of it between two looks: some 2 KB/s."""


def _plain(request: web.BaseRequest, error: RedriveError) -> Answer:
    """The answer to a request that never got as far as the door."""
    request_id = request_id_of(request)
    answer = problem_answer(error, request_id)
    answer.headers.setdefault("X-Request-Id", request_id)
    answer.headers.setdefault("X-Content-Type-Options", "nosniff")
    return answer


class _Protocol(RequestHandler):
    """One connection."""

    __slots__ = ("_looking",)
    _looking: asyncio.TimerHandle | None

    def pause_writing(self) -> None:
        """Begin to look whether the client reads; this is called for few answers, and large ones."""
        super().pause_writing()
        self._looking = None
        if self.transport is not None:
            self._look_later(self.transport)

    def _look_later(self, transport: asyncio.Transport) -> None:
        left = transport.get_write_buffer_size()
        self._looking = self._loop.call_later(UNREAD_S, self._look, transport, left)

    def _look(self, transport: asyncio.Transport, left: int) -> None:
        if left - transport.get_write_buffer_size() < LEAST_READ_BYTES:
            transport.abort()
        else:
            self._look_later(transport)

    def _look_no_more(self) -> None:
        if self._looking is not None:
            self._looking.cancel()

    def resume_writing(self) -> None:
        """Let a client that reads go on."""
        self._look_no_more()
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget a client that has left, or was cut off."""
        if self.writing_paused:
            self._look_no_more()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - the parser's words echo what was sent
    ) -> web.StreamResponse:
        """Answer what aiohttp itself could not handle; the connection is closed behind it."""
        if isinstance(exc, HttpProcessingError) or status == 400:
            log.debug("request unreadable", error=type(exc).__name__)
            answer = _plain(request, BadRequest())
        elif isinstance(exc, UnicodeEncodeError) and hdrs.EXPECT in request.headers:
            # Aiohttp fails to write its own refusal, which would repeat bytes that are no text.
            log.debug("request unreadable", error=type(exc).__name__)
            answer = _plain(request, ExpectationFailed())
        else:
            log.error("request failed outside the door", status=status, exc_info=exc)
            answer = _plain(request, RedriveError())
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was under way already")
        answer.force_close()
        return answer

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer; an exception of aiohttp's that has come this far is `Expect`'s."""
        if resp.__class__ is not Answer and isinstance(resp, web.HTTPException):
            resp = _plain(request, ExpectationFailed())
        return await super().finish_response(request, resp, start_time)


class _Server(web.Server):
    """Makes our kind of connection."""

    def __call__(self) -> RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """An AppRunner whose connections are ours."""

    def __init__(self, app: web.Application, *, shutdown_timeout_s: float, lingering_s: float = LINGERING_S) -> None:
        super().__init__(
            app,
            access_log=None,
            auto_decompress=False,  # a coded body is refused, not unpacked
            keepalive_timeout=KEEPALIVE_S,
            max_headers=MAX_HEADERS,
            lingering_time=lingering_s,
            shutdown_timeout=shutdown_timeout_s,
        )

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            loop=made._loop,  # noqa: SLF001 - aiohttp has no public way to choose the protocol
            **made._kwargs,  # noqa: SLF001 - likewise
        )
