"""What integration tests stand on: jobs, the ledger and the queues of a database and a virtual host of their own."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import asyncpg
import pytest

from shared.database import Database
from shared.migrations import migrate
from tests.jobs import BIGINT_JOBS, JobMaker
from tests.ledger import Ledger
from tests.logins import Logins, Users
from tests.logs import Log
from tests.queues import Queues
from tests.servers.rabbitmq import Rabbitmq


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[Log]:
    """What is logged while the test runs."""
    with Log(caplog).recording() as recorded:
        yield recorded


@pytest.fixture
async def bigint_database_url(empty_database_url: str) -> str:
    """A migrated database whose owner's jobs have bigint ids: a table with a primary key and no index besides."""
    connection = await asyncpg.connect(empty_database_url)
    try:
        await connection.execute(BIGINT_JOBS)
    finally:
        await connection.close()
    await asyncio.to_thread(migrate, empty_database_url)
    return empty_database_url


@pytest.fixture
async def users(empty_database_url: str) -> AsyncIterator[Users]:
    """Users with exactly the rights that docs/deploying.md gives, on a database that is migrated."""
    async with Logins.on(empty_database_url) as logins:
        found = await logins.made(empty_database_url)
        await asyncio.to_thread(migrate, found.owner)
        yield found


@pytest.fixture
async def jobs(database_url: str) -> AsyncIterator[JobMaker]:
    """Makes jobs in this test's database, and counts what became of them."""
    async with JobMaker.on(database_url) as maker:
        yield maker


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """This test's database, as the programs use it."""
    async with Database(database_url, program="test", timeout_s=2, pool_size=4).opened() as opened:
        yield opened


@pytest.fixture
async def ledger(database: Database) -> Ledger:
    return Ledger(database)


@pytest.fixture
async def queues(amqp_url: str) -> AsyncIterator[Queues]:
    """The queues of this test's virtual host."""
    async with Queues.on(amqp_url) as declared:
        yield declared


@pytest.fixture
async def least_privileged_amqp_url(amqp_url: str, queues: Queues, rabbitmq: Rabbitmq) -> AsyncIterator[str]:
    """The same virtual host, with its queues declared, for a user who may read these and write to the exchange."""
    assert queues is not None
    if rabbitmq.management_url is None:
        pytest.fail("this test makes a user on the broker: it needs the management API")
    parts = urlsplit(amqp_url)
    user = f"user-of-{parts.path[1:]}"
    await rabbitmq.manage("PUT", f"/api/users/{user}", {"password": "secret", "tags": ""})
    try:
        rights = {"configure": "^$", "write": "^redrive$", "read": r"^redrive\.retries(\.bulk|\.dead)?$"}
        await rabbitmq.manage("PUT", f"/api/permissions/{parts.path[1:]}/{user}", rights)
        yield parts._replace(netloc=f"{user}:secret@{parts.hostname}:{parts.port}").geturl()
    finally:
        await rabbitmq.manage("DELETE", f"/api/users/{user}")
