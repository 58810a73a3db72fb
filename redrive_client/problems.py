"""The exceptions of this client, one class for each decision that a caller can take.

A RedriveProblem is the server's answer (`application/problem+json`, RFC 9457); the classes beneath it follow its
`code`. The client itself raises the others: no answer came, the answer made no sense, or the time was up.
None of them ever holds the token.

    RedriveClientError
        Unreachable, UnexpectedAnswer, WaitTimeout
        RedriveProblem
            BadRequest, Unauthenticated, Forbidden, NotFound, Conflict, PreconditionFailed, InvalidBody, KeyReused,
            RateLimited, Unavailable, ServerFault
"""

from http import HTTPStatus
from typing import Generic, TypeVar

import msgspec

V = TypeVar("V")


class RedriveClientError(Exception):
    """Every exception of this client is one of these."""


class Unreachable(RedriveClientError):
    """The server cannot be reached, or closed the connection during its answer; `__cause__` is the system's error."""


class UnexpectedAnswer(RedriveClientError):
    """The answer is not of this protocol: it came from another server, or from a proxy in front of Redrive."""


class WaitTimeout(RedriveClientError, TimeoutError, Generic[V]):
    """What was waited for has not happened in time; `last` is what was seen last, None for nothing."""

    def __init__(self, last: V | None) -> None:
        super().__init__("not done in time")
        self.last = last


class Fault(msgspec.Struct, frozen=True):
    """One thing that is wrong in a body: where (a JSON pointer, RFC 6901), and what."""

    pointer: str
    detail: str


class _Body(msgspec.Struct, frozen=True):
    title: str
    status: int
    code: str
    detail: str = ""
    retryable: bool = False
    request_id: str | None = None
    errors: tuple[Fault, ...] = ()


class RedriveProblem(RedriveClientError):
    """The server refused the request.

    `retryable`: the same request may succeed later, unchanged. `request_id` finds it in the server's log.
    """

    def __init__(self, body: _Body, *, retry_after_s: float | None = None) -> None:
        super().__init__(f"{body.title}: {body.detail}" if body.detail else body.title)
        self.status = body.status
        self.code = body.code
        self.title = body.title
        self.detail = body.detail
        self.retryable = body.retryable
        self.request_id = body.request_id
        self.errors = body.errors
        self.retry_after_s = retry_after_s


class BadRequest(RedriveProblem):
    """The request makes no sense to the server: an id, a parameter, a cursor."""


class Unauthenticated(RedriveProblem):
    """No token, or one that is not valid there, or no longer."""


class Forbidden(RedriveProblem):
    """The token is good, and not for this; or the deployment only reads."""


class NotFound(RedriveProblem):
    """No such thing in this project."""


class Conflict(RedriveProblem):
    """The thing is not in a state for this; `code` says why: `job-not-failed`, `attempts-exhausted`."""


class PreconditionFailed(RedriveProblem):
    """The job has changed since it was looked at."""


class InvalidBody(RedriveProblem):
    """The body is not as expected; `errors` says where."""


class KeyReused(RedriveProblem):
    """The idempotency key stands for another request."""


class RateLimited(RedriveProblem):
    """Too many requests, and no time left to wait until `retry_after_s` is over."""


class Unavailable(RedriveProblem):
    """The server cannot do it now, and no time is left to try again; what was sent may still have taken effect."""


class ServerFault(RedriveProblem):
    """Something went wrong on the server."""


_BY_CODE: dict[str, type[RedriveProblem]] = {"idempotency-key-reused": KeyReused}
_BY_STATUS: dict[int, type[RedriveProblem]] = {
    HTTPStatus.UNAUTHORIZED: Unauthenticated,
    HTTPStatus.FORBIDDEN: Forbidden,
    HTTPStatus.NOT_FOUND: NotFound,
    HTTPStatus.CONFLICT: Conflict,
    HTTPStatus.PRECONDITION_FAILED: PreconditionFailed,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: InvalidBody,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: InvalidBody,
    HTTPStatus.UNPROCESSABLE_ENTITY: InvalidBody,
    HTTPStatus.TOO_MANY_REQUESTS: RateLimited,
    HTTPStatus.SERVICE_UNAVAILABLE: Unavailable,
}
_decoder = msgspec.json.Decoder(_Body)


def problem_of(status: int, body: bytes, *, retry_after_s: float | None) -> RedriveClientError:
    """The exception that an answer of 400 or more stands for; a proxy's own page is an UnexpectedAnswer."""
    try:
        decoded = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        if status not in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
            return UnexpectedAnswer(f"status {status}, without a problem that can be read")
        # Most often a proxy's own answer, with the same meaning.
        decoded = _Body(title=HTTPStatus(status).phrase, status=status, code="unavailable", retryable=True)
    known = _BY_CODE.get(decoded.code) or _BY_STATUS.get(status)
    kind = known or (ServerFault if status >= HTTPStatus.INTERNAL_SERVER_ERROR else BadRequest)
    return kind(decoded, retry_after_s=retry_after_s)
