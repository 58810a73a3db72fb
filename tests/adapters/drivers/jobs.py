"""What every system's handler does with a job, and what a test asks of a system."""

import asyncio
from typing import Final, NotRequired, TypedDict

QUEUE: Final = "p1"
ERROR: Final = "card 4242 was declined"


class AskedJob(TypedDict):
    """A job to enqueue."""

    do: str
    delay_s: NotRequired[int]


class Declined(Exception):
    """What a job fails with."""


async def run_job(do: str, mode: str) -> None:
    """Run a job in a worker's mode."""
    if mode == "succeed" or do == "work":
        return
    if do == "hang":
        await asyncio.Event().wait()
    raise Declined(ERROR)
