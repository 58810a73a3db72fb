"""Retries on their way through RabbitMQ: bulk ones beside single ones, and one that was taken back on the way."""

import asyncio
import logging
import statistics
import time
from collections.abc import AsyncIterator

import pytest

from tests.acceptance.programs import Deployment
from tests.api_server import Serve
from tests.eventually import eventually
from tests.integration.api.conftest import module_fixture
from tests.integration.retrying.operators import done_with, operator, path_of
from tests.jobs import JobMaker, MadeJob
from tests.logins import BrokerUsers, Logins
from tests.queues import Queues
from tests.servers.rabbitmq import Rabbitmq
from tests.workers import a_worker

log = logging.getLogger(__name__)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("large tables")]  # not both at once

BULK = 10_000


@module_fixture
async def amqp_url(rabbitmq: Rabbitmq) -> AsyncIterator[str]:
    async with rabbitmq.vhost() as url:
        yield url


@module_fixture
async def queues(amqp_url: str) -> AsyncIterator[Queues]:
    async with Queues.on(amqp_url) as declared:
        yield declared


async def test_a_message_for_a_request_that_was_taken_back_does_nothing(
    database_url: str, amqp_url: str, queues: Queues, jobs: JobMaker, serve: Serve
) -> None:
    kept, taken_back = await jobs.many_failed(2)
    api = await serve(database_url, amqp_url=amqp_url)
    accepted = [await api.post(path_of(job)) for job in (taken_back, kept)]

    async def both_are_published() -> bool:  # in one message or in two
        found = await jobs.pool.fetchval("SELECT count(published_at) FROM redrive.retry_requests")
        return bool(found == 2)

    await eventually(both_are_published, within_s=20)
    assert (await api.call("DELETE", accepted[0].headers["Location"])).status == 200
    async with a_worker(database_url, amqp_url):

        async def other_is_applied() -> bool:
            return bool((await done_with(api, accepted[1]))["done"])

        await eventually(queues.drained)
        await eventually(other_is_applied)
    states = [(await done_with(api, answer))["state"] for answer in accepted]

    assert states == ["cancelled", "applied"]
    assert await jobs.effects([taken_back, kept]) == [0, 1]


async def test_single_retries_are_not_delayed_by_ten_thousand_bulk_ones(
    database_url: str, amqp_url: str, jobs: JobMaker
) -> None:
    await jobs.many_failed(BULK, project_id="p-bulk")
    singles = await jobs.many_failed(1_000)
    async with (
        Logins.on(database_url) as logins,
        Deployment.running(
            await logins.made(database_url), BrokerUsers(amqp_url, amqp_url), workers=1, WATCH_INTERVAL="0.05"
        ) as redrive,
    ):
        await retried(redrive, singles.pop())  # the first one opens connections
        began = time.monotonic()
        location = await eventually(lambda: bulk_accepted(redrive), within_s=30)
        accepted_s = time.monotonic() - began

        done = asyncio.create_task(bulk_done(redrive, location))
        took_s: list[float] = []

        async def press_the_button() -> None:
            while len(took_s) < 20 or not done.done():
                took_s.append(await retried(redrive, singles.pop()))

        await asyncio.gather(done, *(press_the_button() for _ in range(4)))
        bulk_s = time.monotonic() - began

    p99_s = statistics.quantiles(took_s, n=100, method="inclusive")[98]
    log.info(
        "%d single retries: p50 %.3f s, p99 %.3f s, max %.3f s; %d bulk ones: accepted in %.2f s, applied in %.2f s",
        len(took_s), statistics.median(took_s), p99_s, max(took_s), BULK, accepted_s, bulk_s,
    )  # fmt: skip
    assert await jobs.all_effects() >= BULK + len(took_s)
    overtaken = await jobs.pool.fetchval(_BULK_BETWEEN)
    log.info("bulk retries applied while a single one was in line: median %d", overtaken)
    assert overtaken < BULK / 10


# How many bulk retries were applied between asking for a single one and applying it: as many as the queue holds, if it
# stood behind them. Seconds would say how busy the machine is, too; they are what `make bench` measures.
_BULK_BETWEEN = """
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY between_them)
FROM (
    SELECT (
        SELECT count(*) FROM redrive.retry_requests AS bulk
        WHERE bulk.batch_id IS NOT NULL AND bulk.processed_at BETWEEN single.requested_at AND single.processed_at
    ) AS between_them
    FROM redrive.retry_requests AS single
    WHERE single.batch_id IS NULL
        AND single.requested_at BETWEEN
            (SELECT min(processed_at) FROM redrive.retry_requests WHERE batch_id IS NOT NULL)
            AND (SELECT max(processed_at) FROM redrive.retry_requests WHERE batch_id IS NOT NULL)
) AS counted
"""


async def bulk_accepted(redrive: Deployment) -> str | None:
    """Where the batch is found; None where the machine is too busy for it now, and the client is told to come again."""
    async with redrive.client.post(
        "/api/jobs/retry?dry_run=false",
        json={"filter": {}, "max": BULK, "reason": "all of them"},
        headers={"Authorization": f"Bearer {operator('p-bulk')}", "Idempotency-Key": "all"},
    ) as answer:
        body = await answer.json()
        assert answer.status in {202, 503}, body
        if answer.status == 503:
            return None
        assert body["data"]["accepted"] == BULK
        return answer.headers["Location"]


async def bulk_done(redrive: Deployment, location: str) -> None:
    async with asyncio.timeout(60):
        while True:
            async with redrive.client.get(
                location, headers={"Authorization": f"Bearer {operator('p-bulk')}", "Prefer": "wait=5"}
            ) as answer:
                if (await answer.json())["data"]["done"]:
                    return


async def retried(redrive: Deployment, job: MadeJob) -> float:
    """Seconds from asking for a retry until the client hears that it is applied."""
    began = time.monotonic()
    async with redrive.client.post(path_of(job)) as answer:
        assert answer.status == 202
        location = answer.headers["Location"]
    async with redrive.client.get(location, headers={"Prefer": "wait=60"}) as answer:
        assert (await answer.json())["data"]["outcome"] == "applied"
    return time.monotonic() - began
