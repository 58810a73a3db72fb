"""`docs/benchmarks.md` and its plots, made from `results.json` and nothing else."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

from bench import plot
from bench.adapters import PLAIN as PLAIN_TABLE
from bench.capacity import Cost
from bench.growth import DEEP_PAGE, FIRST_PAGE, GET_ONE, LIST_CONNECTIONS, STATS
from bench.ledger import CALLS as LEDGER_CALLS
from bench.reading import BARE, FASTAPI, HOT, NOT_MODIFIED, PLAIN, RANDOM, REDRIVE
from bench.results import (
    Adapters,
    Before,
    Compared,
    Console,
    Growth,
    Ledger,
    Machine,
    Memory,
    Read,
    Reading,
    Results,
    Retrying,
    Run,
    Scaling,
    Sizes,
    Tracing,
    Waiting,
    Waits,
)
from bench.targets import TIMES, targets_of
from tests.checkout import MORE

P = TypeVar("P")

PAGE: Final = "benchmarks.md"
READING_PLOT: Final = "benchmarks-reading.svg"
GROWTH_PLOT: Final = "benchmarks-growth.svg"
_SERVERS: Final = (REDRIVE, BARE, PLAIN, FASTAPI)
_WAYS: Final = {HOT: "one hot job", RANDOM: "1,000 jobs at random", NOT_MODIFIED: "304, one hot job"}

_INTRODUCTION: Final = """\
# Benchmarks

<!-- Made by `make bench` from bench/results.json: change bench/report.py, not this page. -->

Redrive beside what one would write by hand, on the same servers and in the same run. Who is compared takes turns,
round by round; figures are medians over the rounds, ratios are medians of each round's own ratio. Load generator,
programs, PostgreSQL and RabbitMQ share the machine's cores, so every figure is of all of them together. Everything goes
through 127.0.0.1; there is no network in it. [Where the time goes](profile.md) says what the figures are made of, and
why some targets are not met.
"""
_READING: Final = """\
## Reading

`GET /api/jobs/{id}`, loaded by `wrk` with one thread. Redrive has its whole door on: token, limits (too high to be
reached), ownership, ETag, metrics.

- **bare aiohttp** answers constant bytes, as many as Redrive's, and does nothing else: the ceiling for this server.
- **plain aiohttp** verifies the token with PyJWT and asks PostgreSQL once per request, through asyncpg's pool.
- **FastAPI** does the same on uvicorn with uvloop and httptools; its answers go past pydantic.
"""
_WAITING: Final = """\
## Waiting

`Prefer: wait=60` with the ETag known, a connection each. The processor time and the memory are those of the one
`redrive api` process; what is heard counts from the commit of the one UPDATE that changes all jobs.
"""
_ACCEPTING: Final = """\
## Retrying

### Accepting

`POST /api/jobs/{id}/retry`, each job once, by %d clients. The **inline handler** looks at the job, inserts the request
and publishes it with a confirm before it answers. Redrive answers when its ledger is committed, and publishes
meanwhile: the last column counts until the broker has everything.
"""
_SETTLING: Final = """\
### Settling a backlog

Consumers are started and frozen, the backlog is made, then they are let loose. The **bare consumer** is aio-pika that
acknowledges, with the worker's prefetch, and touches no database. **Celery** runs one UPDATE per task with psycopg:
prefork with two children, `acks_late`, a prefetch of 100 tasks each.
"""
_DISPATCHING: Final = """\
### From the 202 to the job

Api, one worker, RabbitMQ. A trigger of the bench's own tells when a job is put back; its cost is in the figures.
"""
_CARRYING: Final = """\
### What RabbitMQ costs

Single retries by %d clients, from the first POST until the last job is put back, one api and one worker each: through
RabbitMQ, and straight from the ledger, in turn. Processor time is for one retry, that of servers and client included.
"""
_SCALING: Final = """\
## Scaling

More processes, beside what the [capacity model](scaling.md#the-capacity-model) predicts for them. It knows one api
process and one worker, with many clients and with %d, and those of the %d cores that other programs left. Servers and
client share them. Reads are of 1,000 jobs at random. Retries are single ones through RabbitMQ, from the first POST
until the last job is put back.
"""
_LEDGER: Final = """\
## The ledger

Settled retries of one project, of %d days, inserted by one statement with every index in place. %d clients POST while
the worker is frozen; then it settles their retries, straight from the ledger. `waited` is of retries at %g/s, from
their place in the ledger until they are applied. Reads are by %d connections. Then what is older than %d days is
pruned, while four clients POST.
"""
_GROWTH: Final = """\
## Growth

All rows are of one project, with the index for lists, `(project_id, created_at DESC, id DESC)`. Pages have ten rows.
"""
_MEMORY: Final = """\
## Answers' memory

Jobs with errors and payloads of a megabyte, and clients that ask for them once and read nothing. The memory is that of
the one `redrive api` process.
"""
_CONSOLE: Final = """\
## The console

What the console asks for again and again, on %s jobs of one project. One in twenty has failed, the newest with errors
of seven kinds, no two of them alike. An answer is counted once in 5 s; here it is counted anew in each round, and the
slowest client counts. Both indexes are those that the README recommends; the second is the one on the status. Where
it is missing, the newest jobs are counted, and the answer says so.
"""


_ADAPTERS: Final = """\
## Adapters

Other systems' jobs tables behind a view ([adapters](adapters/README.md)), beside the plain table: %s failed jobs each,
all of one project. One job: 1,000 at random, 64 connections. A page is the first of the list, 50 jobs, one call at a
time: as the system's table is, and with the index that its page names for the owner. Over 2,250 ms it is a 503. The
backlog is %s retries, settled by one worker straight from the ledger.
"""
_VERSIONS: Final = """\
### What a version costs

A job's version is a hash of all that is shown of it. One statement looks jobs up by id and reads their versions,
another reads `xmin` instead, in turn, each until the client has the rows. An error of 64 KB is stored apart from its
row; for a version it has to be fetched and hashed, up to its 65,536th character.
"""


_TRACES: Final = """\
## Traces

`GET /api/jobs/{id}` of one hot job, %d connections, from an api that begins a trace of such a share of the requests,
and in turn from one without traces in the same process, a fifth of a second each. What the first line differs from 1 by
is what the measurement cannot tell. The spans go to a collector that drops them, every five seconds, as is the default;
the time of the thread that sends them is in the figures.
"""


_BEFORE: Final = """\
## An earlier version

Redrive %s%s beside this version, each on a database that it has migrated itself: reads by %d connections, single
retries by %d clients. Both run all the time, and are loaded in turn. "Against it" is the median of each round's own
ratio.
"""


def write(results: Results, folder: Path) -> None:
    """Write the page and its plots into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PAGE).write_text("\n".join(_page(results)))
    if results.reading is not None:
        (folder / READING_PLOT).write_bytes(_reading_plot(results.reading))
    if results.growth is not None:
        (folder / GROWTH_PLOT).write_bytes(_growth_plot(results.growth))


def _page(results: Results) -> Iterator[str]:
    yield _INTRODUCTION
    if any(run.smoke for run in results.runs.values()):
        yield "**These figures are of a smoke run: they show that the bench works, and nothing else.**\n"
    yield "## Targets\n"
    rows = [
        (each.part, each.what, each.wanted, each.measured or "left out", _verdict(met=each.met))
        for each in targets_of(results)
    ]
    yield _table(("part", "what", "must reach", "measured", ""), rows)
    yield from _parts(results)
    yield from _circumstances(results.machine, results.runs)


def _parts(results: Results) -> Iterator[str]:
    yield from _if_measured(results.reading, _reading)
    yield from _if_measured(results.waiting, _waiting)
    yield from _if_measured(results.retrying, _retrying)
    yield from _if_measured(results.scaling, _scaling)
    yield from _if_measured(results.ledger, _ledger)
    yield from _if_measured(results.growth, _growth)
    yield from _if_measured(results.memory, _memory)
    yield from _if_measured(results.adapters, _adapters)
    yield from _if_measured(results.console, _console)
    yield from _if_measured(results.tracing, _traces)
    yield from _if_measured(results.before, _before)


def _if_measured(part: P | None, described: Callable[[P], Iterator[str]]) -> Iterator[str]:
    return iter(()) if part is None else described(part)


def _verdict(*, met: bool | None) -> str:
    return "" if met is None else "met" if met else "**not met**"


def _reading(reading: Reading) -> Iterator[str]:
    yield _READING
    yield f"![Requests per second]({READING_PLOT})\n"
    rows = []
    for each in sorted(reading.reads, key=lambda read: (list(_WAYS).index(read.way), read.connections)):
        ours = reading.find(REDRIVE, each.way, each.connections)
        rows.append(
            (
                _WAYS[each.way], str(each.connections), each.server, f"{each.loads.per_s.median:,.0f}",
                _spread(each), _ratio(ours, each), f"{each.loads.p50_ms.median:.2f}", f"{each.loads.p99_ms.median:.2f}",
                f"{each.server_cpu_us.median:.0f}", str(each.loads.errors),
            )
        )  # fmt: skip
    head = (
        "asked for", "connections", "server", "requests/s", "lowest to highest", "Redrive is", "p50 ms", "p99 ms",
        "server's CPU, µs a request", "errors",
    )  # fmt: skip
    yield _table(head, rows)
    sizes = ", ".join(f"{server} {size}" for server, size in reading.body_bytes.items())
    yield f"Bytes in a body: {sizes}.\n"
    yield "What the database counted, 1,000 jobs at random:\n"
    counted = [
        (
            each.server, str(each.connections), f"{each.requests:,}", f"{each.queries:,}",
            f"{each.queries / each.requests:.3f}",
        )
        for each in reading.queries
    ]  # fmt: skip
    yield _table(("server", "connections", "requests", "queries", "queries a request"), counted)
    yield "asyncpg's pool cleans a connection with a statement of its own when it gets it back: hence two.\n"


def _spread(read: Read) -> str:
    return f"{min(read.loads.per_s.rounds):,.0f} to {max(read.loads.per_s.rounds):,.0f}"


def _ratio(ours: Read | None, theirs: Read) -> str:
    return "" if ours is None or ours is theirs else f"{ours.loads.per_s.over(theirs.loads.per_s):.2f} {TIMES}"


def _waiting(waiting: Waiting) -> Iterator[str]:
    yield _WAITING
    rows = [
        ("waiters, jobs", f"{waiting.waiters:,}, {waiting.jobs:,}"),
        ("opened within", f"{waiting.opened_s:.1f} s"),
        (
            f"processor, nothing changing for {waiting.idle_s:.0f} s",
            f"{waiting.idle_cpu_share * 100:.1f} % of one core",
        ),
        ("memory per waiter", f"{waiting.bytes_per_waiter / 1000:.1f} KB"),
        ("all change at once: heard p50", f"{waiting.heard_p50_ms:.0f} ms"),
        ("heard p99", f"{waiting.heard_p99_ms:.0f} ms"),
        ("heard by the last", f"{waiting.heard_max_ms:.0f} ms"),
        ("not heard", str(waiting.unheard)),
        ("tick", f"{waiting.tick_ms:.0f} ms"),
    ]
    yield _table(("what", "measured"), rows)


def _retrying(retrying: Retrying) -> Iterator[str]:
    yield _ACCEPTING % retrying.clients
    yield _table(
        ("server", "accepted/s", "p50 ms", "p99 ms", "not 202", "accepted and published/s"),
        [
            (
                each.server, f"{each.loads.per_s.median:,.0f}", f"{each.loads.p50_ms.median:.1f}",
                f"{each.loads.p99_ms.median:.1f}", str(each.loads.errors), f"{each.all_published_per_s.median:,.0f}",
            )
            for each in retrying.accepting
        ],
    )  # fmt: skip
    if retrying.carrying:
        yield from _carrying(retrying)
    yield _SETTLING
    yield _table(
        ("consumer", "processes", "messages", "settled/s"),
        [
            (each.consumer, str(each.processes), f"{each.messages:,}", f"{each.per_s.median:,.0f}")
            for each in retrying.settling
        ],
    )
    yield _DISPATCHING
    bulk = retrying.bulk
    yield _table(
        (
            "single retries",
            "sent",
            "202 p50 ms",
            "202 p99 ms",
            "202 to applied p50 ms",
            "p99 ms",
            "max ms",
            "not applied",
        ),
        [
            _waits_row(f"{retrying.waits.rate_per_s:g}/s", retrying.waits),
            _waits_row(
                f"{bulk.singles_meanwhile.rate_per_s:g}/s, while {bulk.jobs:,} bulk ones run", bulk.singles_meanwhile
            ),
        ],
    )
    yield (
        f"Bulk by filter, {bulk.jobs:,} jobs: accepted after {bulk.accepted_s.median:.2f} s, all applied after "
        f"{bulk.applied_s.median:.2f} s.\n"
    )


def _waits_row(name: str, waits: Waits) -> Sequence[str]:
    return (
        name, f"{waits.retries:,}", f"{waits.accepted_p50_ms:.1f}", f"{waits.accepted_p99_ms:.1f}",
        f"{waits.applied_p50_ms:.1f}", f"{waits.applied_p99_ms:.1f}", f"{waits.applied_max_ms:.1f}",
        str(waits.not_accepted + waits.not_applied),
    )  # fmt: skip


def _carrying(retrying: Retrying) -> Iterator[str]:
    yield _CARRYING % retrying.clients
    yield _table(
        ("single retries", "applied/s", "lowest to highest", *_SPENDERS),
        [
            (
                each.way, f"{each.per_s.median:,.0f}",
                f"{min(each.per_s.rounds):,.0f} to {max(each.per_s.rounds):,.0f}",
                *(_costs(each.cost) if each.cost is not None else [""] * len(_SPENDERS)),
            )
            for each in retrying.carrying
        ],
    )  # fmt: skip


_SPENDERS: Final = ("api, ms", "worker", "PostgreSQL", "RabbitMQ", "client", "together")


def _costs(cost: Cost) -> Sequence[str]:
    return [f"{ms:.3f}" for ms in (cost.api, cost.worker, cost.postgresql, cost.rabbitmq, cost.client, cost.total)]


def _scaling(scaling: Scaling) -> Iterator[str]:
    yield _SCALING % (scaling.few, scaling.cores)
    yield _table(
        (
            "what", "api", "workers", "clients", "predicted/s", "limited by", "measured/s", "lowest to highest",
            "ratio", "cores idle", "had by others",
        ),
        [
            (
                each.what, str(each.apis), str(each.workers or ""), str(each.clients), f"{each.predicted_per_s:,.0f}",
                each.limit, f"{each.per_s.median:,.0f}",
                f"{min(each.per_s.rounds):,.0f} to {max(each.per_s.rounds):,.0f}",
                f"{each.per_s.median / each.predicted_per_s:.2f} {TIMES}", f"{each.idle_cores:.2f}",
                f"{each.others_cores:.2f}",
            )
            for each in scaling.scaled
        ],
    )  # fmt: skip
    yield "Processor time for one request, in ms, and how many requests there were in a batch:\n"
    yield _table(
        ("what", "api", "workers", "clients", *_SPENDERS, "accepted or read together", "published", "settled"),
        [
            (
                each.what, str(each.apis), str(each.workers or ""), str(each.clients), *_costs(each.cost),
                *(
                    f"{1 / batches:.0f}" if batches else ""
                    for batches in (each.batches.accepted, each.batches.published, each.batches.settled)
                ),
            )
            for each in scaling.scaled
        ],
    )  # fmt: skip
    yield "The model's costs, in ms: of a request without its batches, and of a batch.\n"
    yield _table(
        ("what", *_SPENDERS),
        [
            (f"{what}, {kind}", *_costs(costs[what]))
            for what in scaling.own
            for kind, costs in (("a request", scaling.own), ("a batch", scaling.of_batch))
        ],
    )
    shares = ", ".join(f"{share:.2f} for {what}" for what, share in scaling.waiting.items())
    yield f"The share of the time in which all who use one api process wait: {shares or 'not looked at'}.\n"


def _ledger(ledger: Ledger) -> Iterator[str]:
    yield _LEDGER % (ledger.days, ledger.clients, ledger.rate_per_s, ledger.connections, ledger.kept_days)
    of = ledger.ledgers
    loads = [
        (f"accepted/s, p99 ms, by {ledger.clients} clients", [each.accepting for each in of]),
        *((f"{call}: reads/s, p99 ms", [each.find(call) for each in of]) for call in LEDGER_CALLS),
        ("accepted/s, p99 ms, by 4 clients while rows are pruned", [each.meanwhile for each in of]),
    ]
    rows = [
        ("filled in, s", *(f"{each.filled_s:,.1f}" for each in of)),
        *((what, *(f"{load.per_s:,.0f}, {load.p99_ms:.1f}" for load in found)) for what, found in loads),
        ("settled/s, one worker", *(f"{each.settled_per_s:,.0f}" for each in of)),
        ("waited, p99 ms", *(f"{each.waited_p99_ms:.1f}" for each in of)),
        ("pruned", *(f"{each.pruned:,}" for each in of)),
        ("pruned/s", *(f"{each.pruned_per_s:,.0f}" for each in of)),
        ("slowest statement of prune, ms", *(f"{each.slowest_ms:.0f}" for each in of)),
        ("table and indexes before, MB", *(_megabytes(each.before) for each in of)),
        ("after prune", *(_megabytes(each.after_prune) for each in of)),
        ("after VACUUM", *(_megabytes(each.after_vacuum) for each in of)),
        ("VACUUM takes, s", *(f"{each.vacuum_s:.1f}" for each in of)),
    ]
    yield _table(("settled rows", *(f"{each.rows:,}" for each in of)), rows)


def _megabytes(sizes: Sizes) -> str:
    return f"{sizes.table / 1e6:,.1f}, {sizes.indexes / 1e6:,.1f}"


def _growth(growth: Growth) -> Iterator[str]:
    yield _GROWTH
    yield f"![p50 by the table's rows]({GROWTH_PLOT})\n"
    head = ("rows", "table and indexes, MB", "call", "connections", "requests/s", "p50 ms", "p99 ms", "errors")
    yield _table(
        head,
        [
            (
                f"{each.rows:,}", f"{growth.table_bytes[str(each.rows)] / 1e6:,.0f}", each.call,
                f"{each.connections:,}",
                f"{each.load.per_s:,.0f}", f"{each.load.p50_ms:.2f}", f"{each.load.p99_ms:.2f}", str(each.load.errors),
            )
            for each in growth.calls
        ],
    )  # fmt: skip


def _memory(memory: Memory) -> Iterator[str]:
    yield _MEMORY
    yield _table(
        ("asked for", "readers", "an answer, kB", "before, MB", "at most, MB"),
        [
            (
                each.what, str(each.readers), f"{each.body_bytes / 1e3:,.0f}", f"{each.before_bytes / 1e6:,.0f}",
                f"{each.most_bytes / 1e6:,.0f}",
            )
            for each in memory.unread
        ],
    )  # fmt: skip


def _adapters(adapters: Adapters) -> Iterator[str]:
    yield _ADAPTERS % (f"{adapters.rows:,}", f"{adapters.backlog:,}")
    plain = adapters.find(PLAIN_TABLE)
    assert plain is not None
    yield _table(
        (
            "jobs of", "requests/s", "of the plain table", "p99 ms", "errors", "a page, ms", "with the index, ms",
            "settled/s",
        ),
        [
            (
                each.table, f"{each.get.per_s.median:,.0f}", f"{each.get.per_s.over(plain.get.per_s):.2f} {TIMES}",
                f"{each.get.p99_ms.median:.1f}", str(each.get.errors), f"{each.page_ms.median:,.1f}",
                "" if each.page_with_index_ms is None else f"{each.page_with_index_ms.median:,.1f}",
                f"{each.settled_per_s.median:,.0f}",
            )
            for each in adapters.costs
        ],
    )  # fmt: skip
    yield _VERSIONS
    yield _table(
        ("jobs", "bytes of an error", "versions, ms", "`xmin`, ms", ""),
        [
            (
                f"{each.rows:,}", f"{each.error_bytes:,}", f"{each.version_ms.median:.1f}",
                f"{each.xmin_ms.median:.1f}", f"{each.version_ms.over(each.xmin_ms):.2f} {TIMES}",
            )
            for each in adapters.versions
        ],
    )  # fmt: skip


def _console(console: Console) -> Iterator[str]:
    yield _CONSOLE % f"{console.rows:,}"
    yield _table(
        ("count", "indexes", "clients at once", "slowest, ms", "least to most", "p99 ms", "capped", "refused"),
        [
            (
                each.call, str(each.indexes), f"{each.clients}{', each with another filter' * each.own_filters}",
                f"{each.slowest_ms.median:.0f}",
                f"{min(each.slowest_ms.rounds):.0f} to {max(each.slowest_ms.rounds):.0f}", f"{each.p99_ms:.0f}",
                "yes" if each.capped else "no", str(each.refused),
            )
            for each in console.counted
        ],
    )  # fmt: skip
    if (first := console.first_list) is not None:
        rounds = ", ".join(f"{ms:.0f}" for ms in first.painted_ms.rounds)
        yield (
            f"The console's first list of {first.rows} failed jobs, in Chromium with nothing cached, from opening its "
            f"address until it is painted: {first.painted_ms.median:.0f} ms, the median of {rounds}; {first.requests} "
            f"requests are answered until then, with {first.transferred_bytes / 1000:.0f} KB.\n"
        )


def _traces(tracing: Tracing) -> Iterator[str]:
    yield _TRACES % tracing.connections
    yield _table(
        ("share", "api's CPU, µs a request", "without traces", "against it", "requests/s", "without traces",
         "against it", "errors"),
        [
            (
                each.share, f"{each.cpu_us.median:.1f}", f"{each.cpu_us_without.median:.1f}",
                f"{each.cpu_us.over(each.cpu_us_without):.3f} {TIMES}", f"{each.per_s.median:,.0f}",
                f"{each.per_s_without.median:,.0f}", f"{each.per_s.over(each.per_s_without):.3f} {TIMES}",
                str(each.errors),
            )
            for each in tracing.reads
        ],
    )  # fmt: skip


def _before(before: Before) -> Iterator[str]:
    commit = before.commit and f" (commit {before.commit})"
    yield _BEFORE % (before.version, commit, before.connections, before.clients)
    yield _table(
        ("", "before, a second", "now, a second", "against it", "lowest and highest", "rounds"),
        [
            (
                each.what, f"{each.before.median:,.0f}", f"{each.now.median:,.0f}",
                f"{each.now.over(each.before):.3f} {TIMES}", _range(each), str(len(each.now.rounds)),
            )
            for each in before.compared
        ],
    )  # fmt: skip


def _range(compared: Compared) -> str:
    ratios = [now / before for now, before in zip(compared.now.rounds, compared.before.rounds, strict=True)]
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


def _circumstances(machine: Machine, runs: dict[str, Run]) -> Iterator[str]:
    yield "## Where and how\n"
    libraries = ", ".join(f"{name} {version}" for name, version in machine.libraries.items())
    settings = ", ".join(f"{name} {value}" for name, value in machine.postgresql_settings.items())
    yield _table(
        ("", ""),
        [
            ("processor", f"{machine.cpu}, {machine.cores} cores"),
            ("memory", f"{machine.memory_gib} GiB"),
            ("kernel", machine.kernel),
            ("Python", machine.python),
            ("libraries", libraries),
            ("PostgreSQL", f"{machine.postgresql} ({settings})"),
            ("RabbitMQ", machine.rabbitmq),
            ("wrk", machine.wrk),
        ],
    )
    rows = [
        (
            part,
            run.at,
            f"`{run.command}`",
            run.commit,
            ", ".join(run.without),
            f"{run.load_before}",
            f"{run.took_s:.0f}",
        )
        for part, run in runs.items()
    ]
    yield _table(("part", "at", "command", "commit", "left out", "load before", "took, s"), rows)
    if any(run.commit.endswith(MORE) for run in runs.values()):
        yield f"`{MORE}` after a commit: with changes that were not committed yet.\n"


def _reading_plot(reading: Reading) -> bytes:
    connections = sorted({read.connections for read in reading.reads})
    groups = {
        f"{count} connections": {
            server: read.loads.per_s.median
            for server in _SERVERS
            if (read := reading.find(server, HOT, count)) is not None
        }
        for count in connections
    }
    return plot.bars("GET one job: requests per second", groups)


def _growth_plot(growth: Growth) -> bytes:
    rows = sorted({call.rows for call in growth.calls})
    series = {
        name: [
            (float(count), found.load.p50_ms)
            for count in rows
            if (found := growth.find(count, name, LIST_CONNECTIONS)) is not None
        ]
        for name in (GET_ONE, FIRST_PAGE, DEEP_PAGE, STATS)
    }
    return plot.lines(f"p50 in ms, {LIST_CONNECTIONS} connections", "rows in the table", series)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
