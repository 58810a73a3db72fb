"""A request that the database lets neither be applied nor be rejected is one letter, whichever way it came."""

import uuid
from collections.abc import Sequence

import pytest

from shared import topology
from shared.broker import connected
from shared.job_ids import UuidIds
from shared.messages import RetryMessage, encoded, packed
from shared.models import RetryId
from tests.commands import commanded
from tests.eventually import eventually
from tests.integration.test_refused_requests import REFUSE, queue
from tests.integration.test_several_requests import a_relay, fail_delivery
from tests.jobs import JobMaker
from tests.ledger import Ledger
from tests.logs import Log
from tests.queues import Letter, Queues
from tests.workers import a_worker
from worker.consumers import Consumer

LEDGER = {topology.LEDGER_HEADER: "1"}
NO_MARK = """
CREATE FUNCTION public.take_no_mark() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'no space left' USING ERRCODE = 'disk_full'; END $$;
CREATE TRIGGER take_no_mark BEFORE UPDATE ON redrive.retry_requests
    FOR EACH ROW WHEN (OLD.state = 'dead_lettered' AND NEW.state = 'dead_lettered')
    EXECUTE FUNCTION public.take_no_mark();
"""
"""Let the ledger fail to mark letters, as a server that is out of order does."""


async def poison_of(jobs: JobMaker) -> RetryMessage:
    """A request that has waited for ten seconds and cannot end but as a dead letter."""
    await jobs.pool.execute(REFUSE % "applied,blocked")
    message = await queue(jobs, await jobs.failed(), actor="refused")
    await jobs.pool.execute("UPDATE redrive.retry_requests SET requested_at = now() - interval '10 s'")
    return message


async def left_to_its_message(log: Log, message: RetryMessage) -> None:
    def left() -> bool:
        lines = [line for line in log.lines if line["event"] == "retry request left to its message"]
        return [line["request_id"] for line in lines] == [str(message.id)]

    await eventually(left, within_s=20, what="the worker has left it")


async def letters_of(queues: Queues, message: RetryMessage, count: int = 1) -> Sequence[Letter]:
    """The letters of a request, once there are as many, and nothing waits that may become another."""

    async def there() -> bool:
        return await queues.waiting(topology.RETRIES_DEAD) >= count

    await eventually(there, within_s=30, what="its letter")
    await eventually(queues.drained)
    letters = await queues.peek(topology.RETRIES_DEAD)
    assert {(letter.reason, *(request.id for request in letter.requests)) for letter in letters} == {
        ("refused by the database", message.id)
    }
    return letters


async def waiting_dead(queues: Queues, count: int) -> bool:
    return await queues.waiting(topology.RETRIES_DEAD) == count


async def has_letter(ledger: Ledger, message: RetryMessage) -> bool:
    dead = await ledger.settlement.dead_among([message.id])
    return dead[message.id].has_letter


async def dead_lettered_as(jobs: JobMaker, message: RetryMessage) -> tuple[object, object]:
    row = await jobs.ledger_row(message.id)
    assert row is not None
    return row["state"], row["outcome"]


async def test_poison_that_was_never_published_is_one_letter_that_can_be_redriven(
    database_url: str, amqp_url: str, jobs: JobMaker, ledger: Ledger, queues: Queues, *, log: Log
) -> None:
    message = await poison_of(jobs)
    settings = {"DATABASE_URL": database_url, "AMQP_URL": amqp_url}
    async with a_worker(database_url, f"{amqp_url},{amqp_url}") as worker:
        await left_to_its_message(log, message)
        assert await dead_lettered_as(jobs, message) == ("queued", None)
        async with a_relay(ledger, amqp_url):
            assert len(await letters_of(queues, message)) == 1
        assert await dead_lettered_as(jobs, message) == ("dead_lettered", "poison")
        assert await worker.metric("redrive_requests_bypassed_total") == 1

        (listed,) = (await commanded("dead", "list", "--json", **settings)).json
        assert (listed["id"], listed["state"]) == (str(message.id), "dead_lettered")
        assert listed["reason"] == "refused by the database"
        await jobs.pool.execute("DROP TRIGGER refuse ON redrive.retry_requests")
        assert (await commanded("dead", "redrive", "--max", "10", **settings)).status == 0
        await eventually(lambda: jobs.outcome_of(message.id))
    assert await dead_lettered_as(jobs, message) == ("applied", "applied")
    assert await queues.waiting(topology.RETRIES_DEAD) == 0


async def test_poison_whose_message_is_held_up_is_one_letter_though_two_messages_come(
    database_url: str, amqp_url: str, jobs: JobMaker, ledger: Ledger, queues: Queues, *, log: Log
) -> None:
    message = await poison_of(jobs)
    (row,) = await ledger.outbox.lease(1, lease_s=30, bulk=False)
    await queues.publish(encoded(row.message), headers=LEDGER)
    async with connected(amqp_url, name="test") as connection:
        consumer = await Consumer.on(connection, topology.RETRIES, UuidIds(), prefetch=1)
        await consumer.inbox.take_batch(max_size=1, max_wait_s=0, timeout_s=10)
        await ledger.outbox.mark_published([row.lease])
        await jobs.pool.execute("UPDATE redrive.retry_requests SET published_at = now() - interval '10 s'")
        async with a_worker(database_url, f"{amqp_url},{amqp_url}"), a_relay(ledger, amqp_url):
            await left_to_its_message(log, message)
            assert len(await letters_of(queues, message)) == 1
            settled = len([line for line in log.lines if line["event"] == "retry batch settled"])
            await connection.close()  # its message is delivered now

            def settled_again() -> bool:
                return len([line for line in log.lines if line["event"] == "retry batch settled"]) > settled

            await eventually(settled_again)
            assert len(await letters_of(queues, message)) == 1


async def test_two_messages_in_one_batch_are_one_letter(
    database_url: str, amqp_url: str, jobs: JobMaker, ledger: Ledger, queues: Queues
) -> None:
    message = await poison_of(jobs)
    (row,) = await ledger.outbox.lease(1, lease_s=30, bulk=False)
    for _ in range(2):
        await queues.publish(encoded(row.message), headers=LEDGER)
    await ledger.outbox.mark_published([row.lease])
    async with a_worker(database_url, amqp_url):
        assert len(await letters_of(queues, message)) == 1


async def test_a_relay_that_marks_late_leaves_the_letter_due(jobs: JobMaker, ledger: Ledger) -> None:
    message = await poison_of(jobs)
    (row,) = await ledger.outbox.lease(1, lease_s=30, bulk=False)
    await ledger.settlement.dead_letter([message.id])
    await ledger.outbox.mark_published([row.lease])
    dead = await ledger.settlement.dead_among([message.id, RetryId(uuid.uuid4())])
    assert [(each, found.has_letter) for each, found in dead.items()] == [(message.id, False)]

    await ledger.settlement.mark_letters(dead)
    assert await has_letter(ledger, message)


async def test_a_request_whose_letter_is_there_is_given_up_and_marked_at_once(jobs: JobMaker, ledger: Ledger) -> None:
    message = await poison_of(jobs)
    await ledger.settlement.dead_letter([message.id], have_letters=True)
    assert await has_letter(ledger, message)


@pytest.mark.parametrize("together", [False, True])
async def test_a_crash_between_giving_up_and_the_letter_leaves_a_letter(
    database_url: str, amqp_url: str, jobs: JobMaker, ledger: Ledger, queues: Queues, *, together: bool
) -> None:
    """As of a worker that has dead-lettered the request and died: its message comes again."""
    message = await poison_of(jobs)
    (row,) = await ledger.outbox.lease(1, lease_s=30, bulk=False)
    messages = [row.message, await queue(jobs, await jobs.failed())][: 2 if together else 1]
    ((body, _),) = packed(messages)
    await queues.publish(body, headers=LEDGER)
    await fail_delivery(amqp_url)
    await ledger.settlement.dead_letter([message.id])

    async with a_worker(database_url, amqp_url), a_relay(ledger, amqp_url):
        assert len(await letters_of(queues, message)) == 1
        await eventually(lambda: has_letter(ledger, message))


async def test_a_mark_that_comes_after_the_request_was_redriven_leaves_the_next_letter_due(
    database_url: str, amqp_url: str, jobs: JobMaker, ledger: Ledger, queues: Queues
) -> None:
    """As of a worker that stalls between the letter and its mark, and of another that dies before the next letter."""
    message = await poison_of(jobs)
    (row,) = await ledger.outbox.lease(1, lease_s=30, bulk=False)
    await ledger.settlement.dead_letter([message.id])
    seen = await ledger.settlement.dead_among([message.id])
    marked = {**LEDGER, topology.REASON_HEADER: "refused by the database"}
    await queues.publish(encoded(row.message), key=topology.KEY_DEAD, headers=marked)
    await eventually(lambda: waiting_dead(queues, 1))
    settings = {"DATABASE_URL": database_url, "AMQP_URL": amqp_url}
    assert (await commanded("dead", "redrive", "--max", "1", **settings)).status == 0
    assert await dead_lettered_as(jobs, message) == ("queued", None)
    await ledger.settlement.dead_letter([message.id])

    await ledger.settlement.mark_letters(seen)

    assert not await has_letter(ledger, message)
    async with a_worker(database_url, amqp_url):
        assert len(await letters_of(queues, message)) == 1
        await eventually(lambda: has_letter(ledger, message))


async def test_a_mark_that_the_database_does_not_take_brings_nothing_again(
    database_url: str, amqp_url: str, jobs: JobMaker, ledger: Ledger, queues: Queues, *, log: Log
) -> None:
    await jobs.pool.execute(NO_MARK)
    message = await poison_of(jobs)
    (row,) = await ledger.outbox.lease(1, lease_s=30, bulk=False)
    await queues.publish(b"unreadable")
    await queues.publish(encoded(row.message), headers=LEDGER)
    await ledger.outbox.mark_published([row.lease])
    async with a_worker(database_url, amqp_url, worker_batch_wait=1) as worker:
        await eventually(lambda: waiting_dead(queues, 2))
        await worker.sampled("redrive_messages_unreadable_total", 1)
        await eventually(queues.drained)

    assert (await queues.drained(), await queues.waiting(topology.RETRIES_DEAD)) == (True, 2)
    assert not await has_letter(ledger, message)
    lines = [line for line in log.lines if line["event"] == "messages dead-lettered"]
    assert sum(line["messages"] for line in lines) == 2
    assert "session lost" not in {line["event"] for line in log.lines}


async def test_a_request_whose_letter_is_purged_before_it_is_marked_becomes_no_other(
    database_url: str, amqp_url: str, jobs: JobMaker, ledger: Ledger, queues: Queues, *, log: Log
) -> None:
    message = await poison_of(jobs)
    (row,) = await ledger.outbox.lease(1, lease_s=30, bulk=False)
    await ledger.settlement.dead_letter([message.id])
    await queues.publish(encoded(row.message), key=topology.KEY_DEAD, headers=LEDGER)
    await eventually(lambda: waiting_dead(queues, 1))

    settings = {"DATABASE_URL": database_url, "AMQP_URL": amqp_url}
    assert (await commanded("dead", "purge", "--yes", "--json", **settings)).json == [{"purged": 1}]

    assert await has_letter(ledger, message)
    await queues.publish(encoded(row.message), headers=LEDGER)
    async with a_worker(database_url, amqp_url):
        await eventually(lambda: "retry batch settled" in {line["event"] for line in log.lines})
        await eventually(queues.drained)
    assert await queues.waiting(topology.RETRIES_DEAD) == 0
