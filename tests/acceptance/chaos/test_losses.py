"""Servers that die, hang or are out of reach, under load: P1, P5, P6, P7, P8."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest

from shared import topology
from tests.acceptance.chaos.load import Call
from tests.acceptance.chaos.rig import WORKERS, Rig, Trial
from tests.acceptance.chaos.tally import SCALE, scaled
from tests.eventually import eventually
from tests.jobs import a_message_for
from tests.servers.proxy import Proxy

pytestmark = pytest.mark.asyncio(loop_scope="package")

MANY = 100_000
IN_TIME_S = 3.0
BACK_WITHIN_S = 10.0
CROWD = 100.0
"""So many a second begin to ask, and go on asking, while the database is away."""
ANSWERED_WITHIN_S = 30.0


def enough(seconds: float, rate: float = 40.0) -> int:
    """How many jobs a load needs that flows for so long at most."""
    return int(seconds * rate)


async def test_p1_a_202_is_never_lost_though_the_broker_is_killed(rig: Rig) -> None:
    kills = scaled(1, full=50)  # half of P6's broker restarts are kills, too
    async with rig.trial("P1 broker killed") as trial:
        load = await trial.load(count=enough(30 * kills))
        async with load.flowing():
            for _ in range(kills):
                await trial.pause(0.5, 2)
                await rig.kill_broker()
                trial.broken()
                await trial.pause(0, 1)
                await rig.rabbitmq.start()
                await eventually(lambda: _consuming(rig), within_s=40, every_s=0.2)


async def test_p1_a_202_is_never_lost_though_the_database_crashes(rig: Rig) -> None:
    kills = scaled(3, full=100)
    async with rig.trial("P1 database stopped at once") as trial:
        load = await trial.load(count=enough(6 * kills))
        async with load.flowing():
            for _ in range(kills):
                await trial.pause(0.5, 1.5)
                await rig.postgres.stop_immediate()
                trial.broken()
                await trial.pause(0, 0.5)
                await rig.postgres.start()


async def _consuming(rig: Rig) -> bool:
    return all([await worker.ready() for worker in rig.workers])


@pytest.mark.parametrize("trouble", ["port closed", "swallowed", "frozen", "blocked", "unbound", "forbidden"])
async def test_p5_a_broker_in_trouble_fails_no_request_and_gets_them_all_later(rig: Rig, trouble: str) -> None:
    rounds = scaled(1, full=5)
    async with rig.trial(f"P5 broker {trouble}") as trial:
        load = await trial.load(count=enough(60 * rounds), reads=20)
        async with load.flowing():
            for _ in range(rounds):
                await trial.pause(0.2, 0.5)
                async with _trouble(rig, trouble):
                    await trial.pause(1, 2 if SCALE < 10 else 20)
                    waiting = await trial.unsettled()
                assert waiting, "nothing was held up: the broker was in no trouble"
                trial.broken()
                await rig.all_well()
        assert {(call.method, call.status) for call in load.calls} == {("GET", 200), ("POST", 202)}
        assert max(call.took_s for call in load.calls) < IN_TIME_S + 2 * load.lag_s


@asynccontextmanager
async def _trouble(rig: Rig, trouble: str) -> AsyncIterator[None]:
    match trouble:
        case "port closed":
            await rig.broker.refuse()
            await rig.broker.reset()
            yield
            await rig.broker.heal()
        case "swallowed":
            await rig.broker.black_hole()
            yield
            await rig.broker.heal()
        case "frozen":
            await rig.rabbitmq.freeze()
            yield
            await rig.rabbitmq.thaw()
        case "blocked":
            await rig.rabbitmq.block()
            yield
            await rig.rabbitmq.unblock()
        case "unbound":
            async with rig.queues() as queues:
                await queues.unbind(topology.RETRIES, topology.KEY_RETRY)
            yield
            await rig.rebind()
        case _:
            async with rig.forbidden():
                await rig.broker.reset()  # who is connected keeps the rights that he had
                yield


async def test_p6_cut_connections_and_restarts_heal_by_themselves(rig: Rig) -> None:
    cuts, databases = scaled(20, full=200), scaled(1, full=50)
    brokers = 0 if SCALE == 1 else scaled(1, full=100)  # the broker's comeback is seen in P1
    async with rig.trial("P6 connections cut, servers restarted") as trial:
        faults = ["database"] * databases + trial.rng.choices(["database cut", "broker cut"], k=cuts)
        trial.rng.shuffle(faults)
        restarts = [number % 2 == 0 for number in range(brokers)]
        trial.rng.shuffle(restarts)
        load = await trial.load(count=enough(cuts + 5 * databases + 40 * brokers))
        async with load.flowing():
            for number, in_order in enumerate(restarts or [None]):
                # A broker takes ten seconds to come back: the rest goes wrong meanwhile.
                async with asyncio.TaskGroup() as breaking:
                    breaking.create_task(_break_each(rig, trial, faults[number :: max(1, brokers)]))
                    if in_order is not None:
                        breaking.create_task(_restart_broker(rig, trial, in_order=in_order))
                await rig.all_well()
                await eventually(lambda: _consumers(rig), within_s=30, every_s=0.2)


async def _break_each(rig: Rig, trial: Trial, faults: list[str]) -> None:
    for fault in faults:
        if fault == "database":
            await rig.postgres.stop()
            trial.broken()
            await rig.postgres.start()
        else:
            proxy = rig.database if fault == "database cut" else rig.broker
            await eventually(partial(_connected, proxy), within_s=60, what="there is something to cut")
            trial.broken(1 if await proxy.reset() else 0)
        await trial.pause(0.05, 0.3)


async def _consumers(rig: Rig) -> bool:
    """Whether, by the broker's word, every worker has its consumers, and there are no others."""
    async with rig.queues() as queues:
        found = [await queues.consumers(queue) for queue in (topology.RETRIES, topology.RETRIES_BULK)]
    assert found == [WORKERS, WORKERS], f"{found} consumers"
    return True


def _connected(proxy: Proxy) -> bool:
    return proxy.connections > 0


async def _restart_broker(rig: Rig, trial: Trial, *, in_order: bool) -> None:
    await (rig.rabbitmq.stop() if in_order else rig.kill_broker())
    trial.broken()
    await rig.rabbitmq.start()


async def test_p7_nothing_is_acknowledged_before_it_is_committed(rig: Rig) -> None:
    rounds = scaled(2, full=50)
    async with rig.trial("P7 database lost in mid-batch") as trial:
        load = await trial.load(count=enough(12 * rounds))
        async with load.flowing():
            for number in range(rounds):
                jobs = await rig.jobs.many_failed(40)
                messages = [a_message_for(job) for job in jobs]
                trial.published |= {message.id: job for message, job in zip(messages, jobs, strict=True)}
                async with rig.jobs.locked():
                    async with rig.queues() as queues:
                        await queues.publish_all(messages)
                    await eventually(lambda: _batch_in_hand(rig), within_s=20, what="a worker waits in mid-batch")
                    await (rig.postgres.kill() if number % 2 else rig.postgres.freeze())
                trial.broken()
                if number % 4 == 0:  # no process is left that could remember what was in hand
                    await asyncio.gather(*(worker.replaced(signal.SIGKILL) for worker in rig.workers))
                await trial.pause(0.1, 3)  # workers wait for 2 s at most
                await rig.postgres.recover()
                await trial.pause(0.2, 1)


async def _batch_in_hand(rig: Rig) -> bool:
    rows = await rig.rows(
        """
        SELECT FROM pg_locks JOIN pg_stat_activity USING (pid)
        WHERE relation = 'control_plane.jobs'::regclass AND NOT granted AND application_name = 'redrive worker'
        """
    )
    return bool(rows)


async def test_p8_a_database_in_trouble_is_told_in_time_and_the_throughput_comes_back(rig: Rig) -> None:
    rounds = scaled(1, full=30)
    async with rig.trial("P8 database frozen, jobs locked, pool exhausted") as trial:
        troubles = [trial.rng.choice(["frozen", "jobs", "ledger"])] if rounds == 1 else ["frozen", "jobs", "ledger"]
        load = await trial.load(count=enough(40 * rounds, 10), rate=10, reads=40)
        back_after: list[float] = []
        async with load.flowing():
            for number in range(rounds):
                before_at = time.monotonic()
                await asyncio.sleep(1.5)
                good_before = _good(load.since(before_at)) / 1.5
                assert good_before > 0.25 * (load.rate + load.reads), "there is no load worth measuring"
                began_at = time.monotonic()
                await _trouble_for(rig, troubles[number % len(troubles)], 4)
                healed_at = time.monotonic()
                assert 503 in {call.status for call in load.since(began_at)}, "the database was in no trouble"
                trial.broken()

                def back(healed_at: float = healed_at, good_before: float = good_before) -> bool:
                    now = time.monotonic()
                    return now > healed_at + 1 and _good(load.since(now - 1)) >= 0.95 * good_before

                await eventually(back, within_s=BACK_WITHIN_S, what="the throughput is back")
                back_after.append(time.monotonic() - 1 - healed_at)
        trial.tally.notes |= {
            "slowest_s": round(max(call.took_s for call in load.calls), 2),
            "back_after_s": round(max(back_after), 1),
            "lag_s": round(load.lag_s, 2),
        }
        assert {call.status for call in load.calls} <= {200, 202, 503}
        # A client and an api that each had to wait for a processor are not what is measured here.
        assert max(call.took_s for call in load.calls) < IN_TIME_S + 2 * load.lag_s


async def test_p8_a_crowd_that_asks_again_and_again_is_answered_once_the_database_is_back(rig: Rig) -> None:
    """A client that was told 503 asks again, and hundreds do so at once: that must not keep the api from working."""
    rounds, seconds = scaled(1, full=5), 3 if SCALE < 10 else 20
    async with rig.trial("P8 a crowd that asks again and again") as trial:
        answered_after: list[float] = []
        for _ in range(rounds):
            load = await trial.load(count=enough(seconds + 30, CROWD), rate=CROWD)
            async with load.flowing():
                await asyncio.sleep(1)
                await rig.postgres.freeze()
                await asyncio.sleep(seconds)
                await rig.postgres.thaw()
                thawed_at = time.monotonic()
                assert 503 in {call.status for call in load.calls}, "the database was in no trouble"
                trial.broken()
            answered_after.append(time.monotonic() - thawed_at)
        trial.tally.notes["answered_after_s"] = [round(each, 1) for each in answered_after]
        assert max(answered_after) < ANSWERED_WITHIN_S


def _good(calls: list[Call]) -> int:
    return sum(call.status in {200, 202} for call in calls)


async def _trouble_for(rig: Rig, trouble: str, seconds: float) -> None:
    if trouble == "frozen":
        await rig.postgres.freeze()
        await asyncio.sleep(seconds)
        await rig.postgres.thaw()
        return
    async with rig.jobs.pool.acquire() as connection, connection.transaction():
        await connection.execute(
            f"LOCK TABLE {'control_plane.jobs' if trouble == 'jobs' else 'redrive.retry_requests'}"
        )
        await asyncio.sleep(seconds)
