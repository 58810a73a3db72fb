"""The events of many jobs in one stream."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from api.events import send
from api.watch import Waiter, Watch
from shared.errors import JobNotFound, JobUnreadable
from shared.job_ids import UuidIds
from shared.jobs import Jobs
from shared.models import Job, JobKey
from tests.api_server import Api, Serve
from tests.eventually import eventually
from tests.integration.reading.test_events import SOON_S, Event, Stream, set_status
from tests.jobs import JobMaker
from tests.tokens import LEEWAY_S, RUNS_OUT_S, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

IDS = [str(UUID(int=number, version=4)) for number in range(101)]
"""The same in every process that collects the tests: they are in the names of some."""


@asynccontextmanager
async def stream_of(running: Api, ids: Sequence[UUID | str], *, bearer: str | None = None) -> AsyncIterator[Stream]:
    headers = {"Authorization": f"Bearer {bearer or token()}"}
    async with running.client.get(f"/api/jobs/events?ids={','.join(map(str, ids))}", headers=headers) as answer:
        yield Stream(answer)


async def rest_of(stream: Stream) -> list[Event]:
    events: list[Event] = []
    while (event := await stream.next()) is not None:
        events.append(event)
    return events


def is_watching(running: Api, jobs: int) -> bool:
    return len(running.parts.watches.jobs._watched) == jobs


def told(event: Event) -> tuple[str, Any]:
    data = event.data
    return event.fields["event"], data["ids"] if "ids" in data else (data["id"], data.get("status"))


async def test_each_job_comes_as_it_is_then_at_each_change_until_all_are_done(api: Api, jobs: JobMaker) -> None:
    first, second = await jobs.pending(), await jobs.running()
    done = await jobs.completed()
    missing, foreign = uuid4(), await jobs.failed(project_id="p2")

    async with stream_of(api, [first.id, missing, done.id, second.id, first.id, foreign.id]) as stream:
        begin = [await stream.news() for _ in range(4)]
        await set_status(jobs, second, "completed")
        changed = await stream.news()
        await set_status(jobs, first, "failed")
        last = await rest_of(stream)

    assert [told(event) for event in begin] == [
        ("not_found", [str(missing), str(foreign.id)]),
        ("job", (str(first.id), "pending")),
        ("job", (str(done.id), "completed")),
        ("job", (str(second.id), "running")),
    ]
    assert told(changed) == ("job", (str(second.id), "completed"))
    assert [told(event) for event in last] == [("job", (str(first.id), "failed"))]
    ids = [event.fields["id"] for event in (*begin, changed, *last)]
    assert len(set(ids)) == len(ids)
    assert all(len(each) == 16 and int(each, 16) >= 0 for each in ids)


async def test_who_has_seen_all_jobs_done_is_told_to_stop(api: Api, jobs: JobMaker) -> None:
    made = [await jobs.completed() for _ in range(3)]
    missing = str(uuid4())
    ids = [*(str(job.id) for job in made), missing]
    async with stream_of(api, ids) as stream:
        last = (await rest_of(stream))[-1].fields["id"]
    async with stream_of(api, [missing]) as stream:
        (of_nothing,) = await rest_of(stream)

    async def again(ids: list[str], last: str) -> int:
        answer = await api.get(f"/api/jobs/events?ids={','.join(ids)}", headers={"Last-Event-ID": last})
        return answer.status

    assert await again(ids, last) == 204
    assert await again([*reversed(ids)], last) == 204
    assert await again([missing], of_nothing.fields["id"]) == 204
    assert await again(ids, "0" * 16) == 200
    assert await again(ids[1:], last) == 200
    await jobs.pool.execute("UPDATE control_plane.jobs SET attempts = 3 WHERE id = $1", made[0].id)
    assert await again(ids, last) == 200


async def test_a_job_that_is_deleted_is_gone_and_the_others_go_on(api: Api, jobs: JobMaker) -> None:
    gone, stays = await jobs.pending(), await jobs.pending()

    async with stream_of(api, [gone.id, stays.id]) as stream:
        for _ in range(2):
            await stream.news()
        await jobs.pool.execute("DELETE FROM control_plane.jobs WHERE id = $1", gone.id)
        event = await stream.news()
        await set_status(jobs, stays, "completed")
        (last,) = await rest_of(stream)

    assert (event.fields["event"], event.data) == ("gone", {"id": str(gone.id)})
    assert told(last) == ("job", (str(stays.id), "completed"))


async def test_a_stream_of_many_has_one_place_and_gives_it_back(
    database_url: str, jobs: JobMaker, serve: Serve
) -> None:
    made = [await jobs.pending() for _ in range(5)]
    running = await serve(database_url, max_waiters=1, watch_interval=0.05)
    async with stream_of(running, [job.id for job in made]) as stream:
        begin = [await stream.news() for _ in made]
        async with stream_of(running, [job.id for job in made]) as refused:
            events = await rest_of(refused)
    await eventually(lambda: running.counted("redrive_waiters") == 0)

    assert "retry" not in begin[0].fields
    assert events[0].fields["retry"] == "10000"
    assert [event.data["id"] for event in events] == [str(job.id) for job in made]


async def test_a_silent_stream_of_many_is_kept_alive(api: Api, jobs: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.job_streams.KEEP_ALIVE_S", 0.05)
    made = [await jobs.pending() for _ in range(2)]

    async with stream_of(api, [job.id for job in made]) as stream:
        for _ in made:
            await stream.news()
        assert (await stream.news()).comment == ": keep-alive"
        await set_status(jobs, made[0], "completed")
        while (event := await stream.news()).comment:
            pass
    assert told(event) == ("job", (str(made[0].id), "completed"))


async def test_a_stream_of_many_takes_as_many_tasks_as_a_stream_of_one(
    database_url: str, jobs: JobMaker, serve: Serve
) -> None:
    made = await jobs.make(52, status="pending")
    tasks: list[int] = []
    running = await serve(database_url)
    async with AsyncExitStack() as streams:
        watched = 0
        for some in (made[:1], made[1:2], made[2:]):
            stream = await streams.enter_async_context(stream_of(running, [job.id for job in some]))
            for _ in some:
                await stream.news()
            watched += len(some)
            await eventually(partial(is_watching, running, watched))
            tasks.append(len(asyncio.all_tasks()))

    assert tasks[2] - tasks[1] == tasks[1] - tasks[0]


async def test_a_stream_of_many_is_kept_alive_though_its_jobs_are_read_anew(
    api: Api, jobs: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.job_streams.KEEP_ALIVE_S", 0.05)
    job = await jobs.pending()
    same = await Jobs(api.parts.database, UuidIds()).get(job.key)

    async def read_anew(_: object, waiter: Waiter[JobKey, Job], *, until: float) -> Mapping[JobKey, Job | None]:
        del until
        await asyncio.sleep(0)
        return {waiter.keys.pop(): msgspec.structs.replace(same)}

    monkeypatch.setattr(Watch, "news", read_anew)
    async with stream_of(api, [job.id]) as stream:
        blocks = [await stream.news() for _ in range(3)]

    assert [block.comment for block in blocks] == ["", ": keep-alive", ": keep-alive"]


async def test_jobs_that_are_deleted_before_they_are_read_whole_are_gone_once(
    api: Api, jobs: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> Job:
        raise JobNotFound

    job = await jobs.pending()
    async with stream_of(api, [job.id]) as stream:
        await stream.news()
        monkeypatch.setattr(Jobs, "_get_whole", fail)
        await jobs.pool.execute("UPDATE control_plane.jobs SET last_error = $2 WHERE id = $1", job.id, "x" * 3_000)
        events = await rest_of(stream)

    assert [(event.fields["event"], event.data) for event in events] == [("gone", {"id": str(job.id)})]


async def test_a_job_that_was_read_whole_at_its_end_is_not_sent_again(
    api: Api, jobs: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    get_whole = Jobs._get_whole

    async def end_first(self: Jobs, key: JobKey) -> Job:
        await jobs.pool.execute("UPDATE control_plane.jobs SET status = 'completed' WHERE id = $1", key.id)
        return await get_whole(self, key)

    monkeypatch.setattr(Jobs, "_get_whole", end_first)
    (job,) = await jobs.make(1, status="running", last_error="x" * 3_000)
    async with stream_of(api, [job.id]) as stream:
        events = await rest_of(stream)

    assert [told(event) for event in events] == [("job", (str(job.id), "completed"))]


async def test_a_stream_of_many_ends_when_its_token_is_no_longer_accepted(api: Api, jobs: JobMaker) -> None:
    job = await jobs.pending()
    ends_at = int(time.time()) + RUNS_OUT_S
    async with stream_of(api, [job.id], bearer=token(exp=ends_at - LEEWAY_S)) as stream:
        assert told(await stream.news()) == ("job", (str(job.id), "pending"))
        assert await stream.next() is None

    assert -0.1 < time.time() - ends_at < SOON_S


async def test_a_stream_of_many_ends_when_the_api_stops(database_url: str, jobs: JobMaker, serve: Serve) -> None:
    job = await jobs.pending()
    running = await serve(database_url, watch_interval=0.05)
    async with stream_of(running, [job.id]) as stream:
        await stream.news()
        await running.parts.app.shutdown()
        assert await stream.next() is None


async def test_one_job_that_cannot_be_read_whole_is_told_apart_from_the_others(
    api: Api, jobs: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = await jobs.failed(last_error="x" * 3_000), await jobs.failed(last_error="y" * 3_000)
    get_whole = Jobs._get_whole

    async def get_good(self: Jobs, key: JobKey) -> Job:
        if key.id == bad.id:
            raise JobUnreadable
        return await get_whole(self, key)

    monkeypatch.setattr(Jobs, "_get_whole", get_good)

    async with stream_of(api, [bad.id, good.id]) as stream:
        first, second = await rest_of(stream)

    assert (first.fields["event"], first.data) == ("job", {"id": str(bad.id), "unreadable": True})
    assert len(second.data["last_error"]) == 3_000


async def test_a_client_that_does_not_read_holds_nothing_of_what_others_may_have_in_hand(
    api: Api, jobs: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_whole = Jobs._read_whole
    held = read = 0
    held_when_written: list[int] = []

    @asynccontextmanager
    async def counted(self: Jobs, key: JobKey, payload_bytes: int) -> AsyncIterator[Job]:
        nonlocal held, read
        async with read_whole(self, key, payload_bytes) as whole:
            held, read = held + 1, read + 1
            try:
                yield whole
            finally:
                held -= 1

    async def watched_send(writing: Awaitable[object]) -> None:
        held_when_written.append(held)
        await send(writing)

    monkeypatch.setattr(Jobs, "_read_whole", counted)
    monkeypatch.setattr("api.job_streams.send", watched_send)
    job = await jobs.failed(last_error="x" * 3_000)
    async with stream_of(api, [job.id]) as stream:
        await rest_of(stream)

    assert read == 1
    assert len(held_when_written) >= 3
    assert set(held_when_written) == {0}


# -- narrowed tokens


async def test_a_narrowed_token_reads_its_jobs_and_no_other(api: Api, jobs: JobMaker) -> None:
    own, other = await jobs.completed(), await jobs.completed()
    bearer = token(jobs=[str(own.id)])

    async def status(path: str) -> tuple[int, str | None]:
        answer = await api.get(path, token=bearer)
        return answer.status, answer.json["code"] if answer.status >= 400 else None

    assert await status(f"/api/jobs/{own.id}") == (200, None)
    assert await status(f"/api/jobs/{own.id}/events") == (200, None)
    assert await status("/api/me") == (200, None)
    assert await status(f"/api/jobs/{other.id}") == (404, "job-not-found")
    assert await status(f"/api/jobs/{other.id}/events") == (404, "job-not-found")
    listed = (await api.get(f"/api/jobs?ids={own.id},{other.id}", token=bearer)).json
    assert ([job["id"] for job in listed["data"]], listed["not_found"]) == ([str(own.id)], [str(other.id)])
    async with stream_of(api, [own.id, other.id], bearer=bearer) as stream:
        events = [told(event) for event in await rest_of(stream)]
    assert events == [("not_found", [str(other.id)]), ("job", (str(own.id), "completed"))]
    for path in (
        f"/api/jobs/{own.id}?include=payload", "/api/jobs", "/api/jobs?status=failed", "/api/jobs/stats",
        "/api/jobs/types", "/api/jobs/series", "/api/failures", f"/api/jobs/{own.id}/retries", "/api/retries",
        "/api/retries/stats", f"/api/retries/{uuid4()}", "/api/retry-batches", "/api/me?project_id=p2",
    ):  # fmt: skip
        assert await status(path) == (403, "insufficient-scope"), path
    for method, path in (
        ("POST", f"/api/jobs/{own.id}/retry"), ("POST", "/api/jobs/retry"), ("DELETE", f"/api/retries/{uuid4()}"),
        ("POST", f"/api/retries/{uuid4()}/redrive"), ("DELETE", f"/api/retry-batches/{uuid4()}"),
    ):  # fmt: skip
        admin = token(jobs=[str(own.id)], scope="jobs:read jobs:retry jobs:retry:bulk jobs:admin jobs:payload")
        assert (await api.call(method, path, token=admin)).code == "insufficient-scope", path


@pytest.mark.parametrize(
    "claim",
    [
        None, [], IDS[0], {}, [1], [None], ["1"], [""], [IDS[0], 1], True,
        IDS[:21],
    ],
)  # fmt: skip
async def test_a_claim_of_jobs_that_is_none_is_a_bad_token(api: Api, claim: object) -> None:
    assert (await api.get("/api/me", token=token(jobs=claim))).code == "invalid-token"


async def test_what_a_narrowed_token_reads_is_charged_to_its_holder(
    database_url: str, jobs: JobMaker, serve: Serve
) -> None:
    job = await jobs.completed()
    running = await serve(database_url, limit_read="2/3600")
    narrowed = [token(sub=sub, jobs=[str(job.id)]) for sub in ("ann", "bob")]
    path = f"/api/jobs/{job.id}"
    answers = [(await running.get(path, token=bearer)).status for bearer in narrowed for _ in range(3)]
    of_project = [(await running.get(path)).status for _ in range(3)]

    assert answers == [200, 200, 429, 200, 200, 429]
    assert of_project == [200, 200, 429]


@pytest.mark.parametrize(
    ("query", "code"),
    [("", "invalid-parameter"), ("ids=", "invalid-job-id"), ("ids=1", "invalid-job-id"),
     ("ids=" + ",".join(IDS), "invalid-parameter"),
     ("ids=a&limit=1", "invalid-parameter")],
)  # fmt: skip
async def test_a_stream_of_what_cannot_be_is_refused(api: Api, query: str, code: str) -> None:
    answer = await api.get(f"/api/jobs/events?{query}")

    assert (answer.status, answer.code) == (400, code)
