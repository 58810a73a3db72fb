"""The console's files under `/console/`: read and compressed once, served with the headers of a page that holds tokens.

They carry no data and need no token; only the limit of the client's address counts them (api/door.py). Each file has a
route of its own, so that any other path is the 404 of an unknown one.

`redrive-job.js` is for pages of other origins too. It is served without the console where origins are listed.
"""

import gzip
from collections.abc import Iterator
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING, Final, NamedTuple

from aiohttp import hdrs, web

from api.answers import Answer
from api.compression import LEAST_BYTES, allows_gzip
from api.conditional import condition_of, field_of, matches
from api.console_joined import joined
from api.door import PASSAGE

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

_INDEX: Final = "index.html"
_ELEMENT: Final = "redrive-job.js"
_FOLDER: Final = files("api") / "console"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
"""A table of our own: the machine's may not know `.mjs`, and a browser runs no module of another type."""
_SECURITY_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_FOR_ALL_ORIGINS: Final = {
    hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: "*",
    "Cross-Origin-Resource-Policy": "cross-origin",
}


class ConsoleFile(NamedTuple):
    """One file: as it is, and compressed where that makes it smaller."""

    content_type: str
    body: bytes
    compressed: bytes | None
    digest: str
    for_all_origins: bool

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """The file, or 304 where the browser has it. Each coding has its own tag, as a strong tag must."""
        headers = dict(_SECURITY_HEADERS)
        if self.for_all_origins:
            headers |= _FOR_ALL_ORIGINS
            if (passage := request[PASSAGE]).cross_origin:
                passage.cross_origin = {}  # a listed origin is answered as any other
        body = self.body
        etag = f'"{self.digest}"'
        if self.compressed is not None:
            headers[hdrs.VARY] = hdrs.ACCEPT_ENCODING
            if allows_gzip(field_of(request.headers, hdrs.ACCEPT_ENCODING)):
                headers[hdrs.CONTENT_ENCODING] = "gzip"
                body = self.compressed
                etag = f'"{self.digest}-gzip"'
        headers[hdrs.ETAG] = etag
        # matches() drops a suffix of what is given, so the tag of either coding says that the browser has the file.
        if matches(condition_of(request.headers), f'"{self.digest}"'):
            headers.pop(hdrs.CONTENT_ENCODING, None)
            return Answer(None, status=304, headers=headers)
        return Answer(body, content_type=self.content_type, headers=headers)


def add_console(router: web.UrlDispatcher) -> None:
    """Serve the files of api/console/, its page at `/console/`."""
    for path, body in joined(console_files()).items():
        file = _file(body, path)
        router.add_route(hdrs.METH_GET, f"/console/{path}", file.answer)
        if path == _INDEX:
            router.add_route(hdrs.METH_GET, "/console/", file.answer)
    router.add_route(hdrs.METH_GET, "/console", _redirect)


def add_element(router: web.UrlDispatcher) -> None:
    """Serve the element for product pages, and nothing else of the console."""
    router.add_route(hdrs.METH_GET, f"/console/{_ELEMENT}", _file((_FOLDER / _ELEMENT).read_bytes(), _ELEMENT).answer)


async def _redirect(_request: web.Request) -> web.StreamResponse:
    """Send the browser to the folder. Relative, so that it holds behind a proxy that serves us under a prefix."""
    return Answer(b"", status=308, content_type="text/plain", headers={**_SECURITY_HEADERS, hdrs.LOCATION: "console/"})


def console_files() -> dict[str, bytes]:
    """What there is in api/console/, by path; some of it is served joined."""
    return dict(_found(_FOLDER, ""))


def _found(folder: "Traversable", prefix: str) -> Iterator[tuple[str, bytes]]:
    for entry in sorted(folder.iterdir(), key=lambda each: each.name):
        path = f"{prefix}{entry.name}"
        if entry.is_dir():
            yield from _found(entry, f"{path}/")
        elif _ending(path) in _TYPES:
            yield path, entry.read_bytes()


def _file(body: bytes, path: str) -> ConsoleFile:
    compressed = gzip.compress(body, mtime=0) if len(body) >= LEAST_BYTES else None
    return ConsoleFile(_TYPES[_ending(path)], body, compressed, sha256(body).hexdigest()[:32], path == _ELEMENT)


def _ending(path: str) -> str:
    return f".{path.rpartition('.')[2]}"
