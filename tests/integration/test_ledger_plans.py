"""The ledger's statements, by plans that were made while its tables were empty: how every installation begins."""

from collections.abc import AsyncIterator

import pytest

from shared.batches import Batches, BatchRequest
from shared.database import Database
from shared.failed import FailedFilter
from shared.job_ids import UuidIds
from shared.models import Outcome, ProjectId
from tests.integration.reading.test_plans import SQL, connected, nodes_of, plan_of
from tests.jobs import JobMaker
from tests.ledger import Ledger

MANY = 10_000


@pytest.fixture
async def one_connection(database_url: str) -> AsyncIterator[Database]:
    """A pool whose every statement is planned once."""
    async with Database(database_url, program="test", timeout_s=2, pool_size=1).opened() as opened:
        yield opened


async def test_a_plan_made_for_an_empty_ledger_publishes_and_settles_a_full_one(
    one_connection: Database, jobs: JobMaker
) -> None:
    ledger = Ledger(one_connection)
    await jobs.pool.execute("VACUUM (ANALYZE) redrive.retry_requests")  # known to be empty, not only never looked at
    assert await ledger.outbox.lease(1, lease_s=60, bulk=False) == []
    assert await ledger.outbox.republish_stale(1, age_s=60, bulk=True) == 0
    assert await ledger.settlement.apply_queued(1) == {}
    for statement in (ledger.outbox.mark_published, ledger.outbox.give_back, ledger.settlement.dead_letter):
        await statement([])
    await ledger.settlement.apply([])
    await jobs.many_failed(MANY)
    every = FailedFilter()
    batch = await Batches(one_connection, UuidIds()).accept(
        BatchRequest(project_id=ProjectId("p1"), actor="tester", chosen=every, reason="all")
    )
    assert batch.accepted == MANY

    rows = await ledger.outbox.lease(256, lease_s=60, bulk=True)  # each within its timeout, or it raises
    assert len(rows) == 256
    messages = [row.message for row in rows]
    await ledger.outbox.give_back([row.lease for row in rows[:10]])
    await ledger.outbox.mark_published([row.lease for row in rows])
    assert await ledger.outbox.republish_stale(1, age_s=0, bulk=True) == 1
    await ledger.settlement.dead_letter([messages.pop().id])
    assert {each.outcome for each in (await ledger.settlement.apply(messages)).values()} == {Outcome.APPLIED}
    assert len(await ledger.settlement.apply_queued(200)) == 200


async def test_a_batch_is_not_compared_with_itself_row_by_row(database_url: str) -> None:
    """Two hundred requests, each compared with two hundred jobs, would cost more than all else that settling does."""
    async with connected(database_url) as connection:
        nodes = list(nodes_of(await plan_of(connection, SQL["settlement.apply"])))

    assert any(node["Node Type"] == "Hash Join" for node in nodes)
    assert not [node for node in nodes if node["Node Type"] == "Nested Loop" and "Join Filter" in node]
