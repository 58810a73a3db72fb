"""The gauges of the database, while one of two databases is away."""

import asyncio
from typing import TYPE_CHECKING, cast

from prometheus_client import CollectorRegistry

from shared import gauges
from shared.errors import DatabaseUnavailable
from shared.gauges import DatabaseGauges
from tests.eventually import eventually

if TYPE_CHECKING:
    import pytest

    from shared.database import Database


class Primary:
    """A database with three requests that wait."""

    refused = 0

    async def fetch(self, sql: str) -> list[tuple[object, ...]]:
        return [(3, 1.5)] if "retry_requests" in sql else [(100,)]


class Away:
    """A database that does not answer."""

    refused = 0

    async def fetch(self, _sql: str) -> list[tuple[object, ...]]:
        raise DatabaseUnavailable("away")


async def look_once(monkeypatch: "pytest.MonkeyPatch", database: object, replica: object) -> CollectorRegistry:
    async def missing_from(_: object) -> list[str]:
        return ["0001_one.sql", "0002_two.sql"]

    stop, registry = asyncio.Event(), CollectorRegistry()
    monkeypatch.setattr(gauges, "missing_from", missing_from)
    shown = DatabaseGauges(registry)
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(shown.run(cast("Database", database), cast("Database", replica), stop=stop))
        await eventually(lambda: registry.get_sample_value("redrive_migrations_missing") == 2)
        stop.set()
    return registry


async def test_without_the_replica_all_else_is_shown(monkeypatch: "pytest.MonkeyPatch") -> None:
    registry = await look_once(monkeypatch, Primary(), Away())

    assert registry.get_sample_value("redrive_backlog_requests") == 3
    assert registry.get_sample_value("redrive_backlog_oldest_seconds") == 1.5


async def test_without_a_count_of_what_waits_the_missing_migrations_are_shown(
    monkeypatch: "pytest.MonkeyPatch",
) -> None:
    registry = await look_once(monkeypatch, Away(), None)

    assert registry.get_sample_value("redrive_backlog_requests") == 0
