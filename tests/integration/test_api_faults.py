"""The api while its database is away, silent or slow: every request is answered in time, and health comes back."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tests.api_server import Api, Reply, Serve
from tests.eventually import eventually
from tests.jobs import JobMaker
from tests.lateness import lateness
from tests.servers.proxy import Proxy
from tests.tokens import token

IN_TIME_S = 3.0


@pytest.fixture
async def proxy(database_url: str) -> AsyncIterator[Proxy]:
    async with Proxy.to(database_url) as between:
        yield between


@pytest.fixture
async def api(database_url: str, proxy: Proxy, serve: Serve) -> Api:
    return await serve(proxy.url_of(database_url))


@asynccontextmanager
async def locked(jobs: JobMaker, table: str, mode: str = "ACCESS EXCLUSIVE") -> AsyncIterator[None]:
    """A table that another session has locked."""
    async with jobs.pool.acquire() as connection, connection.transaction():
        await connection.execute(f"LOCK TABLE {table} IN {mode} MODE")
        yield


@asynccontextmanager
async def broken(proxy: Proxy, jobs: JobMaker, fault: str) -> AsyncIterator[None]:
    """The database in some trouble until the block ends."""
    async with AsyncExitStack() as stack:
        match fault:
            case "refused":
                await proxy.refuse()
                await proxy.reset()
            case "frozen":
                await proxy.stall()
            case "black hole":
                await proxy.black_hole()
            case "cut":
                await proxy.reset()
                await proxy.stall()
            case _:
                await stack.enter_async_context(locked(jobs, fault))
        yield
        await proxy.heal()


async def timed(call: "asyncio.Future[Reply]") -> tuple[Reply, float]:
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    return await call, loop.time() - started_at


@pytest.mark.parametrize(
    "fault", ["refused", "frozen", "black hole", "cut", "control_plane.jobs", "redrive.retry_requests"]
)
async def test_in_trouble_every_request_is_told_so_in_time_and_none_afterwards(
    api: Api, jobs: JobMaker, proxy: Proxy, fault: str
) -> None:
    made = await jobs.many_failed(20)
    await asyncio.gather(*(api.get(f"/api/jobs/{job.id}") for job in made))  # connections that were good before

    async with broken(proxy, jobs, fault), lateness() as late:
        calls = [asyncio.ensure_future(timed(asyncio.ensure_future(call))) for call in [
            *(api.get(f"/api/jobs/{job.id}") for job in made),
            *(api.post(f"/api/jobs/{job.id}/retry") for job in made),
            api.get("/api/jobs"),
            api.get(f"/api/jobs/{made[0].id}/retries"),
        ]]  # fmt: skip
        answers = await asyncio.gather(*calls)
        stranger = await api.get(f"/api/jobs/{made[0].id}", token=token(key="x" * 40))

    assert {(answer.status, answer.code, answer.headers["Retry-After"]) for answer, _ in answers} == {
        (503, "unavailable", "1")
    }
    assert max(took_s for _, took_s in answers) < IN_TIME_S + late.seconds
    assert stranger.code == "invalid-token"  # who is refused at the door waits for nothing

    async def healthy() -> bool:
        return (await api.get(f"/api/jobs/{made[0].id}")).status == 200

    await eventually(healthy)
    after = await asyncio.gather(*(api.post(f"/api/jobs/{job.id}/retry") for job in made))
    assert {answer.status for answer in after} == {202}
    assert await jobs.queued() == 20


async def test_a_slow_look_and_a_slow_write_together_are_still_in_time(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()
    await api.get(f"/api/jobs/{job.id}")

    # Reading goes on, writing waits.
    async with lateness() as late, locked(jobs, "redrive.retry_requests", "SHARE ROW EXCLUSIVE"):
        async with locked(jobs, "control_plane.jobs"):
            call = asyncio.ensure_future(timed(asyncio.ensure_future(api.post(f"/api/jobs/{job.id}/retry"))))
            done, _ = await asyncio.wait([call], timeout=1.4)
            assert not done
        answer, took_s = await call

    assert (answer.status, answer.code) == (503, "unavailable")
    assert took_s < IN_TIME_S + late.seconds


async def test_a_request_that_was_not_answered_in_time_can_be_sent_again(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()
    path = f"/api/jobs/{job.id}/retry"

    async with locked(jobs, "redrive.retry_requests", "SHARE ROW EXCLUSIVE"):
        first = await api.post(path, headers={"Idempotency-Key": "k1"})
    again = await api.post(path, headers={"Idempotency-Key": "k1"})

    assert (first.status, again.status) == (503, 202)
    assert await jobs.queued() == 1


async def test_a_database_that_comes_later_is_found(
    database_url: str, jobs: JobMaker, proxy: Proxy, serve: Serve
) -> None:
    job = await jobs.failed()
    await proxy.refuse()

    api = await serve(proxy.url_of(database_url))
    assert (await api.get(f"/api/jobs/{job.id}")).status == 503
    await proxy.heal()
    assert (await api.get(f"/api/jobs/{job.id}")).status == 200


async def test_clients_that_give_up_do_not_hold_the_database(api: Api, jobs: JobMaker, proxy: Proxy) -> None:
    made = await jobs.many_failed(50)
    await proxy.stall()
    calls = [asyncio.ensure_future(api.get(f"/api/jobs/{job.id}")) for job in made]
    await asyncio.wait(calls, timeout=0.1)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    await proxy.heal()

    answers = await asyncio.gather(*(api.get(f"/api/jobs/{job.id}") for job in made))
    assert {answer.status for answer in answers} == {200}
