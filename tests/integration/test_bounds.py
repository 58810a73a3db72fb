"""However large a job's texts and payload are, an answer is bounded, and so is what is held to give it."""

import asyncio
import json
from collections.abc import Sequence

import pytest

import shared.jobs
from api.pages import MAX_PAGE_BYTES
from shared.database import Database, Row
from shared.jobs import Jobs
from shared.models import MAX_ERROR, MAX_LISTED_ERROR, Job, JobKey
from tests.api_server import Serve
from tests.eventually import eventually
from tests.jobs import JobMaker
from tests.tokens import token

LONG = "\U0001f4a9" * 1_000_000


@pytest.mark.parametrize(
    ("error", "single", "listed"),
    [
        ("x" * MAX_LISTED_ERROR, (MAX_LISTED_ERROR, False), (MAX_LISTED_ERROR, False)),
        ("x" * (MAX_LISTED_ERROR + 1), (MAX_LISTED_ERROR + 1, False), (MAX_LISTED_ERROR, True)),
        ("ä" * MAX_ERROR, (MAX_ERROR, False), (MAX_LISTED_ERROR, True)),
        ("ä" * (MAX_ERROR + 1), (MAX_ERROR, True), (MAX_LISTED_ERROR, True)),
        (LONG, (MAX_ERROR, True), (MAX_LISTED_ERROR, True)),
    ],
    ids=["as listed", "longer", "as shown", "longer than shown", "long"],
)
async def test_an_error_is_cut_in_the_database_and_the_answer_says_so(  # noqa: PLR0917 - a table
    database_url: str,
    jobs: JobMaker,
    error: str,
    single: tuple[int, bool],
    listed: tuple[int, bool],
    monkeypatch: pytest.MonkeyPatch,
    serve: Serve,
) -> None:
    longest = 0
    fetch = Database.fetch

    async def measured(self: Database, sql: str, *args: object) -> list[Row]:
        nonlocal longest
        rows = await fetch(self, sql, *args)
        longest = max([longest, *(len(value) for row in rows for value in row if isinstance(value, str))])
        return rows

    job = await jobs.failed(last_error=error)
    monkeypatch.setattr(Database, "fetch", measured)
    api = await serve(database_url)
    one = await api.get(f"/api/jobs/{job.id}")
    again = await api.get(f"/api/jobs/{job.id}", headers={"If-None-Match": one.headers["ETag"]})
    waited = await api.get(f"/api/jobs/{job.id}", headers={"Prefer": "wait=5"})
    streamed = (await api.get(f"/api/jobs/{job.id}/events")).body
    lists = [
        await api.get("/api/jobs"),
        await api.get(f"/api/jobs?ids={job.id}"),
        await api.get("/api/jobs?status=failed"),
    ]

    event = json.loads(streamed.partition(b"data: ")[2])
    for shown in (one.data, waited.data, event):
        assert (len(shown["last_error"]), shown["last_error_truncated"]) == single
        assert error.startswith(shown["last_error"])
    for answer in lists:
        (row,) = answer.data
        assert (len(row["last_error"]), row["last_error_truncated"]) == listed
    assert again.status == 304
    assert longest <= MAX_ERROR + 1


async def test_a_page_is_bounded_whatever_its_texts_are(database_url: str, jobs: JobMaker, serve: Serve) -> None:
    await jobs.pool.execute("ALTER TABLE control_plane.jobs DROP CONSTRAINT jobs_status_check")
    await jobs.pool.execute(
        """
        INSERT INTO control_plane.jobs (project_id, type, status, last_error)
        SELECT 'p1', repeat(chr(1), 100000), repeat(chr(2), 100000), repeat(chr(3), 100000) FROM generate_series(1, 200)
        """
    )
    api = await serve(database_url)
    page = await api.get("/api/jobs?limit=200")
    ids = ",".join(row["id"] for row in page.data[:100])
    these = await api.get(f"/api/jobs?ids={ids}")

    assert (len(page.data), len(these.data)) == (200, 100)
    assert len(page.body) < MAX_PAGE_BYTES
    assert len(these.body) < MAX_PAGE_BYTES


async def test_a_page_that_would_be_too_large_ends_early_and_the_next_one_goes_on(
    database_url: str, jobs: JobMaker, monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    monkeypatch.setattr("api.pages.MAX_PAGE_BYTES", 20_000)
    made = await jobs.make(30, status="failed", last_error="x" * 1_500)
    api = await serve(database_url)
    seen: list[str] = []
    path: str | None = "/api/jobs?limit=25"
    sizes = []
    while path is not None:
        page = await api.get(path)
        sizes.append(len(page.data))
        assert len(page.body) < 20_000
        seen += [row["id"] for row in page.data]
        path = None if page.json["next_cursor"] is None else f"/api/jobs?limit=25&cursor={page.json['next_cursor']}"
        assert ("Link" in page.headers) == (path is not None)

    assert sorted(seen) == sorted(str(job.id) for job in made)
    assert max(sizes) < 15


async def test_the_tag_of_a_payload_is_a_hash_of_it_and_what_the_client_has_is_not_read(
    database_url: str, jobs: JobMaker, monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    read: list[int] = []
    load = Jobs._find_whole_with_payload

    async def counted(store: Jobs, keys: Sequence[JobKey]) -> object:
        read.append(len(keys))
        return await load(store, keys)

    monkeypatch.setattr(Jobs, "_find_whole_with_payload", counted)
    one, other = [(await jobs.make(1, status="failed", payload=f'{{"n": {n}}}'))[0] for n in (1, 2)]
    api = await serve(database_url)
    tags = [(await api.get(f"/api/jobs/{job.id}?include=payload")).headers["ETag"] for job in (one, one, other)]
    known = await api.get(f"/api/jobs/{one.id}?include=payload", headers={"If-None-Match": tags[0]})
    retried = await api.post(f"/api/jobs/{one.id}/retry", headers={"If-Match": tags[0]})

    hashes = [tag.strip('"').partition("+")[2] for tag in tags]
    assert tags[0] == tags[1]
    assert {len(each) for each in hashes} == {16}
    assert hashes[0] != hashes[2]
    assert known.status == 304
    assert len(read) == 3
    assert retried.status == 202


async def test_a_wait_holds_neither_the_payload_nor_a_long_error(
    database_url: str, jobs: JobMaker, serve: Serve
) -> None:
    (job,) = await jobs.make(1, status="running", last_error="e" * 100_000, payload=json.dumps({"n": "x" * 100_000}))
    api = await serve(database_url, watch_interval=0.05)
    wait = asyncio.create_task(
        api.get(f"/api/jobs/{job.id}?include=payload", headers={"Prefer": "wait=20"}, token=token(exp=4_000_000_000))
    )
    watched = api.parts.watches.jobs._watched
    await eventually(lambda: watched)
    (held,) = [each.seen.value for each in watched.values()]
    await jobs.pool.execute(
        "UPDATE control_plane.jobs SET status = 'completed', payload = '{\"n\": 7}' WHERE id = $1", job.id
    )
    answer = await wait

    assert isinstance(held, Job)
    assert held.payload is not None
    assert held.payload.json is None
    assert len(held.last_error or "") == MAX_LISTED_ERROR
    assert (answer.status, answer.data["status"], answer.data["payload"]) == (200, "completed", {"n": 7})
    assert len(answer.data["last_error"]) == MAX_ERROR


async def test_no_more_bytes_of_payloads_are_in_hand_than_may_be(
    database_url: str, jobs: JobMaker, monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    in_hand, most = 0, 0
    whole = Jobs._get_whole

    async def counted(store: Jobs, key: JobKey) -> Job:
        nonlocal in_hand, most
        in_hand += 1
        most = max(most, in_hand)
        try:
            return await whole(store, key)
        finally:
            in_hand -= 1

    monkeypatch.setattr(Jobs, "_get_whole", counted)
    monkeypatch.setattr(shared.jobs, "IN_HAND_BYTES", 500_000)
    made = await jobs.make(20, status="failed", payload=json.dumps("x" * 100_000))
    api = await serve(database_url)
    answers = await asyncio.gather(*(api.get(f"/api/jobs/{job.id}?include=payload") for job in made))

    assert {answer.status for answer in answers} == {200}
    assert 1 < most <= 3
