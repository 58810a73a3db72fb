"""Slots: however much single clients ask the database for, calls for many clients go on, and no call waits for ever."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from shared.database import Database
from shared.errors import DatabaseUnavailable, StatementTimeout
from shared.job_ids import UuidIds
from shared.jobs import Jobs
from shared.models import JobKey
from shared.overview import Overview
from tests.jobs import JobMaker

TIMEOUT_S = 2.0


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """Two connections, and so one slot."""
    async with Database(database_url, program="test", timeout_s=TIMEOUT_S, pool_size=2).opened() as opened:
        yield opened


async def test_a_status_is_read_though_clients_ask_for_more_numbers_than_can_be_counted(
    jobs: JobMaker, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, store, overview = await jobs.failed(), Jobs(database, UuidIds()), Overview(database, UuidIds())
    slow = "SELECT pg_sleep(5), $1::text, $2::int, $3::int"
    monkeypatch.setattr(overview, "_sql", {**overview._sql, "types": slow})
    counting = [asyncio.create_task(overview.types(job.project_id)) for _ in range(50)]
    await asyncio.sleep(0)

    for _ in range(3):
        assert (await store.get(JobKey(job.id, job.project_id))).id == job.id
    ends = await asyncio.gather(*counting, return_exceptions=True)

    assert {type(end) for end in ends} <= {DatabaseUnavailable, StatementTimeout}


async def test_a_call_that_waits_too_long_for_a_slot_fails_and_takes_none(database: Database) -> None:
    async with database.slot():
        with pytest.raises(DatabaseUnavailable, match="at once"):
            async with database.slot():
                pytest.fail("two at a time")

    async with asyncio.timeout(TIMEOUT_S / 4), database.slot():
        pass


async def test_a_slot_is_given_back_by_a_call_that_is_cancelled_or_fails(database: Database) -> None:
    async def fail() -> None:
        async with database.slot():
            raise LookupError

    with pytest.raises(LookupError):
        await fail()
    async with database.slot():
        waiting = asyncio.create_task(fail())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])

    async with asyncio.timeout(TIMEOUT_S / 4), database.slot():
        pass
