"""An earlier version of Redrive beside this one: reads, and single retries from the POST until they are applied.

`REDRIVE_BEFORE` is its `redrive` command, in an environment of its own; `make bench ARGS=before FROM=REVISION` makes
one. Each version has a database that it has migrated itself. Both run all the time, and are loaded in turn, each round
the other one first, so that whatever else the machine does meets both.
"""

import os
from collections import defaultdict
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import jobs
from bench.applying import Deployment
from bench.load import Aim
from bench.part import in_turn
from bench.programs import OWN, Program, Version, answers, bearer, redrive_api
from bench.results import Before, Compared, Figure
from tests.servers.processes import ServerFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from bench.part import Stage

VARIABLE: Final = "REDRIVE_BEFORE"
HOT: Final = "`GET` one job"
RANDOM: Final = "`GET` one of 1,000 at random"
RETRIES: Final = "single retries through RabbitMQ, until all are applied"


async def measure(stage: "Stage") -> Before:
    """The figures. Raises ServerFailed, WrkFailed, TimeoutError."""
    given = os.environ.get(VARIABLE)
    if not given:
        raise ServerFailed(f"{VARIABLE} names no earlier version: make bench ARGS=before FROM=v0.1.0")
    before = Version(Path(given))
    versions = (before, OWN)
    reads = await _reads(stage, versions)
    return Before(
        version=await before.said(),
        commit=os.environ.get("REDRIVE_BEFORE_COMMIT", ""),
        connections=stage.plan.before.connections,
        clients=stage.plan.before.clients,
        compared=[*reads, await _retries(stage, versions)],
    )


async def _reads(stage: "Stage", versions: "Sequence[Version]") -> list[Compared]:
    plan = stage.plan.before
    async with AsyncExitStack() as stack:
        sides = [await stack.enter_async_context(_reading(stage, version)) for version in versions]
        found: defaultdict[str, list[list[float]]] = defaultdict(lambda: [[], []])
        for api, paths in sides:  # to warm up
            await answers(api, paths[0])
            aim = Aim(api.port, paths, bearer())
            await stage.loader.load(aim, connections=plan.connections, seconds=stage.plan.warm_s)
        for number in range(plan.rounds):
            for what in (HOT, RANDOM):
                for side in in_turn(number):
                    api, paths = sides[side]
                    aim = Aim(api.port, paths if what == RANDOM else paths[:1], bearer())
                    load = await stage.loader.load(aim, connections=plan.connections, seconds=plan.seconds)
                    if load.errors:
                        raise ServerFailed(f"{load.errors} reads failed")
                    found[what][side].append(load.per_s)
            stage.say(f"before: reads, round {number + 1} of {plan.rounds}")
    return [Compared(what, Figure.of(before), Figure.of(now)) for what, (before, now) in found.items()]


async def _retries(stage: "Stage", versions: "Sequence[Version]") -> Compared:
    plan = stage.plan.before
    async with AsyncExitStack() as stack:
        deployments = [
            await stack.enter_async_context(Deployment.running(stage, version=version)) for version in versions
        ]
        for deployment in deployments:
            await deployment.apply(min(1_000, plan.retries), clients=plan.clients)  # to warm up
        rates: list[list[float]] = [[], []]
        for number in range(plan.rounds):
            for side in in_turn(number):
                rates[side].append((await deployments[side].apply(plan.retries, clients=plan.clients)).per_s)
            stage.say(f"before: retries, round {number + 1} of {plan.rounds}")
    return Compared(RETRIES, *(Figure.of(each) for each in rates))


@asynccontextmanager
async def _reading(stage: "Stage", version: "Version") -> "AsyncIterator[tuple[Program, Sequence[str]]]":
    """An api of this version that has a thousand jobs to be read, and others; and the paths of the thousand."""
    plan = stage.plan.before
    async with stage.postgres.database(migrated=False) as database_url:
        await version.migrate(database_url)
        async with jobs.connected(database_url) as connection:
            ids = await jobs.make(connection, plan.jobs, status="running")
            await jobs.make(connection, plan.other_rows, status="running", kind="other")
            await jobs.settle(connection)
        async with redrive_api(stage.folder, database_url, None, 1, version) as api:
            yield api, [f"/api/jobs/{job_id}" for job_id in ids]
