"""The reaper: outlives the process that started servers just long enough to take them down.

It reads lines from its standard input, `adopt <kind> <subject>` and `release <kind> <subject>`, of three kinds: process
(a pid), container (a name), folder (a path). When the input ends, because its owner closed it or died in whatever way,
it kills and removes what is still adopted.
"""

import contextlib
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

from tests.servers import trees

_ROOT = Path(__file__).parents[2]

Kind = Literal["process", "container", "folder"]


class Reaper:
    """The owner's end of the pipe."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.servers.reaper"],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the tests; this one has to survive it
        )

    def tell(self, order: Literal["adopt", "release"], subject: int | str | Path, kind: Kind = "process") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{order} {kind} {subject}\n".encode())
        self._process.stdin.flush()


@functools.cache
def reaper() -> Reaper:
    """Return this process's reaper, started when it is first needed."""
    return Reaper()


def main() -> None:
    adopted: dict[str, set[str]] = {"process": set(), "container": set(), "folder": set()}
    for line in sys.stdin:
        order, kind, subject = line.rstrip("\n").split(" ", 2)
        match order:
            case "adopt":
                adopted[kind].add(subject)
            case "release":
                adopted[kind].discard(subject)
            case _:
                raise ValueError(line)
    for pid in map(int, adopted["process"]):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            trees.kill(pid)
    if adopted["container"]:
        _remove_containers(adopted["container"])
    for folder in adopted["folder"]:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_containers(names: set[str]) -> None:
    import docker  # slow to import, and needed here only
    from docker.errors import DockerException

    engine = docker.from_env(timeout=60)
    for name in names:
        with contextlib.suppress(DockerException, OSError):  # such as one that was never created
            engine.containers.get(name).remove(force=True, v=True)


if __name__ == "__main__":
    main()
