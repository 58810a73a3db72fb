"""Servers as processes of this machine: where they live, which ports they take, and how they end."""

import asyncio
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar

from tests.servers import trees
from tests.servers.reaper import reaper

T = TypeVar("T")
ROOT = Path(__file__).parents[2]


class ServerFailed(Exception):
    """A server for tests could not be had; the message says what to do, or what its log says."""


def run_apart(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end where no loop is at hand.

    In a thread, because `asyncio.run` takes away the main thread's loop, which pytest-asyncio keeps there.
    """
    with ThreadPoolExecutor(1) as apart:
        return apart.submit(asyncio.run, work).result()


@dataclass(frozen=True, slots=True)
class Account:
    """Whom a server runs as, where the tests run as root: PostgreSQL refuses to."""

    uid: int
    gid: int


def unprivileged() -> Account | None:
    """Return the account for a server that must not run as root, or None where the tests do not either."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    return Account(nobody.pw_uid, nobody.pw_gid)


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nothing uses, and that this process has not given away before.

    It lies below the range from which the kernel takes ports of its own choice, so it is still free when a server that
    was stopped for a while wants it back. Each process has a part of that range, by its place among those that run
    tests: a port that one has given away, on which nothing listens yet, another would take for free.
    """
    while True:
        port = next(_PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _ports() -> Iterator[int]:
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    place = _PARTS - 1 if worker is None else int(worker.removeprefix("gw")) % (_PARTS - 1)
    part = range(*(_LOWEST_PORT + (place + end) * _PORTS_EACH for end in (0, 1)))
    begin = random.randrange(len(part))  # two runs at a time are apart, most likely
    yield from cycle([*part[begin:], *part[:begin]])


_LOWEST_PORT, _PARTS, _PORTS_EACH = 18_000, 8, 1_750
_PORTS = _ports()


def make_folder(name: str) -> Path:
    """Make a folder for one server; it is removed when its owner is done, or dead."""
    folder = Path(tempfile.mkdtemp(prefix=f"redrive-{name}-")).resolve()
    reaper().tell("adopt", folder, "folder")
    folder.chmod(0o711)  # mkdtemp lets no other account in, the server's account included
    return folder


def remove_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    reaper().tell("release", folder, "folder")


class Process:
    """A server's root process, in a session of its own so that Ctrl-C at the tests does not reach it."""

    def __init__(
        self, command: Sequence[str | Path], *, env: Mapping[str, str], log: Path, account: Account | None = None
    ) -> None:
        self._log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                [str(part) for part in command],
                cwd=log.parent,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
            )
        reaper().tell("adopt", self._popen.pid)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def alive(self) -> bool:
        if self._popen.poll() is None:
            return True
        reaper().tell("release", self._popen.pid)
        return False

    def check(self) -> None:
        """Raise ServerFailed, with the end of its log, if it is not running."""
        if not self.alive:
            last = self._log.read_text(errors="replace").strip()[-2000:]
            raise ServerFailed(f"{self._popen.args!r} ended with status {self._popen.returncode}:\n{last}")

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the root process only."""
        if self.alive:
            self._popen.send_signal(number)

    def freeze(self) -> None:
        trees.freeze(self.pid)

    def thaw(self) -> None:
        trees.thaw(self.pid)

    async def kill(self) -> None:
        """Kill the whole tree and wait until all of it is gone: a child may hold the port or memory for longer."""
        if self.alive:
            tree = trees.kill(self.pid)
            await self.ended(within_s=10)
            async with asyncio.timeout(10):
                while True:
                    if not trees.any_runs(tree):
                        return
                    await asyncio.sleep(0.01)

    async def ended(self, *, within_s: float) -> None:
        async with asyncio.timeout(within_s):
            while True:  # subprocess has no event to wait for that works in any loop
                if not self.alive:
                    return
                await asyncio.sleep(0.01)
