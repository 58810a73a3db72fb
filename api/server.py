"""The api's connections: problems for what aiohttp refuses, and bounds on what slow clients can hold."""

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from api.answers import Answer
from api.door import mark_cross_origin, request_id_of
from api.problems import BadRequest, ExpectationFailed, problem_answer
from api.unread import Unread
from shared import trailers
from shared.errors import RedriveError
from shared.trailers import Connection

if TYPE_CHECKING:
    from api.door import Door
    from api.origins import Origins

log = structlog.stdlib.get_logger(__name__)

LINGERING_S = 2.0
"""How long the rest of a refused body is read, so that the client sees the answer, not a reset."""
MAX_HEADERS = 64
UNREAD_S = 30.0
"""How often to check that a client reads an answer that is larger than the buffers; aiohttp would wait for ever."""
LEAST_READ_BYTES = 64 * 1024
"""What a client must read between two checks: some 2 KB/s."""
UNREAD_BYTES = 64 * 1024 * 1024
"""How many bytes of unread answers all connections together may hold."""
PAUSE_BYTES = 16 * 1024
"""With more unsent bytes than this, a connection counts as unread, and nothing more is sent on it."""
KERNEL_BYTES = 128 * 1024
"""How many unsent bytes of a connection the kernel takes; its default is some megabytes."""


def _plain(request: web.BaseRequest, error: RedriveError, origins: "Origins") -> Answer:
    """The answer to a request that did not reach the door."""
    request_id = request_id_of(request)
    answer = problem_answer(error, request_id)
    answer.headers.setdefault("X-Request-Id", request_id)
    answer.headers.setdefault("X-Content-Type-Options", "nosniff")
    if origins.any:
        mark_cross_origin(answer.headers, origins.headers_of(request))
    return answer


class _Protocol(Connection):
    """One connection."""

    __slots__ = ("_door", "_next_check", "_unread")
    _next_check: asyncio.TimerHandle | None

    def __init__(self, server: web.Server, door: "Door", unread: Unread, **known: Any) -> None:  # noqa: ANN401 - aiohttp's
        super().__init__(server, **known)
        self._door = door
        self._unread = unread

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bound the unsent bytes of the connection, in this process and in the kernel."""
        super().connection_made(transport)
        if self.transport is not None:
            self.transport.set_write_buffer_limits(high=PAUSE_BYTES)
            _bound_in_kernel(self.transport)

    def pause_writing(self) -> None:
        """Begin to check that the client reads. Called for large answers only."""
        super().pause_writing()
        self._next_check = None
        if self.transport is not None:
            self._check_later(self.transport)
            self._unread.add(self.transport)

    def _check_later(self, transport: asyncio.Transport) -> None:
        left = transport.get_write_buffer_size()
        self._next_check = asyncio.get_running_loop().call_later(UNREAD_S, self._check, transport, left)

    def _check(self, transport: asyncio.Transport, left: int) -> None:
        if left - transport.get_write_buffer_size() < LEAST_READ_BYTES:
            transport.abort()
        else:
            self._check_later(transport)

    def _stop_checking(self) -> None:
        if self._next_check is not None:
            self._next_check.cancel()

    def resume_writing(self) -> None:
        """Stop checking: the client has read."""
        self._stop_checking()
        if self.transport is not None:
            self._unread.remove(self.transport)
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection: its client has left, or was cut off."""
        if self.writing_paused:
            self._stop_checking()
            if self.transport is not None:
                self._unread.remove(self.transport)
        super().connection_lost(exc)

    def plain_answer(self, request: web.BaseRequest, status: int) -> web.StreamResponse:
        """A problem; a refused request is charged to its address, although it did not reach the door."""
        error: RedriveError = {400: BadRequest(), 417: ExpectationFailed()}.get(status, RedriveError())
        if status != 500:
            try:
                self._door.charge_address(request)
            except RedriveError as limited:
                error = limited
        return _plain(request, error, self._door.origins)


def _bound_in_kernel(transport: asyncio.Transport) -> None:
    """Let the kernel take only as many unsent bytes as keep the line busy (tcp(7))."""
    sock = transport.get_extra_info("socket")
    if sock is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):  # not on every system
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, KERNEL_BYTES)


class Runner(trailers.Runner):
    """A Runner whose connections have the door's answers, and bounds on unread bytes."""

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
        self._unread = Unread(UNREAD_BYTES)
        super().__init__(
            app,
            shutdown_timeout_s=shutdown_timeout_s,
            access_log=None,
            auto_decompress=False,  # a coded body is refused, not unpacked
            keepalive_timeout=keepalive_timeout_s,
            max_headers=MAX_HEADERS,
            lingering_time=lingering_s,
        )

    def connect(self, server: web.Server) -> RequestHandler:
        """One more connection of `server`."""
        return _Protocol(server, self._door, self._unread, loop=asyncio.get_running_loop(), **self._options)
