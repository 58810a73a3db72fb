"""What traces cost a read: two apis in one process, one without traces and one with, asked in turn.

They are in one process so that they differ in nothing else: two processes of one program differ by some hundredths, by
where their memory happens to lie. A turn is a fifth of a second, so that whatever else the machine does meets both. An
api's reads are charged with what the main thread used in its turns, and those with traces also with what all other
threads used: only the one that sends spans does anything. A second api without traces shows what all this cannot tell.
"""

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final, NamedTuple

from bench import jobs
from bench.load import Aim
from bench.part import in_turn
from bench.programs import Program, answers, bearer, comparator
from bench.results import Figure, TracedReads, Tracing
from tests.servers.processes import free_port

if TYPE_CHECKING:
    from bench.part import Stage

OFF: Final = "off"
NONE: Final = "0"
HUNDREDTH: Final = "0.01"
ALL: Final = "1"
SHARES: Final = (OFF, NONE, HUNDREDTH, ALL)
_LAST_ANSWERS_S: Final = 0.02
"""What was asked at the end of a turn is answered by then."""


class _Side(NamedTuple):
    """An api in one round."""

    requests: int
    errors: int
    active_s: float
    processor_s: float

    @property
    def per_s(self) -> float:
        return self.requests / self.active_s

    @property
    def cpu_us(self) -> float:
        return self.processor_s * 1e6 / max(1, self.requests)


async def measure(stage: "Stage") -> Tracing:
    """The figures. Raises ServerFailed, WrkFailed."""
    async with AsyncExitStack() as stack:
        database_url = await stack.enter_async_context(stage.postgres.database())
        async with jobs.connected(database_url) as connection:
            (job_id,) = await jobs.make(connection, 1, status="running")
            await jobs.settle(connection)
        collector = await stack.enter_async_context(comparator(stage.folder, "collector", {}))
        env = {
            "BENCH_DATABASE_URL": database_url,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}",
        }
        reads = [await _compared(stage, env, f"/api/jobs/{job_id}", share) for share in SHARES]
    return Tracing(stage.plan.tracing.connections, reads)


async def _compared(stage: "Stage", env: dict[str, str], path: str, share: str) -> TracedReads:
    """One share beside none."""
    plan = stage.plan.tracing
    ports = [free_port(), free_port()]
    both = {**env, "BENCH_APIS": f"{ports[0]}={OFF} {ports[1]}={share}"}
    rounds: list[tuple[_Side, _Side]] = []
    async with comparator(stage.folder, "apis", both) as program:
        aims = [Aim(port, [path], bearer()) for port in ports]
        for aim in aims:
            await answers(program, path, port=aim.port)
            await stage.loader.load(aim, connections=plan.connections, seconds=stage.plan.warm_s)
        for number in range(plan.rounds):
            rounds.append(await _round(stage, program, aims))
            stage.say(f"tracing: {share} beside off, round {number + 1} of {plan.rounds}")
    without, traced = zip(*rounds, strict=True)
    return TracedReads(
        share=share,
        per_s=Figure.of([side.per_s for side in traced]),
        per_s_without=Figure.of([side.per_s for side in without]),
        cpu_us=Figure.of([side.cpu_us for side in traced]),
        cpu_us_without=Figure.of([side.cpu_us for side in without]),
        errors=sum(side.errors for side in (*without, *traced)),
    )


async def _round(stage: "Stage", program: Program, aims: list[Aim]) -> tuple[_Side, _Side]:
    plan = stage.plan.tracing
    active_s, processor_s = [0.0, 0.0], [0.0, 0.0]
    async with AsyncExitStack() as stack:
        loads = [
            await stack.enter_async_context(stage.loader.pausing(aim, connections=plan.connections)) for aim in aims
        ]
        _, others_before_s = program.threads_s()
        for turn in range(plan.turns):
            for side in in_turn(turn):
                (main_before_s, _), began_at = program.threads_s(), time.perf_counter()
                await loads[side].ask(plan.turn_s)
                active_s[side] += time.perf_counter() - began_at
                await asyncio.sleep(_LAST_ANSWERS_S)
                processor_s[side] += program.threads_s()[0] - main_before_s
        processor_s[1] += program.threads_s()[1] - others_before_s
        asked = [await load.end() for load in loads]
    first, second = (_Side(*asked[side], active_s[side], processor_s[side]) for side in (0, 1))
    return first, second
