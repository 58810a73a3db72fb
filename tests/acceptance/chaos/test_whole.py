"""The whole, under random faults: P20."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from shared import topology
from shared.failpoints import Failpoint
from tests.acceptance.chaos.processes import Member
from tests.acceptance.chaos.rig import RATE, Rig, Trial
from tests.acceptance.chaos.tally import SCALE, scaled

pytestmark = pytest.mark.asyncio(loop_scope="package")

SEED = 20
EVERY_S = 3.0
Fault = Callable[[], Awaitable[object]]


class Faults:
    """What may go wrong; each fault ends what it has begun. `happened` counts what befell servers and the network.

    What keeps the processes going sees how they died; the trial counts it.
    """

    def __init__(self, rig: Rig, trial: Trial) -> None:
        self._rig = rig
        self._trial = trial
        self._rng = trial.rng
        self.happened: Counter[str] = Counter()

    def choices(self) -> dict[str, tuple[int, Fault]]:
        """Faults by name, with their weights: a broker takes ten seconds to come back."""
        rig = self._rig
        return {
            "worker killed": (4, partial(self._killed, rig.workers)),
            "worker killed at failpoint": (4, self._worker_failed),
            "api killed": (2, partial(self._killed, rig.apis)),
            "api killed at failpoint": (2, self._api_failed),
            "broker killed": (1, self._broker_killed),
            "broker frozen": (2, self._broker_frozen),
            "broker cut off": (2, partial(self._cut, "broker")),
            "database cut off": (2, partial(self._cut, "database")),
            "database crashed": (2, self._database_crashed),
            "database frozen": (2, self._database_frozen),
            "jobs locked": (2, self._jobs_locked),
            "queue unbound": (1, self._unbound),
        }

    def _happened(self, name: str) -> None:
        self._trial.broken()
        self.happened[name] += 1

    async def _killed(self, members: list[Member]) -> None:
        member = self._rng.choice(members)
        if member.runs:
            await member.replaced(signal.SIGKILL)

    async def _worker_failed(self) -> None:
        points = [Failpoint.AFTER_RECEIVE, Failpoint.IN_TRANSACTION, Failpoint.BEFORE_COMMIT, Failpoint.AFTER_COMMIT,
                  Failpoint.BEFORE_ACK]  # fmt: skip
        self._rng.choice(self._rig.workers).fail_at([self._rng.choice(points)])

    async def _api_failed(self) -> None:
        points = [Failpoint.AFTER_INSERT, Failpoint.BEFORE_PUBLISH, Failpoint.AFTER_CONFIRM]
        self._rng.choice(self._rig.apis).fail_at([self._rng.choice(points)])

    async def _broker_killed(self) -> None:
        await self._rig.kill_broker()
        self._happened("broker killed")
        await self._rig.rabbitmq.start()

    async def _broker_frozen(self) -> None:
        await self._rig.rabbitmq.freeze()
        self._happened("broker frozen")
        await self._trial.pause(0.5, 4)
        await self._rig.rabbitmq.thaw()

    async def _cut(self, which: str) -> None:
        proxy = self._rig.broker if which == "broker" else self._rig.database
        match self._rng.randrange(4):
            case 0:
                if await proxy.reset():
                    self._happened(f"{which} cut off")
                return
            case 1:
                await proxy.stall()
            case 2:
                await proxy.black_hole()
            case _:
                await proxy.refuse()
                await proxy.reset()
        self._happened(f"{which} cut off")
        await self._trial.pause(0.5, 3)
        await proxy.heal()

    async def _database_crashed(self) -> None:
        await (self._rig.postgres.kill() if self._rng.random() < 0.5 else self._rig.postgres.stop_immediate())
        self._happened("database crashed")
        await self._trial.pause(0, 1)
        await self._rig.postgres.start()

    async def _database_frozen(self) -> None:
        await self._rig.postgres.freeze()
        self._happened("database frozen")
        await self._trial.pause(0.5, 3)
        await self._rig.postgres.thaw()

    async def _jobs_locked(self) -> None:
        async with self._rig.jobs.locked():
            self._happened("jobs locked")
            await self._trial.pause(0.5, 3)

    async def _unbound(self) -> None:
        async with self._rig.queues() as queues:
            await queues.unbind(topology.RETRIES, topology.KEY_RETRY)
        self._happened("queue unbound")
        await self._trial.pause(0.5, 4)
        await self._rig.rebind()


async def test_p20_the_whole_under_random_faults(rig: Rig) -> None:
    seconds = scaled(20, full=1_800)
    async with rig.trial("P20 one random fault after another", seed=SEED) as trial:
        faults = Faults(rig, trial)
        choices = faults.choices()
        weights = [weight for weight, _ in choices.values()]
        load = await trial.load(count=int((seconds + 60) * RATE), reads=20)
        async with load.flowing():
            until = time.monotonic() + seconds
            # First what takes longest to heal: a lease that no process ends has to run out.
            rig.apis[0].fail_at([Failpoint.BEFORE_PUBLISH])
            while (began_at := time.monotonic()) < until:
                (name,) = trial.rng.choices(list(choices), weights)
                await choices[name][1]()
                await asyncio.sleep(max(0.0, began_at + EVERY_S - time.monotonic()))
        killed = sum(end.killed and end.failpoint is None for end in trial.ends())
        assert Failpoint.BEFORE_PUBLISH in trial.failed_at()
        if SCALE >= 100:
            never = {"broker killed", "broker frozen", "broker cut off", "database cut off", "database crashed",
                     "database frozen", "jobs locked", "queue unbound"} - faults.happened.keys()  # fmt: skip
            assert not never
        trial.tally.notes["faults"] = {"process killed": killed} | dict(sorted(faults.happened.items()))
