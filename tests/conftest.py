"""Servers for whichever test asks for one, by the fixture's name."""

import inspect
import logging
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest
import pytest_asyncio
import structlog
from aiohttp.test_utils import TestClient
from pytest_aiohttp import AiohttpClient, plugin

from tests.api_server import Serve, start_api
from tests.servers.postgres import Postgres, PrivatePostgres
from tests.servers.postgres import private_postgres as new_private_postgres
from tests.servers.processes import ServerFailed, run_apart
from tests.servers.rabbitmq import PrivateRabbitmq, Rabbitmq, RabbitmqCluster
from tests.servers.rabbitmq import private_rabbitmq as new_private_rabbitmq
from tests.servers.shared import SharedServers, adopt_choice, shared_postgres, shared_rabbitmq

_SHARED = pytest.StashKey[SharedServers]()
_FOLDER = pytest.StashKey[Path]()
_PRIVATE = frozenset({"private_postgres", "private_rabbitmq"})
_SERVERS = frozenset({"postgres", "rabbitmq"}) | _PRIVATE
_WITHOUT_SERVERS = ("tests/unit/", "tests/containers/")


class Node(Protocol):
    """What pytest-xdist's controller knows of a worker; its own class has no types."""

    config: pytest.Config
    workerinput: dict[str, object]


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        config.stash[_FOLDER] = Path(config.workerinput["redrive_run"])
    elif not config.option.collectonly:
        config.stash[_SHARED] = SharedServers()
        config.stash[_FOLDER] = config.stash[_SHARED].folder


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Node) -> None:
    node.workerinput["redrive_run"] = str(node.config.stash[_FOLDER])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Node, ids: list[str]) -> None:
    _start_for(node.config, ids)


@pytest.hookimpl(tryfirst=True)  # pytest-xdist looks at the groups in its own turn
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if item.nodeid.startswith(_WITHOUT_SERVERS) and fixtures & _SERVERS:
            raise pytest.UsageError(f"{item.nodeid} asks for a server: it belongs into tests/integration")
        if fixtures & _PRIVATE:
            # One worker has them all: one start of each, and no two tests at once that load the machine.
            item.add_marker(pytest.mark.xdist_group("private servers"))


def pytest_collection_finish(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):
        _start_for(session.config, [item.nodeid for item in session.items])


def _start_for(config: pytest.Config, ids: list[str]) -> None:
    """Start the servers while the tests that need none run."""
    if _SHARED in config.stash and not all(test.startswith(_WITHOUT_SERVERS) for test in ids):
        try:
            config.stash[_SHARED].start()
        except ServerFailed as error:
            pytest.exit(str(error), returncode=1)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _SHARED in config.stash:
        config.stash[_SHARED].stop()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what fault tests have counted, and the seeds that replay them."""
    reports = [report for category in ("passed", "failed") for report in terminalreporter.stats.get(category, [])]
    if tallies := [text for report in reports for name, text in report.user_properties if name == "tally"]:
        terminalreporter.section("what was broken, and what came of it")
        for tally in tallies:
            terminalreporter.line(tally)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_client() -> AsyncIterator[AiohttpClient]:
    """pytest-aiohttp's `aiohttp_client`, which is of one test and its loop, for tests that share an api and a loop."""
    async for made in inspect.unwrap(plugin.aiohttp_client)(TestClient):
        yield made


@pytest.fixture(autouse=True)
def _logging_put_back() -> Iterator[None]:
    """Let logging be what it was, where a test has configured it, or a command that it called in this process."""
    was = {logger: (logger.handlers[:], logger.level, logger.propagate) for logger in _loggers()}
    yield
    if structlog.is_configured():
        structlog.reset_defaults()
        for logger in _loggers():
            handlers, level, logger.propagate = was.get(logger, ([], logging.NOTSET, True))
            logger.handlers[:] = handlers
            logger.setLevel(level)


def _loggers() -> list[logging.Logger]:
    root = logging.getLogger()
    return [root, *(each for each in root.manager.loggerDict.values() if isinstance(each, logging.Logger))]


@pytest.fixture
def serve(aiohttp_client: AiohttpClient) -> Serve:
    """Starts apis in this process, which stop at the end of the test."""
    return partial(start_api, aiohttp_client)


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Postgres:
    """The run's PostgreSQL, for making databases on."""
    return shared_postgres(request.config.stash[_FOLDER])


@pytest.fixture(scope="session")
def rabbitmq(request: pytest.FixtureRequest) -> Rabbitmq:
    """The run's RabbitMQ, for making virtual hosts on."""
    return shared_rabbitmq(request.config.stash[_FOLDER])


@pytest.fixture
async def database_url(postgres: Postgres) -> AsyncIterator[str]:
    """A migrated database of this test alone, its URL naming a superuser."""
    async with postgres.database() as url:
        yield url


@pytest.fixture
async def empty_database_url(postgres: Postgres) -> AsyncIterator[str]:
    """A database of this test alone, with nothing in it."""
    async with postgres.database(migrated=False) as url:
        yield url


@pytest.fixture
async def amqp_url(rabbitmq: Rabbitmq) -> AsyncIterator[str]:
    """A virtual host of this test alone, with nothing in it."""
    async with rabbitmq.vhost() as url:
        yield url


@pytest.fixture(scope="session")
def _one_private_postgres(request: pytest.FixtureRequest) -> Iterator[PrivatePostgres]:
    adopt_choice(request.config.stash[_FOLDER])
    server = new_private_postgres()
    try:
        run_apart(server.start())
        run_apart(server.postgres.prepare())
        yield server
    finally:
        run_apart(server.close())


@pytest.fixture(scope="session")
def _one_private_rabbitmq(request: pytest.FixtureRequest) -> Iterator[PrivateRabbitmq]:
    adopt_choice(request.config.stash[_FOLDER])
    server = new_private_rabbitmq()
    try:
        yield server
    finally:
        run_apart(server.close())


@pytest.fixture(scope="session")
def _one_rabbitmq_cluster(request: pytest.FixtureRequest) -> Iterator[RabbitmqCluster]:
    adopt_choice(request.config.stash[_FOLDER])
    cluster = RabbitmqCluster()
    try:
        yield cluster
    finally:
        run_apart(cluster.close())


@pytest.fixture
async def private_postgres(_one_private_postgres: PrivatePostgres) -> PrivatePostgres:
    """A PostgreSQL to stop, freeze and kill: running when a test gets it, and put right for the next one."""
    await _one_private_postgres.recover()
    return _one_private_postgres


@pytest.fixture
async def private_rabbitmq(_one_private_rabbitmq: PrivateRabbitmq) -> PrivateRabbitmq:
    """A RabbitMQ to stop, freeze, kill and block: running when a test gets it, and put right for the next one."""
    await _one_private_rabbitmq.recover()
    return _one_private_rabbitmq


@pytest.fixture
async def private_database_url(private_postgres: PrivatePostgres) -> AsyncIterator[str]:
    """A migrated database on `private_postgres`, whatever state the test leaves that in."""
    async with private_postgres.postgres.database() as url:
        yield url
        await private_postgres.recover()


@pytest.fixture
async def private_amqp_url(private_rabbitmq: PrivateRabbitmq) -> AsyncIterator[str]:
    """A virtual host on `private_rabbitmq`, whatever state the test leaves that in."""
    async with private_rabbitmq.rabbitmq.vhost() as url:
        yield url
        await private_rabbitmq.recover()
