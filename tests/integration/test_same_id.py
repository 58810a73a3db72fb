"""Two projects, each with a job of the same id: (project_id, id) names a job (promise P24).

The table is keyed as one that is partitioned by project must be. Effects are counted by the table's trigger, apart from
the ledger.
"""

import asyncio
import uuid
from typing import TYPE_CHECKING

import pytest

from shared.batches import Batches, BatchRequest
from shared.dead_letters import DeadLetters
from shared.errors import RetryNotFound
from shared.failed import FailedFilter
from shared.job_ids import UuidIds
from shared.jobs import Jobs
from shared.messages import RetryMessage
from shared.models import JobKey, Outcome, ProjectId, RetryState
from shared.retries import RetryFilter, RetryKey
from shared.seen import Seen
from tests.integration.reading.test_plans import SQL, connected, nodes_of, plan_of
from tests.jobs import JobMaker, MadeJob, a_message_for, a_retry_of
from tests.ledger import Ledger

if TYPE_CHECKING:
    from shared.database import Database

A, B, C = (ProjectId(name) for name in "abc")


@pytest.fixture(autouse=True)
async def _keyed_by_project(jobs: JobMaker) -> None:
    await jobs.pool.execute(
        "ALTER TABLE control_plane.jobs DROP CONSTRAINT jobs_pkey, ADD PRIMARY KEY (project_id, id)"
    )


async def of_one_id(jobs: JobMaker, *, projects: tuple[ProjectId, ...] = (A, B)) -> list[MadeJob]:
    """A failed job of the same id in each project."""
    job_id = uuid.uuid4()
    return [await jobs.failed(project_id=project, job_id=job_id) for project in projects]


async def test_each_project_reads_and_watches_its_own_job(jobs: JobMaker, database: "Database") -> None:
    store = Jobs(database, UuidIds())
    job_id = uuid.uuid4()
    failed = await jobs.failed(project_id=A, job_id=job_id, last_error="a's")
    (running,) = await jobs.make(1, status="running", project_id=B, job_id=job_id)

    read = await asyncio.gather(*(store.get(job.key) for job in (failed, running)))

    assert [(job.project_id, job.status, job.last_error) for job in read] == [
        (A, "failed", "a's"),
        (B, "running", None),
    ]
    seen = {JobKey(job.id, job.project_id): Seen(job) for job in read}
    await jobs.pool.execute("UPDATE control_plane.jobs SET attempts = 2 WHERE project_id = 'b'")
    assert [key.project_id for key in await store.changed(seen)] == [B]


async def test_each_project_queues_and_gets_its_own_retry(jobs: JobMaker, ledger: Ledger) -> None:
    of_a, of_b, of_c = await of_one_id(jobs, projects=(A, B, C))

    retries = [
        answer.retry
        for answer in await asyncio.gather(*(ledger.retries.accept(a_retry_of(job)) for job in (of_a, of_b)))
    ]

    assert [retry.project_id for retry in retries] == [A, B]
    assert (await ledger.retries.accept(a_retry_of(of_b))).retry == retries[1]
    assert [await ledger.retries.history(job.key, after=None, limit=9) for job in (of_a, of_b, of_c)] == [
        [retries[0]], [retries[1]], []
    ]  # fmt: skip
    assert await ledger.retries.page(C, RetryFilter(job_id=of_a.id), after=None, limit=9) == []
    assert (await ledger.retries._jobs.get(of_c.key)).pending_retry is None
    settled = await ledger.settlement.apply([a_message_for(of_a, request_id=retries[0].id)])
    assert settled[retries[0].id].outcome is Outcome.APPLIED
    assert await jobs.effects([of_a, of_b, of_c]) == [1, 0, 0]
    assert (await ledger.retries.get(RetryKey(retries[1].id, B))).state is RetryState.QUEUED


@pytest.mark.parametrize("by_broker", [True, False])
async def test_a_retry_leaves_a_running_job_of_the_same_id_alone(
    jobs: JobMaker, ledger: Ledger, *, by_broker: bool
) -> None:
    job_id = uuid.uuid4()
    (running,) = await jobs.make(1, status="running", project_id=B, job_id=job_id, attempts=2)
    failed = await jobs.failed(project_id=A, job_id=job_id)
    before = await jobs.row(running)
    retry = (await ledger.retries.accept(a_retry_of(failed))).retry

    if by_broker:
        await ledger.settlement.apply([a_message_for(failed, request_id=retry.id)])
    else:
        await ledger.settlement.apply_queued(10)

    assert await jobs.outcome_of(retry.id) == "applied"
    assert await jobs.row(running) == before
    assert await jobs.effects([failed, running]) == [1, 0]


async def test_one_batch_settles_each_project_by_its_own_row(jobs: JobMaker, ledger: Ledger) -> None:
    """In one statement: the same id is failed, exhausted, of another version, locked by its owner, and not there."""
    job_id = uuid.uuid4()
    made = [await jobs.failed(project_id=project, job_id=job_id) for project in "abcd"]
    used_up = await jobs.failed(project_id="e", job_id=job_id, attempts=3)
    await jobs.fail_again(made[2])
    messages = [a_message_for(job) for job in (*made, used_up)]
    messages.append(a_message_for(made[0], project_id="f", any_version=True))
    queued = (await ledger.retries.accept(a_retry_of(made[3]))).retry
    messages[3] = a_message_for(made[3], request_id=queued.id)
    async with jobs.pool.acquire() as owner, owner.transaction():
        await owner.execute("SELECT FROM control_plane.jobs WHERE project_id = 'd' FOR UPDATE")
        settled = await ledger.settlement.apply(messages)

    assert [settled[m.id].outcome if m.id in settled else None for m in messages] == [
        "applied", "applied", "superseded", None, "attempts_exhausted", "job_not_found",
    ]  # fmt: skip
    assert await jobs.effects([*made, used_up]) == [1, 1, 0, 0, 0]


async def test_bulk_by_ids_and_by_filter_takes_the_jobs_of_its_project(jobs: JobMaker, database: "Database") -> None:
    batches, ledger = Batches(database, UuidIds()), Ledger(database)
    pairs = [await of_one_id(jobs) for _ in range(3)]
    ids = tuple(of_a.id for of_a, _ in pairs)

    by_ids = await batches.accept(BatchRequest(project_id=A, actor="ann", chosen=ids))
    by_filter = await batches.accept(BatchRequest(project_id=B, actor="bob", chosen=FailedFilter(), reason="all"))
    foreign = await batches.accept(BatchRequest(project_id=C, actor="eve", chosen=ids))

    assert (by_ids.accepted, by_filter.accepted, foreign.accepted) == (3, 3, 0)
    assert {each.code for each in foreign.skipped} == {"job-not-found"}
    assert (await batches.dry_run(BatchRequest(project_id=C, actor="eve", chosen=ids))).skipped == {"job_not_found": 3}
    await jobs.pool.execute("UPDATE redrive.retry_requests SET state = 'cancelled', outcome = 'cancelled',"
                            " processed_at = now() WHERE project_id = 'b'")  # fmt: skip
    assert len(await ledger.settlement.apply_queued(100)) == 3
    assert await jobs.effects([job for pair in pairs for job in pair]) == [1, 0] * 3


async def test_taking_back_and_redriving_touch_the_request_of_their_project(
    jobs: JobMaker, ledger: Ledger, database: "Database"
) -> None:
    of_a, of_b = await of_one_id(jobs)
    first, second = [(await ledger.retries.accept(a_retry_of(job))).retry for job in (of_a, of_b)]
    letters = DeadLetters(database, UuidIds())

    with pytest.raises(RetryNotFound):
        await ledger.retries.cancel(RetryKey(first.id, B), actor="ann")
    await ledger.settlement.dead_letter([first.id])
    assert not (await letters.statuses([first.id]))[first.id].job_is_queued  # b's is: another job
    assert set(await letters.redrive([first.id], actor="operator", lease_s=0)) == {first.id}
    await ledger.retries.cancel(RetryKey(second.id, B), actor="ann")
    await ledger.settlement.apply_queued(10)

    assert await jobs.effects([of_a, of_b]) == [1, 0]


async def test_a_message_that_names_a_request_of_another_project_settles_it_by_the_ledgers_facts(
    jobs: JobMaker, ledger: Ledger
) -> None:
    """A request's id is in the ledger: what the ledger says of project, job and version holds, not the message."""
    of_a, of_b = await of_one_id(jobs)
    retry = (await ledger.retries.accept(a_retry_of(of_a))).retry
    forged = RetryMessage(request_id=retry.id, job_id=of_b.id, project_id=B, extra_attempts=9, actor="b's program")

    assert (await ledger.settlement.apply([forged]))[retry.id].outcome is Outcome.APPLIED
    assert (await ledger.settlement.apply([forged]))[
        retry.id
    ].outcome is Outcome.APPLIED  # its first outcome, no second effect

    row = await jobs.ledger_row(retry.id)
    assert row is not None
    assert (row["project_id"], row["actor"], row["extra_attempts"]) == (A, "tester", 0)
    assert await jobs.effects([of_a, of_b]) == [1, 0]


async def test_a_held_request_waits_for_the_row_of_its_own_project(jobs: JobMaker, ledger: Ledger) -> None:
    of_a, of_b = await of_one_id(jobs)
    requests = [(await ledger.retries.accept(a_retry_of(job))).retry for job in (of_a, of_b)]
    async with jobs.pool.acquire() as owner, owner.transaction():
        await owner.execute("SELECT FROM control_plane.jobs WHERE project_id = 'a' FOR UPDATE")

        settled = await ledger.settlement.apply_queued(10)

    assert settled.keys() == {requests[1].id}
    assert await jobs.effects([of_a, of_b]) == [0, 1]


async def test_batches_in_any_order_over_shared_ids_do_not_deadlock(jobs: JobMaker, ledger: Ledger) -> None:
    pairs = [await of_one_id(jobs, projects=(A, B, C)) for _ in range(30)]
    every = [job for three in pairs for job in three]
    copies = [[a_message_for(job) for job in (every if n % 2 else reversed(every))] for n in range(6)]

    await asyncio.gather(*(ledger.settlement.apply(messages) for messages in copies))

    assert await jobs.effects(every) == [1] * len(every)


@pytest.mark.parametrize("key", ["project_id, id", "id"])
async def test_looking_a_job_up_goes_along_the_tables_own_key(jobs: JobMaker, database_url: str, key: str) -> None:
    await jobs.pool.execute(f"ALTER TABLE control_plane.jobs DROP CONSTRAINT jobs_pkey, ADD PRIMARY KEY ({key})")
    await jobs.many_failed(3_000)
    await jobs.pool.execute("ANALYZE control_plane.jobs")

    async with connected(database_url) as connection:
        for name in (
            "jobs.find",
            "jobs.changed",
            "batches.blocks",
            "batches.insert_requests",
            "settlement.apply",
        ):
            nodes = [node for node in nodes_of(await plan_of(connection, SQL[name])) if "Index Cond" in node]
            taken = [node["Index Name"] for node in nodes if node.get("Relation Name") == "jobs"]

            assert set(taken) == {"jobs_pkey"}, name
