"""Good requests, damaged at random and sent over raw sockets: whatever comes, the answer is one of ours, and no 5xx.

    REDRIVE_FUZZ_COUNT=100000 REDRIVE_FUZZ_SEED=7 .venv/bin/pytest tests/integration/api/test_fuzz.py

Each request is made from the seed and its number alone, so that one that fails can be sent again by itself.
"""

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from random import Random
from typing import Final

import pytest

from tests.api_server import Api, Reply, Serve
from tests.eventually import eventually
from tests.hostile import BEARER, Damage, answers_to, corpus, faults_of, good
from tests.integration.api.conftest import module_fixture
from tests.jobs import JobMaker
from tests.logs import Log

pytestmark = pytest.mark.asyncio(loop_scope="module")

COUNT: Final = int(os.environ.get("REDRIVE_FUZZ_COUNT", "2000"))
SEED: Final = int(os.environ.get("REDRIVE_FUZZ_SEED", "20261123"))
AT_ONCE: Final = 32


@module_fixture
async def fuzzed(database_url: str, serve: Serve) -> Api:
    """An api without waiting, so that `Prefer: wait=60` takes no time."""
    return await serve(database_url, max_waiters=0)


@module_fixture
async def requests(fuzzed: Api, jobs: JobMaker) -> list[bytes]:
    async def accepted(path: str, json: object) -> Reply:
        return await fuzzed.post(path, json, token=BEARER.split()[-1].decode())

    done, other = await jobs.many_failed(2, project_id="fuzz")
    retry = (await accepted(f"/api/jobs/{other.id}/retry", {})).data["id"]
    await jobs.many_failed(5, project_id="fuzz")
    batch = (await accepted("/api/jobs/retry", {"ids": [str(other.id)]})).data["batch_id"]
    return corpus(str(done.id).encode(), retry.encode(), batch.encode())


@pytest.fixture(autouse=True)
def _nothing_is_logged_as_an_error(log: Log) -> Iterator[None]:
    yield
    assert log.errors() == []


async def test_the_requests_to_damage_are_good_ones(fuzzed: Api, requests: list[bytes]) -> None:
    answers = [(await answers_to(fuzzed.port, request))[-1] for request in requests]

    assert [Reply.parsed(answer).status for answer in answers] == [
        200, 200, 200, 400, 200, 200, 200, 200, 304, 200, 404, 200, 412, 200, 202, 202, 200,
    ]  # fmt: skip
    assert [fault for answer in answers for fault in faults_of(answer)] == []


OURS: Final = (
    b"HTTP/1.1 400 Bad Request\r\nX-Request-Id: r\r\nX-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n"
    b"Content-Type: application/problem+json\r\n\r\n" + b'{"code":"bad-request","request_id":"r"}'
)


@pytest.mark.parametrize(
    ("was", "is_", "fault"),
    [(b"", b"", None), (b"400", b"500", "status 500"), (b"400", b"302", "status 302"),
     (b"nosniff", b"canary", "an echo"), (b"no-store\r\n", b"no-store\r\nServer: x\r\n", "a banner"),
     (b"X-Request-Id: r\r\n", b"", "X-Request-Id is not there once"),
     (b"problem+json", b"json", "another content type"),
     (b"bad-request", b"bad", "an unknown code"), (b"{", b"", "no JSON"), (b'"r"', b'"s"', "another request's id"),
     (b" r\r", b" canary\r", "another request's id")],
)  # fmt: skip
async def test_what_is_wrong_with_an_answer_is_seen(was: bytes, is_: bytes, fault: str | None) -> None:
    assert ([*faults_of(OURS.replace(was, is_, 1)), None])[0] == fault


async def test_an_id_for_the_request_is_no_echo() -> None:
    answer = OURS.replace(b"Id: r", b"Id: fucanary.example").replace(b'"r"', b'"fucanary.example"')

    assert list(faults_of(answer)) == []
    assert list(faults_of(answer + b"fucanary.example")) == ["no JSON", "an echo"]


@pytest.mark.timeout(120 + COUNT / 20)
async def test_damaged_requests_are_answered_in_our_words_or_not_at_all(
    fuzzed: Api, requests: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    faults: list[tuple[int, str, bytes]] = []
    statuses: Counter[int] = Counter()
    numbers = iter(range(COUNT))
    unavailable: list[int] = []

    async def send() -> None:
        for number in numbers:
            seen = await sent(number)
            statuses.update(seen)
            if 503 in seen:
                unavailable.append(number)

    async def sent(number: int) -> list[int]:
        random = Random(SEED * 1_000_003 + number)
        damaged = Damage(random, requests).done_to(random.choice(requests))
        answers = await answers_to(fuzzed.port, damaged)
        faults.extend((number, fault, damaged) for answer in answers for fault in faults_of(answer))
        return [Reply.parsed(answer).status for answer in answers]

    async def available(number: int) -> bool:
        return 503 not in await sent(number)

    async with asyncio.TaskGroup() as senders:
        for _ in range(AT_ONCE):
            senders.create_task(send())

    with capsys.disabled():
        sys.stdout.write(
            f"\nseed {SEED}: {COUNT} damaged requests, answers by status {dict(sorted(statuses.items()))}\n"
        )
    for number in unavailable:  # all at once they may have been too many for this machine; one is not
        await eventually(partial(available, number), every_s=0.5)
    assert faults == []
    assert sum(statuses.values()) > COUNT / 2  # the rest were never whole requests
    assert internal_errors(fuzzed) == 0
    assert (await fuzzed.get("/api/jobs")).status == 200


def internal_errors(api: Api) -> float:
    """How many requests were answered with a 500, also those whose client had left."""
    return sum(
        sample.value
        for family in api.registry.collect()
        for sample in family.samples
        if sample.name == "redrive_http_requests_total" and sample.labels["status"] == "500"
    )


# -- what damage has found


@pytest.mark.parametrize("path", [b"/nowhere", b"/api/jobs"])
@pytest.mark.parametrize("method", [b"GET", b"PUT"])
async def test_an_expectation_of_bytes_that_are_no_text_is_refused_like_any_other(
    fuzzed: Api, method: bytes, path: bytes
) -> None:
    (answer,) = await answers_to(fuzzed.port, good(method, path, b"Expect: 100-\xf9ontinue"))

    assert (Reply.parsed(answer).status, Reply.parsed(answer).code) == (417, "expectation-failed")
    assert [*faults_of(answer)] == []


async def test_a_condition_of_bytes_that_are_no_text_goes_with_an_idempotency_key(fuzzed: Api, jobs: JobMaker) -> None:
    job = await jobs.failed(project_id="fuzz")
    path = f"/api/jobs/{job.id}/retry".encode()

    async def code_of(condition: bytes) -> str:
        (answer,) = await answers_to(fuzzed.port, good(b"POST", path, b"Idempotency-Key: k", b"If-Match: " + condition))
        assert [*faults_of(answer)] == []
        return str(Reply.parsed(answer).json.get("code"))

    assert await code_of(b'"\xa6"') == "job-changed"
    assert await code_of(b"*") == "None"
    assert await code_of(b'"\xa6"') == "idempotency-key-reused"
