"""The api on a database, both of a module's own: tests keep apart by their jobs, or by their projects.

They run in the module's loop, too: `pytestmark = pytest.mark.asyncio(loop_scope="module")`.
"""

from collections.abc import AsyncIterator
from functools import partial

import pytest
import pytest_asyncio
from pytest_aiohttp import AiohttpClient

from tests.api_server import Api, Serve, start_api
from tests.jobs import JobMaker
from tests.servers.postgres import Postgres
from tests.servers.proxy import Proxy
from tests.without_looks import stop_looks

module_fixture = pytest_asyncio.fixture(scope="module", loop_scope="module")


@module_fixture
async def database_url(postgres: Postgres) -> AsyncIterator[str]:
    async with postgres.database() as url:
        yield url


@module_fixture
async def jobs(database_url: str) -> AsyncIterator[JobMaker]:
    async with JobMaker.on(database_url) as maker:
        yield maker


@module_fixture
async def database_proxy(database_url: str) -> AsyncIterator[Proxy]:
    """What lies between the api and its database: it counts what passes, and breaks it when told to."""
    async with Proxy.to(database_url) as proxy:
        yield proxy


@module_fixture
async def proxied_url(database_url: str, database_proxy: Proxy) -> AsyncIterator[str]:
    """The database behind the proxy. No look goes on beside the requests: what they send is counted."""
    with pytest.MonkeyPatch.context() as patch:
        stop_looks(patch)
        yield database_proxy.url_of(database_url)


@pytest.fixture(scope="module")
def serve(module_client: AiohttpClient) -> Serve:
    """Starts apis in this process, which stop at the end of the module."""
    return partial(start_api, module_client)


@module_fixture
async def api(proxied_url: str, serve: Serve) -> Api:
    """Serving, without limits and without a broker."""
    return await serve(proxied_url)
