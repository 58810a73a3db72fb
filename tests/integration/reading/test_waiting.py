"""`Prefer: wait=N`: an answer that is held until there is something to say."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
from aiohttp import web

from api.serving import run
from shared.settings import ApiSettings, read
from tests.api_server import Api, Reply, Serve
from tests.eventually import eventually
from tests.jobs import JobMaker, MadeJob
from tests.ledger import Ledger
from tests.servers.processes import free_port
from tests.tokens import LEEWAY_S, RUNS_OUT_S, SECRET, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOON_S = 30
"""Far less than any client here waits, and far more than a tick on a busy machine."""


def path_of(job: MadeJob) -> str:
    return f"/api/jobs/{job.id}"


async def waited_for(api: Api, path: str, *, wait_s: int = 60, known: str | None = None, **given: str) -> Reply:
    headers = {"Prefer": f"wait={wait_s}"} | ({} if known is None else {"If-None-Match": known})
    return await api.get(path, headers=headers, **given)


@asynccontextmanager
async def waiting(
    api: Api, path: str, *, known: str | None = None, others: int = 0
) -> AsyncIterator["asyncio.Task[Reply]"]:
    """A client that is being held when the block begins, and is to have its answer soon after it ends."""
    task = asyncio.create_task(waited_for(api, path, known=known))
    try:
        await eventually(lambda: api.counted("redrive_waiters") == others + 1, what="the client waits")
        yield task
        async with asyncio.timeout(SOON_S):
            await task
    finally:
        task.cancel()


@contextmanager
def garbage() -> Iterator[list[object]]:
    """What the block leaves behind that only the cyclic collector can free; known once the block has ended."""
    found: list[object] = []
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


async def run_job(jobs: JobMaker, job: MadeJob) -> None:
    await jobs.pool.execute(
        "UPDATE control_plane.jobs SET status = 'running', started_at = now() WHERE id = $1", job.id
    )


async def complete(jobs: JobMaker, job: MadeJob) -> None:
    await jobs.pool.execute(
        "UPDATE control_plane.jobs SET status = 'completed', completed_at = now() WHERE id = $1", job.id
    )


async def test_who_names_a_tag_is_answered_at_the_next_change(api: Api, jobs: JobMaker) -> None:
    job = await jobs.pending()
    known = (await api.get(path_of(job))).headers["ETag"]

    async with waiting(api, path_of(job), known=known) as answer:
        await run_job(jobs, job)

    assert (answer.result().status, answer.result().data["status"]) == (200, "running")
    assert answer.result().headers["Preference-Applied"] == "wait=55"
    assert answer.result().headers["ETag"] != known


async def test_who_names_no_tag_is_answered_once_the_job_is_done(api: Api, jobs: JobMaker) -> None:
    job = await jobs.pending()

    async with waiting(api, path_of(job)) as answer:
        await run_job(jobs, job)
        await jobs.pool.execute("UPDATE control_plane.jobs SET attempts = 2 WHERE id = $1", job.id)
        known = (await api.get(path_of(job))).headers["ETag"]
        async with waiting(api, path_of(job), known=known, others=1):
            await jobs.pool.execute("UPDATE control_plane.jobs SET attempts = 3 WHERE id = $1", job.id)
        assert not answer.done()  # the other heard of the change; this one waits for the end
        await complete(jobs, job)

    assert (answer.result().status, answer.result().data["status"]) == (200, "completed")
    assert "Retry-After" not in answer.result().headers


async def test_who_names_a_tag_that_is_empty_names_none(api: Api, jobs: JobMaker) -> None:
    job = await jobs.pending()

    async with waiting(api, path_of(job), known="") as answer:
        await complete(jobs, job)

    assert (answer.result().status, answer.result().data["status"]) == (200, "completed")


async def test_a_failed_job_with_a_retry_queued_is_waited_for(api: Api, jobs: JobMaker, ledger: Ledger) -> None:
    job = await jobs.failed()
    retry = (await api.post(f"{path_of(job)}/retry")).headers["Location"]

    async with waiting(api, path_of(job)) as answer, waiting(api, retry, others=1) as settled:
        await ledger.settlement.apply_queued(10)
        await complete(jobs, job)

    assert answer.result().data["status"] == "completed"
    assert (settled.result().data["state"], settled.result().data["error_before"]) == ("applied", "it broke")


async def test_a_batch_is_waited_for(api: Api, jobs: JobMaker, ledger: Ledger) -> None:
    made = await jobs.many_failed(3)
    bulk = token(scope="jobs:retry:bulk")
    accepted = await api.post("/api/jobs/retry", {"ids": [str(job.id) for job in made]}, token=bulk)
    batch = accepted.headers["Location"]
    known = (await api.get(batch)).headers["ETag"]

    async with waiting(api, batch) as done:
        async with waiting(api, batch, known=known, others=1) as heard:
            assert len(await ledger.settlement.apply_queued(1)) == 1
        assert (heard.result().data["queued"], heard.result().data["applied"]) == (2, 1)
        assert not done.done()
        await ledger.settlement.apply_queued(10)

    assert (done.result().data["applied"], done.result().data["done"]) == (3, True)


async def test_what_is_news_already_is_answered_at_once(api: Api, jobs: JobMaker) -> None:
    pending, done = await jobs.pending(), await jobs.completed()
    async with asyncio.timeout(SOON_S):
        assert (await waited_for(api, path_of(pending), known='"1"')).status == 200
        assert (await waited_for(api, path_of(done))).status == 200


@pytest.mark.parametrize(("known", "status"), [(True, 304), (False, 200)])
async def test_after_the_time_asked_for_there_is_an_answer_without_news(
    api: Api, jobs: JobMaker, known: bool, status: int  # noqa: FBT001
) -> None:  # fmt: skip
    job = await jobs.pending()
    first = await api.get(path_of(job))

    began = time.monotonic()
    answer = await waited_for(api, path_of(job), wait_s=1, known=first.headers["ETag"] if known else None)

    assert 0.99 <= time.monotonic() - began < SOON_S
    assert (answer.status, answer.body) == (status, b"" if known else first.body)
    assert (answer.headers["ETag"], answer.headers["Preference-Applied"]) == (first.headers["ETag"], "wait=1")
    assert "Retry-After" in answer.headers


@pytest.mark.parametrize(
    "lines",
    [
        ["wait=0"],
        ["WAIT=0"],
        ['wait="0"'],
        ["respond-async, wait=0"],
        ["wait=0;x=y, z"],
        ["x", "wait = 0"],
        ["wait=00"],
    ],
)
async def test_the_wish_may_be_spelled_as_the_standard_allows(api: Api, jobs: JobMaker, lines: list[str]) -> None:
    job = await jobs.pending()

    answer = await api.get(path_of(job), headers=[("Prefer", line) for line in lines])  # type: ignore[arg-type] # a multidict

    assert (answer.status, answer.headers.get("Preference-Applied")) == (200, "wait=0")


@pytest.mark.parametrize(
    "header",
    [
        "wait=x", "wait", "wait=", "wait=61", "wait=-1", "wait=1.5", "wait=1e1", "wait=60s", "waits=5", "await=5",
        "wait:5", 'wait="5', "wait==5", "wait=5 5", "wait=999999999999999999999", "return=minimal", "", ",", "a" * 4096,
        "wait=5" * 700, "wait=\xb2", "wait=61, wait=5",
    ],
    ids=lambda header: header[:12],
)  # fmt: skip
async def test_a_wish_that_makes_no_sense_is_ignored(api: Api, jobs: JobMaker, header: str) -> None:
    job = await jobs.pending()
    async with asyncio.timeout(SOON_S):
        answer = await api.get(path_of(job), headers={"Prefer": header})

    assert (answer.status, answer.headers.get("Preference-Applied")) == (200, None)


async def test_beyond_the_most_that_may_wait_the_answer_is_immediate(
    database_url: str, jobs: JobMaker, serve: Serve
) -> None:
    first, second = await jobs.pending(), await jobs.pending()
    api = await serve(database_url, max_waiters=1, watch_interval=0.05)
    known = (await api.get(path_of(second))).headers["ETag"]
    async with waiting(api, path_of(first)):
        async with asyncio.timeout(SOON_S):
            answers = [await waited_for(api, path_of(second)), await waited_for(api, path_of(second), known=known)]
        await complete(jobs, first)
    assert [answer.status for answer in answers] == [200, 304]
    assert all("Preference-Applied" not in answer.headers for answer in answers)
    async with waiting(api, path_of(second)):  # there is room again
        await complete(jobs, second)


async def test_waiting_ends_when_the_token_is_no_longer_accepted_and_the_answer_says_so(
    api: Api, jobs: JobMaker
) -> None:
    job = await jobs.pending()
    ends_at = int(time.time()) + RUNS_OUT_S
    began_at = time.monotonic()

    answer = await waited_for(api, path_of(job), token=token(exp=ends_at - LEEWAY_S))

    assert answer.status == 200
    held_s = int(answer.headers["Preference-Applied"].removeprefix("wait="))
    assert 0 < held_s <= RUNS_OUT_S
    assert held_s - 0.1 < time.monotonic() - began_at < SOON_S
    assert time.time() - ends_at > -1.1


async def test_a_client_that_leaves_is_not_waited_for(api: Api, jobs: JobMaker) -> None:
    job = await jobs.pending()
    writers = []
    for _ in range(20):
        _, writer = await asyncio.open_connection("127.0.0.1", api.port)
        head = f"GET {path_of(job)} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token()}\r\nPrefer: wait=60\r\n\r\n"
        writer.write(head.encode())
        writers.append(writer)
    await eventually(lambda: api.counted("redrive_waiters") == 20)

    for writer in writers[:10]:
        writer.transport.abort()
    await eventually(lambda: api.counted("redrive_waiters") == 10)
    for writer in writers[10:]:
        writer.close()
    await eventually(lambda: api.counted("redrive_waiters") == 0)


async def test_a_job_that_vanishes_is_said_to_be_gone(api: Api, jobs: JobMaker) -> None:
    job, other = await jobs.pending(), await jobs.pending()
    known = (await api.get(path_of(other))).headers["ETag"]

    async with waiting(api, path_of(job)) as one, waiting(api, path_of(other), known=known, others=1) as two:
        await jobs.pool.execute("DELETE FROM control_plane.jobs WHERE id = ANY ($1)", [job.id, other.id])

    assert [(answer.result().status, answer.result().code) for answer in (one, two)] == [(404, "job-not-found")] * 2


async def test_a_job_that_is_given_to_another_project_is_gone(api: Api, jobs: JobMaker) -> None:
    job = await jobs.pending()

    async with waiting(api, path_of(job)) as answer:
        await jobs.pool.execute("UPDATE control_plane.jobs SET project_id = 'p2' WHERE id = $1", job.id)

    assert answer.result().code == "job-not-found"


async def test_a_change_is_heard_though_a_client_that_knows_it_begins_to_wait(
    database_url: str, jobs: JobMaker, serve: Serve
) -> None:
    job = await jobs.pending()
    api = await serve(database_url, watch_interval=1)
    old = (await api.get(path_of(job))).headers["ETag"]
    async with waiting(api, path_of(job), known=old) as answer:
        await run_job(jobs, job)
        new = (await api.get(path_of(job))).headers["ETag"]
        async with waiting(api, path_of(job), known=new, others=1) as late:
            async with asyncio.timeout(SOON_S):
                assert (await answer).headers["ETag"] == new
            assert not late.done()
            await complete(jobs, job)

    assert late.result().data["status"] == "completed"


async def test_all_who_wait_for_a_job_hear_of_its_change(api: Api, jobs: JobMaker) -> None:
    made = [await jobs.pending() for _ in range(10)]
    answers = [asyncio.create_task(waited_for(api, path_of(job))) for job in made for _ in range(15)]
    full = [asyncio.create_task(waited_for(api, f"{path_of(job)}?include=payload")) for job in made]
    await eventually(lambda: api.counted("redrive_waiters") == 160)

    await jobs.pool.execute(
        "UPDATE control_plane.jobs SET status = 'completed' WHERE id = ANY ($1)", [job.id for job in made]
    )

    async with asyncio.timeout(SOON_S):
        heard = await asyncio.gather(*answers, *full)
    assert {answer.data["status"] for answer in heard} == {"completed"}
    assert all("payload" in answer.data for answer in heard[150:])
    assert api.counted("redrive_waiters") == 0


async def test_who_waits_when_the_api_is_told_to_stop_is_answered_at_once(database_url: str, jobs: JobMaker) -> None:
    job = await jobs.pending()
    settings = read(ApiSettings, database_url=database_url, jwt_secret=SECRET, port=free_port(), shutdown_grace=2)
    started, stop = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run(settings, stop=stop, ops=False, started=started))
        await started.wait()
        reader, writer = await asyncio.open_connection("127.0.0.1", settings.port)
        head = f"GET {path_of(job)} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token()}\r\nPrefer: wait=60\r\n\r\n"
        writer.write(head.encode())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await reader.read(1)

        told_at = time.monotonic()
        stop.set()
        answer = Reply.parsed(await reader.read())
        answered_after_s = time.monotonic() - told_at
        await running
        stopped_after_s = time.monotonic() - told_at
        writer.close()

    assert (answer.status, answer.data["status"]) == (200, "pending")
    assert answer.headers["Connection"] == "close"
    assert answered_after_s <= stopped_after_s < SOON_S


async def test_no_client_waits_at_an_api_that_is_stopping(database_url: str, jobs: JobMaker, serve: Serve) -> None:
    job = await jobs.pending()
    api = await serve(database_url)
    api.parts.watches.close()
    async with asyncio.timeout(SOON_S):
        assert (await waited_for(api, path_of(job))).status == 200


async def test_a_database_that_is_away_for_a_moment_does_not_end_the_waiting(
    database_url: str, jobs: JobMaker, serve: Serve
) -> None:
    job = await jobs.pending()
    api = await serve(database_url, watch_interval=0.05, db_timeout=0.3)
    async with waiting(api, path_of(job)) as answer:
        async with jobs.locked():
            await eventually(jobs.lock_is_waited_for, what="a look is stuck")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await asyncio.shield(answer)
        await complete(jobs, job)
    assert answer.result().data["status"] == "completed"


async def test_who_has_just_connected_when_the_api_stops_listening_is_heard_out(database_url: str) -> None:
    settings = read(ApiSettings, database_url=database_url, jwt_secret=SECRET, port=free_port())
    started, stop = asyncio.Event(), asyncio.Event()

    async def refused() -> bool:
        try:
            _, another = await asyncio.open_connection("127.0.0.1", settings.port)
        except ConnectionError:  # refused, or, for who stood in the queue, reset
            return True
        another.transport.abort()
        return False

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run(settings, stop=stop, ops=False, started=started))
        await started.wait()
        reader, writer = await asyncio.open_connection("127.0.0.1", settings.port)
        stop.set()
        await eventually(refused, every_s=0.01)

        writer.write(b"GET /api/jobs HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = Reply.parsed(await reader.read())
        writer.close()

    assert (answer.status, answer.headers["Connection"]) == (401, "close")


@pytest.mark.parametrize("path", ["", "/events"])
async def test_a_wait_leaves_nothing_for_the_cyclic_collector(api: Api, jobs: JobMaker, path: str) -> None:
    """An api lets it look but seldom at what has lived for long (`api.serving`); thousands who are held have."""
    job, other = await jobs.pending(), await jobs.pending()

    with garbage() as left:
        async with waiting(api, path_of(job) + path):
            await complete(jobs, job)
        leaving = asyncio.create_task(waited_for(api, path_of(other) + path))
        await eventually(lambda: api.counted("redrive_waiters") == 1)
        leaving.cancel()
        await eventually(lambda: api.counted("redrive_waiters") == 0)
        await api.get(path_of(other))

    assert not [each for each in left if isinstance(each, web.BaseRequest | web.RequestHandler)]
