"""Connecting to PostgreSQL: whichever host of a URL fits, each within its share of the time, the last good one first.

asyncpg would give all hosts one time together (MagicStack/asyncpg#1155): one that is silent would leave none for the
others. What goes wrong is put into words here: the server's own, or the system's, never the name of a class and never
a password.
"""

import asyncio
import os
import random
import socket
import ssl
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
_SHARE_OF_TIME: Final = 0.8  # of what a call may take: all hosts together leave some of it for the statement
_SQL: Final = statements("database")

log = structlog.stdlib.get_logger(__name__)

_POOLER: Final = "; a pooler stands between: set REDRIVE_DATABASE_POOLED=true"
_UNUSABLE: Final = (ValueError, IndexError, OverflowError)
"""What connecting raises for a URL that the settings let pass (a host's name), or a PG… variable."""


class Opened(NamedTuple):
    """A connection, the host that it leads to, and what the URL said that led there."""

    connection: "Connection"
    host: Host
    url: PostgresUrl


class Connector:
    """Opens connections to the server that `url` names, as it is when each is opened.

    `access` is what the server must be where the URL does not say it. `settings` are sent at the start; where `pooled`
    or the first URL says that a pooler stands between, or one is found, nothing is, and no statement is kept prepared:
    in transaction mode it would be found by others, or others' be found under its name.
    """

    def __init__(
        self, url: Url, *, access: Access, timeout_s: float, settings: Mapping[str, str], pooled: bool = False
    ) -> None:
        self._url = url
        self._access = access
        self._timeout_s = timeout_s
        self._settings = settings
        self.pooled = pooled or _says_pooled(current(url))
        self._last_good: Host | None = None
        self._last_url: str | None = None

    def changed(self) -> bool:
        """Whether the URL is another than when this was asked last."""
        was, self._last_url = self._last_url, current(self._url)
        return was not in (None, self._last_url)

    async def opened(self, **more: Any) -> Opened:  # noqa: ANN401 - what asyncpg's pool hands on to its connections
        """A connection. Raises DatabaseUnavailable with what each host came to; takes at most the time for all."""
        url = self._read()
        access = url.access or self._access
        passes = (Access.STANDBY, Access.ANY) if access is Access.PREFER_STANDBY else (access,)
        hosts = list(self._in_order(url))
        far = sum(not host.name.startswith("/") for host in hosts) * len(passes)
        share_s = _SHARE_OF_TIME * self._timeout_s / max(1, far)
        if far > 1:
            share_s = min(SHARE_S, share_s)
        refusals: dict[Host, str] = {}
        for wanted in passes:
            for host in hosts:
                try:
                    async with asyncio.timeout(share_s):
                        connection = await self._open(url, host, wanted, more)
                except DatabaseUnavailable as error:
                    refusals[host] = str(error)
                except TimeoutError:
                    refusals[host] = f"no answer within {share_s:.1f} s"
                except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
                    refusals[host] = words_of(error)
                except OSError as error:
                    refusals[host] = words_of(error)
                except _UNUSABLE:
                    raise DatabaseUnavailable("the URL cannot be used") from None  # their texts quote it
                else:
                    self._last_good = host
                    return Opened(connection, host, url)
        # A machine's own sockets are tried where nothing says where the server is: one line for all that are not there.
        said = {words: host for host, words in reversed(refusals.items())}
        raise DatabaseUnavailable("; ".join(f"{host}: {words}" for words, host in reversed(said.items())))

    async def connect(self, *_: object, **more: Any) -> "Connection":  # noqa: ANN401 - as asyncpg's pool calls it
        """A connection, for `asyncpg.create_pool(connect=…)`. Raises as `opened` does."""
        return (await self.opened(**more)).connection

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

    async def _open(self, url: PostgresUrl, host: Host, wanted: Access, more: Mapping[str, Any]) -> "Connection":
        """A connection to `host`, which is as it is wanted. Raises DatabaseUnavailable, and what connecting raises."""
        settings = {} if self.pooled else dict(self._settings)
        if url.application_name is not None and not self.pooled:
            settings["application_name"] = url.application_name
        if url.options is not None:
            settings["options"] = url.options
        context = tls_context(url.tls)
        # asyncpg reads these from a URL alone.
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
            target_session_attrs=SessionAttribute.any,  # looked at below, on each host
            **more,
        )
        try:
            if (facts := await _facts_of(connection)) is not None:
                _require(wanted, read_only=facts["read_only"], recovering=facts["recovering"])
        except BaseException:
            connection.terminate()
            raise
        if self.pooled or (facts is not None and facts["pid"] == connection.get_server_pid()):
            return connection
        connection.terminate()
        self.pooled = True
        log.warning("pooler found", mend="set REDRIVE_DATABASE_POOLED=true, or connect to PostgreSQL itself")
        return await self._open(url, host, wanted, more)


async def _facts_of(connection: "Connection") -> asyncpg.Record | None:
    """What the server is; None where statements that other clients have prepared are in the way: behind a pooler."""
    try:
        async with connection.transaction():  # one server for all of it, whatever stands between
            (facts,) = await connection.fetch(_SQL["facts_of"])
    except (asyncpg.DuplicatePreparedStatementError, asyncpg.InvalidSQLStatementNameError):
        return None
    return facts


def _says_pooled(url: str) -> bool:
    try:
        return postgres_url(url).pooled
    except ValueError:
        return False  # said when it is connected to


def _require(wanted: Access, *, read_only: bool, recovering: bool) -> None:
    """Raise DatabaseUnavailable where a server is not as it is wanted."""
    match wanted:
        case Access.READ_WRITE if read_only:
            raise DatabaseUnavailable("is read-only, and a server that takes writes is needed")
        case Access.READ_ONLY if not read_only:
            raise DatabaseUnavailable("takes writes, and target_session_attrs wants one that is read-only")
        case Access.PRIMARY if recovering:
            raise DatabaseUnavailable("is a standby, and target_session_attrs wants a primary")
        case Access.STANDBY if not recovering:
            raise DatabaseUnavailable("is no standby, and target_session_attrs wants one")
        case _:
            pass


def words_of(error: BaseException) -> str:
    """What went wrong, in the words of whoever refused: the server's, TLS's, the system's. No value is in it."""
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
    numbers = {number for number in (111, 113, 101, 110) if f"[Errno {number}]" in text}  # several addresses of a name
    return " and ".join(os.strerror(number).lower() for number in sorted(numbers)) or "cannot be reached"
