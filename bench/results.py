"""The figures, as they stand in `results.json`: every field is there, or the file is not a result.

Rates are per second, latencies in milliseconds, everything else says its unit in its name.
"""

from collections.abc import Sequence
from statistics import median

import msgspec

from bench.capacity import Batches, Cost


class Figure(msgspec.Struct, frozen=True):
    """One quantity, measured once a round."""

    median: float
    rounds: list[float]

    @classmethod
    def of(cls, rounds: Sequence[float]) -> "Figure":
        """The figure of 1..n rounds."""
        return cls(median(rounds), list(rounds))

    def over(self, other: "Figure") -> float:
        """The median of each round's own ratio: a round that was slow for all is as good as any other."""
        return median(ours / theirs for ours, theirs in zip(self.rounds, other.rounds, strict=True))


class Load(msgspec.Struct, frozen=True):
    """What a load generator saw once. `errors`: answers of 400 and above, and connections that failed."""

    requests: int
    errors: int
    per_s: float
    p50_ms: float
    p99_ms: float


class Loads(msgspec.Struct, frozen=True, kw_only=True):
    """The same load, once a round."""

    per_s: Figure
    p50_ms: Figure
    p99_ms: Figure
    errors: int

    @classmethod
    def of(cls, loads: Sequence[Load]) -> "Loads":
        """The figures of 1..n rounds."""
        return cls(
            per_s=Figure.of([load.per_s for load in loads]),
            p50_ms=Figure.of([load.p50_ms for load in loads]),
            p99_ms=Figure.of([load.p99_ms for load in loads]),
            errors=sum(load.errors for load in loads),
        )


class Read(msgspec.Struct, frozen=True, kw_only=True):
    """One server, read in one way by so many connections."""

    server: str
    way: str
    connections: int
    loads: Loads
    server_cpu_us: Figure
    """What the server's own process spent on one request, its database not included."""


class Queries(msgspec.Struct, frozen=True):
    """Transactions that the database counted while so many requests were answered."""

    server: str
    connections: int
    requests: int
    queries: int


class Reading(msgspec.Struct, frozen=True):
    """What became of `plan.Reading`."""

    reads: list[Read]
    queries: list[Queries]
    body_bytes: dict[str, int]

    def find(self, server: str, way: str, connections: int) -> Read | None:
        """The figures of one server; None where it was left out."""
        wanted = (server, way, connections)
        return next((each for each in self.reads if (each.server, each.way, each.connections) == wanted), None)


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """What became of `plan.Waiting`. CPU is the api process's, in shares of one core."""

    waiters: int
    jobs: int
    tick_ms: float
    opened_s: float
    idle_s: float
    idle_cpu_share: float
    bytes_per_waiter: float
    heard_p50_ms: float
    heard_p99_ms: float
    heard_max_ms: float
    unheard: int
    """Waiters whose answer was not a 200 after the change."""


class Accepting(msgspec.Struct, frozen=True):
    """POSTs for failed jobs, each job once. `all_published_per_s`: until the broker has them all, too."""

    server: str
    loads: Loads
    all_published_per_s: Figure


class Settling(msgspec.Struct, frozen=True):
    """A backlog, from the moment that the consumers are let loose until nothing is left of it."""

    consumer: str
    processes: int
    messages: int
    per_s: Figure


class Waits(msgspec.Struct, frozen=True, kw_only=True):
    """Single retries at a steady rate: how long the 202 took, and how long from it until the job was put back."""

    rate_per_s: float
    retries: int
    not_accepted: int
    not_applied: int
    accepted_p50_ms: float
    accepted_p99_ms: float
    applied_p50_ms: float
    applied_p99_ms: float
    applied_max_ms: float


class Bulk(msgspec.Struct, frozen=True):
    """One bulk retry by filter: until its 202, until its last job is put back; and single retries meanwhile."""

    jobs: int
    accepted_s: Figure
    applied_s: Figure
    singles_meanwhile: Waits


class Dispatched(msgspec.Struct, frozen=True, kw_only=True):
    """Single retries, from the first POST until the last job was put back. `cost` is None where it cannot be seen."""

    way: str
    retries: int
    per_s: Figure
    cost: Cost | None


class Retrying(msgspec.Struct, frozen=True):
    """What became of `plan.Retrying`. `carrying` is empty in figures from before it was measured."""

    clients: int
    accepting: list[Accepting]
    settling: list[Settling]
    waits: Waits
    bulk: Bulk
    carrying: list[Dispatched] = []

    def find_accepting(self, server: str) -> Accepting | None:
        """None where it was left out."""
        return next((each for each in self.accepting if each.server == server), None)

    def find_settling(self, consumer: str, processes: int = 1) -> Settling | None:
        """None where it was left out."""
        wanted = (consumer, processes)
        return next((each for each in self.settling if (each.consumer, each.processes) == wanted), None)


class Scaled(msgspec.Struct, frozen=True, kw_only=True):
    """So many processes under one load: measured, and predicted by the model, which knows the first of them only.

    `idle_cores`, `others_cores`: how many cores did nothing, and how many other programs had; 0 was not looked at.
    """

    what: str
    apis: int
    workers: int
    clients: int
    per_s: Figure
    cost: Cost
    batches: Batches
    predicted_per_s: float
    limit: str
    idle_cores: float = 0.0
    others_cores: float = 0.0


class Scaling(msgspec.Struct, frozen=True, kw_only=True):
    """What became of `plan.Scaling`. `own` and `of_batch`: the model's costs, of reads and of retries.

    `waiting`: the share of the time in which all who use one api process wait.
    """

    cores: int
    few: int
    scaled: list[Scaled]
    own: dict[str, Cost]
    of_batch: dict[str, Cost]
    waiting: dict[str, float] = {}

    def find(self, what: str, *, apis: int, workers: int, clients: int) -> Scaled | None:
        """None where it was not measured."""
        wanted = (what, apis, workers, clients)
        return next(
            (each for each in self.scaled if (each.what, each.apis, each.workers, each.clients) == wanted), None
        )


class Sizes(msgspec.Struct, frozen=True):
    """Bytes of the ledger."""

    table: int
    indexes: int


class LedgerCall(msgspec.Struct, frozen=True):
    """One kind of request to the ledger."""

    call: str
    load: Load


class LedgerOf(msgspec.Struct, frozen=True, kw_only=True):
    """A ledger of so many settled rows.

    `waited_p99_ms`: of single retries at a steady rate, from their place in the ledger until they were applied.
    `meanwhile`: POSTs while rows were pruned. `slowest_ms`: the longest statement of prune.
    """

    rows: int
    filled_s: float
    accepting: Load
    settled_per_s: float
    waited_p99_ms: float
    calls: list[LedgerCall]
    pruned: int
    pruned_per_s: float
    slowest_ms: float
    meanwhile: Load
    before: Sizes
    after_prune: Sizes
    after_vacuum: Sizes
    vacuum_s: float

    def find(self, call: str) -> Load:
        """The load of one kind of request."""
        return next(each.load for each in self.calls if each.call == call)


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """What became of `plan.Ledger`."""

    days: int
    kept_days: int
    clients: int
    connections: int
    rate_per_s: float
    ledgers: list[LedgerOf]

    def find(self, rows: int) -> LedgerOf | None:
        """None where it was not measured."""
        return next((each for each in self.ledgers if each.rows == rows), None)


class Call(msgspec.Struct, frozen=True):
    """One kind of request to a table of so many rows, by so many connections."""

    rows: int
    call: str
    connections: int
    load: Load


class Growth(msgspec.Struct, frozen=True):
    """What became of `plan.Growth`."""

    calls: list[Call]
    table_bytes: dict[str, int]

    def find(self, rows: int, call: str, connections: int) -> Call | None:
        """None where it was not asked."""
        wanted = (rows, call, connections)
        return next((each for each in self.calls if (each.rows, each.call, each.connections) == wanted), None)


class Unread(msgspec.Struct, frozen=True):
    """What the api took for so many readers of one kind of answer that read nothing."""

    what: str
    readers: int
    body_bytes: int
    before_bytes: int
    most_bytes: int


class Memory(msgspec.Struct, frozen=True):
    """What became of `plan.Memory`."""

    unread: list[Unread]


class AdapterCost(msgspec.Struct, frozen=True, kw_only=True):
    """One jobs table: one job by so many connections, the first page of a list, and a backlog."""

    table: str
    get: Loads
    page_ms: Figure
    page_with_index_ms: Figure | None
    """None where no index of the owner's can serve, and for a plain table, which has it already."""
    settled_per_s: Figure


class VersionCost(msgspec.Struct, frozen=True, kw_only=True):
    """So many look-ups by id in one statement, which read each job's version, and which read its `xmin`."""

    rows: int
    error_bytes: int
    version_ms: Figure
    xmin_ms: Figure


class Adapters(msgspec.Struct, frozen=True):
    """What became of `plan.Adapters`."""

    rows: int
    backlog: int
    costs: list[AdapterCost]
    versions: list[VersionCost]

    def find(self, table: str) -> AdapterCost | None:
        """None where it was left out."""
        return next((each for each in self.costs if each.table == table), None)


class Counted(msgspec.Struct, frozen=True):
    """One count of the console, made anew in each round, asked by so many clients at once; the slowest answer counts.

    `own_filters`: each client's filter is another. `capped`: the answer says that there may be more. `refused`: answers
    other than 200, of all rounds.
    """

    call: str
    indexes: int
    clients: int
    own_filters: bool
    slowest_ms: Figure
    p99_ms: float
    capped: bool
    refused: int


class FirstList(msgspec.Struct, frozen=True):
    """The console's first list of so many rows, in a browser that has nothing cached, until it is painted."""

    rows: int
    painted_ms: Figure
    requests: int
    transferred_bytes: int


class Console(msgspec.Struct, frozen=True):
    """What became of `plan.Console`. `first_list` is None where the browser was left out."""

    rows: int
    counted: list[Counted]
    first_list: FirstList | None

    def find(self, call: str, *, indexes: int, clients: int, own_filters: bool = False) -> Counted | None:
        """None where it was not asked."""
        wanted = (call, indexes, clients, own_filters)
        return next(
            (each for each in self.counted if (each.call, each.indexes, each.clients, each.own_filters) == wanted), None
        )


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What it was measured on."""

    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    python: str
    libraries: dict[str, str]
    postgresql: str
    postgresql_settings: dict[str, str]
    rabbitmq: str
    wrk: str


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """How a part was measured. `load_before`: the machine's load average then; 0.0 is a quiet machine."""

    at: str
    command: str
    commit: str
    smoke: bool
    without: list[str]
    load_before: float
    took_s: float


class TracedReads(msgspec.Struct, frozen=True, kw_only=True):
    """One hot job, read in turn from an api that traces such a share of the requests, and from one that traces none."""

    share: str
    per_s: Figure
    per_s_without: Figure
    cpu_us: Figure
    """What one request took of the process, the export of its spans included."""
    cpu_us_without: Figure
    errors: int


class Tracing(msgspec.Struct, frozen=True):
    """What became of `plan.Tracing`."""

    connections: int
    reads: list[TracedReads]

    def find(self, share: str) -> TracedReads:
        """The figures of one share."""
        return next(each for each in self.reads if each.share == share)


class Compared(msgspec.Struct, frozen=True):
    """How many a second of something, by an earlier version and by this one."""

    what: str
    before: Figure
    now: Figure


class Before(msgspec.Struct, frozen=True, kw_only=True):
    """What became of `plan.Before`. `commit`: the earlier version's, where it is known."""

    version: str
    commit: str
    connections: int
    clients: int
    compared: list[Compared]


class Results(msgspec.Struct, kw_only=True):
    """All of it. A part that was never run on this machine is None."""

    machine: Machine
    runs: dict[str, Run]
    reading: Reading | None = None
    waiting: Waiting | None = None
    retrying: Retrying | None = None
    scaling: Scaling | None = None
    ledger: Ledger | None = None
    growth: Growth | None = None
    memory: Memory | None = None
    adapters: Adapters | None = None
    console: Console | None = None
    tracing: Tracing | None = None
    before: Before | None = None


def encoded(results: Results) -> bytes:
    """The file, with an end of line."""
    return msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n"


def decoded(file: bytes) -> Results:
    """What is in the file. Raises msgspec.ValidationError where a figure is missing."""
    return msgspec.json.decode(file, type=Results)
