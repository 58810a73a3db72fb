"""Dead letters: marked in the ledger, left where they are, and given a second chance that is no second effect."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import aio_pika
import pytest
from aio_pika.exceptions import ChannelNotFoundEntity
from prometheus_client import CollectorRegistry

from api.metrics import Metrics as ApiMetrics
from api.relay import Relay
from cli.operate.redriving import RedriveResult, purge, redrive
from shared import topology
from shared.database import Database
from shared.dead_letters import DeadLetters
from shared.errors import BrokerUnavailable
from shared.job_ids import UuidIds
from shared.messages import RetryMessage, encoded
from shared.models import RetryId
from tests.commands import commanded
from tests.eventually import eventually
from tests.jobs import JobMaker, MadeJob, a_message_for, a_retry_of
from tests.ledger import Ledger
from tests.queues import Queues
from tests.servers.rabbitmq import Rabbitmq
from tests.workers import a_worker
from worker.dead_letters import MOST_DELIVERIES, DeadLetter, DeadQueue
from worker.dead_watch import DeadWatch
from worker.metrics import Metrics

if TYPE_CHECKING:
    from pamqp.common import FieldValue


@pytest.fixture(autouse=True)
def _patient_with_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may need longer than a program waits."""
    for module in ("shared.broker", "worker.dead_letters"):
        monkeypatch.setattr(f"{module}.CALL_S", 60.0)


@pytest.fixture
def letters(database: Database) -> DeadLetters:
    return DeadLetters(database, UuidIds())


@pytest.fixture
async def watch(amqp_url: str, ledger: Ledger, letters: DeadLetters) -> DeadWatch:
    return DeadWatch(
        amqp_url,
        ledger.settlement,
        ledger.outbox,
        letters,
        Metrics(CollectorRegistry()),
        ids=UuidIds(),
        topology=topology.Topology(),
    )


class Office(NamedTuple):
    """Where dead letters are dealt with."""

    queue: DeadQueue
    letters: DeadLetters
    ledger: Ledger

    async def redrive(self, maximum: int = 100, *, dry_run: bool = False) -> list[RedriveResult]:
        """Redrive; the result for each letter that was looked at."""
        results = redrive(
            self.queue, self.letters, self.ledger.outbox, maximum, looking_at=1000, actor="operator", dry_run=dry_run
        )
        return [result async for result in results]


@pytest.fixture
async def office(amqp_url: str, queues: Queues, letters: DeadLetters, ledger: Ledger) -> AsyncIterator[Office]:
    assert queues is not None
    async with DeadQueue.opened(amqp_url, UuidIds(), name="test") as opened:
        yield Office(opened, letters, ledger)


async def published(
    ledger: Ledger,
    queues: Queues,
    job: MadeJob,
    *,
    key: str = topology.KEY_RETRY,
    headers: Mapping[str, str] | None = None,
) -> RetryMessage:
    """An accepted request, as the relay publishes it."""
    await ledger.retries.accept(a_retry_of(job))
    (row,) = await ledger.outbox.lease(1, lease_s=30, bulk=False)
    await queues.publish(row.message, key=key, headers=headers)
    await ledger.outbox.mark_published([row.lease])
    return row.message


async def long_ago(jobs: JobMaker, *ids: uuid.UUID) -> None:
    await jobs.pool.execute(
        "UPDATE redrive.retry_requests SET published_at = published_at - interval '2 h', "
        "requested_at = requested_at - interval '2 h' WHERE id = ANY ($1::uuid[])",
        ids,
    )


async def fail_deliveries(amqp_url: str, queues: Queues) -> None:
    """Let RabbitMQ give up on what waits, as after so many crashes."""
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        queue = await channel.get_queue(topology.RETRIES, ensure=False)
        while (message := await queue.get(fail=False)) is not None:
            await message.reject(requeue=True)
    await eventually(lambda: _dead(queues, 1))


async def _waits(queues: Queues, count: int) -> bool:
    try:
        return await queues.waiting() == count
    except ChannelNotFoundEntity:
        return False  # the queue is not there yet


async def _dead(queues: Queues, count: int) -> bool:
    return await queues.waiting(topology.RETRIES_DEAD) == count


async def state_of(jobs: JobMaker, request_id: uuid.UUID) -> str:
    row = await jobs.ledger_row(request_id)
    assert row is not None
    return str(row["state"])


async def dead_lettered(jobs: JobMaker, ledger: Ledger, queues: Queues, count: int = 1) -> list[RetryMessage]:
    """Requests that were given up, and their letters in the queue."""
    failed = await jobs.many_failed(count)
    messages = [await published(ledger, queues, job, key=topology.KEY_DEAD) for job in failed]
    await ledger.settlement.dead_letter([message.id for message in messages])
    await eventually(lambda: _dead(queues, count))
    return messages


# -- marking


async def test_a_request_that_rabbitmq_gave_up_on_is_marked_and_its_letter_stays(
    database_url: str, amqp_url: str, jobs: JobMaker, ledger: Ledger, queues: Queues
) -> None:
    message = await published(ledger, queues, await jobs.failed())
    await fail_deliveries(amqp_url, queues)
    await queues.publish(b"unreadable", key=topology.KEY_DEAD, headers={topology.REASON_HEADER: "not JSON"})
    await long_ago(jobs, message.id)

    async with a_worker(database_url, amqp_url) as worker:
        assert await eventually(lambda: jobs.outcome_of(message.id)) == "poison"
        await worker.sampled("redrive_retries_settled_total", 1, outcome="poison")
        await eventually(lambda: _dead(queues, 2))

    assert await state_of(jobs, message.id) == "dead_lettered"
    dead = {letter.body: letter for letter in await queues.take_dead()}
    assert dead[b"unreadable"].reason == "not JSON"
    assert await jobs.all_effects() == 0


async def test_a_request_that_is_not_overdue_keeps_its_second_chance(
    watch: DeadWatch, jobs: JobMaker, ledger: Ledger, queues: Queues
) -> None:
    fresh = await published(ledger, queues, await jobs.failed(), key=topology.KEY_DEAD)
    overdue = await published(
        ledger, queues, await jobs.failed(), key=topology.KEY_DEAD, headers={topology.REASON_HEADER: "refused"}
    )
    await long_ago(jobs, overdue.id)
    await eventually(lambda: _dead(queues, 2))

    await watch.look()

    assert await state_of(jobs, fresh.id) == "queued"
    assert await state_of(jobs, overdue.id) == "dead_lettered"


@pytest.mark.parametrize(
    "limit", [{"message-ttl": 50}, {"max-length": 0, "overflow": "drop-head"}], ids=["expired", "maxlen"]
)
async def test_what_expired_or_was_dropped_is_published_again_and_its_letter_removed(  # noqa: PLR0917 - fixtures
    watch: DeadWatch,
    jobs: JobMaker,
    ledger: Ledger,
    queues: Queues,
    rabbitmq: Rabbitmq,
    amqp_url: str,
    limit: dict[str, object],
) -> None:
    assert rabbitmq.management_url is not None
    vhost = urlsplit(amqp_url).path[1:]
    message, neighbour = [await published(ledger, queues, await jobs.failed()) for _ in range(2)]
    async with await aio_pika.connect(amqp_url) as connection:  # such a queue as an operator's policy makes of ours
        channel = await connection.channel(publisher_confirms=True)
        arguments: dict[str, FieldValue] = {
            "x-dead-letter-exchange": "redrive",
            "x-dead-letter-routing-key": "retry.dead",
        }
        await channel.declare_queue("limited", durable=True, arguments=arguments)
        policy = {"pattern": "^limited$", "definition": limit, "apply-to": "queues"}
        await rabbitmq.manage("PUT", f"/api/policies/{vhost}/limited", policy)
        await asyncio.sleep(0.1)
        await channel.default_exchange.publish(aio_pika.Message(encoded(message)), "limited")
    await eventually(lambda: _dead(queues, 1))
    await long_ago(jobs, message.id, neighbour.id)

    await watch.look()

    assert await state_of(jobs, message.id) == "queued"
    assert [row.message.id for row in await ledger.outbox.lease(9, lease_s=30, bulk=False)] == [message.id]
    await eventually(lambda: _dead(queues, 0))


async def test_what_is_in_no_queue_any_more_is_published_again_by_a_worker_that_waits_for_it(
    database_url: str, amqp_url: str, jobs: JobMaker, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.dead_watch.LOST_S", 0.2)
    monkeypatch.setattr("worker.dead_watch.EVERY_S", 0.1)
    await ledger.retries.accept(a_retry_of(await jobs.failed()))
    (row,) = await ledger.outbox.lease(1, lease_s=30, bulk=False)
    await ledger.outbox.mark_published([row.lease])
    await long_ago(jobs, row.message.id)

    async def is_unpublished() -> bool:
        found = await jobs.ledger_row(row.message.id)
        return found is not None and found["published_at"] is None

    async with a_worker(database_url, amqp_url):
        await eventually(is_unpublished)


async def test_what_a_busy_queue_has_passed_by_is_published_again_alone_and_once(  # noqa: PLR0917 - fixtures
    database_url: str,
    amqp_url: str,
    jobs: JobMaker,
    ledger: Ledger,
    queues: Queues,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after a failover to a standby that lacks the commit that settled it, while others are retried all the time."""
    monkeypatch.setattr("worker.dead_watch.LOST_S", 3600.0)  # so that no pause of this test is idleness
    monkeypatch.setattr("worker.dead_watch.PASSED_S", 0.1)
    monkeypatch.setattr("worker.dead_watch.EVERY_S", 0.1)
    lost, again = [(await ledger.retries.accept(a_retry_of(job))).retry.id for job in await jobs.many_failed(2)]
    await ledger.outbox.mark_published([row.lease for row in await ledger.outbox.lease(2, lease_s=30, bulk=False)])
    await jobs.pool.execute("UPDATE redrive.retry_requests SET publish_alone = true WHERE id = $1", again)
    await long_ago(jobs, lost, again)

    async with a_worker(database_url, amqp_url):
        await published(ledger, queues, await jobs.failed(), headers={topology.LEDGER_HEADER: "1"})
        await eventually(lambda: unpublished_alone(jobs, lost))
        assert not await unpublished_alone(jobs, again)


async def unpublished_alone(jobs: JobMaker, request_id: uuid.UUID) -> bool:
    found = await jobs.ledger_row(request_id)
    assert found is not None
    return found["published_at"] is None and found["publish_alone"]


async def test_a_letter_of_a_settled_request_changes_nothing(
    watch: DeadWatch, jobs: JobMaker, ledger: Ledger, queues: Queues
) -> None:
    message = await published(ledger, queues, await jobs.failed(), key=topology.KEY_DEAD)
    await ledger.settlement.apply([message])
    await long_ago(jobs, message.id)
    await eventually(lambda: _dead(queues, 1))

    await watch.look()

    assert await state_of(jobs, message.id) == "applied"


async def test_letters_are_looked_up_as_they_are_read_and_their_bodies_not_kept(  # noqa: PLR0917 - fixtures
    watch: DeadWatch,
    jobs: JobMaker,
    ledger: Ledger,
    queues: Queues,
    letters: DeadLetters,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    messages = [
        await published(ledger, queues, job, key=topology.KEY_DEAD, headers={topology.REASON_HEADER: "refused"})
        for job in await jobs.many_failed(5)
    ]
    await long_ago(jobs, *(message.id for message in messages))
    await eventually(lambda: _dead(queues, 5))
    together: list[int] = []
    overdue_among = letters.overdue_among

    async def counted(ids: Sequence[RetryId], age_s: float) -> list[RetryId]:
        together.append(len(ids))
        return await overdue_among(ids, age_s)

    monkeypatch.setattr(letters, "overdue_among", counted)
    monkeypatch.setattr("worker.dead_watch.LOOKED_UP_BYTES", 2 * len(encoded(messages[0])) - 8)

    await watch.look()

    assert together == [2, 2, 1]
    assert {await state_of(jobs, message.id) for message in messages} == {"dead_lettered"}
    await eventually(lambda: _dead(queues, 5))


async def test_letters_to_be_published_anew_are_bounded_and_the_next_reader_begins_with_the_others(
    amqp_url: str, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.dead_letters.MOST_DELIVERIES", 0)
    monkeypatch.setattr("worker.dead_letters.WORN_BYTES", 7)
    for number in range(5):
        await queues.publish(b"%04d" % number, key=topology.KEY_DEAD, headers={topology.REASON_HEADER: "refused"})
    read: list[list[bytes]] = []
    for _ in range(3):
        await eventually(lambda: _dead(queues, 5))
        async with DeadQueue.opened(amqp_url, UuidIds(), name="test") as queue:
            read.append([letter.body async for letter in queue.letters(100)])
            await queue.give_back()

    assert read == [[b"0000", b"0001"], [b"0002", b"0003"], [b"0004", b"0000"]]


async def test_a_reader_that_removes_letters_reads_on(
    amqp_url: str, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.dead_letters.MOST_DELIVERIES", 0)
    monkeypatch.setattr("worker.dead_letters.WORN_BYTES", 7)
    for number in range(5):
        await queues.publish(b"%04d" % number, key=topology.KEY_DEAD)
    await eventually(lambda: _dead(queues, 5))
    async with DeadQueue.opened(amqp_url, UuidIds(), name="test") as queue:
        async for letter in queue.letters(100):
            await queue.ack(letter)

    assert await queues.waiting(topology.RETRIES_DEAD) == 0


async def test_looking_never_wears_a_letter_out(amqp_url: str, queues: Queues) -> None:
    for number in range(3):
        await queues.publish(b"%d" % number, key=topology.KEY_DEAD, headers={topology.REASON_HEADER: f"r{number}"})
    seen: list[DeadLetter] = []
    for _ in range(3 * MOST_DELIVERIES):
        await eventually(lambda: _dead(queues, 3))
        async with DeadQueue.opened(amqp_url, UuidIds(), name="test") as queue:
            seen = [letter async for letter in queue.letters(100)]
            await queue.give_back()
        assert len(seen) == 3
        assert max(letter.deliveries for letter in seen) <= MOST_DELIVERIES

    assert {(letter.body, letter.reason) for letter in seen} == {(b"%d" % n, f"r{n}") for n in range(3)}
    await eventually(lambda: _dead(queues, 3))


async def look_and_break_off(amqp_url: str) -> None:
    async with DeadQueue.opened(amqp_url, UuidIds(), name="test") as queue:
        assert len([letter async for letter in queue.letters(2)]) == 2
        raise ConnectionResetError


async def test_what_is_in_hand_when_a_look_breaks_off_is_not_lost(amqp_url: str, queues: Queues) -> None:
    for number in range(3):
        await queues.publish(b"%d" % number, key=topology.KEY_DEAD)
    with pytest.raises(BrokerUnavailable):
        await look_and_break_off(amqp_url)

    await eventually(lambda: _dead(queues, 3))
    assert sorted(letter.body for letter in await queues.take_dead()) == [b"0", b"1", b"2"]


async def test_a_letter_says_why_it_is_here(amqp_url: str, office: Office, queues: Queues) -> None:
    await queues.publish(b"{}")
    await fail_deliveries(amqp_url, queues)
    await queues.publish(b"?", key=topology.KEY_DEAD, headers={topology.REASON_HEADER: "not JSON"})
    await queues.publish(b"!", key=topology.KEY_DEAD)
    await eventually(lambda: _dead(queues, 3))

    found = {letter.body: letter async for letter in office.queue.letters(10)}
    assert found[b"{}"].reason == "delivered too often without being settled"
    assert found[b"?"].reason == "not JSON"
    assert found[b"!"].reason == "unknown"
    assert len({letter.id for letter in found.values()}) == 3


# -- redriving


async def test_a_redriven_request_is_applied_once(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues, office: Office
) -> None:
    messages = await dead_lettered(jobs, office.ledger, queues, 5)

    async def settled() -> bool:
        return {await jobs.outcome_of(message.id) for message in messages} == {"applied"}

    assert await office.redrive() == [RedriveResult.REDRIVEN] * 5
    assert await queues.waiting(topology.RETRIES_DEAD) == 0
    async with a_worker(database_url, amqp_url):
        await eventually(settled)
    assert await jobs.all_effects() == 5
    assert await office.ledger.outbox.lease(10, lease_s=1, bulk=False) == []  # redriving has published it


async def test_redriving_a_dead_letter_whose_job_has_moved_on_is_superseded(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues, office: Office
) -> None:
    (message,) = await dead_lettered(jobs, office.ledger, queues)
    (made,) = await jobs.pool.fetch("SELECT id FROM control_plane.jobs")
    await jobs.pool.execute("UPDATE control_plane.jobs SET last_error = 'a later failure' WHERE id = $1", made["id"])

    await office.redrive()
    async with a_worker(database_url, amqp_url):
        assert await eventually(lambda: jobs.outcome_of(message.id)) == "superseded"
    assert await jobs.all_effects() == 0


async def test_a_dry_run_changes_nothing(jobs: JobMaker, queues: Queues, office: Office) -> None:
    (message,) = await dead_lettered(jobs, office.ledger, queues)
    await queues.publish(b"unreadable", key=topology.KEY_DEAD)
    await eventually(lambda: _dead(queues, 2))

    assert await office.redrive(dry_run=True) == [RedriveResult.REDRIVEN, RedriveResult.UNREADABLE]
    await eventually(lambda: _dead(queues, 2))
    assert await state_of(jobs, message.id) == "dead_lettered"
    assert await queues.waiting() == 0


async def test_no_more_are_redriven_than_asked_and_the_others_stay(
    jobs: JobMaker, queues: Queues, office: Office
) -> None:
    await queues.publish(b"unreadable", key=topology.KEY_DEAD, headers={topology.REASON_HEADER: "not JSON"})
    await eventually(lambda: _dead(queues, 1))
    for job in await jobs.many_failed(4):
        await office.ledger.settlement.dead_letter(
            [(await published(office.ledger, queues, job, key=topology.KEY_DEAD)).id]
        )
    await eventually(lambda: _dead(queues, 5))

    results = await office.redrive(3)

    assert results.count(RedriveResult.REDRIVEN) == 3
    assert await queues.waiting() == 3
    await eventually(lambda: _dead(queues, 2))
    reasons = {letter.body: letter.reason for letter in await queues.take_dead()}
    assert reasons[b"unreadable"] == "not JSON"


async def test_a_request_whose_job_has_another_one_queued_waits_for_the_next_time(
    jobs: JobMaker, queues: Queues, office: Office
) -> None:
    job = await jobs.failed()
    message = await published(office.ledger, queues, job, key=topology.KEY_DEAD)
    await office.ledger.settlement.dead_letter([message.id])
    await office.ledger.retries.accept(a_retry_of(job))
    await eventually(lambda: _dead(queues, 1))

    assert await office.redrive() == [RedriveResult.RETRY_QUEUED]
    assert await state_of(jobs, message.id) == "dead_lettered"
    assert set(await office.letters.redrive([message.id], actor="operator", lease_s=1)) == set()


async def test_two_copies_of_a_letter_are_one_request(jobs: JobMaker, queues: Queues, office: Office) -> None:
    (message,) = await dead_lettered(jobs, office.ledger, queues)
    await queues.publish(message, key=topology.KEY_DEAD)
    await eventually(lambda: _dead(queues, 2))

    assert await office.redrive() == [RedriveResult.REDRIVEN, RedriveResult.SETTLED]
    assert await queues.waiting() == 1


async def test_another_programs_letter_is_sent_as_it_came(jobs: JobMaker, queues: Queues, office: Office) -> None:
    message = a_message_for(await jobs.failed())
    await queues.publish(message, key=topology.KEY_DEAD, headers={"traceparent": "00-x"})
    await eventually(lambda: _dead(queues, 1))

    assert await office.redrive() == [RedriveResult.REDRIVEN]
    (sent,) = await queues.peek(topology.RETRIES)
    assert (sent.body, sent.headers["traceparent"]) == (encoded(message), "00-x")


async def test_a_letter_whose_request_is_gone_is_not_taken_for_another_programs(
    jobs: JobMaker, queues: Queues, office: Office
) -> None:
    marked = {topology.LEDGER_HEADER: "1"}  # as the relay publishes
    gone, dead = await dead_lettered(jobs, office.ledger, queues, 2)
    assert len(await queues.take_dead()) == 2
    await jobs.pool.execute("DELETE FROM redrive.retry_requests WHERE id = $1", gone.id)
    for message in (gone, dead):
        await queues.publish(message, key=topology.KEY_DEAD, headers=marked)
    await eventually(lambda: _dead(queues, 2))

    assert await office.redrive() == [RedriveResult.SETTLED, RedriveResult.REDRIVEN]
    (sent,) = await queues.peek(topology.RETRIES)
    assert (sent.body, sent.headers.get(topology.LEDGER_HEADER)) == (encoded(dead), "1")


async def test_a_bulk_request_goes_back_to_the_bulk_queue(jobs: JobMaker, queues: Queues, office: Office) -> None:
    (message,) = await dead_lettered(jobs, office.ledger, queues)
    await jobs.pool.execute("UPDATE redrive.retry_requests SET batch_id = gen_random_uuid() WHERE id = $1", message.id)

    await office.redrive()
    assert (await queues.waiting(topology.RETRIES), await queues.waiting(topology.RETRIES_BULK)) == (0, 1)


async def test_a_request_that_is_being_redriven_is_left_alone_by_the_relay(
    jobs: JobMaker, ledger: Ledger, letters: DeadLetters, queues: Queues
) -> None:
    (message,) = await dead_lettered(jobs, ledger, queues)
    assert set(await letters.redrive([message.id], actor="operator", lease_s=30)) == {message.id}
    assert await ledger.outbox.lease(10, lease_s=1, bulk=False) == []
    assert set(await letters.redrive([message.id], actor="operator", lease_s=30)) == set()  # it is queued


async def test_one_job_gets_one_of_its_dead_requests_back(
    jobs: JobMaker, ledger: Ledger, letters: DeadLetters, queues: Queues
) -> None:
    job = await jobs.failed()
    ids: list[RetryId] = []
    for _ in range(3):
        message = await published(ledger, queues, job)
        await ledger.settlement.dead_letter([message.id])
        ids.append(message.id)

    assert set(await letters.redrive(ids, actor="operator", lease_s=1)) == {min(ids)}


async def test_purging_empties_the_queue_and_leaves_nothing_queued(
    jobs: JobMaker, queues: Queues, office: Office
) -> None:
    message = await published(office.ledger, queues, await jobs.failed(), key=topology.KEY_DEAD)
    await queues.publish(b"unreadable", key=topology.KEY_DEAD)
    await eventually(lambda: _dead(queues, 2))

    assert await purge(office.queue, office.letters, office.ledger.settlement) == 2
    assert await queues.waiting(topology.RETRIES_DEAD) == 0
    assert await state_of(jobs, message.id) == "dead_lettered"


async def test_without_a_broker_a_dead_request_is_redriven_through_the_ledger(
    database_url: str, jobs: JobMaker, ledger: Ledger, letters: DeadLetters
) -> None:
    accepted = await ledger.retries.accept(a_retry_of(await jobs.failed()))
    await ledger.settlement.dead_letter([accepted.retry.id])
    (dead,) = await letters.dead_lettered(10)
    assert dead.message.id == accepted.retry.id

    await letters.redrive([dead.message.id], actor="operator", lease_s=0)
    async with a_worker(database_url):
        assert await eventually(lambda: jobs.outcome_of(dead.message.id)) == "applied"


# -- the commands


async def test_dead_letters_are_listed_shown_redriven_and_thrown_away_by_command(
    database_url: str, amqp_url: str, jobs: JobMaker, ledger: Ledger, queues: Queues
) -> None:
    (message,) = await dead_lettered(jobs, ledger, queues)
    await queues.publish(b"\x1b?", key=topology.KEY_DEAD, headers={topology.REASON_HEADER: "not JSON"})
    await eventually(lambda: _dead(queues, 2))
    settings = {"DATABASE_URL": database_url, "AMQP_URL": amqp_url}

    listed = {each["id"]: each for each in (await commanded("dead", "list", "--json", **settings)).json}
    good = listed.pop(str(message.id))
    assert (good["job_id"], good["state"]) == (str(message.job_id), "dead_lettered")
    ((bad_id, bad),) = listed.items()
    assert (bad["job_id"], bad["reason"], bad["bytes"]) == (None, "not JSON", 2)
    for_people = await commanded("dead", "list", **settings)
    assert "not JSON" in for_people.out
    assert "\x1b" not in for_people.out + (await commanded("dead", "show", bad_id, **settings)).out
    (shown,) = (await commanded("dead", "show", bad_id, "--json", **settings)).json
    assert shown["body"] == "\x1b?"
    assert (await commanded("dead", "show", "x0", **settings)).status == 1

    dry = await commanded("dead", "redrive", "--max", "10", "--dry-run", **settings)
    assert dry.out == "1 would be redriven; left: 1 unreadable, 0 settled, 0 retry queued\n"
    await commanded("dead", "redrive", "--max", "10", **settings)
    async with a_worker(database_url, amqp_url):
        assert await eventually(lambda: jobs.outcome_of(message.id)) == "applied"
    assert (await commanded("dead", "purge", "--yes", "--json", **settings)).json == [{"purged": 1}]
    assert (await commanded("dead", "list", "--json", **settings)).json == []
    empty = await commanded("dead", "list", **settings)
    assert empty.err == "redrive: note: there is no dead letter in the queue redrive.retries.dead\n"


async def test_without_a_broker_the_commands_act_on_the_ledger(
    database_url: str, jobs: JobMaker, ledger: Ledger
) -> None:
    empty = await commanded("dead", "list", DATABASE_URL=database_url)
    assert (empty.status, empty.err) == (0, "redrive: note: there is no dead letter in the ledger\n")
    accepted = await ledger.retries.accept(a_retry_of(await jobs.failed()))
    await ledger.settlement.dead_letter([accepted.retry.id])

    (listed,) = (await commanded("dead", "list", "--json", DATABASE_URL=database_url)).json
    assert (listed["id"], listed["state"]) == (str(accepted.retry.id), "dead_lettered")
    (told,) = (await commanded("dead", "redrive", "--max", "1", "--json", DATABASE_URL=database_url)).json
    assert told["redriven"] == 1
    assert await state_of(jobs, accepted.retry.id) == "queued"
    assert (await commanded("dead", "purge", "--yes", DATABASE_URL=database_url)).status == 1


# -- the sweep


async def test_what_was_published_long_ago_and_not_settled_is_published_again(
    amqp_url: str, jobs: JobMaker, ledger: Ledger, queues: Queues
) -> None:
    lost, fresh = [await published(ledger, queues, await jobs.failed()) for _ in range(2)]
    await queues.delete(topology.RETRIES)
    await long_ago(jobs, lost.id)

    relay, stopping = Relay(ledger.outbox, amqp_url, ApiMetrics(CollectorRegistry())), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(relay.run(stop=stopping))
        await eventually(lambda: _waits(queues, 1))
        stopping.set()

    (letter,) = await queues.peek(topology.RETRIES)
    assert str(lost.id).encode() in letter.body
    assert str(fresh.id).encode() not in letter.body


async def test_the_sweep_leaves_alone_what_is_settled_fresh_or_not_published(
    jobs: JobMaker, ledger: Ledger, queues: Queues
) -> None:
    settled, stale, fresh = [await published(ledger, queues, await jobs.failed()) for _ in range(3)]
    await ledger.settlement.apply([settled])
    await long_ago(jobs, settled.id, stale.id)
    await ledger.retries.accept(a_retry_of(await jobs.failed()))

    assert await ledger.outbox.republish_stale(100, age_s=3600, bulk=True) == 0
    assert await ledger.outbox.republish_stale(100, age_s=3600, bulk=False) == 1
    assert await ledger.outbox.republish_stale(100, age_s=3600, bulk=False) == 0
    publishable = {row.message.id for row in await ledger.outbox.lease(100, lease_s=1, bulk=False)}
    assert stale.id in publishable
    assert fresh.id not in publishable
    assert len(publishable) == 2


async def test_a_request_that_is_published_again_has_one_effect(
    database_url: str, amqp_url: str, jobs: JobMaker, ledger: Ledger, queues: Queues
) -> None:
    job = await jobs.failed()
    message = await published(ledger, queues, job)
    await long_ago(jobs, message.id)
    await ledger.outbox.republish_stale(100, age_s=3600, bulk=False)
    (again,) = await ledger.outbox.lease(1, lease_s=30, bulk=False)
    await queues.publish(again.message)

    async with a_worker(database_url, amqp_url):
        await eventually(lambda: jobs.outcome_of(message.id))
        await eventually(queues.drained)
    assert await jobs.effects_of(job) == 1
