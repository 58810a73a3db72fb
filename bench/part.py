"""What every part of the bench is given."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.load import Loader
from bench.plan import Plan
from tests.servers.postgres import Postgres
from tests.servers.rabbitmq import Rabbitmq


@dataclass(frozen=True, slots=True)
class Stage:
    """Servers, a folder for logs, and how much is to be measured.

    `without`: the comparators that are left out, by name. `rabbitmq` is there for the parts that need it. A server's
    pid is None where it is no process of this machine.
    """

    plan: Plan
    without: frozenset[str]
    postgres: Postgres
    rabbitmq: Rabbitmq | None
    postgres_pid: int | None
    rabbitmq_pid: int | None
    folder: Path
    loader: Loader
    say: Callable[[str], None]

    def has(self, comparator: str) -> bool:
        """Whether a comparator takes part."""
        return comparator not in self.without


def in_turn(number: int) -> tuple[int, int]:
    """The order of two sides in a round: each round the other one comes first."""
    return (0, 1) if number % 2 == 0 else (1, 0)
