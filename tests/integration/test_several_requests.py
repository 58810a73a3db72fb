"""Messages of several requests: packed by the relay, settled one by one, and taken apart where one may be at fault."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aio_pika
import msgspec
import pytest
from prometheus_client import CollectorRegistry

from api.metrics import Metrics as ApiMetrics
from api.relay import Relay
from shared import topology
from shared.broker import connected
from shared.failpoints import Failpoint
from shared.job_ids import UuidIds
from shared.messages import MOST_REQUESTS, LedgerMessage, RetryMessage, encoded, packed
from shared.models import Outcome
from tests.acceptance.programs import Program
from tests.commands import commanded
from tests.eventually import eventually
from tests.jobs import JobMaker, MadeJob, a_message_for, a_retry_of
from tests.ledger import Ledger
from tests.logs import Log
from tests.queues import Letter, Queues
from tests.workers import a_worker
from worker.consumers import MOST_BYTES, Consumer

LEDGER = {topology.LEDGER_HEADER: "1"}


def together(*requests: object) -> bytes:
    """A message of these requests, whatever they are."""
    return msgspec.json.encode({"v": 2, "requests": requests})


def _fields(message: RetryMessage) -> dict[str, object]:
    fields: dict[str, object] = json.loads(encoded(message))
    del fields["v"]
    return fields


@asynccontextmanager
async def a_relay(ledger: Ledger, amqp_url: str) -> AsyncIterator[None]:
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(Relay(ledger.outbox, amqp_url, ApiMetrics(CollectorRegistry())).run(stop=stop))
        try:
            yield
        finally:
            stop.set()


async def accepted(ledger: Ledger, failed: Sequence[MadeJob]) -> None:
    await asyncio.gather(*(ledger.retries.accept(a_retry_of(job)) for job in failed))


async def published_together(ledger: Ledger, jobs: JobMaker, queues: Queues, count: int) -> list[MadeJob]:
    """Accept retries, and publish them in one message, as a relay does."""
    failed = await jobs.many_failed(count)
    await accepted(ledger, failed)
    rows = await ledger.outbox.lease(count, lease_s=30, bulk=False)
    ((body, held),) = packed([row.message for row in rows])
    assert held == count
    await queues.publish(body, headers=LEDGER)
    await ledger.outbox.mark_published([row.lease for row in rows])
    return failed


async def fail_delivery(amqp_url: str) -> None:
    """Take what waits, and lose the connection: as a worker that is killed."""
    async with connected(amqp_url, name="test") as connection:
        consumer = await Consumer.on(connection, topology.RETRIES, UuidIds(), prefetch=100)
        await consumer.inbox.take_batch(max_size=1, max_wait_s=0, timeout_s=10)


async def all_put_back(jobs: JobMaker, failed: Sequence[MadeJob]) -> bool:
    return await jobs.effects(list(failed)) == [1] * len(failed)


async def dead(queues: Queues, count: int) -> list[Letter]:
    async def holds() -> bool:
        return await queues.waiting(topology.RETRIES_DEAD) >= count

    await eventually(holds, what=f"{count} dead letters")
    return await queues.take_dead()


async def waits(queues: Queues, count: int) -> bool:
    return await queues.waiting() == count


async def test_what_waits_together_travels_together_and_within_the_bounds(
    ledger: Ledger, jobs: JobMaker, queues: Queues, amqp_url: str
) -> None:
    failed = await jobs.many_failed(250)
    await accepted(ledger, failed)

    async with a_relay(ledger, amqp_url):
        await eventually(lambda: _none_unpublished(jobs))

    letters = await queues.peek(topology.RETRIES)
    assert [len(letter.requests) for letter in letters] == [100, 100, 50]
    assert {request.job_id for letter in letters for request in letter.requests} == {job.id for job in failed}
    assert all(letter.headers[topology.LEDGER_HEADER] for letter in letters)
    body = json.loads(letters[0].body)
    assert body.keys() == {"v", "requests"}
    assert body["v"] == 2
    assert "v" not in body["requests"][0]


async def _none_unpublished(jobs: JobMaker) -> bool:
    return not await jobs.pool.fetchval("SELECT count(*) FROM redrive.retry_requests WHERE published_at IS NULL")


async def test_a_request_that_waits_alone_is_a_message_of_its_own(
    ledger: Ledger, jobs: JobMaker, queues: Queues, amqp_url: str
) -> None:
    await accepted(ledger, [await jobs.failed()])
    async with a_relay(ledger, amqp_url):
        await eventually(lambda: waits(queues, 1))

    (letter,) = await queues.peek(topology.RETRIES)
    assert json.loads(letter.body)["v"] == 1


async def test_requests_of_one_message_are_settled_each_on_its_own(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues
) -> None:
    failed = await jobs.many_failed(3)
    foreign = msgspec.structs.replace(a_message_for(await jobs.failed()), project_id="another")
    half = {"request_id": str(uuid.uuid4()), "project_id": "p1"}
    first, *others = (_fields(a_message_for(job)) for job in failed)
    async with a_worker(database_url, amqp_url) as worker:
        requests = (first, 7, first, _fields(foreign), half, *others)
        await queues.publish(together(*requests), headers={"traceparent": "00-x", "x-else": "y"})
        letters = await dead(queues, 2)
        await eventually(lambda: all_put_back(jobs, failed))
        await worker.sampled("redrive_messages_unreadable_total", 2)

    assert await jobs.outcome_of(foreign.id) == Outcome.JOB_NOT_FOUND
    assert sorted((letter.body, letter.reason) for letter in letters) == [
        (b"7", "Expected `object`, got `int`"),
        (msgspec.json.encode({"v": 1, **half}), "Object missing required field `job_id`"),
    ]
    assert all("traceparent" in letter.headers and "x-else" not in letter.headers for letter in letters)
    assert await queues.waiting() == 0


async def test_of_more_than_a_hundred_requests_a_hundred_are_settled(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues
) -> None:
    failed = await jobs.many_failed(MOST_REQUESTS + 1)
    messages = [a_message_for(job) for job in failed]
    async with a_worker(database_url, amqp_url):
        await queues.publish(together(*map(_fields, messages)))
        (letter,) = await dead(queues, 1)
        await eventually(lambda: all_put_back(jobs, failed[:MOST_REQUESTS]))

    assert (list(letter.requests), letter.reason) == ([messages[-1]], "over 100 requests in a message")
    assert await jobs.effects_of(failed[-1]) == 0


async def test_one_poison_among_a_hundred_is_one_letter_and_ninety_nine_retries(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues
) -> None:
    failed = await jobs.many_failed(99)
    requests: list[object] = [_fields(a_message_for(job)) for job in failed]
    requests.insert(50, {"request_id": "poison", "project_id": "p1"})
    async with a_worker(database_url, amqp_url, worker_batch_size=40):
        await queues.publish(together(*requests))
        (letter,) = await dead(queues, 1)
        await eventually(lambda: all_put_back(jobs, failed))

    assert json.loads(letter.body) == {"v": 1, "request_id": "poison", "project_id": "p1"}
    assert letter.reason == "Invalid UUID (at request_id)"
    assert await queues.waiting() == 0


async def test_a_request_that_the_ledger_cannot_write_is_dead_lettered_alone(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues
) -> None:
    good, bad = await jobs.many_failed(2)
    await jobs.pool.execute("ALTER TABLE redrive.retry_requests ADD CHECK (actor <> 'refused')")
    refused = msgspec.structs.replace(a_message_for(bad), actor="refused")
    async with a_worker(database_url, amqp_url):
        await queues.publish(together(_fields(refused), _fields(a_message_for(good))))
        (letter,) = await dead(queues, 1)
        await eventually(lambda: all_put_back(jobs, [good]))

    assert (letter.body, letter.reason) == (encoded(refused), "refused by the database")


async def test_a_message_that_was_delivered_before_is_taken_apart(
    database_url: str, amqp_url: str, ledger: Ledger, jobs: JobMaker, queues: Queues, *, log: Log
) -> None:
    failed = await published_together(ledger, jobs, queues, 30)
    await fail_delivery(amqp_url)
    async with a_worker(database_url, amqp_url) as worker:
        await eventually(lambda: waits(queues, 0))
        await worker.stop()
        assert await jobs.effects(failed) == [0] * 30
    assert [line["queued"] for line in log.lines if line["event"] == "messages taken apart"] == [30]

    async with a_relay(ledger, amqp_url):
        await eventually(lambda: waits(queues, 30))
    letters = await queues.peek(topology.RETRIES)
    assert [(json.loads(letter.body)["v"], len(letter.requests)) for letter in letters] == [(1, 1)] * 30
    async with a_worker(database_url, amqp_url):
        await eventually(lambda: all_put_back(jobs, failed))


async def test_a_message_of_one_request_is_never_taken_apart(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues
) -> None:
    job = await jobs.failed()
    await queues.publish(a_message_for(job))
    await fail_delivery(amqp_url)
    async with a_worker(database_url, amqp_url):
        await eventually(lambda: all_put_back(jobs, [job]))


async def test_what_is_settled_stays_settled_where_its_message_is_taken_apart(ledger: Ledger, jobs: JobMaker) -> None:
    settled, cancelled, waiting = await jobs.many_failed(3)
    await accepted(ledger, [settled, cancelled, waiting])
    rows = {row.message.job_id: row for row in await ledger.outbox.lease(3, lease_s=30, bulk=False)}
    await ledger.settlement.apply([rows[settled.id].message])
    await jobs.pool.execute(
        "UPDATE redrive.retry_requests SET state = 'cancelled', outcome = 'cancelled', processed_at = now() "
        "WHERE job_id = $1",
        cancelled.id,
    )
    messages = [
        LedgerMessage(**{name: getattr(row.message, name) for name in row.message.__struct_fields__})
        for row in rows.values()
    ]

    for _ in range(2):
        assert await ledger.settlement.take_apart(messages) == {rows[waiting.id].message.id: None}

    (leased,) = await ledger.outbox.lease(3, lease_s=30, bulk=False)
    assert (leased.message.job_id, leased.alone) == (waiting.id, True)
    await ledger.outbox.mark_published([rows[waiting.id].lease])  # the lease of the relay that published them together
    await ledger.outbox.give_back([leased.lease])
    assert [each.alone for each in await ledger.outbox.lease(3, lease_s=30, bulk=False)] == [True]


async def test_another_program_s_message_is_taken_apart_into_the_ledger(
    database_url: str, amqp_url: str, ledger: Ledger, jobs: JobMaker, queues: Queues
) -> None:
    failed = await jobs.many_failed(3)
    queued, *others = failed
    await accepted(ledger, [queued])
    messages = [a_message_for(job) for job in failed]
    await queues.publish(together(*map(_fields, messages)))
    await fail_delivery(amqp_url)

    async with a_worker(database_url, amqp_url), a_relay(ledger, amqp_url):
        await eventually(lambda: all_put_back(jobs, failed))
        await eventually(queues.drained)

    assert await jobs.outcome_of(messages[0].id) == Outcome.SUPERSEDED
    assert [await jobs.outcome_of(message.id) for message in messages[1:]] == [Outcome.APPLIED] * len(others)


async def test_what_the_ledger_refuses_of_a_message_that_is_taken_apart_is_one_letter(
    database_url: str, amqp_url: str, ledger: Ledger, jobs: JobMaker, queues: Queues
) -> None:
    good, bad = await jobs.many_failed(2)
    await jobs.pool.execute("ALTER TABLE redrive.retry_requests ADD CHECK (actor <> 'refused')")
    refused = msgspec.structs.replace(a_message_for(bad), actor="refused")
    await queues.publish(together(_fields(refused), _fields(a_message_for(good)), 7))
    await fail_delivery(amqp_url)
    async with a_worker(database_url, amqp_url), a_relay(ledger, amqp_url):
        letters = await dead(queues, 2)
        await eventually(lambda: all_put_back(jobs, [good]))

    assert sorted(letter.body for letter in letters) == [b"7", encoded(refused)]


@pytest.mark.parametrize(
    "point",
    [
        Failpoint.AFTER_RECEIVE,
        Failpoint.IN_TRANSACTION,
        Failpoint.BEFORE_COMMIT,
        Failpoint.AFTER_COMMIT,
        Failpoint.BEFORE_ACK,
    ],
)
async def test_a_crash_while_a_message_is_taken_apart_loses_nothing_and_doubles_nothing(
    database_url: str, amqp_url: str, ledger: Ledger, jobs: JobMaker, queues: Queues, *, point: Failpoint
) -> None:
    failed = await published_together(ledger, jobs, queues, 50)
    await fail_delivery(amqp_url)
    settings = {"DATABASE_URL": database_url, "AMQP_URL": amqp_url, "FAILPOINT": str(point)}
    async with Program.started("worker", **settings) as doomed:
        assert await doomed.ended(within_s=60) == -9
        assert f'"failpoint":"{point}"' in doomed.err
    assert await jobs.effects(failed) == [0] * 50

    async with a_worker(database_url, amqp_url), a_relay(ledger, amqp_url):
        await eventually(lambda: all_put_back(jobs, failed), within_s=30)
        await eventually(queues.drained)
    assert await queues.waiting(topology.RETRIES_DEAD) == 0


async def test_a_message_that_was_given_up_is_taken_apart_by_the_watch(
    database_url: str, amqp_url: str, ledger: Ledger, jobs: JobMaker, queues: Queues
) -> None:
    """After twenty deliveries in which no worker came so far as to take it apart."""
    failed = await published_together(ledger, jobs, queues, 20)
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        queue = await channel.get_queue(topology.RETRIES, ensure=False)
        while (message := await queue.get(fail=False)) is not None:
            await message.reject(requeue=True)

    async with a_worker(database_url, amqp_url), a_relay(ledger, amqp_url):
        await eventually(lambda: all_put_back(jobs, failed), within_s=30)
    assert await queues.waiting(topology.RETRIES_DEAD) == 0


async def test_what_a_worker_of_before_could_not_read_is_settled_after_its_upgrade(
    database_url: str, amqp_url: str, ledger: Ledger, jobs: JobMaker, queues: Queues
) -> None:
    """An api that is upgraded before the workers: they dead-letter its messages of several requests."""
    failed = await published_together(ledger, jobs, queues, 20)
    (letter,) = await queues.peek(topology.RETRIES)
    await queues.publish(
        letter.body, key=topology.KEY_DEAD, headers=LEDGER | {topology.REASON_HEADER: "unknown version"}
    )
    await queues.delete(topology.RETRIES)

    async with a_worker(database_url, amqp_url), a_relay(ledger, amqp_url):
        await eventually(lambda: all_put_back(jobs, failed), within_s=30)
    assert await queues.waiting(topology.RETRIES_DEAD) == 0


async def test_a_letter_of_several_requests_is_listed_and_redriven_as_one(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues
) -> None:
    failed = await jobs.many_failed(3)
    body = together(*(_fields(a_message_for(job)) for job in failed))
    await queues.publish(body, key=topology.KEY_DEAD)
    settings = {"DATABASE_URL": database_url, "AMQP_URL": amqp_url}
    (listed,) = (await commanded("dead", "list", "--json", **settings)).json
    assert (listed["requests"], listed["job_id"], listed["state"], listed["bytes"]) == (3, None, None, len(body))
    done = await commanded("dead", "redrive", "--max", "10", **settings)
    assert done.out.startswith("1 redriven")
    async with a_worker(database_url, amqp_url):
        await eventually(lambda: all_put_back(jobs, failed))
    assert await queues.waiting(topology.RETRIES_DEAD) == 0


async def test_what_is_in_hand_is_bounded_in_bytes(amqp_url: str, queues: Queues) -> None:
    count, size = 48, 1_000_000
    for number in range(count):
        await queues.publish(b"%04d" % number + b"x" * size)
    reading = asyncio.Event()
    reading.set()
    seen: list[bytes] = []
    async with connected(amqp_url, name="test", reading=reading) as connection:
        consumer = await Consumer.on(connection, topology.RETRIES, UuidIds(), prefetch=count, reading=reading)
        while len(seen) < count:
            batch = await consumer.inbox.take_batch(max_size=count, max_wait_s=0.5, timeout_s=10)
            assert sum(len(each.message.body) for each in batch) < MOST_BYTES + 3 * size
            seen += [each.message.body[:4] for each in batch]
            await consumer.ack(batch)
    assert seen == [b"%04d" % number for number in range(count)]
