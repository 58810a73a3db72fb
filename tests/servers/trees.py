"""A process and all that descends from it: found, frozen and killed together.

Process groups are not enough: every PostgreSQL backend leads a session of its own.
"""

import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path


def _parents() -> Iterator[tuple[int, int]]:
    """Yield (process, parent) of everything that runs; what is dead and only waited for does not."""
    if sys.platform == "linux":
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # gone since the listing
                state, parent = stat.read_text(errors="replace").rpartition(")")[2].split()[:2]
                if state != "Z":
                    yield int(stat.parent.name), int(parent)
    else:
        listing = subprocess.run(["ps", "-axo", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
        for line in listing.splitlines():
            pid, parent, state = line.split()
            if not state.startswith("Z"):
                yield int(pid), int(parent)


def tree_of(root: int) -> list[int]:
    """Return the process and its descendants, parents before children."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for pid, parent in _parents():
        children[parent].append(pid)
    tree = [root]
    for pid in tree:
        tree.extend(children[pid])
    return tree


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def freeze(root: int) -> None:
    """Stop the whole tree where it stands; a child that its parent starts meanwhile is frozen too."""
    frozen: set[int] = set()
    while new := [pid for pid in tree_of(root) if pid not in frozen]:
        for pid in new:
            _send(pid, signal.SIGSTOP)
        frozen.update(new)


def thaw(root: int) -> None:
    """Let a frozen tree go on."""
    for pid in reversed(tree_of(root)):
        _send(pid, signal.SIGCONT)


def kill(root: int) -> list[int]:
    """Kill the whole tree, as a power cut would, and return it; `any_runs` tells when it is gone."""
    freeze(root)  # or a supervisor in it would start again what was just killed
    tree = tree_of(root)
    for pid in tree:
        _send(pid, signal.SIGKILL)
    return tree


def any_runs(pids: Iterable[int]) -> bool:
    """Say whether one of these still runs."""
    return not {pid for pid, _ in _parents()}.isdisjoint(pids)
