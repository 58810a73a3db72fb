"""How much is measured: the full form, whose figures are worth reading, and the smoke form, which only has to work."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Reading:
    """Requests for one job, to all that are compared."""

    connections: tuple[int, ...] = (16, 64, 256)
    rounds: int = 5
    seconds: float = 3
    jobs: int = 1_000
    other_rows: int = 99_000  # so that the table is as large as a real one


@dataclass(frozen=True, slots=True)
class Waiting:
    """Clients held until their job changes."""

    waiters: int = 10_000
    jobs: int = 2_000
    idle_s: float = 20


@dataclass(frozen=True, slots=True)
class Retrying:
    """Accepting, settling, and the way from one to the other."""

    rounds: int = 3
    clients: int = 128
    posts: int = 10_000
    backlog: int = 20_000
    celery_backlog: int = 4_000  # enough for its rate, which is some twenty times lower
    workers: tuple[int, ...] = (1, 2, 4)
    rate_per_s: int = 200
    rate_s: float = 20
    bulk: int = 10_000
    singles_per_s: int = 50
    pairs: int = 9
    carried: int = 10_000


@dataclass(frozen=True, slots=True)
class Scaling:
    """More processes. `few`: clients, for the costs of small batches. `warm`: retries before those that count."""

    apis: tuple[int, ...] = (1, 2)
    workers: tuple[int, ...] = (1, 2, 4)
    rounds: int = 3
    clients: int = 128
    connections: int = 64
    few: int = 16
    warm: int = 1_000
    retries: int = 10_000
    few_retries: int = 3_000
    seconds: float = 3


@dataclass(frozen=True, slots=True)
class Ledger:
    """A ledger of settled rows. `days`: their age; those older than `kept_days` are pruned."""

    rows: tuple[int, ...] = (10_000, 10_000_000)
    days: int = 100
    kept_days: int = 90
    clients: int = 64
    posts: int = 10_000
    rate_per_s: int = 200
    rate_s: float = 10
    connections: int = 16
    seconds: float = 3


@dataclass(frozen=True, slots=True)
class Growth:
    """More rows, more connections."""

    rows: tuple[int, ...] = (10_000, 100_000, 1_000_000, 10_000_000)
    connections: tuple[int, ...] = (1, 10, 100, 1_000)
    seconds: float = 4
    page_rows: int = 10  # so that the smallest table has a thousandth page
    deep_page: int = 1_000


@dataclass(frozen=True, slots=True)
class Memory:
    """Readers that read nothing."""

    readers: int = 100
    seconds: float = 15


@dataclass(frozen=True, slots=True)
class Adapters:
    """Other systems' tables. `versions`: how many jobs, with errors of how many bytes, a version is computed of."""

    systems: tuple[str, ...] = ("chancy", "django-tasks-db", "oban", "pgqueuer", "procrastinate", "river")
    rows: int = 100_000
    rounds: int = 3
    seconds: float = 2
    pages: int = 5
    backlog: int = 10_000
    versions: tuple[tuple[int, int], ...] = ((10_000, 200), (1_000, 65_536))


@dataclass(frozen=True, slots=True)
class Console:
    """Counts that are made anew, and the first list. `pause_s`: between two rounds."""

    rows: int = 10_000_000
    rounds: int = 7
    pause_s: float = 5.2  # a little more than COUNTED_EVERY_S of api/overview.py


@dataclass(frozen=True, slots=True)
class Tracing:
    """Reads with traces on and off; a round has so many turns of each."""

    connections: int = 64
    rounds: int = 9
    turns: int = 20
    turn_s: float = 0.2


@dataclass(frozen=True, slots=True)
class Before:
    """Reads and retries of an earlier version, in turn with this one."""

    rounds: int = 9
    connections: int = 64
    seconds: float = 4
    jobs: int = 1_000
    other_rows: int = 99_000
    clients: int = 128
    retries: int = 10_000


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. `warm_s`: load before the figures, for caches and pools. `part_limit_s` ends a part that hangs."""

    reading: Reading = field(default_factory=Reading)
    waiting: Waiting = field(default_factory=Waiting)
    retrying: Retrying = field(default_factory=Retrying)
    scaling: Scaling = field(default_factory=Scaling)
    ledger: Ledger = field(default_factory=Ledger)
    growth: Growth = field(default_factory=Growth)
    memory: Memory = field(default_factory=Memory)
    adapters: Adapters = field(default_factory=Adapters)
    console: Console = field(default_factory=Console)
    tracing: Tracing = field(default_factory=Tracing)
    before: Before = field(default_factory=Before)
    smoke: bool = False
    warm_s: float = 2
    part_limit_s: float = 2_700


FULL = Plan()
SMOKE = Plan(
    reading=Reading(connections=(64, 256), rounds=1, seconds=0.2, jobs=100, other_rows=0),
    waiting=Waiting(waiters=200, jobs=40, idle_s=1),
    retrying=Retrying(
        rounds=1,
        clients=16,
        posts=100,
        backlog=200,
        celery_backlog=50,
        workers=(1,),
        rate_per_s=50,
        rate_s=1,
        bulk=200,
        singles_per_s=20,
        pairs=1,
        carried=100,
    ),
    scaling=Scaling(
        workers=(1,), rounds=1, clients=16, connections=16, few=2, warm=20, retries=100, few_retries=20, seconds=0.2
    ),
    ledger=Ledger(rows=(2_000,), clients=8, posts=100, rate_per_s=50, rate_s=1, connections=4, seconds=0.2),
    growth=Growth(rows=(1_000,), connections=(1, 10), seconds=0.2, deep_page=20),
    memory=Memory(readers=5, seconds=1),
    adapters=Adapters(
        systems=("river",), rows=500, rounds=1, seconds=0.2, pages=1, backlog=100, versions=((100, 200), (10, 65_536))
    ),
    console=Console(rows=2_000, rounds=1, pause_s=0),
    tracing=Tracing(rounds=1, turns=2),
    before=Before(rounds=1, seconds=0.2, jobs=100, other_rows=0, clients=16, retries=100),
    smoke=True,
    warm_s=0.1,
    part_limit_s=120,
)
