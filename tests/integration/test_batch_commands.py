"""`redrive batches`, as processes against the real api: a bulk retry is looked at, and taken back."""

import re

import pytest

from tests.api_server import Api, Serve
from tests.commands import Done, commanded
from tests.jobs import JobMaker
from tests.tokens import token
from tests.workers import a_worker


@pytest.fixture
async def api(database_url: str, serve: Serve) -> Api:
    return await serve(database_url)


async def redrive(api: Api, *args: str) -> Done:
    scope = "jobs:read jobs:retry jobs:retry:bulk"
    return await commanded(*args, URL=f"http://127.0.0.1:{api.port}", TOKEN=token(sub="ana", scope=scope))


async def test_a_bulk_retry_that_no_worker_has_taken_is_taken_back_whole(
    api: Api, database_url: str, jobs: JobMaker
) -> None:
    made = [await jobs.failed() for _ in range(5)]
    accepted = await redrive(
        api, "retry", "--filter", "created_after=1h", *("--max", "9", "--reason", "wrong one", "--yes", "--no-wait")
    )
    assert accepted.status == 0, accepted.err
    batch_id = re.findall(r"batch (\S+)$", accepted.out, re.MULTILINE)[0]

    listed = (await redrive(api, "batches", "list", "--actor", "ana")).out.splitlines()
    assert re.split("  +", listed[1]) == [batch_id, listed[1][38:58], "5", "5", "0", "0", "0", "0", "ana", "wrong one"]

    cancelled = await redrive(api, "batches", "cancel", batch_id)
    assert (cancelled.status, cancelled.err) == (0, "")
    assert re.search(r"^cancelled +5$", cancelled.out, re.MULTILINE)
    async with a_worker(database_url):
        assert (await redrive(api, "batches", "wait", batch_id)).status == 0
    assert [await jobs.status_of(job) for job in made] == ["failed"] * 5

    (shown,) = (await redrive(api, "batches", "get", batch_id, "--json")).json
    assert (shown["cancelled"], shown["queued"], shown["done"]) == (5, 0, True)
    assert set(shown["filter"]) == {"created_after"}
    again = await redrive(api, "batches", "cancel", batch_id)
    assert again.status == 0
    (row, *_) = (await redrive(api, "retries", "list", "--batch", batch_id)).out.splitlines()[1:]
    assert batch_id in row
    assert "cancelled" in row
