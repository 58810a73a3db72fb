"""Messages and requests that come more than once, or make no sense: P3, P4, P9."""

import asyncio
import json
from functools import partial
from typing import TYPE_CHECKING

import pytest

from shared import topology
from shared.messages import MAX_BYTES, RetryMessage
from tests.acceptance.chaos.rig import RATE, Rig, Trial
from tests.acceptance.chaos.tally import scaled
from tests.eventually import eventually
from tests.jobs import a_message_for
from tests.queues import Queues

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = pytest.mark.asyncio(loop_scope="package")

COPIES = 10
POSTS = 200
POISONS = [
    (b"poison", "not JSON"),
    (json.dumps({"v": 1}).encode(), "missing required field"),
    (json.dumps({"v": 99, "request_id": "0" * 8, "job_id": 1, "project_id": "p1"}).encode(), ""),
    (b" " * (MAX_BYTES + 1), "bytes"),
]


async def test_p3_doubled_messages_have_one_effect(rig: Rig) -> None:
    count = scaled(50, full=2_000)
    async with rig.trial("P3 every message ten times") as trial:
        load = await trial.finite_load(count=count, rate=200)
        for worker in rig.workers:
            worker.pause()
        async with load.flowing():
            await eventually(lambda: len(load.acked) == count, within_s=30 + count / 40)
        jobs = await rig.jobs.many_failed(count)
        # Half of them are of any version: there only the ledger prevents a second effect.
        others = [a_message_for(job, any_version=number % 2 == 0) for number, job in enumerate(jobs)]
        trial.published |= {message.id: job for message, job in zip(others, jobs, strict=True)}
        messages = others + [a_message_for(job, request_id=id_) for id_, job in load.acked.items()]
        copies = messages * COPIES
        trial.rng.shuffle(copies)
        async with rig.queues() as queues:
            half = len(copies) // 2
            await publish(queues, copies[:half])
            for worker in rig.workers:
                worker.go_on()
            await publish(queues, copies[half:])
            await eventually(lambda: _settled(trial), within_s=30 + count / 40, every_s=0.1)
            await rig.jobs.fail_all_again()
            await publish(queues, messages)  # once more, now that all have had their effect, and a second is possible
        trial.broken(len(copies))


async def publish(queues: Queues, messages: "Iterable[RetryMessage | bytes]") -> None:
    """Publish at once, a hundred at a time."""
    left = iter(messages)

    async def some() -> None:
        for message in left:
            await queues.publish(message)

    await asyncio.gather(*(some() for _ in range(100)))


async def test_p4_one_idempotency_key_has_one_effect(rig: Rig) -> None:
    keys = scaled(4, full=100)
    async with rig.trial("P4 many posts with the same key") as trial:
        load = await trial.finite_load(count=keys, rate=RATE)
        async with load.opened():
            for number, job in enumerate(load.jobs):
                post = load.post_bulk if number % 4 == 3 else load.post
                posts = [post(job, f"key-of-{job.id}") for _ in range(POSTS)]
                soon = POSTS // 2 if number % 3 else 1
                await asyncio.gather(*posts[:soon])
                await eventually(partial(rig.jobs.effects_of, job), within_s=30)
                await rig.jobs.fail_all_again()  # a second effect is possible now
                await asyncio.gather(*posts[soon:])
        trial.broken(keys * (POSTS - 1))
        assert len(load.acked) == keys
        # On a machine that stops for a while some are told to come again, and do.
        assert {call.status for call in load.calls} <= {202, 503}


async def test_p9_one_bad_message_spoils_nothing(rig: Rig) -> None:
    thousands = scaled(1, full=20)
    async with rig.trial("P9 one poison in a thousand") as trial:
        jobs = await rig.jobs.many_failed(999 * thousands)
        good = [a_message_for(job) for job in jobs]
        trial.published |= {message.id: job for message, job in zip(good, jobs, strict=True)}
        poisons = [POISONS[number % len(POISONS)] for number in range(max(thousands, len(POISONS)))]
        trial.rng.shuffle(poisons)
        messages: list[RetryMessage | bytes] = [*good, *(body for body, _ in poisons)]
        trial.rng.shuffle(messages)
        async with rig.queues() as queues:
            await queues.take_dead()
            await publish(queues, messages)
            trial.broken(len(poisons))
            await eventually(lambda: _settled(trial), within_s=60, every_s=0.1)
            await eventually(lambda: _dead(queues, len(poisons)), within_s=30)
            letters = await queues.take_dead()
        assert sorted(letter.body for letter in letters) == sorted(body for body, _ in poisons)
        reasons = dict(POISONS)
        assert all(reasons[letter.body] in str(letter.reason) and letter.reason for letter in letters)


async def _settled(trial: Trial) -> bool:
    return await trial.unsettled() == 0


async def _dead(queues: Queues, count: int) -> bool:
    return await queues.waiting(topology.RETRIES_DEAD) >= count
