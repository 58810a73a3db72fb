"""Many jobs at once: by their ids, page by page, and in numbers."""

import asyncio
import re
from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from urllib.parse import quote
from uuid import uuid4

import pytest

from api.pages import Cursors
from shared.errors import DatabaseUnavailable
from tests.api_server import Api, Reply
from tests.jobs import JobMaker, MadeJob
from tests.statements import statements_sent
from tests.tokens import token

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


async def made_long_ago(jobs: JobMaker, made: list[MadeJob], *, step: str = "1 second") -> None:
    """Let the first be the newest, all of them in the past."""
    await jobs.pool.execute(
        f"""
        UPDATE control_plane.jobs SET created_at = now() - interval '1 hour' - n * interval '{step}'
        FROM unnest($1::uuid[]) WITH ORDINALITY AS made (made_id, n) WHERE id = made_id
        """,
        [job.id for job in made],
    )


def ids_of(answer: Reply) -> list[str]:
    return [job["id"] for job in answer.data]


def next_of(answer: Reply) -> str | None:
    """The path in the `Link` header."""
    link = answer.headers.get("Link")
    if link is None:
        return None
    found = re.fullmatch(r'<([^>]*)>; rel="next"', link)
    assert found
    return found[1]


# -- by ids


async def test_jobs_by_id_come_in_the_order_asked_and_the_rest_is_listed(api: Api, jobs: JobMaker) -> None:
    made, foreign, unknown = await jobs.many_failed(5), await jobs.failed(project_id="p2"), uuid4()
    wanted = [made[3].id, foreign.id, made[0].id, unknown, made[4].id]

    with statements_sent() as sent:
        answer = await api.get(f"/api/jobs?ids={','.join(map(str, wanted))}")

    assert answer.status == 200
    assert answer.json.keys() == {"data", "not_found"}
    assert ids_of(answer) == [str(made[number].id) for number in (3, 0, 4)]
    assert answer.json["not_found"] == [str(foreign.id), str(unknown)]
    assert answer.data[0] == (await api.get(f"/api/jobs/{made[3].id}")).data
    assert sent["jobs.find"] >= 1
    assert sent.keys() == {"jobs.find"}


async def test_an_id_that_is_asked_for_twice_is_answered_twice(api: Api, jobs: JobMaker) -> None:
    job, unknown = await jobs.failed(), uuid4()

    answer = await api.get(f"/api/jobs?ids={job.id},{str(job.id).upper()},{unknown},{unknown}")

    assert ids_of(answer) == [str(job.id)] * 2
    assert answer.json["not_found"] == [str(unknown)] * 2


async def test_a_hundred_ids_are_one_query_and_one_more_is_refused(api: Api, jobs: JobMaker) -> None:
    ids = [str(job.id) for job in await jobs.many_failed(100)]

    with statements_sent() as sent:
        assert ids_of(await api.get(f"/api/jobs?ids={','.join(ids)}")) == ids
        assert sent == {"jobs.find": 1}
        refused = await api.get(f"/api/jobs?ids={','.join([*ids, ids[0]])}")
        assert (refused.status, refused.code) == (400, "invalid-parameter")
        assert sent == {"jobs.find": 1}


@pytest.mark.parametrize(
    "ids", ["", ",", "{good},", ",{good}", "{good},1", "{good};{good}", "{good}, {good}", "{good}%00"]
)
async def test_one_bad_id_is_a_bad_request_before_any_query(api: Api, jobs: JobMaker, ids: str) -> None:
    good = (await jobs.failed()).id
    with statements_sent() as sent:
        answer = await api.get(f"/api/jobs?ids={quote(ids.format(good=good), safe=',%')}")

    assert (answer.status, answer.code) == (400, "invalid-job-id")
    assert not sent


@pytest.mark.parametrize(
    "other", ["status=failed", "limit=5", "cursor=a", "type=email", "include=payload", "ids={good}"]
)
async def test_ids_are_not_combined_with_filters(api: Api, jobs: JobMaker, other: str) -> None:
    good = (await jobs.failed()).id

    assert (await api.get(f"/api/jobs?ids={good}&{other.format(good=good)}")).code == "invalid-parameter"


async def test_a_large_list_is_compressed_for_those_who_take_it(api: Api, jobs: JobMaker) -> None:
    of_list = token(project_id="p-compressed")
    await jobs.make(20, status="failed", project_id="p-compressed")
    plain = await api.get("/api/jobs", token=of_list, headers={"Accept-Encoding": "identity"})
    packed = await api.get("/api/jobs", token=of_list, headers={"Accept-Encoding": "br, gzip"})
    small = await api.get("/api/jobs?limit=1", token=of_list)

    assert (plain.headers.get("Content-Encoding"), plain.headers["Vary"]) == (None, "Accept-Encoding")
    assert (packed.headers["Content-Encoding"], packed.headers["Vary"]) == ("gzip", "Accept-Encoding")
    assert int(packed.headers["Content-Length"]) < int(plain.headers["Content-Length"]) == len(plain.body)
    assert packed.body == plain.body
    assert small.headers.keys().isdisjoint({"Content-Encoding", "Vary"})


# -- page by page


async def test_filters_choose_by_status_type_and_time(api: Api, jobs: JobMaker) -> None:
    of_list = token(project_id="p-filters")
    emails = await jobs.make(4, status="failed", project_id="p-filters", kind="email")
    reports = await jobs.make(3, status="failed", project_id="p-filters", kind="report & more")
    running = await jobs.make(2, status="running", project_id="p-filters", kind="email")
    everything = [*emails, *reports, *running]
    await made_long_ago(jobs, everything)
    times = [(await jobs.row(job))["created_at"] for job in everything]

    async def listed(query: str) -> list[MadeJob]:
        by_id = {str(job.id): job for job in everything}
        return [by_id[job_id] for job_id in ids_of(await api.get(f"/api/jobs?{query}", token=of_list))]

    def at(time: datetime) -> str:
        return quote(time.isoformat())

    assert await listed("") == everything
    assert await listed("status=failed") == [*emails, *reports]
    assert await listed(f"type={quote('report & more')}") == reports
    assert await listed("status=running&type=email") == running
    assert await listed("status=completed") == []
    assert await listed(f"created_before={at(times[2])}") == everything[3:]  # exclusive, both
    assert await listed(f"created_after={at(times[2])}") == everything[:2]
    assert await listed(f"created_after={at(times[6])}&created_before={at(times[1])}") == everything[2:6]
    assert await listed(f"created_after={at(times[1])}&created_before={at(times[6])}") == []
    elsewhere = times[2].astimezone(tz=UTC).replace(tzinfo=None) + timedelta(hours=5, minutes=30)
    assert await listed(f"created_before={quote(elsewhere.isoformat() + '+05:30')}") == everything[3:]


@pytest.mark.parametrize(("limit", "shown"), [("1", 1), ("200", 200), ("199", 199), ("", 50)])
async def test_a_page_is_as_long_as_asked(api: Api, jobs: JobMaker, limit: str, shown: int) -> None:
    project = f"p-limit-{shown}"
    await jobs.many_failed(201, project_id=project)

    answer = await api.get(f"/api/jobs?limit={limit}" if limit else "/api/jobs", token=token(project_id=project))

    assert len(answer.data) == shown
    assert answer.json["next_cursor"]
    assert answer.headers["Link"] == (
        f'</api/jobs?limit={limit or 50}&cursor={answer.json["next_cursor"]}>; rel="next"'
    )  # fmt: skip


async def test_the_last_page_says_so_even_if_it_is_full(api: Api, jobs: JobMaker) -> None:
    await jobs.many_failed(4, project_id="p-last")
    first = await api.get("/api/jobs?limit=2", token=token(project_id="p-last"))

    last = await api.get(str(next_of(first)), token=token(project_id="p-last"))

    assert (len(last.data), last.json["next_cursor"], "Link" in last.headers) == (2, None, False)


async def test_a_walk_sees_each_row_once_though_others_come_and_change_meanwhile(api: Api, jobs: JobMaker) -> None:
    of_walk = token(project_id="p-walk")
    made = await jobs.many_failed(1000, project_id="p-walk")
    await made_long_ago(jobs, made)
    # Many rows of one moment: only their ids tell them apart.
    await jobs.pool.execute(
        "UPDATE control_plane.jobs SET created_at = date_trunc('minute', created_at) WHERE project_id = 'p-walk'"
    )
    seen: list[str] = []
    times: list[str] = []
    path: str | None = "/api/jobs?limit=37"
    while path is not None:
        answer = await api.get(path, token=of_walk)
        seen += ids_of(answer)
        times += [job["created_at"] for job in answer.data]
        path = next_of(answer)
        await jobs.make(5, status="pending", project_id="p-walk", attempts=0)
        await jobs.pool.execute(
            "UPDATE control_plane.jobs SET status = 'running' WHERE id = ANY ($1)", [made[len(seen) % 1000].id]
        )

    assert len(seen) == len(set(seen)) == 1000
    assert set(seen) == {job.id for job in made}
    assert times == sorted(times, reverse=True)


async def test_the_link_keeps_the_filters_whatever_is_in_them(api: Api, jobs: JobMaker) -> None:
    kind = 'a&b=c; "d" ü+%/?#>'
    made = await jobs.make(5, status="failed", project_id="p-link", kind=kind)
    await made_long_ago(jobs, made)
    seen: list[str] = []
    path: str | None = (
        f"/api/jobs?type={quote(kind)}&status=failed&limit=2&created_before={quote('2100-01-01T00:00:00+01:00')}"
    )
    while path is not None:
        answer = await api.get(path, token=token(project_id="p-link"))
        assert answer.status == 200
        seen += ids_of(answer)
        path = next_of(answer)

    assert seen == [str(job.id) for job in made]


@pytest.mark.parametrize("resource", ["/api/jobs", "/api/retries", "/api/jobs/{job}/retries"])
async def test_the_link_leads_an_administrator_on_in_the_same_project(api: Api, jobs: JobMaker, resource: str) -> None:
    project = f"p-admin-{len(resource)}"
    made = await jobs.many_failed(3, project_id=project)
    for _ in range(3):
        posted = await api.post(f"/api/jobs/{made[0].id}/retry", token=token(project_id=project))
        await api.call("DELETE", posted.headers["Location"], token=token(project_id=project))
    admin = token(scope="jobs:read jobs:admin")
    seen: list[str] = []
    path: str | None = f"{resource.format(job=made[0].id)}?project_id={project}&limit=1"
    while path is not None:
        answer = await api.get(path, token=admin)
        assert answer.status == 200
        seen += ids_of(answer)
        path = next_of(answer)

    assert len(set(seen)) == 3


# -- cursors


async def a_cursor(api: Api, jobs: JobMaker, *, project: str = "p-cursor", query: str = "limit=1") -> str:
    await jobs.many_failed(2, project_id=project)
    return str((await api.get(f"/api/jobs?{query}", token=token(project_id=project))).json["next_cursor"])


async def refused(api: Api, path: str, *, project: str = "p-cursor") -> bool:
    answer = await api.get(path, token=token(project_id=project))
    assert (answer.status, answer.code) == (400, "invalid-cursor"), path
    return True


async def test_a_cursor_with_any_character_changed_is_refused(api: Api, jobs: JobMaker) -> None:
    cursor = await a_cursor(api, jobs)
    # Each to one that differs in a single bit: in the last one, a bit that counts for nothing.
    flipped = [
        cursor[:place] + ALPHABET[ALPHABET.index(char) ^ bit] + cursor[place + 1 :]
        for place, char in enumerate(cursor)
        for bit in (1, 32)
    ]

    assert all(await asyncio.gather(*(refused(api, f"/api/jobs?cursor={each}") for each in flipped)))
    assert (await api.get(f"/api/jobs?cursor={cursor}", token=token(project_id="p-cursor"))).status == 200


@pytest.mark.parametrize(
    "spelling",
    ["{}=", "{}==", "{}%0A", "%20{}", "{}A", "{}AAAA", "{}.", "%2B{}", "{}%00", "{}%C3%BC", "{} {}", "{}{}"],
)
async def test_a_cursor_has_one_spelling(api: Api, jobs: JobMaker, spelling: str) -> None:
    cursor = await a_cursor(api, jobs)

    assert await refused(api, f"/api/jobs?cursor={spelling.replace('{}', cursor).replace(' ', '%20')}")


@pytest.mark.parametrize("cursor", ["", "a", "null", "AAAA", "A" * 53, "A" * 54, "A" * 4000, "-1", "%FF", "../.."])
async def test_what_was_never_a_cursor_is_refused(api: Api, cursor: str) -> None:
    assert await refused(api, f"/api/jobs?cursor={cursor}")


async def test_a_cursor_shortened_by_any_length_is_refused(api: Api, jobs: JobMaker) -> None:
    cursor = await a_cursor(api, jobs)

    assert all([await refused(api, f"/api/jobs?cursor={cursor[:length]}") for length in range(1, len(cursor))])


async def test_a_cursor_belongs_to_its_filters_its_project_and_its_list(api: Api, jobs: JobMaker) -> None:
    plain = await a_cursor(api, jobs)
    failed = await a_cursor(api, jobs, query="limit=1&status=failed")
    job = (await api.get("/api/jobs?limit=1", token=token(project_id="p-cursor"))).data[0]["id"]

    assert await refused(api, f"/api/jobs?cursor={plain}&status=failed")
    assert await refused(api, f"/api/jobs?cursor={failed}")
    assert await refused(api, f"/api/jobs?cursor={failed}&status=running")
    assert await refused(api, f"/api/jobs?cursor={failed}&status=failed&type=email")
    assert await refused(api, f"/api/jobs?cursor={failed}&type=failed")
    assert await refused(api, f"/api/jobs?cursor={plain}", project="p1")
    assert await refused(api, f"/api/retries?cursor={plain}")
    assert await refused(api, f"/api/jobs/{job}/retries?cursor={plain}")
    own = token(project_id="p-cursor")
    assert (await api.get(f"/api/jobs?cursor={plain}&limit=7", token=own)).status == 200  # the length is no filter
    assert (await api.get(f"/api/jobs?status=failed&cursor={failed}", token=own)).status == 200


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/api/jobs/x/retries?limit=x", "invalid-parameter"), ("/api/jobs/x/retries?limit=1", "invalid-job-id"),
        ("/api/retries?state=x", "invalid-parameter"), ("/api/retries?job_id=x", "invalid-job-id"),
        ("/api/jobs?created_after=x", "invalid-parameter"),
        ("/api/jobs?status=failed&fingerprint=x", "invalid-parameter"),
        ("/api/jobs?status=failed&error_contains=a&retryable=x", "invalid-parameter"),
        ("/api/retry-batches?actor=", "invalid-parameter"),
    ],
)  # fmt: skip
async def test_a_cursor_is_looked_at_when_all_else_is_right(
    api: Api, monkeypatch: pytest.MonkeyPatch, path: str, code: str
) -> None:
    async def away(*_: object) -> bytes:
        raise DatabaseUnavailable

    monkeypatch.setattr(Cursors, "_mac", away)
    cursor = urlsafe_b64encode(bytes(40)).decode().rstrip("=")

    answer = await api.get(f"{path}&cursor={cursor}")

    assert (answer.status, answer.code) == (400, code)
