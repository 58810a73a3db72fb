"""A browser, an api that serves the console to it, 20,000 jobs and a broker; all of a module's own.

Tests here run in the module's loop: `pytestmark = pytest.mark.asyncio(loop_scope="module")`.
"""

from collections.abc import AsyncIterator
from typing import Final

import pytest_asyncio
from playwright.async_api import Browser, expect

from tests.acceptance.chaos.tally import SCALE
from tests.api_server import Api, Serve
from tests.browser.chromium import chromium
from tests.browser.console import Console
from tests.integration.api.conftest import serve
from tests.jobs import JobMaker
from tests.servers.postgres import Postgres
from tests.servers.rabbitmq import Rabbitmq

__all__ = ["serve"]

collect_ignore = ["test_left_alone.py"] if SCALE == 1 else []

module_fixture = pytest_asyncio.fixture(scope="module", loop_scope="module")

_MANY: Final = """
INSERT INTO control_plane.jobs (
    project_id, type, payload, status, attempts, max_attempts, created_at, started_at, completed_at
)
SELECT 'p1', 'report.build', '{}', 'completed', 1, 3, now() - n * interval '4 s', now() - n * interval '4 s', now()
FROM generate_series(1, 20000) AS n
"""


_PATIENCE_MS: Final = 30_000
"""How long an expectation waits for what the page will show. What is measured is in bench/console.py."""


@module_fixture
async def browser() -> AsyncIterator[Browser]:
    expect.set_options(timeout=_PATIENCE_MS)
    async with chromium() as running:
        yield running


@module_fixture
async def database_url(postgres: Postgres) -> AsyncIterator[str]:
    async with postgres.database() as url:
        yield url


@module_fixture
async def amqp_url(rabbitmq: Rabbitmq) -> AsyncIterator[str]:
    async with rabbitmq.vhost() as url:
        yield url


@module_fixture
async def jobs(database_url: str) -> AsyncIterator[JobMaker]:
    async with JobMaker.on(database_url) as maker:
        await maker.pool.execute(_MANY)
        yield maker


@module_fixture
async def api(database_url: str, amqp_url: str, serve: Serve) -> Api:
    return await serve(database_url, amqp_url=amqp_url, console="on", watch_interval=0.1)


@pytest_asyncio.fixture(loop_scope="module")
async def console(browser: Browser, api: Api) -> AsyncIterator[Console]:
    """The console in a window of its own; what went wrong in it fails the test in the end."""
    async with Console.opened(browser, api) as opened:
        yield opened
