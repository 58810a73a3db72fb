"""Pages of long lists: their parameters, and the cursor of the next page.

A cursor holds the position of a page's last row, `(created_at, id)`, so the thousandth page costs what the first does.
It is signed together with the list, the project and the filters it belongs to: a cursor that was changed, or that is
used with other filters, is refused. It grants nothing; SQL decides whose rows are read.
"""

import binascii
import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple
from urllib.parse import urlencode
from uuid import UUID

import msgspec

from api.answers import Answer
from api.problems import InvalidCursor, InvalidParameter
from shared.bounds import MAX_FILTER
from shared.models import Position
from shared.times import wire_of

if TYPE_CHECKING:
    from api.door import Call

MAX_PAGE: Final = 200
DEFAULT_PAGE: Final = 50
MAX_PAGE_BYTES: Final = 8 * 2**20

_SPACED_OFFSET: Final = re.compile(r" ([0-9]{2}:[0-9]{2})\Z")
_BESIDES_BYTES: Final = 1024
"""More than an answer has around its rows."""
_NO_TIME: Final = -(2**63) + 1
"""The time, in a cursor, of a row without a time: no time of PostgreSQL's has this value."""
_POSITION_BYTES: Final = 24
_MAC_BYTES: Final = 16


class Cursors:
    """Signs and reads cursors. All processes that share a secret read each other's.

    `secret` answers it, and is asked once, for the first cursor; it may raise DatabaseUnavailable.
    """

    def __init__(self, secret: Callable[[], Awaitable[bytes]]) -> None:
        self._secret = secret
        self._key: bytes | None = None

    async def encoded(self, position: Position, scope: tuple[str, ...]) -> str:
        """The cursor for what follows `position` in the list that `scope` names."""
        body = _wire_of(position.at).to_bytes(8, "big", signed=True) + position.id.bytes
        return urlsafe_b64encode(body + await self._mac(body, scope)).decode().rstrip("=")

    async def decoded(self, text: str, scope: tuple[str, ...]) -> Position:
        """The position that a cursor of ours holds. Raises InvalidCursor, without the secret for what is no cursor."""
        try:
            raw = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
        except (UnicodeEncodeError, binascii.Error, ValueError) as error:
            raise InvalidCursor from error
        body, mac = raw[:_POSITION_BYTES], raw[_POSITION_BYTES:]
        if len(raw) != _POSITION_BYTES + _MAC_BYTES or urlsafe_b64encode(raw).decode().rstrip("=") != text:
            raise InvalidCursor  # or another spelling of the same bytes
        if not hmac.compare_digest(mac, await self._mac(body, scope)):
            raise InvalidCursor
        at = int.from_bytes(body[:8], "big", signed=True)
        return Position(None if at == _NO_TIME else at, UUID(bytes=body[8:]))

    async def _mac(self, body: bytes, scope: tuple[str, ...]) -> bytes:
        if self._key is None:
            self._key = hmac.digest(await self._secret(), b"redrive cursors", "sha256")
        return hmac.digest(self._key, msgspec.json.encode(scope) + body, "sha256")[:_MAC_BYTES]


def _wire_of(at: datetime | int | None) -> int:
    if at is None:
        return _NO_TIME
    return at if isinstance(at, int) else wire_of(at)


def fitting(rows: Iterable[bytes]) -> list[msgspec.Raw]:
    """The first rows of a page, each as JSON: as many as fit into MAX_PAGE_BYTES, and one at least."""
    shown: list[msgspec.Raw] = []
    left = MAX_PAGE_BYTES - _BESIDES_BYTES
    for row in rows:
        left -= len(row) + 1
        if left < 0 and shown:
            break
        shown.append(msgspec.Raw(row))
    return shown


class PageBody(msgspec.Struct, frozen=True):
    """The body of a page; `next_cursor` is None on the last one."""

    data: list[msgspec.Raw]
    next_cursor: str | None


class _Time(msgspec.Struct):
    at: Annotated[datetime, msgspec.Meta(tz=True)]


class Page(NamedTuple):
    """The page of a list that a request asks for. `filters` are the parameters that choose its rows, as they came."""

    path: str
    scope: tuple[str, ...]
    filters: Mapping[str, str]
    limit: int
    cursor: str | None
    foreign_project_id: str | None

    async def after(self, cursors: Cursors) -> Position | None:
        """The position that the page follows; None for the first page. To be asked when all else has been checked.

        Raises InvalidCursor, DatabaseUnavailable.
        """
        return None if self.cursor is None else await cursors.decoded(self.cursor, self.scope)

    async def answer(
        self,
        rows: list[msgspec.Raw],
        end: Position | None,
        cursors: Cursors,
        *,
        body: Callable[[list[msgspec.Raw], str | None], PageBody] = PageBody,
    ) -> Answer:
        """The page with these rows. `end` is the position of the last one if the list goes on behind it."""
        cursor = None if end is None else await cursors.encoded(end, self.scope)
        headers = {} if cursor is None else {"Link": self._link_of(cursor)}
        return Answer(msgspec.json.encode(body(rows, cursor)), headers=headers)

    def _link_of(self, cursor: str) -> str:
        """The `Link` header to the next page (RFC 8288)."""
        project = {} if self.foreign_project_id is None else {"project_id": self.foreign_project_id}
        query = urlencode({**self.filters, **project, "limit": self.limit, "cursor": cursor})
        return f'<{self.path}?{query}>; rel="next"'


def page_of(call: "Call", *, path: str) -> Page:
    """The page that the query parameters ask for. Raises InvalidParameter."""
    parameters = call.parameters
    filters = {name: parameters[name] for name in sorted(parameters.keys() - {"limit", "cursor"})}
    return Page(
        path=path,
        scope=(path, call.project_id, *(part for item in filters.items() for part in item)),
        filters=filters,
        limit=limit_of(parameters.get("limit")),
        cursor=parameters.get("cursor"),
        foreign_project_id=call.foreign_project_id,
    )


def limit_of(text: str | None) -> int:
    """The page's size, 1 to 200. Raises InvalidParameter."""
    if text is None:
        return DEFAULT_PAGE
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= MAX_PAGE):
        raise InvalidParameter("limit")
    return int(text)


def time_of(parameters: Mapping[str, str], name: str) -> datetime | None:
    """A time, RFC 3339 with its offset; a `+` before the offset may have come as a space. Raises InvalidParameter."""
    if (text := parameters.get(name)) is None:
        return None
    try:
        return msgspec.convert({"at": _SPACED_OFFSET.sub(r"+\1", text)}, _Time).at
    except (msgspec.ValidationError, OverflowError) as error:
        raise InvalidParameter(name) from error


def text_of(parameters: Mapping[str, str], name: str, *, longest: int = MAX_FILTER) -> str | None:
    """A word to compare with: 1 to `longest` characters, without NUL, which PostgreSQL's text cannot hold."""
    text = parameters.get(name)
    if text is not None and not (0 < len(text) <= longest and "\x00" not in text):
        raise InvalidParameter(name)
    return text


def flag_of(parameters: Mapping[str, str], name: str) -> bool | None:
    """`true` or `false`; None where it is not there. Raises InvalidParameter."""
    match parameters.get(name):
        case None:
            return None
        case "true" | "false" as text:
            return text == "true"
        case _:
            raise InvalidParameter(name)
