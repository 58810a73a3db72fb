"""From the ledger to RabbitMQ: every accepted request is published, confirmed and marked, whatever happens between."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from prometheus_client import CollectorRegistry

from api.metrics import Metrics
from api.relay import Relay
from shared import broker, topology
from shared.database import Database
from shared.idempotency import IdempotencyKey
from shared.models import RetryId
from shared.outbox import Leased, Outbox
from shared.retries import RetryRequest
from tests.api_server import Api, Serve
from tests.eventually import eventually
from tests.jobs import JobMaker, a_retry_of
from tests.ledger import Ledger, Taken
from tests.logs import Log
from tests.queues import Queues
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import PrivateRabbitmq

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class RunningRelay:
    """A relay that runs, what it counts, and how it ends."""

    def __init__(self, ledger: Ledger, amqp_url: str) -> None:
        self.registry = CollectorRegistry()
        self.relay = Relay(ledger.outbox, amqp_url, Metrics(self.registry))
        self.stopping = asyncio.Event()
        self.task = asyncio.create_task(self.relay.run(stop=self.stopping))

    @property
    def published(self) -> int:
        return int(self.registry.get_sample_value("redrive_relay_published_total") or 0)

    @property
    def failures(self) -> int:
        return int(self.registry.get_sample_value("redrive_relay_failures_total") or 0)

    async def stop(self) -> None:
        self.stopping.set()
        async with asyncio.timeout(30):
            await self.task

    async def cancel(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


@asynccontextmanager
async def relaying(ledger: Ledger, amqp_url: str) -> AsyncIterator[RunningRelay]:
    running = RunningRelay(ledger, amqp_url)
    try:
        yield running
    finally:
        await running.cancel()


async def accepted(ledger: Ledger, jobs: JobMaker, count: int) -> list[RetryId]:
    made = await jobs.many_failed(count)
    answers = await asyncio.gather(*(ledger.retries.accept(a_retry_of(job)) for job in made))
    return [answer.retry.id for answer in answers]


async def unpublished(jobs: JobMaker) -> int:
    return int(await jobs.pool.fetchval("SELECT count(*) FROM redrive.retry_requests WHERE published_at IS NULL"))


async def all_published(jobs: JobMaker) -> bool:
    return await unpublished(jobs) == 0


async def ids_in(queues: Queues) -> list[UUID]:
    return [request.id for letter in await queues.peek(topology.RETRIES) for request in letter.requests]


def same(ids: Sequence[UUID], others: Sequence[UUID]) -> bool:
    return sorted(ids) == sorted(others)


def told(log: Log) -> list[str]:
    """What the lane of single retries has logged."""
    return [str(line["event"]) for line in log.lines if line.get("key") == topology.KEY_RETRY]


async def test_what_is_accepted_is_published_once_and_marked(
    ledger: Ledger, jobs: JobMaker, queues: Queues, amqp_url: str
) -> None:
    ids = await accepted(ledger, jobs, 600)  # more than fits into one batch

    async with relaying(ledger, amqp_url) as relay:
        await eventually(lambda: all_published(jobs))
        await eventually(lambda: relay.published == 600)
        assert relay.relay.connected
        assert relay.failures == 0

    assert same(await ids_in(queues), ids)


async def test_a_message_holds_the_contract_s_fields_and_the_trace(
    database_url: str, jobs: JobMaker, queues: Queues, amqp_url: str, serve: Serve
) -> None:
    job = await jobs.failed()
    api = await serve(database_url, amqp_url=amqp_url)
    answer = await api.post(
        f"/api/jobs/{job.id}/retry", {"reason": "why", "extra_attempts": 2}, headers={"traceparent": TRACE}
    )
    await eventually(lambda: all_published(jobs))
    (letter,) = await queues.peek(topology.RETRIES)

    (message,) = letter.requests
    assert (str(message.request_id), message.job_id) == (answer.data["id"], job.id)
    assert (message.project_id, message.job_version, message.actor) == ("p1", job.version, "alice")
    assert (message.reason, message.extra_attempts, message.run_at) == ("why", 2, None)
    assert letter.headers["traceparent"] == TRACE


async def test_a_poke_is_faster_than_the_next_look(
    database_url: str, jobs: JobMaker, queues: Queues, amqp_url: str, serve: Serve
) -> None:
    api = await serve(database_url, amqp_url=amqp_url)
    took_s = []
    for number in range(6):
        started_at = time.monotonic()
        await api.post(f"/api/jobs/{(await jobs.failed()).id}/retry")
        await eventually(partial(holding, queues, number + 1), every_s=0.005)
        took_s.append(time.monotonic() - started_at)

    assert min(took_s) < 0.5


async def holding(queues: Queues, messages: int) -> bool:
    return await queues.waiting() == messages


# -- what is leased as it is accepted


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many requests each look into the ledger has leased."""
    leased: list[int] = []
    lease = Outbox.lease

    async def watched(outbox: Outbox, *args: Any, **given: Any) -> list[Leased]:  # noqa: ANN401 - passed on
        rows = await lease(outbox, *args, **given)
        if not given["bulk"]:
            leased.append(len(rows))
        return rows

    monkeypatch.setattr(Outbox, "lease", watched)
    return leased


async def taking(api: Api) -> Api:
    """The api, once its relay takes what is accepted."""
    relay = api.parts.relay
    assert relay is not None
    await eventually(lambda: relay.lease_s is not None)
    return api


async def retry_each(api: Api, jobs: JobMaker, count: int) -> list[UUID]:
    made = await jobs.many_failed(count)
    answers = await asyncio.gather(*(api.post(f"/api/jobs/{job.id}/retry") for job in made))
    assert {answer.status for answer in answers} == {202}
    return [UUID(answer.data["id"]) for answer in answers]


async def test_what_is_accepted_while_the_relay_keeps_up_is_published_without_a_look(  # noqa: PLR0917 - fixtures
    database_url: str, jobs: JobMaker, queues: Queues, amqp_url: str, serve: Serve, looks: list[int]
) -> None:
    api = await taking(await serve(database_url, amqp_url=amqp_url))
    ids = await retry_each(api, jobs, 50)
    await eventually(lambda: all_published(jobs))

    assert sum(looks) == 0
    assert same(await ids_in(queues), ids)


async def test_what_is_accepted_while_the_relay_is_not_connected_is_free_for_others(
    database_url: str, jobs: JobMaker, serve: Serve
) -> None:
    api = await serve(database_url, amqp_url="amqp://guest:guest@127.0.0.1:9/")
    await retry_each(api, jobs, 3)

    leases = await jobs.pool.fetch("SELECT publish_lease_until FROM redrive.retry_requests")
    assert [lease for (lease,) in leases] == [None] * 3


async def test_a_relay_takes_nothing_before_a_look_has_found_less_than_a_batch(  # noqa: PLR0917 - fixtures
    ledger: Ledger, jobs: JobMaker, queues: Queues, amqp_url: str, looks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.relay.BATCH", 10)
    ids = await accepted(ledger, jobs, 25)
    async with relaying(ledger, amqp_url) as relay:
        await eventually(lambda: relay.relay.lease_s is not None)
        assert [leased for leased in looks if leased] == [10, 10, 5]
        await eventually(lambda: relay.published == 25)

    assert same(await ids_in(queues), ids)


async def test_a_relay_that_is_given_too_much_still_looks(
    ledger: Ledger, jobs: JobMaker, queues: Queues, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.relay.BATCH", 10)
    async with relaying(ledger, amqp_url) as relay:
        await eventually(lambda: relay.relay.lease_s is not None)
        ids = await accepted(ledger, jobs, 40)
        taken = await ledger.outbox.lease(35, lease_s=30, bulk=False)
        relay.relay.take(taken)
        relay.relay.poke()
        await eventually(lambda: relay.published == 40)

    assert same(await ids_in(queues), ids)


@pytest.mark.parametrize("connected", [True, False])
async def test_what_is_taken_and_not_published_is_given_back_when_the_session_ends(
    ledger: Ledger,
    jobs: JobMaker,
    queues: Queues,
    amqp_url: str,
    connected: bool,  # noqa: FBT001 - a parameter
) -> None:
    await accepted(ledger, jobs, 3)
    rows = await ledger.outbox.lease(3, lease_s=30, bulk=False)
    if connected:
        async with relaying(ledger, amqp_url) as relay:
            await eventually(lambda: relay.relay.lease_s is not None)
            await queues.unbind(topology.RETRIES, topology.KEY_RETRY)
            relay.relay.take(rows)
            await eventually(lambda: relay.failures > 0)
            await eventually(lambda: all_published(jobs))  # long before the leases end
        assert same(await ids_in(queues), [row.message.id for row in rows])
    else:
        async with relaying(ledger, "amqp://guest:guest@127.0.0.1:9/") as relay:
            relay.relay.take(rows)
            await eventually(partial(free, jobs, 3))


async def test_what_is_taken_while_the_database_is_away_is_published_when_it_is_back(  # noqa: PLR0917 - fixtures
    database_url: str, jobs: JobMaker, queues: Queues, amqp_url: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.relay._LONGEST_PAUSE_S", 0.2)
    ids = await accepted(ledger, jobs, 5)
    rows = await ledger.outbox.lease(5, lease_s=600, bulk=False)
    async with (
        Proxy.to(database_url) as proxy,
        Database(proxy.url_of(database_url), program="relay", timeout_s=0.5, pool_size=2).opened() as far,
        relaying(Ledger(far), amqp_url) as relay,
    ):
        await eventually(lambda: relay.relay.lease_s is not None)
        await proxy.refuse()
        await proxy.reset()
        relay.relay.poke()
        await eventually(lambda: relay.relay.lease_s is None)
        relay.relay.take(rows)
        await proxy.heal()
        await eventually(lambda: all_published(jobs))

    assert same(sorted(set(await ids_in(queues))), ids)


async def test_a_relay_whose_confirm_takes_long_takes_no_more(
    ledger: Ledger, jobs: JobMaker, queues: Queues, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.relay.STALLED_S", 0.0)
    confirms = asyncio.Event()
    publish = broker.publish

    async def publish_late(*args: Any, **given: Any) -> None:  # noqa: ANN401 - passed on
        await publish(*args, **given)
        await confirms.wait()

    monkeypatch.setattr(broker, "publish", publish_late)
    async with relaying(ledger, amqp_url) as relay:
        await eventually(lambda: relay.relay.lease_s is not None)
        (request_id,) = await accepted(ledger, jobs, 1)
        relay.relay.poke()
        await eventually(lambda: relay.relay.lease_s is None)
        confirms.set()
        await eventually(lambda: relay.relay.lease_s is not None)

    assert await ids_in(queues) == [request_id]


async def test_what_is_handed_over_is_what_a_look_would_lease(ledger: Ledger, jobs: JobMaker) -> None:
    handed = Taken(lease_s=0.0)  # over at once
    retries = Ledger(ledger.database, handed).retries
    job = await jobs.failed()
    key = IdempotencyKey(job.project_id, "key", b"content")
    request = RetryRequest(
        job=job.key, actor="alice", reason="why", delay_seconds=5, extra_attempts=2, traceparent=TRACE, key=key
    )
    await retries.accept(request)
    (taken,) = handed.requests
    (leased,) = await ledger.outbox.lease(1, lease_s=30, bulk=False)

    assert taken._replace(lease=leased.lease) == leased
    assert taken.lease.until < leased.lease.until


async def some_leased(jobs: JobMaker) -> bool:
    found = "SELECT EXISTS (SELECT FROM redrive.retry_requests WHERE publish_lease_until IS NOT NULL)"
    return bool(await jobs.pool.fetchval(found))


async def free(jobs: JobMaker, count: int) -> bool:
    """Whether so many requests are neither leased nor published."""
    counted = "SELECT count(*) FROM redrive.retry_requests WHERE publish_lease_until IS NULL AND published_at IS NULL"
    return int(await jobs.pool.fetchval(counted)) == count


async def test_what_is_settled_by_then_was_marked_with_it(ledger: Ledger, jobs: JobMaker) -> None:
    settled, waiting = await accepted(ledger, jobs, 2)
    rows = await ledger.outbox.lease(2, lease_s=30, bulk=False)
    await ledger.settlement.apply([row.message for row in rows if row.message.id == settled])
    await ledger.outbox.mark_published([row.lease for row in rows])

    marked = await jobs.pool.fetch("SELECT id, published_at = processed_at AS settling FROM redrive.retry_requests")
    assert dict(map(tuple, marked)) == {settled: True, waiting: None}
    assert await unpublished(jobs) == 0


async def test_two_relays_publish_no_request_twice(
    ledger: Ledger, jobs: JobMaker, queues: Queues, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.relay.BATCH", 10)
    async with relaying(ledger, amqp_url) as one, relaying(ledger, amqp_url) as other:
        await eventually(lambda: one.relay.connected and other.relay.connected)
        ids = await accepted(ledger, jobs, 300)
        one.relay.poke()
        other.relay.poke()
        await eventually(lambda: all_published(jobs))
        await eventually(lambda: one.published + other.published == len(ids))
        assert min(one.published, other.published) > 0

    assert same(await ids_in(queues), ids)


async def test_what_a_dead_relay_held_is_published_when_its_lease_ends(
    ledger: Ledger, jobs: JobMaker, queues: Queues, amqp_url: str
) -> None:
    ids = await accepted(ledger, jobs, 20)
    assert len(await ledger.outbox.lease(10, lease_s=1, bulk=False)) == 10  # and then it died

    async with relaying(ledger, amqp_url):
        await eventually(lambda: all_published(jobs))

    assert same(await ids_in(queues), ids)


async def test_a_request_that_no_queue_takes_is_not_marked_and_heals(
    ledger: Ledger, jobs: JobMaker, queues: Queues, amqp_url: str
) -> None:
    async with relaying(ledger, amqp_url) as relay:
        await eventually(lambda: relay.relay.connected)
        await queues.unbind(topology.RETRIES, topology.KEY_RETRY)
        ids = await accepted(ledger, jobs, 30)
        relay.relay.poke()
        await eventually(lambda: relay.failures > 0)
        await eventually(lambda: all_published(jobs))  # the next session binds the queue again

    assert same(await ids_in(queues), ids)


async def test_a_request_that_meets_no_queue_at_all_waits_in_the_ledger(
    ledger: Ledger, jobs: JobMaker, queues: Queues, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_more_binding(*_: object) -> object:
        return queues._exchange

    async with relaying(ledger, amqp_url) as relay:
        await eventually(lambda: relay.relay.connected)
        await queues.unbind(topology.RETRIES, topology.KEY_RETRY)
        ids = await accepted(ledger, jobs, 3)
        with monkeypatch.context() as patched:
            patched.setattr(topology, "declare", no_more_binding)
            relay.relay.poke()
            await eventually(lambda: relay.failures >= 2)
            assert await unpublished(jobs) == 3
        await eventually(lambda: all_published(jobs))

    assert same(await ids_in(queues), ids)


async def test_a_broker_that_takes_nothing_is_asked_ever_less_often_and_told_of_once(  # noqa: PLR0917 - fixtures
    ledger: Ledger, jobs: JobMaker, queues: Queues, amqp_url: str, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    async def no_more_binding(*_: object) -> object:
        return queues._exchange

    monkeypatch.setattr("api.relay._FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr("api.relay._LONGEST_PAUSE_S", 0.4)
    await accepted(ledger, jobs, 3)
    await queues.unbind(topology.RETRIES, topology.KEY_RETRY)
    with monkeypatch.context() as patched:
        patched.setattr(topology, "declare", no_more_binding)
        async with relaying(ledger, amqp_url) as relay:
            await eventually(lambda: relay.relay._singles._backoff.next_s == 0.4)
            assert relay.failures >= 3
            patched.undo()
            await eventually(lambda: all_published(jobs))
            assert relay.relay._singles._backoff.next_s == 0.05

    assert told(log) == ["relay connected", "relay session ended", "relay connected"]


async def test_a_broker_that_is_back_is_used_at_once_however_long_it_was_away(
    ledger: Ledger, jobs: JobMaker, queues: Queues, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.relay._FIRST_PAUSE_S", 600.0)  # as if it had been trouble for long
    ids = await accepted(ledger, jobs, 1)
    async with Proxy.to(amqp_url) as proxy:
        await proxy.refuse()
        async with relaying(ledger, proxy.url_of(amqp_url)) as relay:
            await eventually(lambda: relay.failures >= 2)
            await proxy.heal()
            await eventually(lambda: ids_in(queues))

    assert same(await ids_in(queues), ids)


async def test_stopping_publishes_what_is_there(ledger: Ledger, jobs: JobMaker, queues: Queues, amqp_url: str) -> None:
    async with relaying(ledger, amqp_url) as relay:
        await eventually(lambda: relay.relay.connected)
        ids = await accepted(ledger, jobs, 400)
        await relay.stop()

    assert await all_published(jobs)
    assert same(await ids_in(queues), ids)


async def test_stopping_without_a_broker_does_not_wait_for_one(ledger: Ledger, jobs: JobMaker) -> None:
    await accepted(ledger, jobs, 1)
    async with relaying(ledger, "amqp://guest:guest@127.0.0.1:9/") as relay:
        await eventually(lambda: relay.failures > 0)
        started_at = time.monotonic()
        await relay.stop()

    assert time.monotonic() - started_at < 5
    assert await unpublished(jobs) == 1


async def test_a_database_that_goes_away_only_delays_publishing(  # noqa: PLR0917 - fixtures
    database_url: str, jobs: JobMaker, queues: Queues, amqp_url: str, ledger: Ledger, log: Log
) -> None:
    async with (
        Proxy.to(database_url) as proxy,
        Database(proxy.url_of(database_url), program="relay", timeout_s=0.5, pool_size=2).opened() as far,
        relaying(Ledger(far), amqp_url) as relay,
    ):
        await eventually(lambda: relay.relay.connected)
        await proxy.refuse()
        await proxy.reset()
        ids = await accepted(ledger, jobs, 5)
        relay.relay.poke()
        await eventually(lambda: relay.failures >= 6)
        await proxy.heal()
        await eventually(lambda: all_published(jobs))

    assert told(log) == ["relay connected", "relay session ended", "relay connected"]
    assert same(sorted(set(await ids_in(queues))), ids)


async def test_what_was_confirmed_before_the_database_failed_is_published_again_and_not_only_marked(  # noqa: PLR0917
    database_url: str, jobs: JobMaker, queues: Queues, amqp_url: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A standby that has taken over may lack the commit that settled them; their messages are acknowledged."""
    monkeypatch.setattr("api.relay.LEASE_S", 1.0)
    monkeypatch.setattr("api.relay.MARK_AFTER_S", 3600.0)
    ids = await accepted(ledger, jobs, 3)
    async with (
        Proxy.to(database_url) as proxy,
        Database(proxy.url_of(database_url), program="relay", timeout_s=0.5, pool_size=2).opened() as far,
        relaying(Ledger(far), amqp_url) as relay,
    ):
        await eventually(lambda: relay.published == 3)
        assert await unpublished(jobs) == 3
        await proxy.refuse()
        await proxy.reset()
        await eventually(lambda: relay.relay.lease_s is None)
        monkeypatch.setattr("api.relay.MARK_AFTER_S", 0.0)
        await proxy.heal()
        await eventually(lambda: all_published(jobs))
        assert relay.published == 6

    assert same(await ids_in(queues), [*ids, *ids])


async def test_no_batch_follows_one_of_requests_that_travel_alone_before_its_confirms(
    ledger: Ledger, jobs: JobMaker, queues: Queues, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.relay.BATCH", 10)
    in_flight = [0, 0]  # now, and at most
    publish = broker.publish

    async def counted(*args: Any, **given: Any) -> None:  # noqa: ANN401 - passed on
        in_flight[0] += 1
        in_flight[1] = max(in_flight)
        await publish(*args, **given)
        in_flight[0] -= 1

    monkeypatch.setattr(broker, "publish", counted)
    ids = await accepted(ledger, jobs, 30)
    await jobs.pool.execute("UPDATE redrive.retry_requests SET publish_alone = true")
    async with relaying(ledger, amqp_url):
        await eventually(lambda: all_published(jobs))

    assert in_flight == [0, 10]
    assert same(await ids_in(queues), ids)


# -- a broker in trouble: of its own


@pytest.fixture
async def own_queue(private_rabbitmq: PrivateRabbitmq) -> AsyncIterator[str]:
    async with private_rabbitmq.rabbitmq.vhost() as url:
        yield url


@pytest.mark.parametrize("trouble", ["blocked", "frozen"])
async def test_a_broker_in_trouble_never_fails_a_request_and_gets_them_all_later(  # noqa: PLR0917 - fixtures
    database_url: str, jobs: JobMaker, private_rabbitmq: PrivateRabbitmq, own_queue: str,
    monkeypatch: pytest.MonkeyPatch, trouble: str, serve: Serve,
) -> None:  # fmt: skip
    monkeypatch.setattr("api.relay.PUBLISH_TIMEOUT_S", 2.0)
    api = await serve(database_url, amqp_url=f"{own_queue}?heartbeat=2")
    ids = await retry_each(api, jobs, 5)
    await eventually(lambda: all_published(jobs))

    await (private_rabbitmq.block() if trouble == "blocked" else private_rabbitmq.freeze())
    started_at = time.monotonic()
    ids += await retry_each(api, jobs, 50)
    assert time.monotonic() - started_at < 60  # waiting for confirms would be 50 times two seconds
    await eventually(lambda: api.counted("redrive_relay_connected") == 0, within_s=15)
    ids += await retry_each(api, jobs, 5)
    assert await unpublished(jobs) >= 5

    await private_rabbitmq.recover()
    await eventually(lambda: all_published(jobs), within_s=30)

    async with Queues.on(own_queue) as queues:
        assert set(await ids_in(queues)) == set(ids)


async def test_a_relay_that_is_stopped_while_a_confirm_is_missing_gives_back_all_that_it_has(
    ledger: Ledger, jobs: JobMaker, private_rabbitmq: PrivateRabbitmq, own_queue: str
) -> None:
    async with relaying(ledger, own_queue) as relay:
        await eventually(lambda: relay.relay.lease_s is not None)
        await private_rabbitmq.freeze()
        await accepted(ledger, jobs, 3)
        relay.relay.poke()
        await eventually(lambda: some_leased(jobs))
        await accepted(ledger, jobs, 2)
        relay.relay.take(await ledger.outbox.lease(5, lease_s=600, bulk=False))
        await relay.cancel()

    assert await free(jobs, 5)
    await private_rabbitmq.recover()
