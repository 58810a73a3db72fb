"""Browsers: which other origins' pages may call (CORS), and which requests a page of another site made.

CORS: https://fetch.spec.whatwg.org/#http-cors-protocol. No answer allows credentials: the page sends the token, never
the browser on its own.
"""

import re
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs
from multidict import istr

from api.answers import Answer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aiohttp import web

_SEC_FETCH_SITE: Final = istr("Sec-Fetch-Site")
_OF_THE_SAME_SITE: Final = frozenset({"same-origin", "none"})
_ALLOW_ORIGIN: Final = "Access-Control-Allow-Origin"
_EXPOSED: Final = (
    "ETag, Location, Link, Retry-After, RateLimit, RateLimit-Policy, Preference-Applied, X-Request-Id,"
    " WWW-Authenticate, Idempotent-Replayed, Allow"
)
_ALLOWED_HEADERS: Final = (
    "Authorization, Content-Type, If-Match, If-None-Match, Prefer, Idempotency-Key, Last-Event-ID, X-Request-Id,"
    " traceparent"
)
_MAX_AGE_S: Final = 7200
_NOTHING: Final[dict[str, str]] = {}
_PORTS: Final = {"http": "80", "https": "443"}
_ORIGIN: Final = re.compile(r"([a-z][a-z0-9+.-]*)://(\[[^\]]*\]|[^:/?#@\[\]]+)(?::(\d{1,5}))?", re.ASCII)
_HOST: Final = re.compile(r"(\[[^\]]*\]|[^:/?#@\[\]]+)(?::(\d{1,5}))?", re.ASCII)


class Origins:
    """The origins whose pages may call. Without one (`any` is false) no answer has CORS headers."""

    def __init__(self, listed: "Iterable[str]") -> None:
        self._answered = {
            origin: {_ALLOW_ORIGIN: origin, "Access-Control-Expose-Headers": _EXPOSED} for origin in listed
        }
        self.any = bool(self._answered)

    def headers_of(self, request: "web.BaseRequest") -> "Mapping[str, str]":
        """The CORS headers of the answer, besides `Vary: Origin`: none unless the request's one origin is listed."""
        given = (
            request.headers.getall(hdrs.ORIGIN, ()) if request.headers else ()
        )  # a plain dict where none were parsed
        return self._answered.get(given[0], _NOTHING) if len(given) == 1 else _NOTHING

    def preflight_answer(self, request: "web.BaseRequest", methods: "Iterable[str]") -> Answer:
        """The answer to a preflight for a path with these methods. The door adds `headers_of` to it."""
        headers: dict[str, str] = {}
        if self.headers_of(request):
            headers["Access-Control-Allow-Methods"] = ", ".join(sorted(methods))
            headers["Access-Control-Allow-Headers"] = _ALLOWED_HEADERS
            headers["Access-Control-Max-Age"] = str(_MAX_AGE_S)
        return Answer(None, status=204, headers=headers)

    def is_cross_site(self, request: "web.BaseRequest") -> bool:
        """Whether a page of another site, with an origin that is not listed, made the request.

        `Sec-Fetch-Site` decides; a browser sends it over TLS and to localhost. Without it, `Origin` is compared with
        `Host`. A client that is no browser sends neither.
        """
        if self.headers_of(request):
            return False
        if sites := request.headers.getall(_SEC_FETCH_SITE, ()):
            return not _OF_THE_SAME_SITE.issuperset(sites)
        origins = request.headers.getall(hdrs.ORIGIN, ())
        return bool(origins) and not (
            len(origins) == 1 and _names_host(origins[0], request.headers.getall(hdrs.HOST, ()))
        )


def is_preflight(request: "web.BaseRequest") -> bool:
    """Whether the request is a browser's question whether it may send another one."""
    headers = request.headers
    return (
        request.method == hdrs.METH_OPTIONS
        and hdrs.ORIGIN in headers
        and hdrs.ACCESS_CONTROL_REQUEST_METHOD in headers
        and hdrs.TRANSFER_ENCODING not in headers
    )


def _names_host(origin: str, hosts: "Iterable[str]") -> bool:
    """Whether the origin's host and port are those of the one `Host`; without a port, it is the scheme's."""
    one = _ORIGIN.fullmatch(origin.lower())
    hosts = [*hosts]
    if one is None or len(hosts) != 1 or (host := _HOST.fullmatch(hosts[0].lower())) is None:
        return False
    default = _PORTS.get(one[1])
    return one[2] == host[1] and (one[3] or default) == (host[2] or default)
