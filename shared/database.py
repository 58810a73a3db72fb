"""PostgreSQL, bounded in time: every call ends within its timeout, and every failure is one of our own errors.

1. Connections have no session state (no SET, LISTEN or advisory lock), so they return to the pool without a reset
   query.
2. A connection whose statement was cut off is closed; the server ends the statement after `statement_timeout`.
3. When the server says that it became a reader, that it shuts down, or that the login is void, the connection is
   closed, and every other one before its next use. New connections lead to the server that the URL names then.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Final, Self

import asyncpg

from shared.connections import Connector, words_of
from shared.errors import (
    ActorUnstorable,
    DatabaseUnavailable,
    DatabaseUnfit,
    JobsUnfit,
    StatementRefused,
    StatementTimeout,
    TextUnstorable,
)
from shared.postgres_url import Access
from shared.secret import Url
from shared.sql import statements
from shared.times import take_any_time

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from asyncpg.pool import PoolConnectionProxy

    Pool = asyncpg.Pool[asyncpg.Record]
    PoolConnection = PoolConnectionProxy[asyncpg.Record]

Row = asyncpg.Record

ANSWER_S: Final = 2.5
"""Every request is answered within 3 s, whatever the database does; half a second of it is for a busy machine."""

# Each statement has one plan, along its index, whatever the values and the statistics are: the plan that the tests
# check. By default the planner reads and sorts a whole table for a filter that seldom holds, and each connection
# chooses anew between a plan for these values and one for all values, by what the last ones cost.
_PLANNING: Final[dict[str, str]] = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",  # a bitmap scan cannot stop at the end of a page
    "max_parallel_workers_per_gather": "0",
    "jit": "off",  # compiling takes longer than any of these statements
}

# How SQLSTATEs are sorted, by their first characters. These pass: connections, conflicts, resources, a cancelled
# statement, time, other servers behind this one. The same statement may succeed the next time.
_PASSING = ("08", "25", "40", "53", "55006", "55P03", "57", "58", "72", "HV")
# These are about the statement as such, or the server: a table or a right is missing, an object is not in the right
# state.
_UNFIT = ("0A", "0B", "24", "26", "28", "2D", "34", "3B", "3D", "3F", "42", "55", "F0", "XX")
# All others are about the statement's content: data, integrity, and the codes that a table's owner has made up for
# triggers.

# After these a connection is closed: its server became a reader, voided the login, or ends; a pooler lost a statement;
# or the session was idle for too long.
_SPENT = ("08", "25006", "25P03", "25P04", "26000", "28", "42P05", "57P")

PREFER_AGAIN_S: Final = 30.0
"""How long connections to a server that is not the preferred one are kept before the hosts are tried again."""

_SQL: Final = statements("database")


@contextmanager
def _translated() -> "Iterator[None]":
    try:
        yield
    except asyncpg.PostgresError as error:
        sqlstate = error.sqlstate or "XX000"
        if sqlstate == "57014":
            raise StatementTimeout(words_of(error)) from error
        if sqlstate.startswith(_PASSING):
            raise DatabaseUnavailable(words_of(error)) from error
        if sqlstate.startswith(_UNFIT):
            raise DatabaseUnfit(words_of(error), sqlstate=sqlstate) from error
        raise StatementRefused(sqlstate) from error
    except (UnicodeDecodeError, OverflowError) as error:
        # A row that this program cannot hold: bytes that are no UTF-8, of a database with the encoding SQL_ASCII.
        raise StatementRefused(type(error).__name__) from error
    except (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise DatabaseUnavailable(words_of(error)) from error


@asynccontextmanager
async def in_time(*, spent_s: float = 0) -> AsyncIterator[None]:
    """Bound several calls together by the time within which a client gets an answer.

    `spent_s`: how long calls before the block have taken. Raises DatabaseUnavailable; what was under way then may still
    take effect.
    """
    try:
        async with asyncio.timeout(ANSWER_S - spent_s):
            yield
    except TimeoutError as error:
        raise DatabaseUnavailable("too slow") from error


class Session:
    """Statements on one connection, within one transaction."""

    def __init__(self, connection: "PoolConnection") -> None:
        self._connection = connection

    async def fetch(self, sql: str, *args: object) -> list[Row]:
        """All rows of one statement."""
        return await self._connection.fetch(sql, *args)

    async def secure(self) -> None:
        """Make the commit of this transaction wait as `Database.secure` does."""
        await self._connection.fetch(_SQL["secure"])


async def _without_reset(_connection: Any) -> None:  # noqa: ANN401 - asyncpg types the callback's argument so
    """Stand in for asyncpg's reset query; see the module's first lines for why there is nothing to reset."""


def _terminate(connection: "PoolConnection") -> None:
    with suppress(asyncpg.InterfaceError):  # it was lost, and is back in the pool already
        connection.terminate()


class Database:
    """A pool of connections to one server, to be used within `opened()`.

    `timeout_s` bounds each call, waiting for a connection included. `program` is what `pg_stat_activity` shows.
    `writes`: a server that takes writes is needed; where the URL does not say otherwise, no other is connected to.
    Without `writes`, such a server, or else a primary, is preferred to the URL's other hosts; of a `replica`, any host
    will do.
    `pooled`: a pooler in transaction mode stands between. Then settings go with each transaction, at two more round
    trips for a statement, and nothing is prepared.

    A call for many clients (a Coalescer's) or for the program itself takes a connection at once: there are never more
    than a few such calls. A call for a single client waits for a `slot`. There is one slot less than connections, so
    that status reads and retries go on however many clients ask for something else; a pool of one connection has one
    slot.
    """

    def __init__(
        self,
        url: Url,
        *,
        program: str,
        timeout_s: float,
        pool_size: int,
        writes: bool = True,
        replica: bool = False,
        pooled: bool = False,
    ) -> None:
        self._timeout_s = timeout_s
        self._pool_size = pool_size
        self._writes = writes
        self._slots = asyncio.Semaphore(max(1, pool_size - 1))
        self.refused = 0
        """Calls that got no slot in time, so far."""
        self._settings = {
            "application_name": program,
            "timezone": "UTC",
            "synchronous_commit": "on",  # a worker acknowledges a message after the commit, so the commit must last
            "statement_timeout": f"{max(50, int(timeout_s * 900))}",  # ms; below our own, so it ends first
            "idle_in_transaction_session_timeout": f"{int(timeout_s * 5000)}",
            **_PLANNING,
        }
        self._connector = Connector(
            url,
            wanted=_wanted(writes=writes, replica=replica),
            timeout_s=timeout_s,
            settings=self._settings,
            pooled=pooled,
        )
        # One round trip for all of it. No value has a quote in it.
        settings = (f"SET LOCAL {name} = '{value}'" for name, value in self._settings.items())
        self._begin_pooled = "; ".join(("BEGIN", *settings))
        self._refusal: str | None = None
        self._pool: Pool

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Self]:
        """Open the pool. It connects at its first use, so the server may be away now."""
        self._pool = await asyncpg.create_pool(
            connect=self._connect,
            min_size=0,
            max_size=self._pool_size,
            timeout=self._timeout_s,
            command_timeout=self._timeout_s,
            init=self._prepare,
            reset=_without_reset,
        )
        try:
            yield self
        finally:
            # close() waits for running statements; a server that no longer answers must not delay the exit.
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._pool.close()
            except TimeoutError:
                self._pool.terminate()

    async def _connect(self, *_: object, **more: Any) -> "asyncpg.Connection[Row]":  # noqa: ANN401 - as asyncpg calls it
        if self._connector.changed():
            await self._pool.expire_connections()  # they were opened with the URL as it was before
        opened = await self._connector.opened(**more)
        if opened.came_back:
            await self._pool.expire_connections()  # they lead to a server that was taken for want of this one
        return opened.connection

    async def _prepare(self, connection: Any) -> None:  # noqa: ANN401 - asyncpg types the callback's argument so
        async with connection.transaction() if self._connector.pooled else nullcontext():
            await take_any_time(connection)

    @asynccontextmanager
    async def _connection(self, *, refused_too: bool = False) -> "AsyncIterator[PoolConnection]":
        if self._refusal is not None and not refused_too:
            raise JobsUnfit(self._refusal)
        with _translated():
            async with asyncio.timeout(self._timeout_s):
                connection = await self._pool.acquire()
                try:
                    yield connection
                except (TimeoutError, asyncio.CancelledError, asyncpg.InternalClientError):
                    _terminate(connection)
                    raise
                except asyncpg.PostgresError as error:
                    if (error.sqlstate or "").startswith(_SPENT):
                        _terminate(connection)
                        await self._pool.expire_connections()
                    raise
                finally:
                    await self._pool.release(connection)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Run the block, the calls for a single client, when a slot is free; all of it within `in_time`.

        Raises DatabaseUnavailable when no slot is free within half of the timeout. Admitted later, a call would time
        out and be repeated, and in the end no call would finish.
        """
        async with in_time():
            try:
                async with asyncio.timeout(self._timeout_s / 2):
                    await self._slots.acquire()
            except TimeoutError as error:
                self.refused += 1
                raise DatabaseUnavailable("too much is asked for at once") from error
            try:
                yield
            finally:
                self._slots.release()

    async def fetch(self, sql: str, *args: object) -> list[Row]:
        """All rows of one statement, in a transaction of its own.

        Raises DatabaseUnavailable within the timeout, after which the statement may still have taken effect, and
        StatementRefused when the database objects to the content.
        """
        if not self._connector.pooled:
            async with self._connection() as connection:
                if not self._connector.pooled:  # connecting may have found it
                    return await connection.fetch(sql, *args)
        async with self.transaction() as session:
            return await session.fetch(sql, *args)

    async def fetch_within(self, seconds: float, sql: str, *args: object) -> list[Row]:
        """As `fetch`; after `seconds` the server cancels the statement, and this raises StatementTimeout."""
        async with self.transaction() as session:
            await session.fetch(_SQL["fetch_within"], f"{int(min(seconds, self._timeout_s * 0.9) * 1000)}")
            return await session.fetch(sql, *args)

    def refuse(self, reason: str | None) -> None:
        """From now on raise JobsUnfit, with this reason, in every call but `look`; with None, take calls again."""
        self._refusal = reason

    async def look(self, sql: str, *args: object) -> list[Row]:
        """As `fetch`, also while calls are refused."""
        async with self._connection(refused_too=True) as connection, connection.transaction():
            return await connection.fetch(sql, *args)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Session]:
        """A transaction: committed at the end of the block, rolled back when an exception leaves it.

        The whole block shares one timeout. Raises as `fetch` does.
        """
        async with self._connection() as connection:
            await connection.execute(self._begin_pooled if self._connector.pooled else "BEGIN")
            try:
                yield Session(connection)
            except asyncio.CancelledError:
                raise  # `_connection` closes the connection: a ROLLBACK could wait for a server that is frozen
            except BaseException:
                with suppress(asyncpg.InterfaceError, asyncpg.PostgresConnectionError):  # lost: what raised says why
                    await connection.execute("ROLLBACK")
                raise
            await connection.execute("COMMIT")

    async def secure(self) -> None:
        """Return once what other transactions have committed before is safe: on disk, and with a synchronous standby.

        What a query shows need not be. A commit that no standby has confirmed is shown all the same after its client
        has given it up. A caller that repeats a 202 for it, or acknowledges its message, must call this. Raises
        DatabaseUnavailable.
        """
        await self.fetch(_SQL["secure"])

    async def find_unstorable(self, refused: StatementRefused, texts: "Mapping[str, str | None]") -> None:
        """Raise TextUnstorable or ActorUnstorable for the text that a statement was refused for; return without one."""
        if not refused.by_encoding:
            return
        for place, text in texts.items():
            try:
                await self.fetch(_SQL["find_unstorable"], text)
            except StatementRefused as error:
                raise (ActorUnstorable() if place == "actor" else TextUnstorable(place)) from error

    async def ping(self) -> None:
        """One round trip; raises DatabaseUnavailable."""
        await self.fetch("SELECT 1")

    async def probe(self) -> None:
        """Check, on a connection of the pool, that the programs can work with this database.

        Raises DatabaseUnavailable, whose text says what is missing.
        """
        (found,) = await self.fetch(_SQL["probe"])
        await self._prefer_again()
        if self._writes and found["read_only"]:
            await self._pool.expire_connections()
            raise DatabaseUnavailable("the server is read-only, and one that takes writes is needed")
        if not found["migrated"]:
            raise DatabaseUnfit("redrive.retry_requests is not there: run `redrive migrate`")
        if not found["writable" if self._writes else "readable"]:
            raise DatabaseUnfit("this user lacks rights on redrive.retry_requests")

    async def _prefer_again(self) -> None:
        """Close connections to a server that was taken for want of the preferred one, now and then: it may be back."""
        fell_back_at = self._connector.fell_back_at
        if fell_back_at is not None and time.monotonic() - fell_back_at >= PREFER_AGAIN_S:
            await self._pool.expire_connections()


def _wanted(*, writes: bool, replica: bool) -> tuple[Access, ...]:
    """What servers to connect to where the URL does not say it, the most wanted first."""
    if writes:
        return (Access.READ_WRITE,)
    if replica:
        return (Access.ANY,)
    # A role may be read-only on the primary, too: then the primary is still the one that does not lag.
    return (Access.READ_WRITE, Access.PRIMARY, Access.ANY)
