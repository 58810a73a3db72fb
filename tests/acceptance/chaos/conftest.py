"""One stand for all of these tests: starting servers and six processes takes longer than most of them."""

from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from tests.acceptance.chaos.stand import Stand
from tests.servers.postgres import PrivatePostgres
from tests.servers.rabbitmq import PrivateRabbitmq


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def stand(_one_private_postgres: PrivatePostgres, _one_private_rabbitmq: PrivateRabbitmq) -> AsyncIterator[Stand]:
    async with Stand.built(_one_private_postgres, _one_private_rabbitmq) as built:
        yield built


@pytest.fixture(autouse=True)
def _told(stand: Stand, record_property: Callable[[str, object], None]) -> None:
    """Hand tallies to whoever prints the run's summary."""
    stand.tell = lambda tally: record_property("tally", str(tally))
