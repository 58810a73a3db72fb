"""Jobs that a trigger of their owner's makes slow to update, slower than a worker waits: no other job waits."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from tests.api_server import Serve
from tests.eventually import eventually
from tests.jobs import JobMaker, MadeJob, a_retry_of
from tests.ledger import Ledger
from tests.workers import RunningWorker, a_worker

_SLOW = """
CREATE FUNCTION control_plane.dawdle() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_sleep(CASE OLD.type WHEN 'slow' THEN 60 WHEN 'slowish' THEN 0.035 ELSE 0 END);
    RETURN NEW;
END
$$;
CREATE TRIGGER dawdle BEFORE UPDATE ON control_plane.jobs FOR EACH ROW EXECUTE FUNCTION control_plane.dawdle();
"""
_TIMEOUT_S = 1
"""As little as the slow ones need to be slow, and as much as other statements need on a busy machine."""


@pytest.fixture(params=["rabbitmq", "ledger"])
def broker(request: pytest.FixtureRequest, amqp_url: str) -> str | None:
    """Where retries travel: through this broker, or through the ledger alone."""
    return amqp_url if request.param == "rabbitmq" else None


@asynccontextmanager
async def _working(serve: Serve, database_url: str, broker: str | None) -> AsyncIterator[RunningWorker]:
    """An api, whose relay brings again what is held, and a worker with little patience."""
    await serve(database_url, amqp_url=broker)
    async with a_worker(database_url, broker, db_timeout=_TIMEOUT_S) as worker:
        yield worker


async def _accepted(ledger: Ledger, jobs: Sequence[MadeJob]) -> None:
    await asyncio.gather(*(ledger.retries.accept(a_retry_of(job)) for job in jobs))


async def _all_put_back(jobs: JobMaker, failed: Sequence[MadeJob]) -> bool:
    return await jobs.effects(failed) == [1] * len(failed)


async def test_a_job_that_takes_too_long_delays_its_own_retry_and_no_other(
    database_url: str, broker: str | None, jobs: JobMaker, ledger: Ledger, serve: Serve
) -> None:
    await jobs.pool.execute(_SLOW)
    slow, others = await jobs.failed(kind="slow"), await jobs.many_failed(30)
    await _accepted(ledger, [slow, *others])  # the slow one is the oldest

    async with _working(serve, database_url, broker) as worker:
        await eventually(lambda: _all_put_back(jobs, others), within_s=60)
        assert (await jobs.queued(), await jobs.effects_of(slow)) == (1, 0)
        await jobs.pool.execute("DROP TRIGGER dawdle ON control_plane.jobs")
        await eventually(lambda: jobs.effects_of(slow), within_s=60)
        await worker.sampled("redrive_sessions_total", 0, end="database_unavailable")

    assert await _all_put_back(jobs, [slow, *others])


async def test_a_batch_that_takes_too_long_goes_through_in_parts(
    database_url: str, broker: str | None, jobs: JobMaker, ledger: Ledger, serve: Serve
) -> None:
    await jobs.pool.execute(_SLOW)
    failed = await jobs.make(60, status="failed", kind="slowish", last_error="it broke")
    await _accepted(ledger, failed)  # all of them take twice the time that there is

    async with _working(serve, database_url, broker):
        await eventually(lambda: _all_put_back(jobs, failed), within_s=60)
        assert await jobs.queued() == 0
