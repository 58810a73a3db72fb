"""What was to be reached by reading, waiting, retrying, scaling and the console, and whether it is."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from bench.accepting import INLINE
from bench.accepting import REDRIVE as REDRIVE_ACCEPTS
from bench.adapters import NUMBERED as NUMBERED_TABLE
from bench.adapters import PLAIN as PLAIN_TABLE
from bench.before import HOT as HOT_READS
from bench.before import RANDOM as RANDOM_READS
from bench.carrying import THROUGH_LEDGER, THROUGH_RABBITMQ
from bench.console import FAILURES, SERIES, STATS, TOGETHER, TYPES
from bench.reading import BARE, FASTAPI, HOT, NOT_MODIFIED, PLAIN, REDRIVE
from bench.results import (
    AdapterCost,
    Adapters,
    Before,
    Bulk,
    Console,
    Figure,
    Reading,
    Results,
    Retrying,
    Scaling,
    Tracing,
    Waiting,
    Waits,
)
from bench.settling import ACK_ONLY, CELERY, WORKER
from bench.tracing import HUNDREDTH, NONE

TIMES: Final = "\N{MULTIPLICATION SIGN}"
_CONNECTIONS: Final = 64
_MANY_CONNECTIONS: Final = 256
_MOST_DECIMALS: Final = 6
_READING: Final = "reading"
_WAITING: Final = "waiting"
_RETRYING: Final = "retrying"
_SCALING: Final = "scaling"
_ADAPTERS: Final = "adapters"
_CONSOLE: Final = "console"
_TRACING: Final = "tracing"
_BEFORE: Final = "before"


@dataclass(frozen=True, slots=True)
class Target:
    """One line of the table. `part` is where its figure is from; `measured` is None where a comparator was left out."""

    part: str
    what: str
    wanted: str
    measured: str | None
    met: bool | None


def _at_least(part: str, what: str, ratio: float | None, wanted: float) -> Target:
    shown = None if ratio is None else f"{_near(ratio, wanted, 2)} {TIMES}"
    return Target(part, what, f"{wanted:g} {TIMES}", shown, None if ratio is None else ratio >= wanted)


def _near(value: float, wanted: float, decimals: int) -> str:
    """The value with so many decimals, or as many as tell it from what is wanted."""
    while decimals < _MOST_DECIMALS and value != wanted and round(value, decimals) == wanted:
        decimals += 1
    return f"{value:.{decimals}f}"


def targets_of(results: Results) -> list[Target]:
    """The targets of the parts that were measured, part by part."""
    found: list[Target] = []
    if results.reading is not None:
        found += _of_reading(results.reading)
        found += _of_queries(results.reading)
    if results.waiting is not None:
        found += _of_waiting(results.waiting)
    if results.retrying is not None:
        found += _of_retrying(results.retrying)
    if results.scaling is not None:
        found += _of_scaling(results.scaling)
    if results.adapters is not None:
        found += _of_adapters(results.adapters)
    if results.console is not None:
        found += _of_console(results.console)
    if results.tracing is not None:
        found += _of_tracing(results.tracing)
    if results.before is not None:
        found += _of_before(results.before)
    return found


def _of_reading(reading: Reading) -> Iterator[Target]:
    ours = reading.find(REDRIVE, HOT, _CONNECTIONS)
    assert ours is not None
    for server, what, wanted in (
        (BARE, "`GET` one job, 64 connections, against bare aiohttp constant bytes", 0.55),
        (FASTAPI, "the same against FastAPI + asyncpg", 6),
        (PLAIN, "the same against a plain aiohttp handler", 3),
    ):
        theirs = reading.find(server, HOT, _CONNECTIONS)
        yield _at_least(_READING, what, None if theirs is None else ours.loads.per_s.over(theirs.loads.per_s), wanted)
    fastapi = reading.find(FASTAPI, HOT, _CONNECTIONS)
    share = None if fastapi is None else ours.loads.p99_ms.over(fastapi.loads.p99_ms)
    yield Target(
        _READING,
        "p99 at 64 connections against FastAPI's",
        "a quarter",
        None if share is None else f"{_near(share, 0.25, 2)} {TIMES}",
        None if share is None else share <= 0.25,
    )
    not_modified = reading.find(REDRIVE, NOT_MODIFIED, _CONNECTIONS)
    assert not_modified is not None
    yield _at_least(_READING, "304 against 200", not_modified.loads.per_s.over(ours.loads.per_s), 1.1)


def _of_waiting(waiting: Waiting) -> Iterator[Target]:
    cpu, memory = waiting.idle_cpu_share * 100, waiting.bytes_per_waiter / 1000
    yield Target(
        _WAITING,
        f"{waiting.waiters:,} waiters on {waiting.jobs:,} jobs, nothing changing",
        "< 10 % of one core, < 20 KB each",
        f"{_near(cpu, 10, 1)} % of one core, {_near(memory, 20, 1)} KB each",
        cpu < 10 and memory < 20,
    )
    wanted_ms = waiting.tick_ms + 500
    yield Target(
        _WAITING,
        "the same, all change at once: heard p99",
        f"tick + 500 ms = {wanted_ms:.0f} ms",
        f"{_near(waiting.heard_p99_ms, wanted_ms, 0)} ms",
        waiting.heard_p99_ms <= wanted_ms and not waiting.unheard,
    )


def _of_queries(reading: Reading) -> Iterator[Target]:
    for counted in reading.queries:
        if (counted.server, counted.connections) == (REDRIVE, _MANY_CONNECTIONS):
            share = counted.queries / counted.requests
            what = f"database queries per second at {counted.connections} connections"
            measured = f"{_near(share, 0.1, 3)} of the requests"
            yield Target(_READING, what, "< 1/10 of the requests", measured, share < 0.1)


def _of_retrying(retrying: Retrying) -> Iterator[Target]:
    ours = retrying.find_accepting(REDRIVE_ACCEPTS)
    inline = retrying.find_accepting(INLINE)
    assert ours is not None
    ratio = None if inline is None else ours.loads.per_s.over(inline.loads.per_s)
    yield _at_least(_RETRYING, "accepted POST/s against the inline handler", ratio, 3)
    worker = retrying.find_settling(WORKER)
    assert worker is not None
    for consumer, what, wanted in (
        (ACK_ONLY, "settling a backlog, one worker process, against the bare consumer that only acks", 0.5),
        (CELERY, "the same against Celery with an UPDATE per task, two processes", 5),
    ):
        theirs = retrying.find_settling(consumer)
        yield _at_least(_RETRYING, what, None if theirs is None else worker.per_s.over(theirs.per_s), wanted)
    dispatched = {each.way: each.per_s for each in retrying.carrying}
    if dispatched:
        what = f"retries through RabbitMQ against the ledger, {retrying.clients} clients, single POSTs"
        yield _at_least(_RETRYING, what, dispatched[THROUGH_RABBITMQ].over(dispatched[THROUGH_LEDGER]), 0.85)
    yield _of_waits(retrying.waits)
    yield _of_bulk(retrying.bulk)
    yield Target(
        _RETRYING,
        f"p99 of single retries while {retrying.bulk.jobs:,} bulk ones run",
        "300 ms",
        f"{_near(retrying.bulk.singles_meanwhile.applied_p99_ms, 300, 0)} ms",
        retrying.bulk.singles_meanwhile.applied_p99_ms <= 300 and not _missing(retrying.bulk.singles_meanwhile),
    )


def _of_waits(waits: Waits) -> Target:
    return Target(
        _RETRYING,
        f"wait from 202 to applied at {waits.rate_per_s:g} retries/s",
        "p99 100 ms",
        f"p99 {_near(waits.applied_p99_ms, 100, 0)} ms",
        waits.applied_p99_ms <= 100 and not _missing(waits),
    )


def _of_bulk(bulk: Bulk) -> Target:
    return Target(
        _RETRYING,
        f"bulk by filter, {bulk.jobs:,} jobs: accepted / all applied",
        "0.5 s / 2 s",
        f"{_near(bulk.accepted_s.median, 0.5, 2)} s / {_near(bulk.applied_s.median, 2, 2)} s",
        bulk.accepted_s.median <= 0.5 and bulk.applied_s.median <= 2,
    )


def _of_scaling(scaling: Scaling) -> Iterator[Target]:
    """Each configuration that the model did not know."""
    for each in scaling.scaled:
        if (each.apis, each.workers) in {(1, 0), (1, 1)}:
            continue
        ratio = each.per_s.median / each.predicted_per_s
        processes = f"{each.apis} api" + (f", {each.workers} worker{'s' * (each.workers > 1)}" if each.workers else "")
        yield Target(
            _SCALING,
            f"{each.what}, {processes}, {each.clients} clients: measured against predicted",
            f"0.8 to 1.2 {TIMES}",
            f"{ratio:.2f} {TIMES}",
            0.8 <= ratio <= 1.2,
        )


def _of_adapters(adapters: Adapters) -> Iterator[Target]:
    """Each target by the system that is the farthest from it."""
    plain, numbered = adapters.find(PLAIN_TABLE), adapters.find(NUMBERED_TABLE)
    assert plain is not None
    assert numbered is not None
    systems = [each for each in adapters.costs if each not in (plain, numbered)]
    ratio, slowest = min((each.get.per_s.over(plain.get.per_s), each.table) for each in systems)
    what = f"`GET` one job through an adapter, 64 connections, against the plain table (slowest: {slowest})"
    yield _at_least(_ADAPTERS, what, ratio, 0.6)
    per_s, slowest = min((each.settled_per_s.median, each.table) for each in systems)
    yield Target(
        _ADAPTERS,
        f"a backlog of {adapters.backlog:,} retries through an adapter, one worker (slowest: {slowest})",
        "1,000/s",
        f"{_near(per_s, 1_000, 0)}/s",
        per_s >= 1_000,
    )
    page_ms, slowest = max((_page_of(each).median, each.table) for each in systems)
    yield Target(
        _ADAPTERS,
        f"a page of {adapters.rows:,} jobs, with the owner's index where one can serve (slowest: {slowest})",
        "250 ms",
        f"{_near(page_ms, 250, 0)} ms",
        page_ms <= 250,
    )
    yield _at_least(
        _ADAPTERS, "`GET` one job, bigint ids against UUIDs", numbered.get.per_s.over(plain.get.per_s), 0.95
    )
    yield _at_least(
        _ADAPTERS,
        "a backlog settled, bigint ids against UUIDs",
        numbered.settled_per_s.over(plain.settled_per_s),
        0.95,
    )
    for cost in adapters.versions:
        over = cost.version_ms.over(cost.xmin_ms)
        wanted = 1.25 if cost.error_bytes <= 200 else None
        yield Target(
            _ADAPTERS,
            f"{cost.rows:,} versions by id, errors of {cost.error_bytes:,} bytes, against `xmin`",
            "" if wanted is None else f"at most {wanted:g} {TIMES}",
            f"{over:.2f} {TIMES}" if wanted is None else f"{_near(over, wanted, 2)} {TIMES}",
            None if wanted is None else over <= wanted,
        )


def _page_of(cost: AdapterCost) -> Figure:
    return cost.page_ms if cost.page_with_index_ms is None else cost.page_with_index_ms


def _of_console(console: Console) -> Iterator[Target]:
    for call, wanted_ms in ((SERIES, 250), (TYPES, 250), (STATS, 250), (FAILURES, 600)):
        counted = console.find(call, indexes=2, clients=1)
        assert counted is not None
        what = f"{call} of {console.rows:,} jobs with both indexes, counted anew"
        yield _within_ms(_CONSOLE, what, counted.slowest_ms.median, wanted_ms, counted.refused)
    together = console.find(FAILURES, indexes=2, clients=TOGETHER)
    assert together is not None
    yield _within_ms(
        _CONSOLE, f"{FAILURES}, {TOGETHER} clients together: p99", together.p99_ms, 1_000, together.refused
    )
    without = console.find(STATS, indexes=1, clients=1)
    assert without is not None
    yield Target(
        _CONSOLE,
        f"{STATS} without the index on the status",
        "an answer that says what is capped",
        f"{'capped' if without.capped else 'counted to the end'}, {without.slowest_ms.median:.0f} ms",
        met=without.refused == 0,
    )
    first = console.first_list
    yield Target(
        _CONSOLE,
        "first list of 50 seen, nothing cached",
        "300 ms",
        None if first is None else f"{_near(first.painted_ms.median, 300, 0)} ms",
        None if first is None else first.painted_ms.median <= 300,
    )


def _of_tracing(tracing: Tracing) -> Iterator[Target]:
    for share, what, wanted in (
        (NONE, "traces on, but none sampled", 1.01),
        (HUNDREDTH, "one read in a hundred traced", 1.02),
    ):
        traced = tracing.find(share)
        cpu = traced.cpu_us.over(traced.cpu_us_without)
        yield Target(
            _TRACING,
            f"`GET` one job, {tracing.connections} connections, {what}: processor time of the api, against off",
            f"at most {wanted:g} {TIMES}",
            f"{_near(cpu, wanted, 3)} {TIMES}",
            cpu <= wanted,
        )
        per_s = traced.per_s.over(traced.per_s_without)
        yield _at_least(_TRACING, "the same: reads/s", per_s, round(2 - wanted, 2))


def _of_before(before: Before) -> Iterator[Target]:
    for each in before.compared:
        what = f"{each.what}, {before.connections} connections" if each.what in {HOT_READS, RANDOM_READS} else each.what
        yield _at_least(_BEFORE, f"{what}, against the earlier version", each.now.over(each.before), 0.95)


def _within_ms(part: str, what: str, measured_ms: float, wanted_ms: float, refused: int) -> Target:
    measured = f"{_near(measured_ms, wanted_ms, 0)} ms" + (f", {refused} refused" if refused else "")
    return Target(part, what, f"{wanted_ms:,.0f} ms", measured, measured_ms <= wanted_ms and not refused)


def _missing(waits: Waits) -> int:
    return waits.not_accepted + waits.not_applied
