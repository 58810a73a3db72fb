"""Connections to PostgreSQL: tries the hosts of a URL, the last good one first, each within its share of the time.

asyncpg bounds the time of all hosts together (MagicStack/asyncpg#1155), so that a silent host would leave none for the
others. Errors are put into words here: the server's or the system's, without class names and passwords.
"""

import asyncio
import os
import random
import socket
import ssl
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlencode

import asyncpg
import structlog
from asyncpg.connect_utils import SessionAttribute

from shared.errors import DatabaseUnavailable
from shared.postgres_url import Access, Host, PostgresUrl, postgres_url, tls_context
from shared.secret import Url, current
from shared.sql import statements

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

SHARE_S: Final = 1.0
"""The longest that one host of several may take."""
MOST_IN_VAIN: Final = 5
IN_VAIN_S: Final = 0.5
"""While no server is found, at most so many attempts begin within so long, however many calls want a connection. Each
costs a server a process and a login; a standby, which is found while no other takes writes, has readers to serve. So a
server that is back is found at most so much later."""
_SHARE_OF_TIME: Final = 0.8  # of the time of a call: the rest is for the statement
_SQL: Final = statements("database")

log = structlog.stdlib.get_logger(__name__)

_POOLER: Final = "; a pooler stands between: set REDRIVE_DATABASE_POOLED=true"
_ORDER_OF: Final[Mapping[Access, tuple[Access, ...]]] = {Access.PREFER_STANDBY: (Access.STANDBY, Access.ANY)}
"""What a preference of a URL's means: these, the first one first."""
_UNUSABLE: Final = (ValueError, IndexError, OverflowError)
"""What asyncpg raises for a host's name or a PG… variable that it cannot use."""


class Opened(NamedTuple):
    """A connection, its host, and the URL as it was when the connection was opened.

    `came_back`: the connection before it leads to a server of the least wanted kind, and this one does not.
    """

    connection: "Connection"
    host: Host
    url: PostgresUrl
    came_back: bool


class _Found(NamedTuple):
    """A connection to one of the hosts, and which of the wanted its server is: 0 for the first of them."""

    connection: "Connection"
    host: Host
    rank: int


class _Refused(NamedTuple):
    """Why there is no connection to one of the hosts. `full`: its server has no room for one more now."""

    words: str
    full: bool = False


class _ServerFull(DatabaseUnavailable):
    """No server was found, but one that is full."""


class Connector:
    """Opens connections to the server that `url` names; the URL is read anew for each connection.

    `wanted` says what the server must be where the URL does not, the most wanted first: the hosts are tried in their
    order until one is that; where none is, the one that comes nearest is taken. `settings` are sent at the start of a
    connection. With a pooler, which `pooled` or the first URL names, or which is found, they are not sent, and no
    statement is prepared: in transaction mode other clients would find it, or this one would find theirs under the same
    name.
    """

    def __init__(
        self, url: Url, *, wanted: Sequence[Access], timeout_s: float, settings: Mapping[str, str], pooled: bool = False
    ) -> None:
        self._url = url
        self._wanted = wanted
        self._timeout_s = timeout_s
        self._settings = settings
        self.pooled = pooled or _says_pooled(current(url))
        self.fell_back_at: float | None = None
        """When the last connection was opened (monotonic), if its server is of the least wanted kind; else None."""
        self._last_good: Host | None = None
        self._last_rank = 0
        self._last_url: str | None = None
        self._in_vain: str | None = None
        """Why the last attempt has found no server; None where it has found one, or one that was full."""
        self._current_since = 0.0
        """What an attempt says that began before it is of no use: a server was found then, or the URL has changed."""
        self._tried_at: deque[float] = deque(maxlen=MOST_IN_VAIN)
        """When the last attempts began."""

    def changed(self) -> bool:
        """Whether the URL has changed since the last call."""
        was, self._last_url = self._last_url, current(self._url)
        changed = was not in (None, self._last_url)
        if changed:
            self._forget()
        return changed

    def _forget(self) -> None:
        """Forget what was tried in vain."""
        self._in_vain = None
        self._tried_at.clear()
        self._current_since = time.monotonic()

    async def opened(self, **more: Any) -> Opened:  # noqa: ANN401 - what asyncpg's pool hands on to its connections
        """A new connection. Raises DatabaseUnavailable, with the failure of each host, within `timeout_s`.

        After some attempts that found no server, others that come too soon raise what the last one did.
        """
        now = time.monotonic()
        if self._in_vain is not None and len(self._tried_at) == MOST_IN_VAIN and now - self._tried_at[0] < IN_VAIN_S:
            raise DatabaseUnavailable(self._in_vain)
        self._tried_at.append(now)
        try:
            opened = await self._opened(more)
        except _ServerFull:
            self._forget()  # there is one: its other connections go on, and a pool must come to those
            raise
        except DatabaseUnavailable as error:
            if now >= self._current_since:
                self._in_vain = str(error)
            raise
        self._forget()
        return opened

    async def _opened(self, more: Mapping[str, Any]) -> Opened:
        url = self._read()
        wanted = self._wanted if url.access is None else _ORDER_OF.get(url.access, (url.access,))
        hosts = list(self._in_order(url))
        far = sum(not host.name.startswith("/") for host in hosts)
        share_s = _SHARE_OF_TIME * self._timeout_s / max(1, far)
        if far > 1:
            share_s = min(SHARE_S, share_s)
        refusals: dict[Host, _Refused] = {}
        found: list[_Found] = []
        try:
            for host in hosts:
                tried = await self._try(url, host, wanted, more, within_s=share_s)
                if isinstance(tried, _Refused):
                    refusals[host] = tried
                    continue
                found.append(tried)
                if tried.rank == 0 or self._is_still_good(tried, least=len(wanted) - 1):
                    break
        except BaseException:
            for each in found:
                each.connection.terminate()
            raise
        if not found:
            # Without a host, the sockets of this machine are tried: the same failure of several is said once.
            said = {refused.words: host for host, refused in reversed(refusals.items())}
            words = "; ".join(f"{host}: {words}" for words, host in reversed(said.items()))
            raise (_ServerFull if any(refused.full for refused in refusals.values()) else DatabaseUnavailable)(words)
        best = min(found, key=lambda each: each.rank)
        for each in found:
            if each is not best:
                each.connection.terminate()
        self._last_good, self._last_rank = best.host, best.rank
        fell_back = len(hosts) > 1 and 0 < best.rank == len(wanted) - 1
        # Decided where nothing comes between: while this one was opened, another one may have fallen back.
        came_back = self.fell_back_at is not None and not fell_back
        self.fell_back_at = time.monotonic() if fell_back else None
        return Opened(best.connection, best.host, url, came_back)

    def _is_still_good(self, found: _Found, *, least: int) -> bool:
        """Whether the last good host is as good as it was when none was better: then no other host need be tried.

        Not where it is of the `least` wanted kind, or of a lesser one than it was: then another may be better by now.
        """
        return found.host == self._last_good and found.rank <= self._last_rank and found.rank < least

    def _read(self) -> PostgresUrl:
        try:
            return postgres_url(current(self._url))
        except ValueError as error:
            raise DatabaseUnavailable(f"the URL cannot be used: {error}") from None

    def _in_order(self, url: PostgresUrl) -> Iterator[Host]:
        hosts: Sequence[Host] = url.hosts
        if url.shuffled:
            hosts = random.sample(hosts, len(hosts))
        if self._last_good is not None and self._last_good in hosts:
            yield self._last_good
        yield from (host for host in hosts if host != self._last_good)

    async def _try(
        self, url: PostgresUrl, host: Host, wanted: Sequence[Access], more: Mapping[str, Any], *, within_s: float
    ) -> _Found | _Refused:
        """A connection to `host`, or why there is none. Raises DatabaseUnavailable where no host could be used."""
        try:
            async with asyncio.timeout(within_s):
                return await self._open(url, host, wanted, more)
        except DatabaseUnavailable as error:
            return _Refused(str(error))
        except TimeoutError:
            return _Refused(f"no answer within {within_s:.1f} s")
        except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
            return _Refused(words_of(error), full=(getattr(error, "sqlstate", None) or "").startswith("53"))
        except _UNUSABLE:
            raise DatabaseUnavailable("the URL cannot be used") from None  # their texts quote the URL

    async def _open(self, url: PostgresUrl, host: Host, wanted: Sequence[Access], more: Mapping[str, Any]) -> _Found:
        """A connection to `host`, if its server is as `wanted`. Raises DatabaseUnavailable and asyncpg's errors."""
        settings = {} if self.pooled else dict(self._settings)
        if url.application_name is not None and not self.pooled:
            settings["application_name"] = url.application_name
        if url.options is not None:
            settings["options"] = url.options
        context = tls_context(url.tls)
        # asyncpg takes these only from a URL.
        tls = urlencode({} if context is not None else url.tls)
        connection: Connection = await asyncpg.connect(
            f"postgresql://?{tls}" if tls else "postgresql://",
            host=host.name,
            port=host.port,
            user=url.user,
            password=url.password,
            database=url.database,
            passfile=url.passfile,
            ssl=context,
            server_settings=settings,
            statement_cache_size=0 if self.pooled else 100,
            target_session_attrs=SessionAttribute.any,  # checked below, for each host
            **more,
        )
        try:
            facts = await _facts_of(connection)
            rank = 0 if facts is None else _rank_of(facts, wanted)
        except BaseException:
            connection.terminate()
            raise
        if self.pooled or (facts is not None and facts["pid"] == connection.get_server_pid()):
            return _Found(connection, host, rank)
        connection.terminate()
        self.pooled = True
        log.warning("pooler found", mend="set REDRIVE_DATABASE_POOLED=true, or connect to PostgreSQL itself")
        return await self._open(url, host, wanted, more)


async def _facts_of(connection: "Connection") -> asyncpg.Record | None:
    """Facts about the server; None where another client's prepared statements are in the way: behind a pooler."""
    try:
        async with connection.transaction():  # so that a pooler keeps one server for all of it
            (facts,) = await connection.fetch(_SQL["facts_of"])
    except (asyncpg.DuplicatePreparedStatementError, asyncpg.InvalidSQLStatementNameError):
        return None
    return facts


def _says_pooled(url: str) -> bool:
    try:
        return postgres_url(url).pooled
    except ValueError:
        return False  # connecting raises it


def _rank_of(facts: asyncpg.Record, wanted: Sequence[Access]) -> int:
    """Which of the `wanted` the server is. Raises DatabaseUnavailable where it is none of them."""
    refusals = [_refusal(each, read_only=facts["read_only"], recovering=facts["recovering"]) for each in wanted]
    if None not in refusals:
        raise DatabaseUnavailable(refusals[0])
    return refusals.index(None)


def _refusal(wanted: Access, *, read_only: bool, recovering: bool) -> str | None:
    """Why the server is not as `wanted`; None where it is."""
    match wanted:
        case Access.READ_WRITE if read_only:
            return "is read-only, and a server that takes writes is needed"
        case Access.READ_ONLY if not read_only:
            return "takes writes, and target_session_attrs wants one that is read-only"
        case Access.PRIMARY if recovering:
            return "is a standby, and target_session_attrs wants a primary"
        case Access.STANDBY if not recovering:
            return "is no standby, and target_session_attrs wants one"
        case _:
            return None


def words_of(error: BaseException) -> str:
    """What failed, in the words of the server, of TLS or of the system, without values."""
    match error:
        case asyncpg.PostgresError():
            said = error.message or str(error).partition("\n")[0] or "the server refused"
            about_pooler = error.sqlstate in {"26000", "42P05"} or "startup parameter" in said
            return said + (_POOLER if about_pooler else "")
        case ssl.SSLCertVerificationError():
            return f"TLS: the server's certificate is not trusted: {error.verify_message.rstrip('.')}"
        case ssl.SSLError():
            return f"TLS failed: {(error.reason or 'unknown reason').lower().replace('_', ' ')}"
        case TimeoutError():
            words = "no answer in time"
        case socket.gaierror():
            words = "the host's name is not known"
        case asyncpg.exceptions.ClientConfigurationError():
            words = "the URL, or a file that it names, cannot be used"
        case asyncpg.InterfaceError() if isinstance(error, ValueError):
            words = "a value cannot be sent"  # its text quotes the value
        case asyncpg.InterfaceError() | asyncpg.InternalClientError():
            words = str(error).partition("\n")[0]
        case OSError():
            words = _of_system(error)
        case _:
            words = "the driver failed"
    return words


def _of_system(error: OSError) -> str:
    text = str(error)
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    if "rejected SSL upgrade" in text:
        return "the server does not speak TLS, and sslmode asks for it"
    if "SSL exchange" in text:
        return "the server broke off the start of TLS"
    if "TLS handshake" in text:
        return "the server closed the connection during the start of TLS"
    if "unexpected connection_lost" in text:
        return "the server closed the connection"
    numbers = {
        number for number in (111, 113, 101, 110) if f"[Errno {number}]" in text
    }  # a name with several addresses
    return " and ".join(os.strerror(number).lower() for number in sorted(numbers)) or "cannot be reached"
