"""Asking again: the tag says whether there is news, and Retry-After when it is likely."""

import asyncio
import random
from itertools import combinations
from typing import TYPE_CHECKING

import pytest

from tests.api_server import Api, Reply
from tests.jobs import JobMaker, MadeJob
from tests.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Life:
    """What can happen to a job: to its row by its owner, and around it by retries. Each is seen by who reads it."""

    def __init__(self, api: Api, jobs: JobMaker, ledger: Ledger, job: MadeJob) -> None:
        self._api = api
        self._jobs = jobs
        self._ledger = ledger
        self._job = job
        self.path = f"/api/jobs/{job.id}"
        self.events: list[Callable[[], Awaitable[object]]] = [
            self._ask, self._ask, self._take_back, self._settle, self._fail, self._fail, self._run, self._complete,
            self._extend,
        ]  # fmt: skip

    async def _change(self, assignments: str) -> None:
        await self._jobs.pool.execute(
            f"UPDATE control_plane.jobs SET scheduled_at = clock_timestamp(), {assignments} WHERE id = $1", self._job.id
        )

    async def _ask(self) -> None:
        await self._api.post(f"{self.path}/retry")

    async def _take_back(self) -> None:
        pending = (await self._api.get(self.path)).data["pending_retry"]
        if pending is not None:
            assert (await self._api.call("DELETE", f"/api/retries/{pending['id']}")).status == 200

    async def _settle(self) -> None:
        await self._ledger.settlement.apply_queued(10)

    async def _fail(self) -> None:
        await self._change("status = 'failed', last_error = 'it broke', completed_at = now()")

    async def _run(self) -> None:
        await self._change("status = 'running', started_at = now(), payload = payload || '{\"ran\": true}'")

    async def _complete(self) -> None:
        await self._change("status = 'completed', completed_at = now()")

    async def _extend(self) -> None:
        await self._change("max_attempts = max_attempts + 1")

    async def write_an_unseen_column(self) -> None:
        await self._jobs.pool.execute(
            "UPDATE control_plane.jobs SET payload = payload || jsonb_build_object('n', random()) WHERE id = $1",
            self._job.id,
        )

    async def seen(self) -> list[Reply]:
        return list(await asyncio.gather(self._api.get(self.path), self._api.get(f"{self.path}?include=payload")))


@pytest.mark.parametrize("seed", range(4))
async def test_two_answers_have_the_same_tag_exactly_when_they_have_the_same_body(
    api: Api, jobs: JobMaker, ledger: Ledger, seed: int
) -> None:
    chance = random.Random(seed)
    life = Life(api, jobs, ledger, await jobs.failed())
    seen = await life.seen()
    for _ in range(30):
        await chance.choice(life.events)()
        seen += await life.seen()

    for one, other in combinations(seen, 2):
        assert (one.headers["ETag"] == other.headers["ETag"]) == (one.body == other.body)
    assert 10 < len({answer.headers["ETag"] for answer in seen}) < len(seen)


async def test_a_write_that_no_client_sees_may_change_the_tag_but_no_tag_stands_for_two_bodies(
    api: Api, jobs: JobMaker, ledger: Ledger
) -> None:
    life = Life(api, jobs, ledger, await jobs.failed())
    bodies: dict[str, bytes] = {}
    for _ in range(20):
        await life.write_an_unseen_column()
        for answer in await life.seen():
            assert bodies.setdefault(answer.headers["ETag"], answer.body) == answer.body


async def test_a_retry_and_a_batch_have_the_same_tag_exactly_when_they_have_the_same_body(
    api: Api, jobs: JobMaker, ledger: Ledger
) -> None:
    made = await jobs.many_failed(4)
    accepted = [await api.post(f"/api/jobs/{job.id}/retry") for job in made]
    seen: dict[str, list[Reply]] = {answer.headers["Location"]: [] for answer in accepted}

    async def look() -> None:
        for path, answers in seen.items():
            answers += [await api.get(path), await api.get(path)]

    await look()
    await api.call("DELETE", accepted[0].headers["Location"])
    await look()
    await jobs.pool.execute("UPDATE control_plane.jobs SET status = 'completed' WHERE id = $1", made[1].id)
    await ledger.settlement.apply_queued(10)
    await look()

    for answers in seen.values():
        for one, other in combinations(answers, 2):
            assert (one.headers["ETag"] == other.headers["ETag"]) == (one.body == other.body)
        assert len({answer.headers["ETag"] for answer in answers}) == 2


# -- If-None-Match


async def read_again(api: Api, path: str, *lines: str) -> Reply:
    """Read with several lines of If-None-Match, as they are."""
    return await api.get(path, headers=[("If-None-Match", line) for line in lines])  # type: ignore[arg-type] # a multidict


@pytest.mark.parametrize(
    "form",
    ["{}", "W/{}", ' {} ', '"a",{}', '{},"a"', 'W/"a" , W/{}', '"a, b", {}', '"", {}', "*", " * ", ",,{},,"],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["", "?include=payload"])
async def test_who_names_the_tag_in_any_form_has_it_already(api: Api, jobs: JobMaker, form: str, suffix: str) -> None:
    path = f"/api/jobs/{(await jobs.pending()).id}{suffix}"
    first = await api.get(path)

    again = await read_again(api, path, form.format(first.headers["ETag"]))

    assert (again.status, again.body) == (304, b"")
    assert again.headers["ETag"] == first.headers["ETag"]
    assert again.headers["Retry-After"] == first.headers["Retry-After"]
    assert "Content-Type" not in again.headers
    assert "Content-Length" not in again.headers or again.headers["Content-Length"] == first.headers["Content-Length"]


async def test_tags_may_come_on_several_lines(api: Api, jobs: JobMaker) -> None:
    path = f"/api/jobs/{(await jobs.pending()).id}"
    tag = (await api.get(path)).headers["ETag"]

    assert (await read_again(api, path, '"1"', tag)).status == 304
    assert (await read_again(api, path, tag, '"1"')).status == 304
    assert (await read_again(api, path, '"1"', '"2"')).status == 200


@pytest.mark.parametrize(
    "header",
    ['"1"', "", "rubbish", '"', '""', "W/", '"*"', "**", "ab" * 2000, '"a",' * 1000, '"' * 4000, "\xff", '"1" "2"'],
    ids=lambda header: header[:10],
)  # fmt: skip
async def test_what_names_no_tag_of_the_job_gets_the_job(api: Api, jobs: JobMaker, header: str) -> None:
    path = f"/api/jobs/{(await jobs.pending()).id}"

    assert (await read_again(api, path, header)).status == 200


async def test_the_tag_with_the_payload_is_not_the_tag_without(api: Api, jobs: JobMaker) -> None:
    path = f"/api/jobs/{(await jobs.pending()).id}"
    plain, full = (await api.get(path)).headers["ETag"], (await api.get(f"{path}?include=payload")).headers["ETag"]

    assert (await read_again(api, path, full)).status == 200
    assert (await read_again(api, f"{path}?include=payload", plain)).status == 200


async def test_a_retry_and_a_batch_are_read_conditionally_too(api: Api, jobs: JobMaker, ledger: Ledger) -> None:
    retry = (await api.post(f"/api/jobs/{(await jobs.failed()).id}/retry")).headers["Location"]
    tag = (await api.get(retry)).headers["ETag"]

    assert ((await read_again(api, retry, f'"1", W/{tag}')).status, (await read_again(api, retry, '"1"')).status) == (
        304,
        200,
    )
    await ledger.settlement.apply_queued(10)
    assert (await read_again(api, retry, tag)).status == 200


# -- Retry-After


async def make_old(jobs: JobMaker, job: MadeJob) -> None:
    await jobs.pool.execute(
        "UPDATE control_plane.jobs SET (created_at, scheduled_at, started_at, completed_at) = "
        "(now() - interval '1 day', NULL, NULL, NULL) WHERE id = $1",
        job.id,
    )


async def asked_to_come_back(api: Api, jobs: JobMaker, status: str, assignments: str) -> str | None:
    (job,) = await jobs.make(1, status=status)
    await make_old(jobs, job)
    await jobs.pool.execute(f"UPDATE control_plane.jobs SET {assignments} WHERE id = $1", job.id)
    answers = [await api.get(f"/api/jobs/{job.id}", headers=headers) for headers in ({}, {"If-None-Match": "*"})]
    assert [answer.status for answer in answers] == [200, 304]
    times = {answer.headers.get("Retry-After") for answer in answers}
    return min(times, key=lambda each: int(each or 0))


@pytest.mark.parametrize(
    ("status", "assignments", "seconds"),
    [
        ("pending", "created_at = now() - interval '20 seconds', scheduled_at = NULL", {"5", "6"}),
        ("pending", "scheduled_at = now() + interval '42 seconds'", {"41", "42"}),
        ("pending", "scheduled_at = now() + interval '299.5 seconds'", {"299", "300"}),
        ("pending", "scheduled_at = now() + interval '1 year'", {"300"}),
        ("pending", "scheduled_at = now() - interval '40 seconds'", {"10", "11"}),
        ("pending", "scheduled_at = now() - interval '400 seconds'", {"30"}),
        ("pending", "scheduled_at = 'infinity'", {"300"}),
        ("running", "started_at = now()", {"1"}),
        ("running", "started_at = now() - interval '40 seconds'", {"10", "11"}),
        ("running", "started_at = now() - interval '1 hour'", {"30"}),
        ("running", "started_at = now() - interval '8 seconds', scheduled_at = now() + interval '1 hour'", {"2", "3"}),
        ("completed", "completed_at = now()", {None}),
        ("failed", "completed_at = now()", {None}),
    ],
)
async def test_the_time_to_come_back_is_the_plan_or_a_quarter_of_the_age(
    api: Api, jobs: JobMaker, status: str, assignments: str, seconds: set[str | None]
) -> None:
    assert await asked_to_come_back(api, jobs, status, assignments) in seconds


async def test_a_queued_retry_is_worth_coming_back_for(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()
    await make_old(jobs, job)
    retry = (await api.post(f"/api/jobs/{job.id}/retry")).headers["Location"]

    async def asked() -> list[str | None]:
        return [(await api.get(path)).headers.get("Retry-After") for path in (f"/api/jobs/{job.id}", retry)]

    assert await asked() == ["1", "1"]
    await jobs.pool.execute(
        "UPDATE redrive.retry_requests SET requested_at = now() - interval '40 seconds' WHERE job_id = $1", job.id
    )
    assert set(await asked()) <= {"10", "11"}
    await jobs.pool.execute(
        "UPDATE redrive.retry_requests SET redriven_at = now() - interval '8 seconds' WHERE job_id = $1", job.id
    )
    assert set(await asked()) <= {"2", "3"}
    await api.call("DELETE", retry)
    assert await asked() == [None, None]
