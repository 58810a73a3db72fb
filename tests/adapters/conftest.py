"""Each system is prepared once; each test has a copy of what was prepared."""

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.adapters.rig import Prepared, Rig, discard, prepare
from tests.adapters.systems import IN_SHORT, SYSTEMS, WHOLE, System
from tests.api_server import Api, Serve
from tests.servers.postgres import Postgres
from tests.servers.processes import run_apart

_PAGES: Final = Path(__file__).with_name("test_pages.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the pages of all systems but one to `make adapters`: each starts six programs."""
    left = [each for each in items if not WHOLE and each.path == _PAGES and IN_SHORT not in each.name]
    config.hook.pytest_deselected(items=left)
    items[:] = [each for each in items if each not in left]


@pytest.fixture(
    scope="session",
    params=[pytest.param(system, id=name, marks=pytest.mark.xdist_group(name)) for name, system in SYSTEMS.items()],
)
def prepared(request: pytest.FixtureRequest, postgres: Postgres) -> Iterator[Prepared]:
    """One system, its worker done with some jobs, Redrive beside it."""
    system: System = request.param
    one = run_apart(prepare(system, postgres, f"{system.name.replace('-', '_')}_{uuid.uuid4().hex[:6]}"))
    yield one
    run_apart(discard(one))


@pytest.fixture
async def rig(prepared: Prepared) -> AsyncIterator[Rig]:
    async with Rig.on(prepared) as one:
        yield one


@pytest.fixture
async def api(rig: Rig, serve: Serve) -> Api:
    """The api, under its own login."""
    return await serve(rig.api_url, watch_interval=0.05, **rig.system.settings)
