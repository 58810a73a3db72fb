"""Processes that are killed or told to stop, under load: P2, P10, P11."""

import asyncio
import signal
from functools import partial

import pytest

from api.serving import DRAIN_S
from shared.failpoints import Failpoint
from tests.acceptance.chaos.load import IDLE_S
from tests.acceptance.chaos.processes import Member
from tests.acceptance.chaos.rig import Rig, Trial
from tests.acceptance.chaos.tally import SCALE, scaled
from tests.eventually import eventually

pytestmark = pytest.mark.asyncio(loop_scope="package")

OF_WORKERS = [
    Failpoint.AFTER_RECEIVE,
    Failpoint.IN_TRANSACTION,
    Failpoint.BEFORE_COMMIT,
    Failpoint.AFTER_COMMIT,
    Failpoint.BEFORE_ACK,
]
BEFORE_COMMIT = OF_WORKERS[:3]
OF_THE_LEDGER = [Failpoint.IN_TRANSACTION, Failpoint.BEFORE_COMMIT, Failpoint.AFTER_COMMIT]
OF_APIS = [Failpoint.AFTER_INSERT, Failpoint.AFTER_CONFIRM]
GRACE_S = 10.0


async def test_p2_a_202_takes_effect_once_though_workers_die_at_every_failpoint(rig: Rig) -> None:
    each = scaled(1, full=50)
    async with rig.trial("P2 worker killed at each failpoint") as trial:
        points = [str(point) for point in OF_WORKERS for _ in range(each)]
        trial.rng.shuffle(points)
        load = await trial.load(count=100 * len(points) + 1200)
        doomed = rig.workers[1:]  # one lives on, and settles what the others leave behind
        async with load.flowing():
            for number, worker in enumerate(doomed):
                worker.fail_at(points[number :: len(doomed)])
            await eventually(
                lambda: not any(worker.failing for worker in doomed), within_s=30 + 8 * len(points), every_s=0.1
            )
        assert trial.failed_at() == dict.fromkeys(map(str, OF_WORKERS), each)


async def test_p2_a_202_takes_effect_once_though_workers_die_at_random(rig: Rig) -> None:
    kills = scaled(4, full=100)
    async with rig.trial("P2 worker killed at random") as trial:
        load = await trial.load(count=200 * kills + 400)
        async with load.flowing():
            for _ in range(kills):
                await trial.pause(0.1, 0.8)
                worker = trial.rng.choice(rig.workers)
                await eventually(worker.ready, within_s=30, every_s=0.1)
                await worker.replaced(signal.SIGKILL)
        assert sum(end.killed for end in trial.ends()) == kills


async def test_p2_a_202_takes_effect_once_though_apis_die_at_every_failpoint(rig: Rig) -> None:
    each = scaled(1, full=50)
    async with rig.trial("P2 api killed at each failpoint") as trial:
        # What an api holds when it dies is published once its lease has ended, in ten seconds or half a minute. To die
        # before publishing is too much for `make test`, where P20 does it.
        kinds = [str(point) for point in [*OF_APIS, *([Failpoint.BEFORE_PUBLISH] if SCALE > 1 else [])]]
        points = kinds * each
        trial.rng.shuffle(points)
        load = await trial.load(count=300 * len(points) + 800)
        async with load.flowing(), asyncio.TaskGroup() as failing:
            for number, api in enumerate(rig.apis):
                failing.create_task(_fail(api, points[number :: len(rig.apis)]))
        assert trial.failed_at() == dict.fromkeys(kinds, each)


async def test_p2_a_202_takes_effect_once_though_workers_of_the_ledger_die(rig: Rig) -> None:
    each = scaled(2, full=50)
    async with rig.workers_of_the_ledger(2) as workers:
        await rig.all_well()
        async with rig.trial("P2 worker killed, no broker") as trial:
            points = [str(point) for point in OF_THE_LEDGER for _ in range(each)]
            trial.rng.shuffle(points)
            load = await trial.load(count=100 * len(points) + 1200)
            await rig.broker.refuse()
            await rig.broker.reset()
            async with load.flowing():
                for number, worker in enumerate(workers):
                    worker.fail_at(points[number :: len(workers)])
                await eventually(
                    lambda: not any(worker.failing for worker in workers), within_s=30 + 8 * len(points), every_s=0.1
                )
                await eventually(lambda: _some_settled(trial), within_s=30, every_s=0.1)
            assert trial.failed_at() == dict.fromkeys(map(str, OF_THE_LEDGER), each)


async def _some_settled(trial: Trial) -> bool:
    return await trial.unsettled() < len(trial.acked) / 2


async def _fail(api: Member, points: list[str]) -> None:
    """Let one api after another die, each once it has worked."""
    for point in points:
        await eventually(api.ready, within_s=30, every_s=0.1)
        before = len(api.ends)
        api.fail_at([point], by=signal.SIGTERM)  # a killed one might hold a lease, too
        await eventually(partial(_ended, api, before + 2), within_s=40, every_s=0.05)
        assert api.ends[-1].failpoint == point, api.ends[before:]


def _ended(member: Member, times: int) -> bool:
    return len(member.ends) >= times


async def test_p10_a_crash_loop_loses_nothing(rig: Rig) -> None:
    kills = scaled(8, full=60)
    async with rig.trial("P10 crash loop on the same messages", parks=True) as trial:
        load = await trial.finite_load(count=200, rate=200)
        for number, worker in enumerate(rig.workers):
            worker.fail_at([str(trial.rng.choice(BEFORE_COMMIT)) for _ in range(number, kills, len(rig.workers))])
        async with load.flowing():
            await eventually(lambda: len(load.acked) == 200, within_s=30)

        # None of them can commit anything. One that is given nothing any more, because RabbitMQ has given up on what is
        # left, would wait for ever.
        async def over() -> bool:
            return not any(worker.failing for worker in rig.workers) or await trial.unsettled() == 0

        await eventually(over, within_s=30 + 8 * kills, every_s=0.2)
    assert trial.failed_at().total() >= kills / 2 or trial.tally.parked
    assert trial.tally.applied + trial.tally.parked == 200


async def test_p11_stopping_is_graceful(rig: Rig) -> None:
    stops = scaled(3, full=50)
    async with rig.trial("P11 api and worker told to stop") as trial:
        load = await trial.load(count=400 * stops + 400, reads=40)
        members = [rig.apis[0], rig.workers[0], rig.apis[1]]
        async with load.flowing():
            for number in range(stops):
                member = members[number % 3]
                await trial.pause(0.2, 0.6)
                await member.replaced(signal.SIGTERM)
                trial.broken()
                await eventually(member.ready, within_s=30, every_s=0.1)
        slowest_s = max(seconds for member in members for seconds in member.stop_seconds)
        trial.tally.notes |= {"slowest_stop_s": round(slowest_s, 1), "lag_s": round(load.lag_s, 2)}
        # A connection that is refused is no answer that was cut off: there, the next one is asked.
        cut_off = [call for call in load.calls if call.status == 0 and call.error != "ClientConnectorError"]
        # Nor is one in the listen backlog when that is closed: the kernel resets it, and we never saw it.
        at_the_door = [call for call in cut_off if call.error == "ClientOSError" and not call.reused]
        # And who sleeps through the time in which he is asked to leave may come too late.
        asleep = load.lag_s > DRAIN_S - 2 * IDLE_S
        late = [call for call in cut_off if asleep and call.error == "ServerDisconnectedError" and call.reused]
        assert len(at_the_door) + len(late) == len(cut_off), cut_off
        assert len(at_the_door) <= 1 + stops // 20, at_the_door
        assert {call.status for call in load.calls} <= {0, 200, 202}
        assert slowest_s < GRACE_S
