"""The answers to refused requests: `application/problem+json` (RFC 9457). Only this module knows errors' status codes.

Titles and details are fixed texts: they say what a client can do, and repeat nothing of the request or of our state.
"""

import re
from http import HTTPStatus
from typing import Final, NamedTuple

import msgspec

from api.answers import Answer
from shared.errors import (
    ActorUnstorable,
    AttemptsExhausted,
    BatchNotFound,
    DatabaseUnavailable,
    IdempotencyKeyReused,
    InvalidJobId,
    InvalidJobNumber,
    JobChanged,
    JobNotFailed,
    JobNotFound,
    JobsUnfit,
    JobUnreadable,
    RedriveError,
    RetryAlreadySettled,
    RetryNotDeadLettered,
    RetryNotFound,
    RetryQueued,
    TextUnstorable,
    TooManyMatches,
)

UNAVAILABLE_RETRY_AFTER_S = 1


class BadRequest(RedriveError):
    """The HTTP parser refused the request, or its body did not come in time."""

    code = "bad-request"


class NotFound(RedriveError):
    """No route has this path."""

    code = "not-found"


class LengthRequired(RedriveError):
    """The body comes in chunks, and the method takes none."""

    code = "length-required"


class MethodNotAllowed(RedriveError):
    """The path has other methods; `allow` names them."""

    code = "method-not-allowed"

    def __init__(self, allow: str) -> None:
        super().__init__(allow)
        self.allow = allow


class ExpectationFailed(RedriveError):
    """The `Expect` header is not `100-continue`."""

    code = "expectation-failed"


class AuthenticationRequired(RedriveError):
    """The request has no token."""

    code = "authentication-required"


class InvalidToken(RedriveError):
    """The token is not valid. The answer does not say why."""

    code = "invalid-token"


class KeysUnavailable(RedriveError):
    """The keys were never fetched, so no token can be verified. The client is to try again."""

    code = "unavailable"


class InsufficientScope(RedriveError):
    """The token is valid, and does not permit this."""

    code = "insufficient-scope"


class CrossSite(RedriveError):
    """A page of another site, whose origin is not listed, asks for a change."""

    code = "cross-site"


class ReadOnly(RedriveError):
    """The api is read-only."""

    code = "read-only"


class RateLimited(RedriveError):
    """A limit is exceeded; `retry_after_s` says when to come back."""

    code = "rate-limited"

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s


class InvalidParameter(RedriveError):
    """A query parameter that is unknown, doubled or out of range; `name` is which, as it came."""

    code = "invalid-parameter"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class InvalidCursor(RedriveError):
    """Not a cursor of ours, or not of this list."""

    code = "invalid-cursor"


class PayloadTooLarge(RedriveError):
    """The body is larger than this resource reads."""

    code = "payload-too-large"


class UnsupportedMediaType(RedriveError):
    """The body is not `application/json`, or it has a content coding."""

    code = "unsupported-media-type"


class InvalidJson(RedriveError):
    """The body is not JSON."""

    code = "invalid-json"


class Fault(NamedTuple):
    """A fault of a body: where it is (a JSON pointer, RFC 6901), and what it is."""

    pointer: str
    detail: str


class InvalidBody(RedriveError):
    """The body is JSON of another shape; `faults` says where."""

    code = "invalid-body"

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__(faults)
        self.faults = faults


class Problem(NamedTuple):
    """How an error is answered. `retryable`: the same request may succeed later."""

    status: HTTPStatus
    title: str
    detail: str
    retryable: bool = False


_UNAVAILABLE = Problem(HTTPStatus.SERVICE_UNAVAILABLE, "Unavailable", "Try again after Retry-After.", retryable=True)
_INSUFFICIENT_SCOPE = Problem(HTTPStatus.FORBIDDEN, "Insufficient scope", "The token does not permit this.")
_INVALID_BODY = Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "Invalid body", "The body is JSON of the wrong shape.")

PROBLEMS: dict[type[RedriveError], Problem] = {
    BadRequest: Problem(HTTPStatus.BAD_REQUEST, "Bad request", "The request could not be read as HTTP."),
    InvalidJobId: Problem(
        HTTPStatus.BAD_REQUEST, "Invalid job id", "A job id is a UUID of 8-4-4-4-12 hexadecimal digits."
    ),
    InvalidJobNumber: Problem(
        HTTPStatus.BAD_REQUEST,
        "Invalid job id",
        "A job id is a whole number from 1 to 2^63 - 1, in decimal digits without sign or leading zero.",
    ),
    InvalidParameter: Problem(
        HTTPStatus.BAD_REQUEST,
        "Invalid parameter",
        "A query parameter or Idempotency-Key is unknown, given twice or out of range.",
    ),
    InvalidCursor: Problem(
        HTTPStatus.BAD_REQUEST, "Invalid cursor", "The cursor does not belong to this list; begin again without it."
    ),
    InvalidJson: Problem(HTTPStatus.BAD_REQUEST, "Invalid JSON", "The body is not JSON."),
    AuthenticationRequired: Problem(
        HTTPStatus.UNAUTHORIZED, "Authentication required", "Send a token: Authorization: Bearer <JWT>."
    ),
    InvalidToken: Problem(HTTPStatus.UNAUTHORIZED, "Invalid token", "The token is not valid here, or it has expired."),
    InsufficientScope: _INSUFFICIENT_SCOPE,
    ActorUnstorable: _INSUFFICIENT_SCOPE,
    CrossSite: Problem(
        HTTPStatus.FORBIDDEN,
        "Cross-site",
        "A page of another site may not change anything here, unless the deployment lists its origin.",
    ),
    ReadOnly: Problem(HTTPStatus.FORBIDDEN, "Read-only", "This deployment only reads."),
    NotFound: Problem(HTTPStatus.NOT_FOUND, "Not found", "No resource has this path."),
    JobNotFound: Problem(HTTPStatus.NOT_FOUND, "Job not found", "There is no such job in this project."),
    RetryNotFound: Problem(HTTPStatus.NOT_FOUND, "Retry not found", "There is no such retry in this project."),
    BatchNotFound: Problem(HTTPStatus.NOT_FOUND, "Not found", "There is no such batch of retries in this project."),
    MethodNotAllowed: Problem(
        HTTPStatus.METHOD_NOT_ALLOWED, "Method not allowed", "The Allow header names the methods of this path."
    ),
    JobUnreadable: Problem(
        HTTPStatus.CONFLICT,
        "Job unreadable",
        "The job exists, but its row holds a value that cannot be shown; its owner can correct the row.",
    ),
    LengthRequired: Problem(
        HTTPStatus.LENGTH_REQUIRED,
        "Length required",
        "This method takes no body in chunks; leave Transfer-Encoding out.",
    ),
    JobNotFailed: Problem(HTTPStatus.CONFLICT, "Job not failed", "Only a failed job can be retried."),
    AttemptsExhausted: Problem(
        HTTPStatus.CONFLICT,
        "Attempts exhausted",
        "The job has used all its attempts; extra_attempts raises their number.",
    ),
    RetryAlreadySettled: Problem(
        HTTPStatus.CONFLICT, "Retry already settled", "The retry is no longer queued, so it cannot be cancelled."
    ),
    RetryNotDeadLettered: Problem(
        HTTPStatus.CONFLICT, "Retry not dead-lettered", "Only a dead-lettered retry can be redriven."
    ),
    RetryQueued: Problem(HTTPStatus.CONFLICT, "Retry queued", "Another retry is queued for the job."),
    TooManyMatches: Problem(
        HTTPStatus.CONFLICT, "Too many matches", "The filter matches more jobs than max allows; nothing was retried."
    ),
    IdempotencyKeyReused: Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY, "Idempotency key reused", "The key was used for another request."
    ),
    JobChanged: Problem(
        HTTPStatus.PRECONDITION_FAILED, "Job changed", "The job is not of the version in If-Match; read it again."
    ),
    PayloadTooLarge: Problem(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "Payload too large", "The body is larger than allowed here."
    ),
    UnsupportedMediaType: Problem(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "Unsupported media type",
        "The body must be application/json, without a content coding.",
    ),
    ExpectationFailed: Problem(
        HTTPStatus.EXPECTATION_FAILED, "Expectation failed", "Only Expect: 100-continue can be met."
    ),
    InvalidBody: _INVALID_BODY,
    TextUnstorable: _INVALID_BODY,
    RateLimited: Problem(
        HTTPStatus.TOO_MANY_REQUESTS, "Rate limited", "Too many requests; try again after Retry-After.", retryable=True
    ),
    KeysUnavailable: _UNAVAILABLE,
    DatabaseUnavailable: _UNAVAILABLE,
    JobsUnfit: _UNAVAILABLE._replace(
        detail="The jobs are not stored in the form that is served here; the reason is in the log of the api."
    ),
    RedriveError: Problem(
        HTTPStatus.INTERNAL_SERVER_ERROR, "Internal error", "The request failed for a reason that has been logged."
    ),
}  # looked up along the MRO: a subclass inherits its parent's answer


class _Body(msgspec.Struct, frozen=True, omit_defaults=True):
    type: str
    title: str
    status: int
    detail: str
    code: str
    retryable: bool
    request_id: str
    errors: tuple[dict[str, str], ...] | None = None
    parameter: str | msgspec.UnsetType | None = msgspec.UNSET


_SHOWN_NAME: Final = re.compile(r"[a-z_]{1,32}")
_encoder = msgspec.json.Encoder()


def problem_of(error: type[RedriveError]) -> Problem:
    """How errors of this class are answered."""
    return next(PROBLEMS[kind] for kind in error.__mro__ if kind in PROBLEMS)


def problem_answer(error: RedriveError, request_id: str) -> Answer:
    """The answer to a refused request, with the headers that its status requires."""
    problem = problem_of(type(error))
    code = error.code
    errors = None
    parameter: str | msgspec.UnsetType | None = msgspec.UNSET
    headers = {"Cache-Control": "no-store"}
    match error:
        case InvalidBody():
            errors = tuple(fault._asdict() for fault in error.faults)
        case TextUnstorable():
            errors = (Fault(f"/{error.place}", "The database's encoding has no such character.")._asdict(),)
        case InvalidParameter():
            parameter = error.name if _SHOWN_NAME.fullmatch(error.name) else None
        case RateLimited():
            headers["Retry-After"] = str(error.retry_after_s)
        case DatabaseUnavailable() | KeysUnavailable():
            headers["Retry-After"] = str(UNAVAILABLE_RETRY_AFTER_S)
        case MethodNotAllowed():
            headers["Allow"] = error.allow
        case AuthenticationRequired() | InvalidToken():
            headers["WWW-Authenticate"] = "Bearer"
        case _ if problem.status is HTTPStatus.INTERNAL_SERVER_ERROR:
            code = RedriveError.code
        case _:
            pass
    body = _Body(
        type=f"/problems/{code}",
        title=problem.title,
        status=problem.status,
        detail=problem.detail,
        code=code,
        retryable=problem.retryable,
        request_id=request_id,
        errors=errors,
        parameter=parameter,
    )
    return Answer(
        _encoder.encode(body), status=problem.status, content_type="application/problem+json", headers=headers
    )
