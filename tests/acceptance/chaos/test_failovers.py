"""A primary of PostgreSQL that is lost under load, and its standby promoted; names that lead to a reader: P22.

By `make chaos` only: each failover takes longer than all of a small trial.
"""

import asyncio
import time
from typing import Final

import pytest

from tests.acceptance.chaos.rig import Rig
from tests.acceptance.chaos.tally import scaled
from tests.servers.postgres import PostgresPair

pytestmark = pytest.mark.asyncio(loop_scope="package")

PAUSE_S: Final = 5.0
"""The promise, from the moment in which a server takes writes again."""
FLOWING_S: Final = 12.0
MISLED_S: Final = 10.0
RATE: Final = 50.0
LAG_S: Final = 1.0
"""More than a standby of this machine that receives is behind; and what it takes to count, and to kill."""
BEHIND_S: Final = 2.0
"""How long a standby that lags has received nothing when the primary is lost."""


@pytest.fixture
async def pair(rig_of_pair: Rig) -> PostgresPair:
    assert isinstance(rig_of_pair.postgres, PostgresPair)
    return rig_of_pair.postgres


@pytest.mark.parametrize(
    ("kind", "loss", "full"),
    [
        ("synchronous standby", "killed", 20),
        ("synchronous standby", "frozen", 10),
        ("asynchronous standby", "killed", 20),
        ("asynchronous standby", "frozen", 10),
        (f"asynchronous standby {BEHIND_S:.0f} s behind", "killed", 5),
    ],
)
async def test_p22_a_promoted_standby_goes_on_within_seconds(
    rig_of_pair: Rig, pair: PostgresPair, kind: str, loss: str, *, full: int
) -> None:
    """What an asynchronous standby does not have is counted, and how long before the loss it was accepted."""
    synchronous, lags = kind.startswith("synchronous"), kind.endswith("behind")
    name = f"P22 primary {loss}, {kind}"
    async with rig_of_pair.trial(name, loses=not synchronous) as trial:
        pauses: list[float] = []
        ages_ms: list[float] = []
        for _ in range(scaled(1, full=full)):
            await pair.make_synchronous(synchronous=synchronous)
            load = await trial.load(count=int(RATE * 60), rate=RATE)
            async with load.flowing():
                await trial.pause(1, 3)
                if lags:
                    await pair.stop_streaming()
                    await asyncio.sleep(BEHIND_S)
                lost_at = time.monotonic()
                await (pair.kill() if loss == "killed" else pair.freeze())
                trial.broken()
                await trial.pause(0, 3)  # whoever promotes needs time to notice
                await pair.fail_over()
                promoted_at = await rig_of_pair.now()
                await asyncio.sleep(FLOWING_S)
                pauses.append(await rig_of_pair.longest_pause(promoted_at))
            ages_ms += [1000 * (lost_at - load.acked_at[each]) for each in await trial.unknown(load)]
            await pair.rejoin()
        trial.tally.notes["longest_pause_s"] = round(max(pauses), 1)
        if not synchronous:
            trial.tally.notes["lost_within_ms"] = max(0, round(max(ages_ms, default=0)))
    assert max(pauses) <= PAUSE_S, pauses
    assert bool(ages_ms) >= lags, "a standby that had received nothing for seconds had everything"
    assert max(ages_ms, default=0) <= (0 if synchronous else 1000 * (BEHIND_S * lags + LAG_S)), ages_ms


async def test_p22_names_that_lead_to_a_reader_are_followed_back_to_the_writer(
    rig_of_pair: Rig, pair: PostgresPair
) -> None:
    async with rig_of_pair.trial("P22 the names lead to a reader") as trial:
        await pair.make_synchronous(synchronous=True)
        # Five hundred clients have waited in the end. If they did not wait as told, two thousand requests a second, of
        # the test's own making, would leave this machine no time: the pause would be theirs. P8 has such a crowd.
        pauses: list[float] = []
        for _ in range(scaled(1, full=5)):
            load = await trial.load(count=int(RATE * 60), rate=RATE, patient=True)
            async with load.flowing():
                await trial.pause(1, 3)
                await pair.mislead()
                trial.broken()
                await asyncio.sleep(MISLED_S)
                assert 503 in {call.status for call in load.calls}, "the programs still had a writer"
                await pair.lead_right()
                led_at = await rig_of_pair.now()
                await asyncio.sleep(FLOWING_S)
                pauses.append(await rig_of_pair.longest_pause(led_at))
        trial.tally.notes["longest_pause_s"] = round(max(pauses), 1)
    assert max(pauses) <= PAUSE_S, pauses
