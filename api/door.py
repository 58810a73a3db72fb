"""The door: the steps that every request takes before its handler, in one order. A refused step is the last one.

    request id → preflight → limit per client address → chunks where no body is taken: 411 → unknown path 404, method
    405 → cross-site → authentication → limit per project → scope → read-only → query parameters → the handler: id →
    body → database

The middleware takes the steps up to the path, for all paths, and turns errors into answers. `Door.guarded` takes the
steps after it, for each handler.

A preflight is answered at its step. With `Transfer-Encoding`, which no browser sends, it is none (`is_preflight`), and
like any other OPTIONS in chunks it is charged to its address and answered 411.

A sampled request has a span, where traces are on, once its token, its limits and its scopes have let it in: what is
refused before is not traced, so that a stranger cannot have spans made.
"""

import re
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from multidict import MultiDict, istr
from uuid_utils import uuid7

from api.answers import Answer
from api.auth import PROJECT_ID, Authenticator, Principal, Scope
from api.compression import LEAST_BYTES, Compressor
from api.origins import Origins, is_preflight
from api.problems import (
    CrossSite,
    InsufficientScope,
    InvalidParameter,
    LengthRequired,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    ReadOnly,
    problem_answer,
)
from api.spans import begin_span, end_span
from shared.errors import DatabaseUnavailable, JobsUnfit, RedriveError
from shared.models import JobId, ProjectId

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

    from multidict import MultiMapping

    from api.metrics import Metrics
    from api.ratelimit import Bucket, ClientAddresses, RateLimit
    from shared.tracing import RequestSpan, Tracing

log = structlog.stdlib.get_logger(__name__)


# An istr is folded to lower case once, here, and not once a request.
_REQUEST_ID_HEADER: Final = istr("X-Request-Id")
_CONTENT_TYPE_OPTIONS: Final = istr("X-Content-Type-Options")
_RATE_LIMIT_POLICY: Final = istr("RateLimit-Policy")
_RATE_LIMIT: Final = istr("RateLimit")

_BODILESS: Final = frozenset({hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_DELETE, hdrs.METH_OPTIONS})
_NO_QUERY: "Final[MultiMapping[str]]" = MultiDict()
_GIVEN_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


class Cost(StrEnum):
    """Which of a project's limits a request is charged to."""

    READ = "read"
    RETRY = "retry"
    BULK = "bulk"


class Access(NamedTuple):
    """What a route requires of a request.

    `units` is what the request is charged. `narrowed` routes are open to tokens that are narrowed to some jobs; their
    handlers must show no other job. `permit` raises InsufficientScope where the token may not ask so: it is a part of
    the scope step, and gets the query before it is known to be valid. It is called where there is a query, or where the
    token is narrowed.
    """

    cost: Cost
    scope: Scope | None
    parameters: frozenset[str] = frozenset()
    writes: bool = False
    units: int = 1
    narrowed: bool = False
    permit: "Callable[[Principal, MultiMapping[str]], None] | None" = None

    def taking(self, *parameters: str) -> "Access":
        """The same, for a resource that takes these query parameters."""
        return self._replace(parameters=frozenset(parameters))


class Call(NamedTuple):
    """A request that has passed the door: made by `principal`, about the project `project_id`."""

    request: web.Request
    principal: Principal
    project_id: ProjectId
    parameters: dict[str, str]

    @property
    def span(self) -> "RequestSpan | None":
        """There if the request is traced."""
        return self.request[PASSAGE].span

    @property
    def foreign_project_id(self) -> ProjectId | None:
        """The project that an administrator named; None if it is the token's own."""
        return None if self.project_id == self.principal.project_id else self.project_id

    def may_see(self, job_id: JobId) -> bool:
        """Whether the token may see this job: it is for all jobs, or narrowed to some, with this one among them."""
        return self.principal.jobs is None or job_id in self.principal.jobs


class Passage:
    """What the door knows of a request so far.

    `limit_state` is the project's limit, and the bucket that was charged. `cross_origin` are the answer's CORS headers;
    None where no origins are listed. `span` is there once a request that is traced was let in.
    """

    __slots__ = ("cross_origin", "limit_state", "request_id", "span")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.cross_origin: Mapping[str, str] | None = None
        self.limit_state: tuple[RateLimit, Bucket] | None = None
        self.span: RequestSpan | None = None

    def complete(self, headers: "MutableMapping[str, str]") -> None:
        """Add the headers that every answer has, and those of the limit if one was charged."""
        headers[_REQUEST_ID_HEADER] = self.request_id
        headers[_CONTENT_TYPE_OPTIONS] = "nosniff"
        if hdrs.CACHE_CONTROL not in headers:
            headers[hdrs.CACHE_CONTROL] = "private, no-cache"
        if self.limit_state is not None:
            limit, bucket = self.limit_state
            headers[_RATE_LIMIT_POLICY] = limit.policy
            headers[_RATE_LIMIT] = limit.ratelimit_header(bucket)
        if self.cross_origin is not None:
            mark_cross_origin(headers, self.cross_origin)


def mark_cross_origin(headers: "MutableMapping[str, str]", cross_origin: "Mapping[str, str]") -> None:
    """Add the headers that an answer has where origins are listed."""
    vary = headers.get(hdrs.VARY)
    headers[hdrs.VARY] = hdrs.ORIGIN if vary is None else f"{vary}, {hdrs.ORIGIN}"
    headers.update(cross_origin)


PASSAGE: Final = web.RequestKey("passage", Passage)


def request_id_of(request: web.BaseRequest) -> str:
    """The request id that the client sent, if it is a valid one; else a new one."""
    given = request.headers.get(_REQUEST_ID_HEADER)
    return given if given is not None and _GIVEN_ID.fullmatch(given) else str(uuid7())


class Door:
    """The steps before a handler, and the one place where errors become answers."""

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        addresses: "ClientAddresses",
        by_address: "RateLimit | None",
        by_project: "dict[Cost, RateLimit | None]",
        read_only: bool,
        origins: Origins,
        metrics: "Metrics",
        tracing: "Tracing | None" = None,
    ) -> None:
        self._noted_at = -1.0
        self.closing = False
        """Once it is true, each answer closes its connection: so clients connect elsewhere, and none is cut off."""
        self._authenticator = authenticator
        self._addresses = addresses
        self._by_address = by_address
        self._by_project = by_project
        self._read_only = read_only
        self.origins = origins
        self._metrics = metrics
        self._tracing = tracing
        self._compressor = Compressor()

    @property
    def middleware(self) -> Middleware:
        """The only middleware."""

        @web.middleware
        async def door(request: web.Request, handler: Handler) -> web.StreamResponse:
            started_at = time.perf_counter()
            request_id = request_id_of(request)
            passage = request[PASSAGE] = Passage(request_id)
            try:
                try:
                    answer = self._answer_for_origin(request, passage) if self.origins.any else None
                    if answer is None:
                        self.charge_address(request)
                        if hdrs.TRANSFER_ENCODING in request.headers and request.method in _BODILESS:
                            raise LengthRequired
                        answer = await handler(request)
                except Exception as error:  # noqa: BLE001 - `_problem_of` logs what is not meant for the client
                    _abort_if_begun(request)
                    answer = self._problem_of(error, request)
                if answer.__class__ is Answer or not answer.prepared:  # a stream has been: it sends its headers itself
                    if answer.__class__ is Answer and (body := answer.body) is not None and len(body) >= LEAST_BYTES:
                        await self._compressor.compress(answer, request.headers)
                    passage.complete(answer.headers)
                    if self.closing:
                        answer.force_close()
            except BaseException:  # no `finally`, whose steps each answered request would take
                end_span(passage.span, request, None, time.perf_counter() - started_at)
                raise
            took_s = time.perf_counter() - started_at
            if passage.span is None:
                self._metrics.count_answer(request, answer.status, took_s)
            else:
                end_span(passage.span, request, answer.status, took_s)
                self._metrics.count_answer(request, answer.status, took_s, trace_id=passage.span.trace_id)
            return answer

        return door

    def _problem_of(self, error: Exception, request: web.Request) -> Answer:
        """The answer to an error of a handler or of a step before it; what is this program's fault is logged."""
        request_id = request[PASSAGE].request_id
        if isinstance(error, JobsUnfit):
            pass  # it was logged when the program looked
        elif isinstance(error, DatabaseUnavailable):
            self._log_once(error)
        elif isinstance(error, web.HTTPException):
            error = _error_of(error)
        answer = problem_answer(error if isinstance(error, RedriveError) else RedriveError(), request_id)
        if answer.status == 500:
            log.error("request failed", request_id=request_id, method=request.method, exc_info=error)
        return answer

    def _log_once(self, error: DatabaseUnavailable) -> None:
        """Log once a second, not once a request, that the database is away."""
        now = time.monotonic()
        if now - self._noted_at >= 1:
            self._noted_at = now
            log.warning("database unavailable", error=str(error))

    def _answer_for_origin(self, request: web.Request, passage: Passage) -> web.StreamResponse | None:
        """The answer to a preflight, for which no limit is charged; None for another request.

        Raises aiohttp's HTTPNotFound.
        """
        passage.cross_origin = self.origins.headers_of(request)
        if not is_preflight(request):
            return None
        refusal = request.match_info.http_exception
        if isinstance(refusal, web.HTTPMethodNotAllowed):
            return self.origins.preflight_answer(request, refusal.allowed_methods)
        raise refusal or web.HTTPNotFound

    def charge_address(self, request: web.BaseRequest) -> None:
        """Charge a request to its client's address. Raises RateLimited."""
        if self._by_address is not None:
            addresses = self._addresses
            forwarded = (
                request.headers.getall(hdrs.X_FORWARDED_FOR, ()) if addresses.trusting and request.headers else ()
            )
            self._by_address.bucket_of(addresses.key_of(request.remote, forwarded)).charge()

    def guarded(self, access: Access, handler: Callable[[Call], Awaitable[web.StreamResponse]]) -> Handler:
        """`handler`, behind the steps that `access` requires."""
        limit = self._by_project[access.cost]
        units = 1 if limit is None else min(access.units, limit.requests)
        closed = access.writes and self._read_only
        tracing = self._tracing

        async def behind_the_door(request: web.Request) -> web.StreamResponse:
            if access.writes and self.origins.is_cross_site(request):
                raise CrossSite
            principal = self._authenticator.authenticate(request.headers.getall(hdrs.AUTHORIZATION, ()))
            if limit is not None:
                bucket = limit.bucket_of(principal.charged_to)
                # Set before charging, so that a 429 carries the RateLimit headers.
                request[PASSAGE].limit_state = (limit, bucket)
                bucket.charge(units)
            query = request.query if request.rel_url.raw_query_string else _NO_QUERY
            _require_scope(principal, access, query)
            if closed:
                raise ReadOnly
            if tracing is not None and (span := begin_span(tracing, request)) is not None:
                request[PASSAGE].span = span
            if not query:
                return await handler(Call(request, principal, principal.project_id, {}))
            parameters = _parameters_of(query, access.parameters)
            return await handler(Call(request, principal, _project_of(principal, parameters), parameters))

        return behind_the_door


def _abort_if_begun(request: web.Request) -> None:
    """Cut the client off if a part of another answer was sent: it would read a second one as more of the first."""
    if request.writer.output_size > 0 and request.transport is not None:
        request.transport.abort()


def _require_scope(principal: Principal, access: Access, query: "MultiMapping[str]") -> None:
    """Raise InsufficientScope unless the token permits all that the request asks for by its route and its query."""
    if access.scope is not None:
        principal.require(access.scope)
    if principal.jobs is None and not query:  # as most are: nothing else is asked for
        return
    if principal.jobs is not None and not access.narrowed:
        raise InsufficientScope
    if access.permit is not None:
        access.permit(principal, query)
    if "project_id" not in query:
        return
    if any(named != principal.project_id for named in query.getall("project_id")) and (
        Scope.ADMIN not in principal.scopes or principal.jobs is not None
    ):
        raise InsufficientScope


def _parameters_of(query: "MultiMapping[str]", known: frozenset[str]) -> dict[str, str]:
    parameters: dict[str, str] = {}
    for name, value in query.items():
        if name in parameters or not (name in known or name == "project_id"):
            raise InvalidParameter(name)
        parameters[name] = value
    return parameters


def _project_of(principal: Principal, parameters: dict[str, str]) -> ProjectId:
    """The project that the request is about: the token's, or one that an administrator names."""
    named = parameters.pop("project_id", None)
    if named is None:
        return principal.project_id
    if not PROJECT_ID.fullmatch(named):
        raise InvalidParameter("project_id")
    return ProjectId(named)


def _error_of(refusal: web.HTTPException) -> RedriveError:
    """Our error for a refusal by aiohttp's router or request."""
    match refusal:
        case web.HTTPNotFound():
            return NotFound()
        case web.HTTPMethodNotAllowed():
            return MethodNotAllowed(", ".join(sorted(refusal.allowed_methods)))
        case web.HTTPRequestEntityTooLarge():
            return PayloadTooLarge()
        case _:
            return RedriveError()
