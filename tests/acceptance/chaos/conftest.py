"""One rig for all of these tests: starting servers and six processes takes longer than most of them.

In `make test` one worker of pytest-xdist has them all, together with the other tests on private servers. At length they
are shared among several workers, each with a rig of its own: most of the time goes by in waiting for servers to come
back. Those that take longest begin first, so that the workers end at about the same time.
"""

from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from tests.acceptance.chaos.rig import Rig
from tests.acceptance.chaos.tally import SCALE
from tests.servers.postgres import PostgresPair, PrivatePostgres
from tests.servers.rabbitmq import PrivateRabbitmq, RabbitmqCluster

collect_ignore = ["test_failovers.py"] if SCALE == 1 else []
_RIGS = frozenset({"rig", "rig_of_nodes", "rig_of_pair"})
_LONGEST_FIRST = (
    "test_p20_",
    "test_p21_",
    "test_p22_",
    "test_p6_",
    "test_p26_",
    "test_p19_",
    "test_two_tabs_",
    "test_no_order_of_events_",
    "test_p1_",
    "test_p5_",
    "test_p2_",
)


@pytest.hookimpl(tryfirst=True)  # pytest-xdist looks at the groups in its own turn
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if _RIGS & set(getattr(item, "fixturenames", ()))]
    for item in mine:
        name = _group_of(item) if SCALE == 1 else item.name.partition("[")[0]
        item.add_marker(pytest.mark.xdist_group(name))
    if SCALE != 1:
        items.sort(key=_rank)


def _group_of(item: pytest.Item) -> str:
    """The worker of pytest-xdist for it: three nodes take so long to start that they are another's."""
    return "private servers" if "rig" in getattr(item, "fixturenames", ()) else "three nodes"


def _rank(item: pytest.Item) -> int:
    ranks = [rank for rank, start in enumerate(_LONGEST_FIRST) if item.name.startswith(start)]
    return ranks[0] if ranks else len(_LONGEST_FIRST)


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def _one_rig(
    _one_private_postgres: PrivatePostgres, _one_private_rabbitmq: PrivateRabbitmq
) -> AsyncIterator[Rig]:
    async with Rig.built(_one_private_postgres, _one_private_rabbitmq) as built:
        yield built


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def _one_rig_of_nodes(
    _one_private_postgres: PrivatePostgres, _one_rabbitmq_cluster: RabbitmqCluster
) -> AsyncIterator[Rig]:
    async with Rig.built(_one_private_postgres, _one_rabbitmq_cluster) as built:
        yield built


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def _one_rig_of_pair(_one_private_rabbitmq: PrivateRabbitmq) -> AsyncIterator[Rig]:
    pair = PostgresPair()
    try:
        await pair.start()
        await pair.postgres.prepare()
        async with Rig.built(pair, _one_private_rabbitmq) as built:
            yield built
    finally:
        await pair.close()


@pytest.fixture
def rig_of_pair(_one_rig_of_pair: Rig, record_property: Callable[[str, object], None]) -> Rig:
    """A rig on a primary of PostgreSQL and its standby."""
    _one_rig_of_pair.tell = lambda tally: record_property("tally", str(tally))
    return _one_rig_of_pair


@pytest.fixture
def rig_of_nodes(_one_rig_of_nodes: Rig, record_property: Callable[[str, object], None]) -> Rig:
    """A rig on three nodes of RabbitMQ."""
    _one_rig_of_nodes.tell = lambda tally: record_property("tally", str(tally))
    return _one_rig_of_nodes


@pytest.fixture
def rig(_one_rig: Rig, record_property: Callable[[str, object], None]) -> Rig:
    """The rig, which hands tallies to the summary of the run."""
    _one_rig.tell = lambda tally: record_property("tally", str(tally))
    return _one_rig
