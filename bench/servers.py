"""The servers that all compared programs stand on: private ones of this run, the same that the tests use."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from tests.servers.postgres import Postgres, PrivatePostgres, private_postgres
from tests.servers.rabbitmq import PrivateRabbitmq, private_rabbitmq


@asynccontextmanager
async def postgres_server() -> AsyncIterator[PrivatePostgres]:
    """PostgreSQL as it comes: it waits for the disk before it says that something is committed."""
    server = private_postgres(durable=True)
    try:
        await server.start()
        await server.postgres.prepare()
        yield server
    finally:
        await server.close()


@asynccontextmanager
async def rabbitmq_server() -> AsyncIterator[PrivateRabbitmq]:
    """RabbitMQ, one node."""
    server = private_rabbitmq()
    try:
        await server.start()
        yield server
    finally:
        await server.close()


async def transactions_of(postgres: Postgres, database: str) -> int:
    """How many transactions the database's clients have committed.

    Their sessions are ended for it: a session that goes idle may keep its counts to itself for ten seconds more. Pools
    open new ones.
    """
    connection = await asyncpg.connect(postgres.url, timeout=10)
    try:
        await connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = $1",
            database,
        )
        return int(await connection.fetchval("SELECT xact_commit FROM pg_stat_database WHERE datname = $1", database))
    finally:
        await connection.close()
