"""A process that has loaded Redrive once, and makes processes of it: a fork takes no time, loading takes seconds.

    reads     {"command": "worker", "env": {…}, "log": "/path"}    a line for each process to make
    writes    {"pid": 17}                                          at once
              {"pid": 17, "status": -9}                            when that process has ended; negative: the signal

What runs in the child is the command's own entry point. When standard input ends, so does everything.
"""

import asyncio
import importlib
import json
import os
import select
import signal
import sys
import tempfile
import traceback
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NoReturn, Self

from tests.acceptance.programs import Program
from tests.acceptance.up import environment
from tests.ops_port import OpsPort
from tests.servers.processes import free_port
from tests.servers.reaper import reaper

_LOOK_EVERY_S = 0.01


class Forked(Program):
    """A process from the forkserver."""

    def __init__(self, pid: int, log: Path, status: "asyncio.Future[int]", ops_port: int) -> None:
        OpsPort.__init__(self, ops_port)  # not Program's: what runs here is no subprocess of asyncio's
        self._pid = pid
        self._log_file = log
        self._status = status

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def err(self) -> str:
        return self._log_file.read_text("utf-8", errors="replace")

    @property
    def runs(self) -> bool:
        return not self._status.done()

    def send(self, number: signal.Signals) -> None:
        if self.runs:
            with suppress(ProcessLookupError):  # it has just died at a failpoint, and we are about to hear of it
                os.kill(self._pid, number)

    async def ended(self, *, within_s: float = 15) -> int:
        async with asyncio.timeout(within_s):
            return await asyncio.shield(self._status)


class Forkserver:
    """The tests' end of it."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._made: asyncio.Queue[int] = asyncio.Queue()
        self._statuses: dict[int, asyncio.Future[int]] = {}
        self._making = asyncio.Lock()
        self._number = 0

    @classmethod
    @asynccontextmanager
    async def opened(cls) -> AsyncIterator[Self]:
        """Load Redrive, and make processes of it until the block ends, when all of them are killed."""
        with tempfile.TemporaryDirectory(prefix="redrive-forkserver-") as folder:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", __name__),
                env=environment(),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            reaper().tell("adopt", process.pid)
            forkserver = cls(process, Path(folder))
            listening = asyncio.create_task(forkserver._listen())
            try:
                yield forkserver
            finally:
                assert process.stdin is not None
                process.stdin.close()
                await process.wait()
                await listening
                reaper().tell("release", process.pid)

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            told = json.loads(line)
            if "status" in told:
                self._statuses[told["pid"]].set_result(told["status"])
            else:
                self._statuses[told["pid"]] = asyncio.get_running_loop().create_future()
                self._made.put_nowait(told["pid"])

    @asynccontextmanager
    async def started(self, command: str, settings: Mapping[str, str]) -> AsyncIterator[Forked]:
        """Start one; it is killed in the end, if it still runs."""
        ops_port = free_port()
        async with self._making:
            self._number += 1
            log = self._folder / f"{self._number}.log"
            log.touch()
            wanted = {
                "command": command, "env": environment(OPS_PORT=str(ops_port), **settings), "log": str(log)
            }  # fmt: skip
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(wanted).encode() + b"\n")
            pid = await self._made.get()
        program = Forked(pid, log, self._statuses[pid], ops_port)
        reaper().tell("adopt", pid)
        try:
            yield program
        finally:
            program.send(signal.SIGKILL)
            await program.ended()
            reaper().tell("release", pid)


# -- the forkserver's own process


def _run(command: str, env: Mapping[str, str], log: str) -> NoReturn:
    from cli.main import main

    nothing = os.open(os.devnull, os.O_RDWR)
    errors = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((nothing, 0), (nothing, 1), (errors, 2)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["redrive", command]
    status = 1
    try:
        main()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - a process that ends by it says so
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _tell(fact: Mapping[str, int]) -> None:
    sys.stdout.write(json.dumps(fact) + "\n")
    sys.stdout.flush()


def _serve() -> None:
    for module in ("api.serving", "cli.ports", "cli.signals", "worker.app"):
        importlib.import_module(module)  # loaded before the first fork
    children: set[int] = set()
    unread = b""
    while True:
        if select.select([0], [], [], _LOOK_EVERY_S)[0]:
            if not (chunk := os.read(0, 65_536)):
                break
            *lines, unread = (unread + chunk).split(b"\n")
            for line in lines:
                if (pid := os.fork()) == 0:
                    _run(**json.loads(line))
                children.add(pid)
                _tell({"pid": pid})
        for pid in list(children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                children.discard(pid)
                _tell({"pid": pid, "status": os.waitstatus_to_exitcode(status)})
    for pid in children:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    _serve()
