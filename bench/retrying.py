"""Retrying, as a whole: accepting, settling, and the way from one to the other."""

from bench import accepting, dispatching, settling
from bench.part import Stage
from bench.results import Retrying


async def measure(stage: Stage) -> Retrying:
    """The figures. Raises ServerFailed, TimeoutError."""
    accepted = await accepting.measure(stage)
    waits, bulk = await dispatching.measure(stage)
    return Retrying(stage.plan.retrying.clients, accepted, await settling.measure(stage), waits, bulk)
