"""What RabbitMQ costs a retry: single retries end to end through it, and straight from the ledger, in one run.

Both deployments run all the time, one api process and one worker each, and are loaded in turn: one round is both. So
the one that waits costs the other next to nothing, and other load on the machine meets both.
"""

from collections import defaultdict
from contextlib import AsyncExitStack
from statistics import median
from typing import TYPE_CHECKING, Final

from bench.applying import Applied, Deployment
from bench.capacity import Cost
from bench.results import Dispatched, Figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.part import Stage

THROUGH_RABBITMQ: Final = "through RabbitMQ"
THROUGH_LEDGER: Final = "through the ledger"


async def measure(stage: "Stage") -> list[Dispatched]:
    """The figures. Raises ServerFailed, TimeoutError."""
    plan = stage.plan.retrying
    rounds: defaultdict[str, list[Applied]] = defaultdict(list)
    async with AsyncExitStack() as stack:
        deployments = {
            way: await stack.enter_async_context(Deployment.running(stage, with_broker=way == THROUGH_RABBITMQ))
            for way in (THROUGH_RABBITMQ, THROUGH_LEDGER)
        }
        for deployment in deployments.values():
            await deployment.apply(min(1_000, plan.carried), clients=plan.clients)  # to warm up
        for number in range(plan.pairs):
            for way, deployment in deployments.items():
                rounds[way].append(await deployment.apply(plan.carried, clients=plan.clients))
            stage.say(f"carrying: pair {number + 1} of {plan.pairs}")
    return [
        Dispatched(
            way=way,
            retries=plan.carried,
            per_s=Figure.of([each.per_s for each in of_way]),
            cost=_median_cost(of_way),
        )
        for way, of_way in rounds.items()
    ]


def _median_cost(rounds: "Sequence[Applied]") -> Cost | None:
    """Each part's own median."""
    costs = [each.cost for each in rounds if each.cost is not None]
    if not costs:
        return None
    return Cost(
        api=median(each.api for each in costs),
        worker=median(each.worker for each in costs),
        postgresql=median(each.postgresql for each in costs),
        rabbitmq=median(each.rabbitmq for each in costs),
        client=median(each.client for each in costs),
    )
