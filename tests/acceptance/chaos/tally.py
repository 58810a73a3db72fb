"""What a fault test counts, how large it is, and the seed that it can be replayed from.

REDRIVE_CHAOS_SCALE     1 in `make test`; more of it multiplies counts and times, up to each test's full ones
REDRIVE_CHAOS_SEED      replays the random choices of a run; without it each run makes its own
REDRIVE_CHAOS_RESULTS   a file that gets one JSON line for each test
"""

import json
import os
import random
import secrets
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from tests.checkout import commit

SCALE = float(os.environ.get("REDRIVE_CHAOS_SCALE", "1"))
_RESULTS = os.environ.get("REDRIVE_CHAOS_RESULTS")
_COMMIT = commit() if _RESULTS else None  # now, when the tests are loaded: by the end of a run there may be another
_SEED = int(os.environ.get("REDRIVE_CHAOS_SEED", "0")) or secrets.randbelow(2**31) + 1

K = TypeVar("K")


def scaled(small: int, *, full: int) -> int:
    """How often to do something: `small` at scale 1, never more than `full`."""
    return max(small, min(full, round(small * SCALE)))


def write_down(result: Mapping[str, object]) -> None:
    """Append a result, with the commit that it is of, to the file for results, where one is named."""
    if _RESULTS:
        with Path(_RESULTS).open("a") as results:
            results.write(json.dumps({**result, "commit": _COMMIT}, default=str) + "\n")


@dataclass(slots=True)
class Tally:
    """What happened in one test, in the words of Jepsen's queue tests.

    `acked` requests were answered 202, or confirmed by the broker where another program published them. `applied` is
    counted by the trigger, never by the ledger. `parked` is visibly rejected, cancelled or dead-lettered. `kills` are
    all faults of the test's making, whatever they end, once they have been seen to happen.
    """

    promise: str
    seed: int
    kills: int = 0
    acked: int = 0
    applied: int = 0
    parked: int = 0
    lost: int = 0
    doubled: int = 0
    unexpected: int = 0
    effects: int = 0
    seconds: float = 0.0
    scale: float = SCALE
    notes: dict[str, object] = field(default_factory=dict)
    began_at: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, promise: str, *, seed: int | None = None) -> "Tally":
        """A tally that begins now. `seed` is the test's own fixed one; REDRIVE_CHAOS_SEED wins over it."""
        return cls(promise, _SEED if seed is None or "REDRIVE_CHAOS_SEED" in os.environ else seed)

    @property
    def rng(self) -> random.Random:
        """Random choices that depend on the seed and the promise alone."""
        return random.Random(f"{self.seed} {self.promise}")

    @property
    def bound(self) -> float:
        """With 95 % certainty, less than this share of requests is lost or doubled: the rule of three."""
        return 3 / self.acked if self.acked else 1.0

    @property
    def faultless(self) -> bool:
        return self.lost == self.doubled == self.unexpected == 0

    def count(self, asked: Counter[K], effects: Counter[K], parked: Counter[K]) -> None:
        """Compare how many requests were accepted for each job, and parked, with how often it was put back."""
        self.acked, self.effects, self.parked = asked.total(), effects.total(), parked.total()
        for job in asked | effects:
            due, happened = asked[job] - parked[job], effects[job]
            self.applied += min(due, happened)
            self.lost += max(0, due - happened)
            beyond = max(0, happened - due)
            if asked[job]:
                self.doubled += beyond
            else:
                self.unexpected += beyond

    def end(self) -> None:
        """Stop the clock, and write the result down where a file for it is named."""
        self.seconds = round(time.monotonic() - self.began_at, 1)
        facts = {"kind": "faults"} | asdict(self) | {"bound": self.bound}
        facts.pop("began_at")
        write_down(facts)

    def __str__(self) -> str:
        counts = ", ".join(
            f"{name} {getattr(self, name)}"
            for name in ("kills", "acked", "applied", "parked", "lost", "doubled", "unexpected")
        )
        notes = "".join(f", {name} {value}" for name, value in self.notes.items())
        return f"{self.promise}: {counts}, bound {self.bound:.1e}, seed {self.seed}, {self.seconds} s{notes}"
