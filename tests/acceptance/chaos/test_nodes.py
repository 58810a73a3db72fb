"""Three nodes of RabbitMQ, of which one is lost under load, or cut off from the two others: P21."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final
from urllib.parse import urlsplit

import pytest

from shared.topology import RETRIES, RETRIES_BULK, RETRIES_DEAD
from tests.acceptance.chaos.rig import Rig
from tests.acceptance.chaos.tally import SCALE, scaled
from tests.eventually import eventually
from tests.servers.rabbitmq import KILLABLE_AFTER_S, LocalRabbitmq, RabbitmqCluster

pytestmark = pytest.mark.asyncio(loop_scope="package")

PAUSE_S: Final = 6.0 if SCALE > 1 else 30.0
"""The promise; `make test` starts and tries everything else on the same processors meanwhile."""
AWAY_S: Final = 12.0
"""Twice the promise, and too short for RabbitMQ's own minute to notice."""
LONG_S: Final = 100.0
"""Long enough: a node that was cut off has paused, and its clients are gone."""
RATE: Final = 50.0
BACK_WITHIN_S: Final = 180.0
LOSSES: Final = ["killed"] if SCALE == 1 else ["killed", "frozen", "cut off"]
Act = Callable[[], Awaitable[None]]


@pytest.mark.parametrize("loss", LOSSES)
async def test_p21_the_loss_of_one_node_costs_seconds(rig_of_nodes: Rig, loss: str) -> None:
    cluster = rig_of_nodes.rabbitmq
    assert isinstance(cluster, RabbitmqCluster)
    each = scaled(1, full=20 if loss == "killed" else 5)
    # A single URL would name the first node: at length every node is lost.
    nodes = cluster.nodes if SCALE > 1 else cluster.nodes[:1]
    await asyncio.sleep(KILLABLE_AFTER_S)
    async with rig_of_nodes.trial(f"P21 a node of three {loss}") as trial:
        pauses: list[float] = []
        for number, node in enumerate(trial.rng.sample([*nodes] * each, each * len(nodes))):
            lose, bring_back = _fault(cluster, node, loss)
            load = await trial.load(count=int(RATE * BACK_WITHIN_S), rate=RATE)
            async with load.flowing():
                await trial.pause(1, 2)
                lost_at = await rig_of_nodes.now()
                await lose()
                trial.broken()
                await asyncio.sleep(LONG_S if loss == "cut off" and number % 5 == 0 else AWAY_S)
                pauses.append(await rig_of_nodes.longest_pause(lost_at))
            await bring_back()
            await eventually(partial(_is_whole, rig_of_nodes, cluster), within_s=BACK_WITHIN_S, every_s=0.5)
        trial.tally.notes["longest_pause_s"] = round(max(pauses), 1)
    assert max(pauses) <= PAUSE_S, pauses


def _fault(cluster: RabbitmqCluster, node: LocalRabbitmq, loss: str) -> tuple[Act, Act]:
    """What loses a node, and what brings it back."""
    match loss:
        case "killed":
            return node.kill, node.start
        case "frozen":
            return node.freeze, node.thaw
        case _:
            return partial(cluster.cut_off, node), cluster.join_again


async def _is_whole(rig: Rig, cluster: RabbitmqCluster) -> bool:
    """Whether every queue has all of its members online."""
    vhost = urlsplit(rig.amqp_url).path[1:]
    online = [await cluster.members_online(vhost, queue) for queue in (RETRIES, RETRIES_BULK, RETRIES_DEAD)]
    return online == [len(cluster.nodes)] * 3
