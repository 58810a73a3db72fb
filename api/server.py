"""aiohttp's server, with the answers of its own making replaced by ours.

What the HTTP parser refuses never reaches a middleware: aiohttp would answer with its version, echo the bytes that it
could not read, and log a traceback for each.
"""

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import structlog
from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from api.answers import Answer
from api.door import mark_cross_origin, request_id_of
from api.problems import BadRequest, ExpectationFailed, problem_answer
from api.unread import Unread
from shared.errors import RedriveError

if TYPE_CHECKING:
    from api.door import Door
    from api.origins import Origins

log = structlog.stdlib.get_logger(__name__)

LINGERING_S = 2.0
"""How long what is left of a body that was refused is still read, so that the client sees the answer, not a reset."""
MAX_HEADERS = 64
UNREAD_S = 30.0
"""How often to look whether a client reads an answer that is too large for the buffers; aiohttp would wait for ever."""
LEAST_READ_BYTES = 64 * 1024
"""What a client must have read of it between two looks: some 2 KB/s."""
UNREAD_BYTES = 64 * 1024 * 1024
"""What all connections together may hold in answers that their clients do not read."""
PAUSE_BYTES = 16 * 1024
"""From how many unsent bytes on a connection counts as one that does not read, and is sent nothing more."""
KERNEL_BYTES = 128 * 1024
"""How many unsent bytes of a connection the kernel takes; of its own accord it would take some megabytes."""


def _plain(request: web.BaseRequest, error: RedriveError, origins: "Origins") -> Answer:
    """The answer to a request that never got as far as the door."""
    request_id = request_id_of(request)
    answer = problem_answer(error, request_id)
    answer.headers.setdefault("X-Request-Id", request_id)
    answer.headers.setdefault("X-Content-Type-Options", "nosniff")
    if origins.any:
        mark_cross_origin(answer.headers, origins.headers_of(request))
    return answer


class _Protocol(RequestHandler):
    """One connection."""

    __slots__ = ("_door", "_looking", "_unread")
    _looking: asyncio.TimerHandle | None

    def __init__(self, server: "_Server", **known: Any) -> None:  # noqa: ANN401 - aiohttp's parameters
        super().__init__(server, **known)
        self._door = server.door
        self._unread = server.unread

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bound what the connection may hold, in this process and in the kernel."""
        super().connection_made(transport)
        if self.transport is not None:
            self.transport.set_write_buffer_limits(high=PAUSE_BYTES)
            _bound_in_kernel(self.transport)

    def pause_writing(self) -> None:
        """Begin to look whether the client reads; this is called for few answers, and large ones."""
        super().pause_writing()
        self._looking = None
        if self.transport is not None:
            self._look_later(self.transport)
            self._unread.add(self.transport)

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
        if self.transport is not None:
            self._unread.remove(self.transport)
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget a client that has left, or was cut off."""
        if self.writing_paused:
            self._look_no_more()
            if self.transport is not None:
                self._unread.remove(self.transport)
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
            answer = self._refusal(request, BadRequest())
        elif isinstance(exc, UnicodeEncodeError) and hdrs.EXPECT in request.headers:
            # Aiohttp fails to write its own refusal, which would repeat bytes that are no text.
            log.debug("request unreadable", error=type(exc).__name__)
            answer = self._refusal(request, ExpectationFailed())
        else:
            log.error("request failed outside the door", status=status, exc_info=exc)
            answer = _plain(request, RedriveError(), self._door.origins)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was under way already")
        _end_connection(answer)
        return answer

    def _refusal(self, request: web.BaseRequest, error: RedriveError) -> Answer:
        """The answer to a request that did not get as far as the door. It is charged to its address all the same."""
        try:
            self._door.charge_address(request)
        except RedriveError as limited:
            error = limited
        return _plain(request, error, self._door.origins)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer; an exception of aiohttp's that has come this far is `Expect`'s.

        A request with `Transfer-Encoding` ends its connection, whatever it is answered: aiohttp's parser (3.14.5) puts
        the trailer fields behind its body among the headers of the request that follows on the connection. So none
        does: what is parsed already is dropped, unanswered. tests/integration/api/test_trailers.py says when aiohttp
        has mended it.
        """
        if resp.__class__ is not Answer and isinstance(resp, web.HTTPException):
            resp = self._refusal(request, ExpectationFailed())
        if hdrs.TRANSFER_ENCODING in request.headers:
            _end_connection(resp)
        return await super().finish_response(request, resp, start_time)


def _end_connection(answer: web.StreamResponse) -> None:
    """Close the connection behind this answer, and say so, in HTTP/1.0, too."""
    answer.force_close()
    answer.headers[hdrs.CONNECTION] = "close"


def _bound_in_kernel(transport: asyncio.Transport) -> None:
    """Let the kernel take no more of what is not sent yet than it needs to keep the line busy (tcp(7))."""
    sock = transport.get_extra_info("socket")
    if sock is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):  # not on every system
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, KERNEL_BYTES)


class _Server(web.Server):
    """Makes our kind of connection."""

    door: "Door"
    unread: Unread

    def __call__(self) -> RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """An AppRunner whose connections are ours."""

    def __init__(
        self,
        app: web.Application,
        door: "Door",
        *,
        keepalive_timeout_s: float,
        shutdown_timeout_s: float,
        lingering_s: float = LINGERING_S,
    ) -> None:
        self._door = door
        super().__init__(
            app,
            access_log=None,
            auto_decompress=False,  # a coded body is refused, not unpacked
            keepalive_timeout=keepalive_timeout_s,
            max_headers=MAX_HEADERS,
            lingering_time=lingering_s,
            shutdown_timeout=shutdown_timeout_s,
        )

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        server = _Server(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            loop=made._loop,  # noqa: SLF001 - aiohttp has no public way to choose the protocol
            **made._kwargs,  # noqa: SLF001 - likewise
        )
        server.door = self._door
        server.unread = Unread(UNREAD_BYTES)
        return server
