"""A job's events: a stream that says how the job stands, and then what becomes of it."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple
from uuid import uuid4

import aiohttp
import msgspec
import pytest

import api.events
from api.events import EventResource
from api.watch import Watch
from shared.errors import DatabaseUnavailable, JobNotFound
from shared.jobs import Jobs
from shared.models import Job
from tests.api_server import Api, Serve
from tests.eventually import eventually
from tests.jobs import JobMaker, MadeJob
from tests.ledger import Ledger
from tests.tokens import LEEWAY_S, RUNS_OUT_S, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOON_S = 30


class Event(NamedTuple):
    """One block of the stream, its fields as a client of the standard reads them."""

    fields: dict[str, str]
    comment: str = ""

    @property
    def data(self) -> Any:  # noqa: ANN401 - whatever the event holds
        return json.loads(self.fields["data"])

    @classmethod
    def parsed(cls, block: bytes) -> "Event":
        lines = block.decode().split("\n")
        if lines[0].startswith(":"):
            return cls({}, "\n".join(lines))
        fields = [line.split(": ", 1) for line in lines]
        given = dict(fields)
        without_id = given.get("event") == "gone" or '"unreadable"' in given["data"]
        expected = ["data", "event"] if without_id and "id" not in given else ["data", "event", "id"]
        assert sorted({*given} - {"retry"}) == expected, "each on one line"
        assert len(fields) == len(dict(fields))
        return cls(dict(fields))


class Stream:
    """A stream as a client reads it."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer

    async def next(self) -> Event | None:
        """The next block; None at the end."""
        async with asyncio.timeout(SOON_S):
            try:
                block = await self.answer.content.readuntil(b"\n\n")
            except asyncio.IncompleteReadError as end:
                block = end.partial
        assert not block or block.endswith(b"\n\n")
        return Event.parsed(block.removesuffix(b"\n\n")) if block else None

    async def news(self) -> Event:
        event = await self.next()
        assert event is not None
        return event


def path_of(job: MadeJob) -> str:
    return f"/api/jobs/{job.id}/events"


@asynccontextmanager
async def stream_of(running: Api, job: MadeJob, *, bearer: str | None = None) -> AsyncIterator[Stream]:
    headers = {"Authorization": f"Bearer {bearer or token()}"}
    async with running.client.get(path_of(job), headers=headers) as answer:
        yield Stream(answer)


async def set_status(jobs: JobMaker, job: MadeJob, status: str) -> None:
    await jobs.pool.execute("UPDATE control_plane.jobs SET status = $2 WHERE id = $1", job.id, status)


async def test_who_comes_back_to_a_job_that_is_done_is_told_to_stop(api: Api, jobs: JobMaker) -> None:
    (job,) = await jobs.make(1, status="completed")
    async with stream_of(api, job) as stream:
        last = (await stream.news()).fields["id"]

    again = await api.get(path_of(job), headers={"Last-Event-ID": last})
    await jobs.pool.execute("UPDATE control_plane.jobs SET attempts = 2 WHERE id = $1", job.id)
    changed = await api.get(path_of(job), headers={"Last-Event-ID": last})

    assert (again.status, again.body) == (204, b"")
    assert again.headers["Cache-Control"] == "private, no-cache"
    assert "Content-Type" not in again.headers
    assert changed.status == 200


@pytest.mark.parametrize("last", ["", "0", '"0"', "*", "a" * 4096])
async def test_another_last_event_is_streamed_to_as_if_it_were_the_first(api: Api, jobs: JobMaker, last: str) -> None:
    (job,) = await jobs.make(1, status="completed")

    assert (await api.get(path_of(job), headers={"Last-Event-ID": last})).status == 200


async def test_who_comes_back_to_a_job_that_is_not_done_goes_on(api: Api, jobs: JobMaker) -> None:
    job = await jobs.pending()
    tag = (await api.get(f"/api/jobs/{job.id}")).headers["ETag"]
    fields = f"Host: a\r\nAuthorization: Bearer {token()}\r\nLast-Event-ID: {tag[1:-1]}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(f"GET {path_of(job)} HTTP/1.1\r\n{fields}".encode())

    async with asyncio.timeout(SOON_S):
        assert b"event: job" in await reader.readuntil(b"\n\n")
    writer.close()


async def test_the_first_event_is_the_job_as_it_stands(api: Api, jobs: JobMaker) -> None:
    job = await jobs.pending()
    read = await api.get(f"/api/jobs/{job.id}")

    async with stream_of(api, job) as stream:
        event = await stream.news()

    assert event.fields["event"] == "job"
    assert f'"{event.fields["id"]}"' == read.headers["ETag"]
    assert event.data == read.data
    headers = stream.answer.headers
    assert stream.answer.status == 200
    assert headers["Content-Type"] == "text/event-stream"
    assert headers["Cache-Control"] == "private, no-cache"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "X-Request-Id" in headers
    assert "Server" not in headers
    assert "ETag" not in headers


async def test_each_change_is_heard_and_the_stream_ends_after_done(api: Api, jobs: JobMaker, ledger: Ledger) -> None:
    job = await jobs.failed()
    await api.post(f"/api/jobs/{job.id}/retry")
    async with stream_of(api, job) as stream:
        heard = [await stream.news()]
        await ledger.settlement.apply_queued(10)
        heard.append(await stream.news())
        await set_status(jobs, job, "running")
        heard.append(await stream.news())
        await set_status(jobs, job, "completed")
        heard.append(await stream.news())
        assert await stream.next() is None

    assert [event.data["status"] for event in heard] == ["failed", "pending", "running", "completed"]
    assert [event.data["done"] for event in heard] == [False, False, False, True]
    assert len({event.fields["id"] for event in heard}) == 4
    assert api.counted("redrive_waiters") == 0


async def test_a_job_that_is_done_is_one_event(api: Api, jobs: JobMaker) -> None:
    for job in (await jobs.completed(), await jobs.failed()):
        async with stream_of(api, job) as stream:
            assert (await stream.news()).data["done"]
            assert await stream.next() is None


async def test_an_event_is_one_line_of_data_whatever_is_in_it(api: Api, jobs: JobMaker) -> None:
    nasty = "a\nb\r\nc\u2028d\u0085e\n\ndata: {}\n\nevent: x: ü \x1b[0m"
    job = await jobs.failed(last_error=nasty, kind="a\ntype")

    async with stream_of(api, job) as stream:
        event = await stream.news()

    assert (event.data["last_error"], event.data["type"]) == (nasty, "a\ntype")


async def test_a_silent_stream_is_kept_alive(api: Api, jobs: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_events(), "KEEP_ALIVE_S", 0.1)
    job = await jobs.pending()
    async with stream_of(api, job) as stream:
        blocks = [await stream.next() for _ in range(4)]
        await set_status(jobs, job, "completed")
        while (last := await stream.news()).comment:
            pass

    assert [block and block.comment for block in blocks] == ["", ": keep-alive", ": keep-alive", ": keep-alive"]
    assert last.data["status"] == "completed"


def api_events() -> Any:  # noqa: ANN401 - the module, which the fixture's name hides
    return api.events


async def test_a_stream_ends_when_its_token_is_no_longer_accepted(api: Api, jobs: JobMaker) -> None:
    job = await jobs.pending()
    ends_at = int(time.time()) + RUNS_OUT_S
    async with stream_of(api, job, bearer=token(exp=ends_at - LEEWAY_S)) as stream:
        assert (await stream.news()).data["status"] == "pending"
        assert await stream.next() is None

    assert -0.1 < time.time() - ends_at < SOON_S


async def test_a_stream_ends_when_the_api_stops(database_url: str, jobs: JobMaker, serve: Serve) -> None:
    job = await jobs.pending()
    running = await serve(database_url)
    async with stream_of(running, job) as stream:
        await stream.news()
        await eventually(lambda: running.counted("redrive_waiters") == 1)
        began = time.monotonic()
        await running.parts.app.shutdown()
        assert await stream.next() is None
        assert time.monotonic() - began < SOON_S


async def test_a_stream_ends_when_its_job_is_gone(api: Api, jobs: JobMaker) -> None:
    job = await jobs.pending()
    async with stream_of(api, job) as stream:
        await stream.news()
        await eventually(lambda: api.counted("redrive_waiters") == 1)
        await jobs.pool.execute("DELETE FROM control_plane.jobs WHERE id = $1", job.id)
        event = await stream.news()
        assert (event.fields["event"], event.data) == ("gone", {"id": str(job.id)})
        assert await stream.next() is None

    assert (await api.get(path_of(job))).code == "job-not-found"


async def test_a_client_that_leaves_its_stream_is_forgotten(api: Api, jobs: JobMaker) -> None:
    job = await jobs.pending()
    async with stream_of(api, job) as stream:
        await stream.news()
        await eventually(lambda: api.counted("redrive_waiters") == 1)

    await eventually(lambda: api.counted("redrive_waiters") == 0)


async def test_beyond_the_most_that_may_wait_a_stream_is_one_event(
    database_url: str, jobs: JobMaker, serve: Serve
) -> None:
    first, second = await jobs.pending(), await jobs.pending()
    running = await serve(database_url, max_waiters=1)
    async with stream_of(running, first) as one:
        await one.news()
        await eventually(lambda: running.counted("redrive_waiters") == 1)
        async with stream_of(running, second) as two:
            event = await two.news()
            assert (event.data["id"], event.fields["retry"]) == (str(second.id), "10000")
            assert await two.next() is None
        await set_status(jobs, second, "completed")
        async with stream_of(running, second) as two:
            assert "retry" not in (await two.news()).fields  # there is nothing to come back for
            assert await two.next() is None


async def test_a_stream_keeps_its_place_for_as_long_as_it_lasts(
    api: Api, jobs: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_events(), "KEEP_ALIVE_S", 0.05)
    waiters_when_written: list[float] = []
    send = api_events().send

    async def watched_send(writing: Awaitable[object]) -> None:
        waiters_when_written.append(api.counted("redrive_waiters"))
        await send(writing)

    monkeypatch.setattr(api_events(), "send", watched_send)
    job = await jobs.pending()
    async with stream_of(api, job) as stream:
        blocks = [await stream.news() for _ in range(3)]
        await set_status(jobs, job, "completed")
        while await stream.next() is not None:
            pass

    assert [block.comment for block in blocks] == ["", ": keep-alive", ": keep-alive"]
    assert len(waiters_when_written) >= 5
    assert set(waiters_when_written) == {1}


async def test_a_job_that_was_read_anew_and_is_the_same_is_no_event(
    api: Api, jobs: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_events(), "KEEP_ALIVE_S", 0.05)
    wait_for_change = Watch.wait_for_change

    async def wait_and_read_anew(*args: Any, **given: Any) -> Job | None:  # noqa: ANN401 - passed on
        held: Job | None = await wait_for_change(*args, **given)
        return held if held is None else msgspec.structs.replace(held)

    monkeypatch.setattr(Watch, "wait_for_change", wait_and_read_anew)
    job = await jobs.pending()
    async with stream_of(api, job) as stream:
        blocks = [await stream.news() for _ in range(3)]

    assert [block.comment for block in blocks] == ["", ": keep-alive", ": keep-alive"]


async def test_a_hundred_streams_hear_of_one_change(api: Api, jobs: JobMaker) -> None:
    job = await jobs.pending()

    async def last_heard() -> object:
        async with stream_of(api, job) as stream:
            last = None
            while (event := await stream.next()) is not None:
                last = event.data["status"]
            return last

    heard = [asyncio.create_task(last_heard()) for _ in range(100)]
    await eventually(lambda: api.counted("redrive_waiters") == 100)
    await set_status(jobs, job, "completed")

    assert await asyncio.gather(*heard) == ["completed"] * 100


async def test_a_client_that_never_reads_is_cut_off_and_costs_no_more_than_its_buffers(
    api: Api, jobs: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_events(), "WRITE_TIMEOUT_S", 0.5)
    job = await jobs.pending()
    answered = {"method": "GET", "route": "/api/jobs/{id}/events", "status": "200"}
    cut_before = api.counted("redrive_http_requests_total", **answered)
    size, written, received = 2_000_000, 0, 0
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(0)
        await loop.sock_connect(sock, ("127.0.0.1", api.port))
        head = f"GET {path_of(job)} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token()}\r\n\r\n"
        await loop.sock_sendall(sock, head.encode())
        await eventually(lambda: api.counted("redrive_waiters") == 1)

        async def is_cut_off() -> bool:
            nonlocal written
            await jobs.pool.execute(
                "UPDATE control_plane.jobs SET last_error = repeat('x', $2), attempts = 1 - attempts WHERE id = $1",
                job.id,
                size,
            )
            written += size
            return api.counted("redrive_http_requests_total", **answered) == cut_before + 1

        await eventually(is_cut_off, within_s=20, every_s=0.1)
        await eventually(lambda: api.counted("redrive_waiters") == 0)
        with suppress(ConnectionResetError):
            async with asyncio.timeout(SOON_S):
                while chunk := await loop.sock_recv(sock, 1 << 20):
                    received += len(chunk)

    # What it was sent fits into the kernel's buffers, and the event that was one too many was never sent whole.
    assert received < written
    assert received % size


async def test_a_stream_is_for_those_who_may_read_the_job(api: Api, jobs: JobMaker) -> None:
    foreign, own = await jobs.failed(project_id="p2"), await jobs.failed()
    answers = [
        (await api.get(f"/api/jobs/{job_id}/events", headers={"X-Request-Id": "r1"})).without_date
        for job_id in (foreign.id, uuid4())
    ]

    assert answers[0] == answers[1]
    assert answers[0][0] == 404
    assert answers[0][1]["Content-Type"] == "application/problem+json"
    assert (await api.get("/api/jobs/1/events")).code == "invalid-job-id"
    assert (await api.get(f"{path_of(own)}?include=payload")).code == "invalid-parameter"
    assert (await api.get(path_of(own), token=token(scope="jobs:retry"))).code == "insufficient-scope"
    assert (await api.get(path_of(own), token=token(exp=1))).code == "invalid-token"
    admin = token(scope="jobs:read jobs:admin")
    assert (await api.get(f"{path_of(foreign)}?project_id=p2", token=admin)).status == 200


@pytest.mark.parametrize("failing", [DatabaseUnavailable("away"), ZeroDivisionError()], ids=["expected", "a fault"])
async def test_a_stream_that_fails_midway_is_cut_off_and_holds_no_second_answer(
    api: Api, jobs: JobMaker, monkeypatch: pytest.MonkeyPatch, failing: Exception
) -> None:
    job = await jobs.pending()
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(f"GET {path_of(job)} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token()}\r\n\r\n".encode())
    async with asyncio.timeout(SOON_S):
        begun = await reader.readuntil(b"\n\n")

        async def fail(*_: object) -> None:
            raise failing

        monkeypatch.setattr(EventResource, "_event_of", fail)
        await set_status(jobs, job, "completed")
        rest = b""
        with suppress(ConnectionResetError):
            while piece := await reader.read(4096):
                rest += piece
    writer.close()

    assert b"event: job" in begun
    assert b"HTTP/1.1" not in rest
    assert not rest.endswith(b"0\r\n\r\n"), "it is not ended as if it were whole"


async def test_a_job_that_cannot_be_read_whole_in_time_is_unavailable_before_its_stream_begins(
    api: Api, jobs: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> Job:
        raise DatabaseUnavailable

    monkeypatch.setattr(Jobs, "_get_whole", fail)
    job = await jobs.failed(last_error="x" * 3_000)

    answer = await api.get(path_of(job))

    assert (answer.status, answer.code) == (503, "unavailable")


async def test_a_job_that_is_deleted_before_it_is_read_whole_is_gone(
    api: Api, jobs: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> Job:
        raise JobNotFound

    job = await jobs.pending()
    async with stream_of(api, job) as stream:
        await stream.news()
        monkeypatch.setattr(Jobs, "_get_whole", fail)
        await jobs.pool.execute("UPDATE control_plane.jobs SET last_error = $2 WHERE id = $1", job.id, "x" * 3_000)
        event = await stream.news()
        assert await stream.next() is None

    assert (event.fields["event"], event.data) == ("gone", {"id": str(job.id)})
