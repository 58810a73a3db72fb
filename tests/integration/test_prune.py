"""Pruning: what is settled and old goes, and nothing else."""

import uuid
from datetime import timedelta

import asyncpg
import pytest

from shared.database import Database
from shared.pruning import Pruned, prune
from shared.sql import statements
from tests.api_server import Serve
from tests.eventually import eventually
from tests.jobs import JobMaker, MadeJob, a_retry_of
from tests.ledger import Ledger
from tests.queues import Queues
from tests.workers import a_worker

NINETY_DAYS = timedelta(days=90)


async def settled(ledger: Ledger, job: MadeJob) -> uuid.UUID:
    accepted = await ledger.retries.accept(a_retry_of(job))
    await ledger.settlement.apply([row.message for row in await ledger.outbox.lease(1, lease_s=1, bulk=False)])
    return accepted.retry.id


async def aged(jobs: JobMaker, *ids: uuid.UUID, days: float) -> None:
    await jobs.pool.execute(
        """
        UPDATE redrive.retry_requests
        SET requested_at = requested_at - $2 * interval '1 day', processed_at = processed_at - $2 * interval '1 day'
        WHERE id = ANY ($1::uuid[])
        """,
        ids,
        days,
    )


async def left(jobs: JobMaker, table: str = "retry_requests", column: str = "id") -> set[object]:
    return {row[0] for row in await jobs.pool.fetch(f"SELECT {column} FROM redrive.{table}")}


async def test_what_was_settled_long_ago_goes_in_bounded_steps(
    database: Database, jobs: JobMaker, ledger: Ledger
) -> None:
    old = [await settled(ledger, job) for job in await jobs.many_failed(7)]
    young = await settled(ledger, await jobs.failed())
    await aged(jobs, *old, days=91)
    await aged(jobs, young, days=89)
    steps: list[Pruned] = []

    assert await prune(database, NINETY_DAYS, report=steps.append, at_a_time=3) == Pruned(7, 0, 0)
    assert [step.requests for step in steps] == [3, 6, 7]
    assert await left(jobs) == {young}


async def test_what_is_queued_stays_however_old_it_is(database: Database, jobs: JobMaker, ledger: Ledger) -> None:
    queued = (await ledger.retries.accept(a_retry_of(await jobs.failed()))).retry.id
    await aged(jobs, queued, days=1000)

    assert await prune(database, NINETY_DAYS, at_a_time=3) == Pruned(0, 0, 0)
    assert await left(jobs) == {queued}


async def test_a_message_that_outlives_its_request_retries_nothing(  # noqa: PLR0917 - fixtures
    database_url: str, amqp_url: str, database: Database, jobs: JobMaker, queues: Queues, serve: Serve
) -> None:
    job = await jobs.failed()
    api = await serve(database_url, amqp_url=amqp_url)
    answer = await api.post(f"/api/jobs/{job.id}/retry")
    await eventually(queues.waiting)
    assert (await api.call("DELETE", answer.headers["Location"])).status == 200
    await aged(jobs, uuid.UUID(answer.data["id"]), days=91)
    assert await prune(database, NINETY_DAYS, at_a_time=3) == Pruned(1, 0, 0)

    async with a_worker(database_url, amqp_url) as worker:
        await worker.sampled("redrive_batches_total", 1)
        await worker.stop()

    assert await queues.drained()
    assert await jobs.effects_of(job) == 0
    assert await left(jobs) == set()


async def test_age_counts_from_when_a_request_was_settled(database: Database, jobs: JobMaker, ledger: Ledger) -> None:
    lately = await settled(ledger, await jobs.failed())
    await jobs.pool.execute("UPDATE redrive.retry_requests SET requested_at = requested_at - interval '1000 days'")

    await prune(database, NINETY_DAYS, at_a_time=3)
    assert await left(jobs) == {lately}


@pytest.mark.parametrize("age", [timedelta(0), timedelta(hours=23, minutes=59), timedelta(days=-90)])
async def test_less_than_the_idempotency_window_is_refused(
    database: Database, jobs: JobMaker, ledger: Ledger, age: timedelta
) -> None:
    old = await settled(ledger, await jobs.failed())
    await aged(jobs, old, days=1000)

    with pytest.raises(ValueError, match="24 h"):
        await prune(database, age)
    assert await left(jobs) == {old}


async def test_batches_go_with_the_last_of_their_requests(database: Database, jobs: JobMaker) -> None:
    whole, half, empty, young = (uuid.uuid4() for _ in range(4))
    for batch, days in ((whole, 100), (half, 100), (empty, 100), (young, 1)):
        await jobs.pool.execute(
            "INSERT INTO redrive.retry_batches (id, project_id, actor, total, skipped, requested_at) "
            "VALUES ($1, 'p1', 'ana', 0, '[]', now() - $2 * interval '1 day')",
            batch,
            days,
        )
    for batch, days in ((whole, 100), (half, 100), (half, 1)):
        await jobs.pool.execute(
            """
            INSERT INTO redrive.retry_requests (id, project_id, job_id, batch_id, actor, state, outcome, processed_at)
            VALUES ($1, 'p1', $1, $2, 'ana', 'applied', 'applied', now() - $3 * interval '1 day')
            """,
            uuid.uuid4(),
            batch,
            days,
        )

    assert await prune(database, NINETY_DAYS, at_a_time=3) == Pruned(2, 2, 0)
    assert await left(jobs, "retry_batches") == {half, young}


async def test_idempotency_keys_go_when_they_have_expired(database: Database, jobs: JobMaker) -> None:
    for number in range(8):
        await jobs.pool.execute(
            "INSERT INTO redrive.idempotency_keys (project_id, key, fingerprint, retry_id, created_at) "
            "VALUES ('p1', $1, '', gen_random_uuid(), now() - $2 * interval '1 hour')",
            f"k{number}",
            20 + number,
        )

    assert await prune(database, NINETY_DAYS, at_a_time=3) == Pruned(0, 0, 4)
    assert await left(jobs, "idempotency_keys", "key") == {"k0", "k1", "k2", "k3"}


@pytest.mark.parametrize("role", ["redrive_api", "redrive_worker"])
async def test_the_programs_roles_may_not_prune(jobs: JobMaker, role: str) -> None:
    sql = statements("prune")
    async with jobs.pool.acquire() as connection:
        await connection.execute(f"SET ROLE {role}")
        for block, arguments in (
            ("prune_requests", (NINETY_DAYS, 1)),
            ("prune_batches", (NINETY_DAYS, 1)),
            ("prune_keys", (1,)),
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.fetch(sql[block], *arguments)
