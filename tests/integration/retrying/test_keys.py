"""Idempotency-Key: the same key is the same request, however often it is sent, and by whichever way it comes."""

import asyncio

import pytest

from tests.api_server import Api, Reply, Serve
from tests.integration.retrying.operators import bulk, operator, path_of, rows_for, settle
from tests.jobs import JobMaker
from tests.ledger import Ledger
from tests.tokens import token

pytestmark = pytest.mark.asyncio(loop_scope="module")


def first_and_replays(answers: list[Reply]) -> tuple[list[Reply], list[Reply]]:
    first = [answer for answer in answers if "Idempotent-Replayed" not in answer.headers]
    return first, [answer for answer in answers if answer.headers.get("Idempotent-Replayed") == "true"]


async def test_two_hundred_at_once_with_one_key_are_one_row_and_one_answer(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()
    headers = {"Idempotency-Key": f"two-hundred-{job.id}"}

    answers = await asyncio.gather(*(api.post(path_of(job), {"reason": "r"}, headers=headers) for _ in range(200)))

    first, replays = first_and_replays(answers)
    assert {answer.status for answer in answers} == {202}
    assert (len(first), len(replays)) == (1, 199)
    assert {(answer.body, answer.headers["Location"]) for answer in answers} == {
        (first[0].body, first[0].headers["Location"])
    }
    assert first[0].json["deduplicated"] is False
    assert await rows_for(jobs, job) == 1


async def test_many_keys_for_many_jobs_at_once_are_a_row_each(api: Api, jobs: JobMaker) -> None:
    made = await jobs.many_failed(40)

    answers = await asyncio.gather(
        *(api.post(path_of(job), headers={"Idempotency-Key": f"many-{job.id}"}) for _ in range(5) for job in made)
    )

    assert {answer.status for answer in answers} == {202}
    for number in range(40):
        first, replays = first_and_replays(answers[number::40])
        assert (len(first), len(replays)) == (1, 4)
        assert {answer.body for answer in replays} == {first[0].body}
    assert await rows_for(jobs, *made) == 40


async def test_many_keys_for_one_job_at_once_are_one_row(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()

    answers = await asyncio.gather(
        *(api.post(path_of(job), headers={"Idempotency-Key": f"key-{number}-{job.id}"}) for number in range(40))
    )

    assert {answer.status for answer in answers} == {202}
    assert [answer.json["deduplicated"] for answer in answers].count(False) == 1
    assert {answer.data["id"] for answer in answers} == {answers[0].data["id"]}
    assert await rows_for(jobs, job) == 1


async def test_two_servers_at_once_claim_a_key_once(api: Api, jobs: JobMaker, database_url: str, serve: Serve) -> None:
    made = await jobs.many_failed(10)
    other = await serve(database_url)

    async def ask(number: int) -> Reply:
        job = made[number % 10]
        return await (api, other)[number // 10 % 2].post(
            path_of(job), {"reason": "r"}, headers={"Idempotency-Key": f"two-servers-{job.id}"}
        )

    answers = await asyncio.gather(*map(ask, range(80)))

    assert {answer.status for answer in answers} == {202}
    for number in range(10):
        first, replays = first_and_replays(answers[number::10])
        assert (len(first), len(replays)) == (1, 7)
        assert {answer.body for answer in replays} == {first[0].body}
    assert await rows_for(jobs, *made) == 10


async def test_the_first_answer_is_given_again_whatever_has_become_of_the_request(
    api: Api, jobs: JobMaker, ledger: Ledger
) -> None:
    job = await jobs.failed()
    headers = {"Idempotency-Key": f"again-{job.id}"}
    first = await api.post(path_of(job), {"delay_seconds": 5}, headers=headers)

    async def again() -> Reply:
        return await api.post(path_of(job), body=b' { "delay_seconds" : 5 , "reason" : null } ', headers=headers)

    queued = await again()
    await settle(ledger)
    applied = await again()
    await jobs.pool.execute("DELETE FROM control_plane.jobs WHERE id = $1", job.id)
    gone = await again()

    for answer in (queued, applied, gone):
        assert (answer.status, answer.body, answer.headers["Location"]) == (202, first.body, first.headers["Location"])
        assert answer.headers["Idempotent-Replayed"] == "true"
    assert await jobs.effects_of(job) == 1


async def test_a_key_for_another_request_is_refused(api: Api, jobs: JobMaker) -> None:
    job, other = await jobs.many_failed(2)
    headers = {"Idempotency-Key": f"reused-{job.id}"}
    tag = (await api.get(f"/api/jobs/{job.id}")).headers["ETag"]
    await api.post(path_of(job), {"reason": "one"}, headers=headers)

    for answer in (
        await api.post(path_of(job), {"reason": "two"}, headers=headers),
        await api.post(path_of(job), headers=headers),
        await api.post(path_of(job), {"reason": "one", "delay_seconds": 1}, headers=headers),
        await api.post(path_of(other), {"reason": "one"}, headers=headers),
        await api.post(path_of(job), {"reason": "one"}, headers={**headers, "If-Match": tag}),
        await bulk(api, {"ids": [str(job.id)], "reason": "one"}, headers=headers),
    ):
        assert (answer.status, answer.code) == (422, "idempotency-key-reused")
    assert await rows_for(jobs, job, other) == 1
    assert (await api.post(path_of(job), {"reason": "one"}, headers=headers)).status == 202


async def test_an_id_in_another_letter_case_is_the_same_request(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()
    path, loud = path_of(job), str(job.id).upper()

    answers = [
        await api.post(each, headers={"Idempotency-Key": f"case-{job.id}"})
        for each in (path, path.replace(str(job.id), loud))
    ]
    batches = [
        await bulk(api, {"ids": [each]}, headers={"Idempotency-Key": f"case-bulk-{job.id}"})
        for each in (str(job.id), loud)
    ]

    for first, second in (answers, batches):
        assert (first.status, second.status) == (202, 202)
        assert (second.body, second.headers["Idempotent-Replayed"]) == (first.body, "true")


@pytest.mark.parametrize(
    "keys",
    [
        [""],
        ["k" * 256],
        ["schlüssel"],
        ["\xff"],
        ["with space"],
        ["tab\there"],
        ["a", "b"],
        ["a", "a"],
        ["\x7f"],
        [" "],
    ],
    ids=lambda keys: repr(keys)[:14],
)
async def test_what_cannot_be_a_key_is_refused(api: Api, jobs: JobMaker, keys: list[str]) -> None:
    job = await jobs.failed()
    lines = "".join(f"Idempotency-Key: {key}\r\n" for key in keys)
    raw = await api.raw(
        f"POST {path_of(job)} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer {token()}\r\n"
        f"{lines}Content-Length: 0\r\n\r\n".encode()
    )

    answer = Reply.parsed(raw)
    assert (answer.status, answer.code) in {(400, "invalid-parameter"), (400, "bad-request")}
    assert await rows_for(jobs, job) == 0


@pytest.mark.parametrize(
    "key", ["a", "k" * 255, "!#$%&'*+-.^_`|~", '"quoted"', "a,b", "0193c9a8-0000-7000-8000-000000000001"]
)
async def test_a_key_is_visible_ascii(api: Api, jobs: JobMaker, key: str) -> None:
    job = await jobs.failed()

    first, again = [await api.post(path_of(job), headers={"Idempotency-Key": key}) for _ in range(2)]

    assert (first.status, again.status, again.body) == (202, 202, first.body)


async def test_a_key_has_had_its_day_after_twenty_four_hours(api: Api, jobs: JobMaker, ledger: Ledger) -> None:
    job, other = await jobs.many_failed(2)
    headers = {"Idempotency-Key": f"old-{job.id}"}

    async def age_to(hours: str) -> None:
        await jobs.pool.execute(
            "UPDATE redrive.idempotency_keys SET created_at = now() - $2::text::interval WHERE key = $1",
            headers["Idempotency-Key"],
            hours,
        )

    first = await api.post(path_of(job), headers=headers)
    await settle(ledger)
    await jobs.fail_again(job)
    await age_to("23 hours 59 minutes")
    within = await api.post(path_of(job), headers=headers)
    await age_to("24 hours")
    after = await asyncio.gather(*(api.post(path_of(job), headers=headers) for _ in range(20)))
    await age_to("25 hours")
    elsewhere = await api.post(path_of(other), headers=headers)

    assert (within.body, within.headers.get("Idempotent-Replayed")) == (first.body, "true")
    fresh, replays = first_and_replays(after)
    assert (len(fresh), len(replays)) == (1, 19)
    assert {answer.data["id"] for answer in after} == {fresh[0].data["id"]} != {first.data["id"]}
    assert await rows_for(jobs, job) == 2
    assert (elsewhere.status, elsewhere.data["job_id"]) == (202, str(other.id))


async def test_a_key_can_stand_for_a_request_that_another_client_had_queued(
    api: Api, jobs: JobMaker, ledger: Ledger
) -> None:
    job = await jobs.failed()
    queued = await api.post(path_of(job), token=token(sub="bob"))
    headers = {"Idempotency-Key": f"alias-{job.id}"}

    first = await api.post(path_of(job), {"reason": "mine"}, headers=headers)
    await settle(ledger)
    await jobs.fail_again(job)
    again = await api.post(path_of(job), {"reason": "mine"}, headers=headers)
    other = await api.post(path_of(job), {"reason": "another"}, headers=headers)

    assert (first.json["deduplicated"], first.data) == (True, queued.data)
    assert (again.body, again.headers["Idempotent-Replayed"]) == (first.body, "true")
    assert (other.status, other.code) == (422, "idempotency-key-reused")
    assert await rows_for(jobs, job) == 1


async def test_the_key_of_a_refused_request_is_free(api: Api, jobs: JobMaker) -> None:
    spent, foreign = await jobs.failed(attempts=3), await jobs.failed(project_id="p2")
    headers = {"Idempotency-Key": f"refused-{spent.id}"}
    stale = {**headers, "If-Match": '"1"'}

    refusals = [
        (await api.post(path_of(spent), headers=headers)).code,
        (await api.post(path_of(foreign), headers=headers)).code,
        (await api.post(path_of(spent), {"extra_attempts": 1}, headers=stale)).code,
        (await api.post(path_of(spent), {"extra_attempts": 0}, headers=headers)).code,
        (await api.post(path_of(spent), {"extra_attempts": 1}, headers=headers, token=token(scope="jobs:retry"))).code,
        (await api.post(f"{path_of(spent)}?dry_run=true", {"extra_attempts": 1}, headers=headers)).status,
    ]
    accepted = await api.post(path_of(spent), {"extra_attempts": 1}, headers=headers)

    assert refusals == [
        "attempts-exhausted", "job-not-found", "job-changed", "invalid-body", "insufficient-scope", 200
    ]  # fmt: skip
    assert accepted.status == 202
    assert "Idempotent-Replayed" not in accepted.headers


async def test_a_key_belongs_to_its_project(api: Api, jobs: JobMaker) -> None:
    ours, theirs = await jobs.failed(), await jobs.failed(project_id="p2")
    headers = {"Idempotency-Key": f"shared-{ours.id}"}

    one = await api.post(path_of(ours), headers=headers)
    other = await api.post(path_of(theirs), headers=headers, token=token(project_id="p2"))
    admin = token(sub="root", scope="jobs:retry jobs:admin")
    replayed = await api.post(f"{path_of(theirs)}?project_id=p2", headers=headers, token=admin)

    assert (one.status, other.status) == (202, 202)
    assert all("Idempotent-Replayed" not in answer.headers for answer in (one, other))
    assert one.data["id"] != other.data["id"]
    assert (replayed.body, replayed.headers["Idempotent-Replayed"]) == (other.body, "true")


async def test_a_bulk_retry_with_a_key_is_one_batch(api: Api, jobs: JobMaker, ledger: Ledger) -> None:
    made, spent = await jobs.many_failed(30, project_id="p-bulk-key"), await jobs.failed(attempts=3)
    order = {"ids": [str(job.id) for job in (*made, spent)], "reason": "r"}
    headers = {"Idempotency-Key": "one-batch"}

    answers = await asyncio.gather(*(bulk(api, order, project="p-bulk-key", headers=headers) for _ in range(12)))
    await settle(ledger)
    for job in made:
        await jobs.fail_again(job)
    late = await bulk(api, order, project="p-bulk-key", headers=headers)

    first, replays = first_and_replays([*answers, late])
    assert (len(first), len(replays)) == (1, 12)
    assert {(answer.status, answer.body) for answer in replays} == {(202, first[0].body)}
    assert {answer.headers["Location"] for answer in replays} == {first[0].headers["Location"]}
    assert first[0].data["accepted"] == 30
    assert first[0].data["skipped"] == [{"job_id": str(spent.id), "code": "job-not-found"}]  # another project's
    assert await rows_for(jobs, *made) == 30
    other = await bulk(api, {**order, "reason": "other"}, project="p-bulk-key", headers=headers)
    single = await api.post(path_of(made[0]), headers=headers, token=operator("p-bulk-key"))
    assert (other.code, single.code) == ("idempotency-key-reused", "idempotency-key-reused")
