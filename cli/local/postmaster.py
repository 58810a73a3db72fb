"""PostgreSQL servers on a data folder: reads `postmaster.pid`, and ends a server that was left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from cli.errors import CommandFailed

ENDINGS = ((signal.SIGINT, 5.0), (signal.SIGQUIT, 3.0), (signal.SIGKILL, 2.0))
"""How to end a server, and how long each may take: fast shutdown, immediate shutdown, kill."""
_LOOK_S = 0.02
_LOCKS = ("postmaster.pid", ".s.PGSQL.5432.lock")


def pid_lines(cluster: Path) -> list[str]:
    """What the file says: process, data, start, port, socket folder, address, memory key, status; empty without one."""
    try:
        return (cluster / "postmaster.pid").read_text("utf-8").splitlines()
    except FileNotFoundError:
        return []


def is_ready(cluster: Path, pid: int) -> bool:
    """Whether the server takes connections. After a crash the file says so of the process before: `pid` tells."""
    lines = pid_lines(cluster)
    return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"


def end_leftover(cluster: Path) -> None:
    """End the server that a killed `up` has left running on the data. The caller holds the folder's lock.

    Raises CommandFailed where it does not end.
    """
    lines = pid_lines(cluster)
    if not lines or not lines[0].isdigit():
        return
    pid = int(lines[0])
    for number, within_s in ENDINGS:
        # The postmaster ends its sessions. Where it was killed, signal each session: a server started beside
        # one of them would corrupt the data.
        for server in [pid] if _is_server(pid, cluster) else _servers(cluster):
            with contextlib.suppress(ProcessLookupError):
                os.kill(server, number)
        if _wait_until_gone(pid, cluster, within_s):
            break
    else:
        raise CommandFailed(
            f"the PostgreSQL of an earlier start on {cluster} does not end (process {pid}): end it, then start again"
        )
    if _number_is_taken(pid):
        # Another process has the number now, or the dead server is a zombie, as in a container without an init.
        # PostgreSQL cannot tell, and would refuse to start.
        for name in _LOCKS:
            (cluster / name).unlink(missing_ok=True)


def _wait_until_gone(pid: int, cluster: Path, within_s: float) -> bool:
    """Wait up to `within_s` until no server works on the data; whether that is so."""
    deadline = time.monotonic() + within_s
    while any(_servers(cluster)) or _is_server(pid, cluster):
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_S)
    return True


def _number_is_taken(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _servers(cluster: Path) -> Iterator[int]:
    """All processes of PostgreSQL that work on the data; where there is no /proc, none are found."""
    for entry in Path("/proc").glob("[0-9]*"):
        if _is_server(int(entry.name), cluster):
            yield int(entry.name)


def _is_server(pid: int, cluster: Path) -> bool:
    """Whether the process runs, is PostgreSQL's, and works on the data: its working directory is there."""
    if sys.platform != "linux":
        return _is_named_so(pid)
    process = Path(f"/proc/{pid}")
    try:
        is_postgres = (process / "comm").read_text("utf-8", "replace").strip() == "postgres"
        return is_postgres and (process / "cwd").samefile(cluster)
    except OSError:
        return False  # gone, or dead, or another user's


def _is_named_so(pid: int) -> bool:
    """Whether the process goes by PostgreSQL's name, where no more can be known."""
    listing = subprocess.run(  # noqa: S603 - our own arguments
        ["/bin/ps", "-o", "comm=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return listing.stdout.strip().endswith("postgres")
