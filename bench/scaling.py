"""Scaling: reads and retries with more processes, beside what the capacity model predicts for them.

The model (bench/capacity.py) knows one api process and one worker, with many clients and with few, and the number of
cores that other programs of this machine left; everything else it has to predict. Each configuration runs alone, on a
database and a virtual host of its own: programs that only wait take time from the others. One round is every
configuration.
"""

import os
import time
from collections import defaultdict
from statistics import median
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

from bench import jobs
from bench.applying import Deployment, Use, per_request, spent, use_of
from bench.capacity import Batches, Cost, Model, Observed
from bench.load import Aim
from bench.part import Stage
from bench.processor import machine_s
from bench.programs import bearer, redrive_api
from bench.results import Figure, Scaled, Scaling
from bench.servers import transactions_of
from shared.settings import WorkerSettings
from tests.servers.processes import ServerFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

READS: Final = "reads"
RETRIES: Final = "retries"
_READ_JOBS: Final = 1_000
_BATCH_WAIT_S: Final[float] = WorkerSettings.model_fields["worker_batch_wait"].default
"""The workers run with the default of REDRIVE_WORKER_BATCH_WAIT."""


class _Turn(NamedTuple):
    what: str
    apis: int
    workers: int
    clients: int


class _Round(NamedTuple):
    per_s: float
    batches: Batches
    cost: Cost
    use: Use
    cycle_s: float = 0.0


async def measure(stage: Stage) -> Scaling:
    """The figures, and the predictions. Raises ServerFailed, WrkFailed, TimeoutError."""
    plan = stage.plan.scaling
    if stage.postgres_pid is None or stage.rabbitmq_pid is None:
        raise ServerFailed("scaling needs servers that are processes of this machine: set REDRIVE_TEST_SERVERS=local")
    rounds: defaultdict[_Turn, list[_Round]] = defaultdict(list)
    for number in range(plan.rounds):
        for apis in plan.apis:
            async for turn, found in _read(stage, apis):
                rounds[turn].append(found)
        for apis in plan.apis:
            for workers in plan.workers:
                async for turn, found in _retried(stage, apis, workers):
                    rounds[turn].append(found)
        stage.say(f"scaling: round {number + 1} of {plan.rounds}")
    cores = len(os.sched_getaffinity(0))
    observed = {turn: _observed(turn, of_turn, cores) for turn, of_turn in rounds.items()}
    models = {
        what: Model.fitted(*(observed[_Turn(what, 1, workers, clients)] for clients in (many, plan.few)))
        for what, workers, many in ((READS, 0, plan.connections), (RETRIES, 1, plan.clients))
    }
    return Scaling(
        cores=cores,
        few=plan.few,
        scaled=[_scaled(turn, of_turn, models[turn.what], cores) for turn, of_turn in rounds.items()],
        own={what: model.own for what, model in models.items()},
        of_batch={what: model.of_batch for what, model in models.items()},
        waiting={what: model.waiting for what, model in models.items()},
    )


def _scaled(turn: _Turn, rounds: "Sequence[_Round]", model: Model, cores: int) -> Scaled:
    idle, others = (median(each) for each in zip(*(each.use for each in rounds), strict=True))
    predicted = model.predicted(apis=turn.apis, workers=turn.workers, clients=turn.clients, cores=cores - others)
    observed = _observed(turn, rounds, cores)
    return Scaled(
        what=turn.what,
        apis=turn.apis,
        workers=turn.workers,
        clients=turn.clients,
        per_s=Figure.of([each.per_s for each in rounds]),
        cost=observed.cost,
        batches=observed.batches,
        idle_cores=idle,
        others_cores=others,
        predicted_per_s=predicted.per_s,
        limit=predicted.limit,
    )


def _observed(turn: _Turn, rounds: "Sequence[_Round]", cores: int) -> Observed:
    """The round in the middle, by its rate: its costs belong to that rate."""
    middle = sorted(rounds, key=lambda each: each.per_s)[len(rounds) // 2]
    return Observed(
        turn.clients, middle.cost, middle.batches, middle.cycle_s, middle.per_s, cores=cores - middle.use.others
    )


async def _retried(stage: Stage, apis: int, workers: int) -> "AsyncIterator[tuple[_Turn, _Round]]":
    """Retries by many clients, and, where there is one process of each, by few."""
    plan = stage.plan.scaling
    async with Deployment.running(stage, apis=apis, workers=workers) as deployment:
        await deployment.apply(plan.warm, clients=plan.clients)
        for clients, retries in [(plan.clients, plan.retries), (plan.few, plan.few_retries)][: _loads(apis, workers)]:
            applied = await deployment.apply(retries, clients=clients)
            assert applied.cost is not None
            assert applied.use is not None
            cycle_s = applied.settling_s + _BATCH_WAIT_S
            yield (
                _Turn(RETRIES, apis, workers, clients),
                _Round(applied.per_s, applied.batches, applied.cost, applied.use, cycle_s),
            )


async def _read(stage: Stage, apis: int) -> "AsyncIterator[tuple[_Turn, _Round]]":
    """The same of reads of jobs at random. The database counts the queries; each is a transaction of its own."""
    plan = stage.plan.scaling
    async with stage.postgres.database() as database_url:
        async with jobs.connected(database_url) as connection:
            ids = await jobs.make(connection, _READ_JOBS, status="running")
            await jobs.settle(connection)
        database = urlsplit(database_url).path.removeprefix("/")
        async with redrive_api(stage.folder, database_url, None, apis) as api:
            aim = Aim(api.port, [f"/api/jobs/{job_id}" for job_id in ids], bearer())
            await stage.loader.load(aim, connections=plan.connections, seconds=stage.plan.warm_s)
            for clients in (plan.connections, plan.few)[: _loads(apis, 1)]:
                queries = await transactions_of(stage.postgres, database)
                before, machine_before, began_at = spent(stage, api), machine_s(), time.perf_counter()
                load = await stage.loader.load(aim, connections=clients, seconds=plan.seconds)
                after, machine_after, seconds = spent(stage, api), machine_s(), time.perf_counter() - began_at
                queries = await transactions_of(stage.postgres, database) - queries
                assert before is not None
                assert after is not None
                if load.errors:
                    raise ServerFailed(f"{load.errors} of {load.requests} reads failed")
                cost = per_request(before, after, load.requests)
                use = use_of(machine_before, machine_after, before, after, seconds)
                yield _Turn(READS, apis, 0, clients), _Round(load.per_s, Batches(queries / load.requests), cost, use)


def _loads(apis: int, workers: int) -> int:
    """With how many numbers of clients a configuration is loaded: what the model is made of, with two."""
    return 2 if (apis, workers) == (1, 1) else 1
