"""The programs under test, each a process of its own, in a session of its own, killed at the end whatever happens."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import jwt

from bench.client import Disconnected, ask, request
from bench.processor import processor_s, threads_s
from tests.servers.processes import Process, ServerFailed, free_port

ROOT: Final = Path(__file__).parents[1]
SECRET: Final = "the secret of a benchmark, longer than 32 bytes"
PROJECT: Final = "p1"
_READY_S: Final = 60
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")

# Every limit is on, and none is ever reached.
_LIMITS: Final = {f"REDRIVE_LIMIT_{name}": "1000000000/60" for name in ("IP", "READ", "RETRY", "BULK")}
_SCOPES: Final = "jobs:read jobs:retry jobs:retry:bulk jobs:payload"


def bearer() -> dict[str, str]:
    """The header that opens every server here."""
    claims = {"project_id": PROJECT, "sub": "bench", "scope": _SCOPES, "exp": 4_000_000_000}
    return {"Authorization": f"Bearer {jwt.encode(claims, SECRET, algorithm='HS256')}"}


@dataclass(frozen=True, slots=True)
class Version:
    """A version of Redrive: its `redrive` command, and what its programs need in their environment."""

    command: Path
    env: Mapping[str, str] = field(default_factory=lambda: {"PYTHONPATH": ""})

    async def migrate(self, database_url: str) -> None:
        """Make its tables in an empty database. Raises ServerFailed."""
        await self._run("migrate", REDRIVE_DATABASE_URL=database_url)

    async def said(self) -> str:
        """What it calls itself. Raises ServerFailed."""
        return (await self._run("--version")).split()[-1]

    async def _run(self, *arguments: str, **env: str) -> str:
        process = await asyncio.create_subprocess_exec(
            self.command,
            *arguments,
            env={**_without_settings(), **self.env, **env},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await process.communicate()
        if process.returncode != 0:
            raise ServerFailed(f"redrive {' '.join(arguments)}: {said.decode()}")
        return said.decode()


OWN: Final = Version(Path(sys.executable).with_name("redrive"), {"PYTHONPATH": str(ROOT)})


class Program:
    """One that runs, with what it has used so far."""

    def __init__(self, process: Process, port: int, ops_port: int) -> None:
        self._process = process
        self.port = port
        self.ops_port = ops_port

    def cpu_s(self) -> float:
        """Seconds of processor time, its children's included."""
        return processor_s(self._process.pid)

    def threads_s(self) -> tuple[float, float]:
        """Seconds of processor time of its main thread, and of its others, without its children."""
        return threads_s(self._process.pid)

    def rss_bytes(self) -> int:
        """Memory that is really there."""
        return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * _PAGE_BYTES

    def freeze(self) -> None:
        """Stop it where it stands."""
        self._process.freeze()

    def thaw(self) -> None:
        """Let it go on."""
        self._process.thaw()

    def check(self) -> None:
        """Raise ServerFailed, with the end of its log, if it has ended."""
        self._process.check()


@asynccontextmanager
async def running(
    command: Sequence[str | Path], env: Mapping[str, str], log: Path, port: int, ops_port: int | None = None
) -> AsyncIterator[Program]:
    """Run a command until the block ends. Without an `ops_port`, it has one port for all."""
    process = Process(command, env={**_without_settings(), "PYTHONPATH": str(ROOT), **env}, log=log)
    try:
        yield Program(process, port, ops_port or port)
        process.check()  # figures of a server that died meanwhile are none
    finally:
        await process.kill()


async def answers(program: Program, path: str, *, port: int | None = None, status: int = 200) -> None:
    """Wait until it answers as it should. Raises ServerFailed when it ends instead, TimeoutError."""
    wanted = request("GET", path, bearer())
    async with asyncio.timeout(_READY_S):
        while True:
            program.check()
            try:
                if (await ask(port or program.port, wanted)).status == status:
                    return
            except (OSError, Disconnected):
                pass
            await asyncio.sleep(0.05)


@asynccontextmanager
async def redrive_api(
    folder: Path,
    database_url: str,
    amqp_url: str | None = None,
    processes: int = 1,
    version: Version = OWN,
    /,
    **settings: str,
) -> AsyncIterator[Program]:
    """`redrive api` with its whole door on, ready, in so many processes."""
    port, ops_port = free_port(), free_port()
    env = {
        "REDRIVE_DATABASE_URL": database_url,
        "REDRIVE_JWT_SECRET": SECRET,
        "REDRIVE_PORT": str(port),
        "REDRIVE_OPS_PORT": str(ops_port),
        **_LIMITS,
        **({} if amqp_url is None else {"REDRIVE_AMQP_URL": amqp_url}),
        **settings,
        **version.env,
    }
    command: list[str | Path] = [version.command, "api", *(["--processes", str(processes)] if processes > 1 else [])]
    async with running(command, env, folder / "redrive-api.log", port, ops_port) as program:
        await answers(program, "/readyz", port=ops_port)
        yield program


@asynccontextmanager
async def redrive_worker(
    folder: Path, database_url: str, amqp_url: str | None, version: Version = OWN, /, **settings: str
) -> AsyncIterator[Program]:
    """`redrive worker`, ready."""
    ops_port = free_port()
    env = {
        "REDRIVE_DATABASE_URL": database_url,
        "REDRIVE_OPS_PORT": str(ops_port),
        **({} if amqp_url is None else {"REDRIVE_AMQP_URL": amqp_url}),
        **settings,
        **version.env,
    }
    async with running([version.command, "worker"], env, folder / "redrive-worker.log", ops_port) as program:
        await answers(program, "/readyz")
        yield program


@asynccontextmanager
async def comparator(folder: Path, name: str, env: Mapping[str, str]) -> AsyncIterator[Program]:
    """One of `bench.comparators`, with a port for those that serve."""
    port = free_port()
    command = [sys.executable, "-m", f"bench.comparators.{name}"]
    env = {"BENCH_PORT": str(port), "BENCH_SECRET": SECRET, **env}
    async with running(command, env, folder / f"{name}.log", port) as program:
        yield program


def _without_settings() -> dict[str, str]:
    """This process's environment without Redrive's settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("REDRIVE_")}
