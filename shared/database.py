"""PostgreSQL, bounded in time: every call ends within its timeout, and every failure is one of our own errors.

Connections hold no session state (no SET, LISTEN or advisory lock anywhere), so they go back to the pool without a
reset query. A connection whose statement was cut off is closed, not mended: the server ends the statement by itself,
after `statement_timeout`.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

from shared.errors import DatabaseUnavailable, StatementRefused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asyncpg.pool import PoolConnectionProxy

    Pool = asyncpg.Pool[asyncpg.Record]
    PoolConnection = PoolConnectionProxy[asyncpg.Record]

Row = asyncpg.Record

# What the database says of a statement's content, by SQLSTATE class: data, integrity, trigger, view with check option.
_REFUSALS = ("22", "23", "27", "44", "P0")


@contextmanager
def _translated() -> "Iterator[None]":
    try:
        yield
    except asyncpg.PostgresError as error:
        if (error.sqlstate or "").startswith(_REFUSALS):
            raise StatementRefused(error.sqlstate) from error
        raise DatabaseUnavailable(type(error).__name__) from error
    except (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise DatabaseUnavailable(type(error).__name__) from error


class Session:
    """Statements on one connection, within one transaction."""

    def __init__(self, connection: "PoolConnection") -> None:
        self._connection = connection

    async def fetch(self, sql: str, *args: object) -> list[Row]:
        """All rows of one statement."""
        return await self._connection.fetch(sql, *args)

    async def execute_many(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        """Run one statement once a row; all or nothing."""
        await self._connection.executemany(sql, rows)


class Database:
    """A pool of connections to one server."""

    def __init__(self, pool: "Pool", timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s

    @asynccontextmanager
    async def _connection(self) -> "AsyncIterator[PoolConnection]":
        with _translated():
            async with asyncio.timeout(self._timeout_s):
                connection = await self._pool.acquire()
                try:
                    yield connection
                except (TimeoutError, asyncio.CancelledError):
                    connection.terminate()
                    raise
                finally:
                    await self._pool.release(connection)

    async def fetch(self, sql: str, *args: object) -> list[Row]:
        """All rows of one statement, in a transaction of its own.

        Raises DatabaseUnavailable within the timeout, after which the statement may still have taken effect, and
        StatementRefused when the database objects to the content.
        """
        async with self._connection() as connection:
            return await connection.fetch(sql, *args)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Session]:
        """A transaction: committed at the end of the block, rolled back when an exception leaves it.

        The whole block shares one timeout. Raises as `fetch` does.
        """
        async with self._connection() as connection:
            transaction = connection.transaction()
            await transaction.start()
            try:
                yield Session(connection)
            except asyncio.CancelledError:
                raise  # the connection is closed on the way out: a ROLLBACK could wait for a server that is frozen
            except BaseException:
                await transaction.rollback()
                raise
            await transaction.commit()

    async def ping(self) -> None:
        """One round trip; raises DatabaseUnavailable."""
        await self.fetch("SELECT 1")


async def _without_reset(_connection: Any) -> None:  # noqa: ANN401 - asyncpg types the callback's argument so
    """Stand in for asyncpg's reset query; see the module's first lines for why there is nothing to reset."""


@asynccontextmanager
async def open_database(
    url: str, *, program: str, timeout_s: float, pool_size: int, read_only: bool = False
) -> AsyncIterator[Database]:
    """Open a pool; it connects when it is first used, so a server that is away now may come later.

    `timeout_s` bounds each call, waiting for a connection included. `program` is what `pg_stat_activity` shows.
    """
    settings = {
        "application_name": program,
        "timezone": "UTC",
        "synchronous_commit": "on",  # an ack after a commit that may vanish would be a lie
        "statement_timeout": f"{max(timeout_s * 0.9, 0.05):.3f}s",
        "idle_in_transaction_session_timeout": f"{timeout_s * 5:.3f}s",
    }
    if read_only:
        settings["default_transaction_read_only"] = "on"
    pool = asyncpg.create_pool(
        url,
        min_size=0,
        max_size=pool_size,
        timeout=timeout_s,
        command_timeout=timeout_s,
        reset=_without_reset,
        server_settings=settings,
    )
    await pool
    try:
        yield Database(pool, timeout_s)
    finally:
        # Closing politely waits for statements in hand; a server that no longer answers must not hold the exit.
        try:
            async with asyncio.timeout(timeout_s):
                await pool.close()
        except TimeoutError:
            pool.terminate()
