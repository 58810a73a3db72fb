"""An api that looks twenty times a second for what its waiters wait for, on a database of the module's own."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from shared.database import Database
from tests.api_server import Api, Serve
from tests.eventually import eventually
from tests.integration.api.conftest import database_url, jobs, module_fixture, serve
from tests.ledger import Ledger

__all__ = ["api", "database", "database_url", "jobs", "ledger", "no_client_waits", "serve"]

TICK_S = 0.05


@module_fixture
async def api(database_url: str, serve: Serve) -> Api:
    return await serve(database_url, watch_interval=TICK_S)


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def no_client_waits(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """The api, which is the module's, still holds clients for a moment after they have left: the next test counts."""
    yield
    if "api" in request.fixturenames:
        api: Api = request.getfixturevalue("api")
        await eventually(lambda: api.counted("redrive_waiters") == 0)


@module_fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url, program="test", timeout_s=2, pool_size=2).opened() as opened:
        yield opened


@module_fixture
async def ledger(database: Database) -> Ledger:
    """The worker's side: `apply_queued` settles what the api has accepted."""
    return Ledger(database)
