"""`redrive up` as a process of its own, in a session of its own as in a terminal, touched from outside only."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

from tests.eventually import eventually
from tests.namesakes import folder_of_namesakes
from tests.servers import trees
from tests.servers.processes import free_port
from tests.servers.reaper import reaper

COMMAND = Path(sys.executable).with_name("redrive")
LAST_LINE = "Ctrl-C stops all of it"


def environment(**settings: str) -> dict[str, str]:
    """This process's environment with exactly these settings of ours, and any free ops port."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REDRIVE_")}
    ours = {"OPS_PORT": str(free_port())} | settings
    return kept | {f"REDRIVE_{name}": value for name, value in ours.items()}


class Up:
    """One that was started; `out` and `err` are what it has printed."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path, port: int) -> None:
        self._process = process
        self._reading = [asyncio.create_task(self._read(stream)) for stream in (process.stdout, process.stderr)]
        self._texts: dict[int, str] = {}
        self.folder = folder
        self.port = port

    @classmethod
    @asynccontextmanager
    async def started(cls, folder: Path, *args: str, port: int | None = None, **settings: str) -> AsyncIterator[Self]:
        """Start one; whatever is left of it is killed in the end."""
        port = port or free_port()
        process = await asyncio.create_subprocess_exec(
            COMMAND,
            *("up", "--data-dir", str(folder), "--port", str(port)),
            *args,
            env=environment(**settings),
            cwd=folder_of_namesakes(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        reaper().tell("adopt", process.pid)
        up = cls(process, folder, port)
        try:
            yield up
        finally:
            left = [pid for pid in up.processes() if pid != process.pid]
            if process.returncode is None:
                os.kill(process.pid, signal.SIGKILL)
            await process.wait()
            for pid in left:
                if alive(pid):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.gather(*up._reading)
            reaper().tell("release", process.pid)

    @classmethod
    @asynccontextmanager
    async def ready(cls, folder: Path, *args: str, port: int | None = None, **settings: str) -> AsyncIterator[Self]:
        """Start one, and wait until it says that it is up."""
        async with cls.started(folder, *args, port=port, **settings) as up:
            await eventually(lambda: LAST_LINE in up.out or up.ended, within_s=30)
            assert not up.ended, up.err
            yield up

    async def _read(self, stream: asyncio.StreamReader | None) -> None:
        assert stream is not None
        while chunk := await stream.read(65_536):
            self._texts[id(stream)] = self._texts.get(id(stream), "") + chunk.decode()

    @property
    def out(self) -> str:
        return self._texts.get(id(self._process.stdout), "")

    @property
    def err(self) -> str:
        return self._texts.get(id(self._process.stderr), "")

    @property
    def ended(self) -> bool:
        return self._process.returncode is not None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def lines_to_paste(self) -> list[str]:
        return re.findall(r"^ +(curl .+)$", self.out, re.MULTILINE)

    @property
    def token(self) -> str:
        match = re.search(r"^ +(ey\S+)$", self.out, re.MULTILINE)
        assert match is not None, self.out
        return match[1]

    def processes(self) -> list[int]:
        """Everything that runs because of it, itself first."""
        return [] if self.ended else trees.tree_of(self._process.pid)

    def press_ctrl_c(self) -> None:
        """Signal the whole process group, as a terminal does."""
        os.killpg(self._process.pid, signal.SIGINT)

    def terminate(self) -> None:
        self._process.terminate()

    async def kill(self) -> None:
        """Kill it alone: what it has started is left behind."""
        self._process.kill()
        await self._process.wait()

    async def status(self, *, within_s: float = 30) -> int:
        """Its exit status, once it has ended."""
        async with asyncio.timeout(within_s):
            status = await self._process.wait()
            await asyncio.gather(*self._reading)
        return status


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be noticed does not."""
    try:
        os.kill(pid, 0)
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return sys.platform != "linux"
