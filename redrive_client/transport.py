"""Requests, and when to send them again.

Everything that this client sends may be sent twice: reads, dry runs, retries under an idempotency key, cancellations.
So a request whose answer was lost, or was 429 or 503, is sent again, byte for byte: after growing pauses, spread at
random, never sooner than `Retry-After` says, and never after the deadline.
"""

import asyncio
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final, NamedTuple, Self
from urllib.parse import urlencode

import aiohttp
from aiohttp import hdrs
from multidict import CIMultiDictProxy
from yarl import URL

from redrive_client.problems import RedriveClientError, UnexpectedAnswer, Unreachable, problem_of

Token = str | Callable[[], Awaitable[str]]
OnPause = Callable[[RedriveClientError, float], None]
"""Called before a request is sent again, with the reason and the pause in seconds."""

TRIES: Final = 6
FOREVER: Final = math.inf
ANSWER_S: Final = 10.0
"""How long an answer may take; the server itself gives up on its database within 3 s."""
CONNECT_S: Final = 5.0
SILENCE_S: Final = 40.0
"""A stream says something every 15 s."""
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 5.0
_PASSING: Final = frozenset(
    {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
_HOPELESS: Final = (aiohttp.ClientSSLError, aiohttp.InvalidURL)
_LOSSES: Final = (aiohttp.ClientError, OSError, TimeoutError)

sleep = asyncio.sleep


class Request(NamedTuple):
    """One request, as often as it is sent; `answer_s` is how long its answer may take."""

    method: str
    path: str
    query: Mapping[str, str] = {}
    headers: Mapping[str, str] = {}
    body: bytes | None = None
    answer_s: float = ANSWER_S


class Answer(NamedTuple):
    """An answer below 400."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes


class Backoff:
    """Pauses that double, each spread over its second half."""

    def __init__(self) -> None:
        self._longest_s = FIRST_PAUSE_S
        self.tries = 0

    def pause_s(self, at_least_s: float | None = None) -> float:
        """The next pause; on top of `at_least_s` where the server has named a time."""
        self.tries += 1
        spread_s = self._longest_s * random.uniform(0.5, 1.0)  # noqa: S311 - spreading, not secrecy
        self._longest_s = min(LONGEST_PAUSE_S, 2 * self._longest_s)
        return spread_s if at_least_s is None else at_least_s + spread_s


class Transport:
    """A session with one server, with one token."""

    def __init__(self, url: str, *, token: Token, project_id: str | None, on_pause: OnPause | None = None) -> None:
        base = URL(url)
        if base.scheme not in ("http", "https") or not base.host:
            raise ValueError("the URL must begin with https:// or http://, and name a host")
        if base.user is not None or base.password is not None:
            raise ValueError("the URL must not hold a user or a password: the token takes their place")
        self.base = str(base.with_query(None).with_fragment(None)).rstrip("/")
        self._token = token
        self._on_pause = on_pause
        self._query = {} if project_id is None else {"project_id": project_id}
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def answer(self, request: Request, *, deadline: float, tries: float = TRIES) -> Answer:
        """The answer to a request, sent up to `tries` times before `deadline` (the event loop's time).

        Raises RedriveProblem, Unreachable, UnexpectedAnswer.
        """
        backoff = Backoff()
        while True:
            outcome, at_least_s = await self._try_once(request, deadline)
            if isinstance(outcome, Answer):
                return outcome
            pause_s = backoff.pause_s(at_least_s)
            if backoff.tries >= tries or asyncio.get_running_loop().time() + pause_s >= deadline:
                raise outcome
            if self._on_pause is not None:
                self._on_pause(outcome, pause_s)
            await sleep(pause_s)

    async def _try_once(self, request: Request, deadline: float) -> tuple[Answer | RedriveClientError, float | None]:
        """An answer; or a failure that may pass, and the earliest time for the next try. Raises any other failure."""
        try:
            async with asyncio.timeout_at(min(deadline, asyncio.get_running_loop().time() + request.answer_s)):
                async with await self._send(request) as response:
                    answer = Answer(response.status, response.headers, await response.read())
        except _HOPELESS as error:
            raise Unreachable(_words_of(error)) from error
        except _LOSSES as error:
            failure = Unreachable(_words_of(error))
            failure.__cause__ = error
            return failure, None
        if answer.status < 300 or answer.status == HTTPStatus.NOT_MODIFIED:
            return answer, None
        problem = _problem_in(answer.status, answer.headers, answer.body)
        if answer.status not in _PASSING:
            raise problem
        return problem, retry_after_s(answer.headers)

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncIterator[AsyncIterator[bytes]]:
        """The body of an answer as it comes, in pieces. Sent once. Raises as `answer` does, while reading, too."""
        try:
            async with asyncio.timeout(request.answer_s):
                response = await self._send(request)
            async with response:
                if response.status != HTTPStatus.OK:
                    raise _problem_in(response.status, response.headers, await response.read())
                yield _pieces(response)
        except _LOSSES as error:
            raise Unreachable(_words_of(error)) from error

    async def _send(self, request: Request) -> aiohttp.ClientResponse:
        token = self._token if isinstance(self._token, str) else await self._token()
        query = urlencode({**request.query, **self._query})
        headers = {**request.headers, hdrs.AUTHORIZATION: f"Bearer {token.strip()}"}
        if request.body is not None:
            headers[hdrs.CONTENT_TYPE] = "application/json"
        return await self._session.request(
            request.method,
            URL(f"{self.base}{request.path}{'?' if query else ''}{query}", encoded=True),
            data=request.body,
            headers=headers,
            allow_redirects=False,  # the token is for this server
        )


async def _pieces(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    while True:
        async with asyncio.timeout(SILENCE_S):
            piece = await response.content.readany()
        if not piece:
            return
        yield piece


def _words_of(error: Exception) -> str:
    """What happened to the connection, in words that hold nothing of the request."""
    match error:
        case aiohttp.ClientSSLError():
            return "no trusted connection (TLS)"
        case aiohttp.ClientConnectorError():
            return f"no connection ({error.os_error.strerror or type(error.os_error).__name__})"
        case TimeoutError():
            return "no answer in time"
        case _:
            return f"the connection was lost ({type(error).__name__})"


def _problem_in(status: int, headers: Mapping[str, str], body: bytes) -> RedriveClientError:
    if status < 400:
        return UnexpectedAnswer(f"status {status}")
    return problem_of(status, body, retry_after_s=retry_after_s(headers))


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The seconds that `Retry-After` names; None for none, and for a date, which this server never sends."""
    text = headers.get(hdrs.RETRY_AFTER, "")
    return float(text) if text.isascii() and text.isdigit() and len(text) <= 6 else None
