"""Retrying, as a whole: accepting, settling, the way from one to the other, and what RabbitMQ costs on it."""

from bench import accepting, carrying, dispatching, settling
from bench.part import Stage
from bench.results import Retrying


async def measure(stage: Stage) -> Retrying:
    """The figures. Raises ServerFailed, TimeoutError."""
    accepted = await accepting.measure(stage)
    carried = await carrying.measure(stage)
    waits, bulk = await dispatching.measure(stage)
    return Retrying(stage.plan.retrying.clients, accepted, await settling.measure(stage), waits, bulk, carried)
