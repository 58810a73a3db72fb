"""The reaper: outlives the process that started servers just long enough to take them down.

It reads lines from its standard input: `adopt <pid>`, `release <pid>`, `own <folder>`, `disown <folder>`. When the
input ends, because its owner closed it or died in whatever way, it kills what is still adopted and removes the folders.
"""

import contextlib
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.servers import trees

_ROOT = Path(__file__).parents[2]


class Reaper:
    """The owner's end of the pipe."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.servers.reaper"],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the tests; this one has to survive it
        )

    def tell(self, order: str, subject: int | Path) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{order} {subject}\n".encode())
        self._process.stdin.flush()


@functools.cache
def reaper() -> Reaper:
    """Return this process's reaper, started when it is first needed."""
    return Reaper()


def main() -> None:
    processes: set[int] = set()
    folders: set[Path] = set()
    for line in sys.stdin:
        order, _, subject = line.rstrip("\n").partition(" ")
        match order:
            case "adopt":
                processes.add(int(subject))
            case "release":
                processes.discard(int(subject))
            case "own":
                folders.add(Path(subject))
            case "disown":
                folders.discard(Path(subject))
            case _:
                raise ValueError(line)
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            trees.kill(pid)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
