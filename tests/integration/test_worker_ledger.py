"""Dispatch without a broker: workers take what is queued straight from the ledger."""

import asyncio

from tests.eventually import eventually
from tests.jobs import JobMaker, MadeJob, a_retry_of
from tests.ledger import Ledger
from tests.workers import a_worker


async def _accepted(ledger: Ledger, failed: list[MadeJob]) -> None:
    await asyncio.gather(*(ledger.retries.accept(a_retry_of(job)) for job in failed))


async def test_queued_requests_are_settled(database_url: str, jobs: JobMaker, ledger: Ledger) -> None:
    good, stale = await jobs.failed(), await jobs.failed()
    await _accepted(ledger, [good, stale])
    await jobs.fail_again(stale)

    async with a_worker(database_url) as worker:
        await eventually(lambda: _none_queued(jobs))
        await worker.sampled("redrive_retries_settled_total", 1, outcome="applied")
        await worker.sampled("redrive_retries_settled_total", 1, outcome="superseded")
        later = await jobs.failed()
        await _accepted(ledger, [later])
        await eventually(lambda: jobs.effects_of(later))

    assert await jobs.effects([good, stale, later]) == [1, 0, 1]


async def _none_queued(jobs: JobMaker) -> bool:
    return await jobs.queued() == 0


async def test_two_workers_share_the_line_without_collisions(database_url: str, jobs: JobMaker, ledger: Ledger) -> None:
    failed = await jobs.many_failed(500)
    await _accepted(ledger, failed)

    async with (
        a_worker(database_url, worker_batch_size=10) as one,
        a_worker(database_url, worker_batch_size=10) as other,
    ):
        await eventually(lambda: _none_queued(jobs), within_s=30)
        shares = [await each.metric("redrive_retries_settled_total", outcome="applied") for each in (one, other)]
        for worker in (one, other):
            await worker.sampled("redrive_sessions_total", 0, end="database_unavailable")

    assert await jobs.effects(failed) == [1] * len(failed)
    assert sum(shares) == len(failed)


async def test_a_worker_that_is_stopped_leaves_whole_batches(database_url: str, jobs: JobMaker, ledger: Ledger) -> None:
    failed = await jobs.many_failed(300)
    await _accepted(ledger, failed)

    async with a_worker(database_url, worker_batch_size=5) as worker:
        await worker.sampled_at_least("redrive_batches_total", 1)
        await worker.stop()
        assert await worker.readiness() == 0

    effects = await jobs.effects(failed)
    assert set(effects) <= {0, 1}
    assert sum(effects) % 5 == 0
    assert await jobs.queued() == len(failed) - sum(effects)
