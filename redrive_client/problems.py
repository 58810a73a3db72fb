"""What can go wrong, one class for each decision that a caller can take.

A RedriveProblem is the server's word (`application/problem+json`, RFC 9457); the classes beneath it follow its
`code`. The others are ours: nobody answered, the answer made no sense, or the time was up. None of them ever holds the
token.
"""

from http import HTTPStatus
from typing import Generic, TypeVar

import msgspec

V = TypeVar("V")


class RedriveError(Exception):
    """Whatever this client raises."""


class Unreachable(RedriveError):
    """The server cannot be reached, or has gone away in mid-answer; the cause is what the system said."""


class UnexpectedAnswer(RedriveError):
    """What answered does not speak this protocol: another server, or a proxy before ours."""


class WaitTimeout(RedriveError, TimeoutError, Generic[V]):
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


class RedriveProblem(RedriveError):
    """The server said no.

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


def problem_of(status: int, body: bytes, *, retry_after_s: float | None) -> RedriveError:
    """The exception that an answer of 400 or more stands for; a proxy's own pages are told from the server's words."""
    try:
        decoded = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        if status not in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
            return UnexpectedAnswer(f"status {status}, without a problem that can be read")
        # A proxy's word for the same, as a rule.
        decoded = _Body(title=HTTPStatus(status).phrase, status=status, code="unavailable", retryable=True)
    known = _BY_CODE.get(decoded.code) or _BY_STATUS.get(status)
    kind = known or (ServerFault if status >= HTTPStatus.INTERNAL_SERVER_ERROR else BadRequest)
    return kind(decoded, retry_after_s=retry_after_s)
