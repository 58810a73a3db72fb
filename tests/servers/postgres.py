"""PostgreSQL for tests: databases on a shared server, and private servers that a test may stop, freeze and kill."""

import asyncio
import os
import shutil
import signal
import subprocess
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from cli.errors import CommandFailed
from cli.local.accounts import copy_programs
from cli.local.embedded import find_programs
from cli.local.postmaster import is_ready
from tests.eventually import eventually
from tests.servers.docker import POSTGRES, Container, uses_docker
from tests.servers.processes import (
    Account,
    Process,
    ServerFailed,
    free_port,
    make_folder,
    remove_folder,
    unprivileged,
)
from tests.servers.proxy import Proxy

MISSING = (
    "the tests need a PostgreSQL: run `make test` (or `uv sync --extra embedded`), start Docker, "
    "or set REDRIVE_TEST_DATABASE_URL"
)
_TEST_SETTINGS = {"max_connections": "200", "shared_buffers": "64MB", "max_wal_size": "256MB"}
_DURABLE = {"wal_level": "logical"}
_THROWAWAY = {"fsync": "off", "full_page_writes": "off"}  # the shared server is never restarted to look for its data


@dataclass(frozen=True, slots=True)
class Postgres:
    """A server on which tests make databases of their own.

    `url` names a superuser, or at least a role that may create databases and roles, and a database to connect to
    meanwhile. `template` is the name of the migrated database that others are copied from; see `prepare`.
    """

    url: str
    template: str

    @classmethod
    def at(cls, url: str) -> "Postgres":
        return cls(url, f"redrive_test_template_{uuid.uuid4().hex[:12]}")

    def url_of(self, database: str) -> str:
        return urlsplit(self.url)._replace(path=f"/{database}").geturl()

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.url, timeout=10, command_timeout=60)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def prepare(self) -> None:
        """Make the template: an empty database with Redrive's migrations in it."""
        from shared.migrations import migrate

        await self._execute(f'CREATE DATABASE "{self.template}"')
        await asyncio.to_thread(migrate, self.url_of(self.template))

    async def remove_template(self) -> None:
        await self._execute(f'DROP DATABASE IF EXISTS "{self.template}" WITH (FORCE)')

    @asynccontextmanager
    async def database(self, *, migrated: bool = True, encoding: str | None = None) -> AsyncIterator[str]:
        """Give a fresh database's URL; drop the database afterwards, though sessions are still connected.

        One with an `encoding` of its own is empty.
        """
        name = f"redrive_test_{uuid.uuid4().hex[:12]}"
        # A copy of few files: faster than writing each page to the log, the default for templates.
        source = f'TEMPLATE "{self.template}" STRATEGY file_copy' if migrated else "TEMPLATE template0"
        if encoding is not None:
            source = f"TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
        await self._execute(f'CREATE DATABASE "{name}" {source}')
        try:
            yield self.url_of(name)
        finally:
            await self._execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


class PrivatePostgres(ABC):
    """A server of one's own, durable over stops and crashes, on a port that stays the same.

    Its `postgres` has no template before `await postgres.prepare()`.
    """

    postgres: Postgres

    @property
    def pid(self) -> int | None:
        """Its first process, from which all others descend; None where it is no process of this machine."""
        return None

    @abstractmethod
    async def start(self) -> None:
        """Start it, or start it again; return when it answers. Nothing happens if it runs."""

    @abstractmethod
    async def stop(self) -> None:
        """Shut down in order: sessions are ended, everything is on disk ("fast")."""

    @abstractmethod
    async def stop_immediate(self) -> None:
        """Crash in order: the next start has to recover from the log ("immediate")."""

    @abstractmethod
    async def kill(self) -> None:
        """Kill every process of it at once, as a power cut would."""

    @abstractmethod
    async def freeze(self) -> None:
        """Leave its connections open and answer nothing, as a machine that swaps or a cut cable does."""

    @abstractmethod
    async def thaw(self) -> None:
        """Go on after a freeze. Nothing happens if it was not frozen."""

    async def recover(self) -> None:
        """Undo whatever a test did: it runs and answers."""
        await self.thaw()
        await self.start()

    @abstractmethod
    async def close(self) -> None:
        """Kill it and remove its data."""


class LocalPostgres(PrivatePostgres):
    """The PostgreSQL of the `embedded` extra, in a temporary folder.

    `follows`: it is a standby of that server, which runs, and applies what it gets `behind_s` later.
    """

    def __init__(self, *, durable: bool = True, follows: "LocalPostgres | None" = None, behind_s: float = 0) -> None:
        self._follows = follows
        self._behind_s = behind_s
        self._port = free_port()
        self._account = unprivileged()
        self._folder = make_folder("postgres")
        self._bin = _binaries(self._folder, self._account)
        self._data = self._folder / "data"
        self._settings = _TEST_SETTINGS | (_DURABLE if durable else _THROWAWAY)
        if follows is not None:
            self._settings["recovery_min_apply_delay"] = f"{int(behind_s * 1000)}ms"
        self._process: Process | None = None
        self._frozen = False
        self.postgres = Postgres.at(f"postgresql://postgres@127.0.0.1:{self._port}/postgres")

    def _initialise(self) -> None:
        self._data.mkdir(mode=0o700)
        if self._account:
            os.chown(self._data, self._account.uid, self._account.gid)
        options = [
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
            "--no-instructions",
        ]
        command: list[Path | str] = [self._bin / "initdb", "-D", self._data, *options]
        if self._follows is not None:
            options = ["--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"]
            command = [self._bin / "pg_basebackup", "-d", self._follows.postgres.url, "-D", self._data, *options]
        done = subprocess.run(
            command,
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
            user=self._account.uid if self._account else None,
            group=self._account.gid if self._account else None,
            extra_groups=[] if self._account else None,
        )
        if done.returncode != 0:
            raise ServerFailed(f"{Path(command[0]).name} failed: {done.stderr.strip()}")

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.alive else None

    async def start(self) -> None:
        if self._process and self._process.alive:
            return
        if not self._data.exists():
            await asyncio.to_thread(self._initialise)
        settings = self._settings | {
            "listen_addresses": "127.0.0.1",
            "port": str(self._port),
            "unix_socket_directories": str(self._data),
        }
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._process = Process(
            [self._bin / "postgres", "-D", self._data, *arguments],
            env={"PATH": os.environ.get("PATH", os.defpath), "TZ": "UTC"},
            log=self._folder / "log",
            account=self._account,
        )
        await self._until_ready(self._process, within_s=30)

    async def _until_ready(self, process: Process, *, within_s: float) -> None:
        async with asyncio.timeout(within_s):
            while True:
                process.check()
                if is_ready(self._data, process.pid):
                    return
                await asyncio.sleep(0.02)

    async def _end(self, number: signal.Signals) -> None:
        if self._process:
            await self.thaw()
            self._process.send(number)
            await self._process.ended(within_s=30)

    async def stop(self) -> None:
        await self._end(signal.SIGINT)

    async def stop_immediate(self) -> None:
        await self._end(signal.SIGQUIT)

    async def kill(self) -> None:
        self._frozen = False
        if self._process:
            await self._process.kill()

    async def freeze(self) -> None:
        if self._process and self._process.alive:
            self._process.freeze()
            self._frozen = True

    async def thaw(self) -> None:
        if self._frozen and self._process:
            self._process.thaw()
        self._frozen = False

    async def follow(self, primary: "LocalPostgres") -> None:
        """Begin anew as a standby of this server, which runs; what it had is gone."""
        await self.kill()
        await asyncio.to_thread(shutil.rmtree, self._data)
        self._follows = primary
        await self.start()

    async def close(self) -> None:
        await self.kill()
        remove_folder(self._folder)


class PostgresPair(PrivatePostgres):
    """A primary and a standby that streams from it; `fail_over` promotes the standby.

    Each server has a name, a proxy: `urls_of` has both names, as a program is given several hosts, and `mislead` lets
    both lead to the standby. `postgres` leads to the primary of now by a proxy of its own, for what the test does.
    Proxies live in the event loop in which it was started.
    """

    def __init__(self) -> None:
        primary = LocalPostgres()
        self._primary, self._standby = primary, LocalPostgres(follows=primary)
        self._names: dict[LocalPostgres, Proxy] = {}
        self._own: Proxy | None = None
        self.postgres = primary.postgres

    async def start(self) -> None:
        await self._primary.start()
        await self._standby.start()
        if self._own is None:
            for server in (self._primary, self._standby):
                self._names[server] = await Proxy.to(server.postgres.url).__aenter__()
            self._own = await Proxy.to(self._primary.postgres.url).__aenter__()
            self.postgres = Postgres.at(self._own.url_of(self._primary.postgres.url))

    def urls_of(self, url: str) -> str:
        """The same URL with both names as its hosts."""
        parts = urlsplit(url)
        login, at, _ = parts.netloc.rpartition("@")
        hosts = ",".join(f"127.0.0.1:{name.port}" for name in self._names.values())
        return parts._replace(netloc=f"{login}{at}{hosts}").geturl()

    async def make_synchronous(self, *, synchronous: bool) -> None:
        """Let commits wait for the standby, or not; return once that holds."""
        change = "SET synchronous_standby_names = '*'" if synchronous else "RESET synchronous_standby_names"
        wanted = "sync" if synchronous else "async"
        connection = await asyncpg.connect(self._primary.postgres.url, timeout=10, command_timeout=30)
        try:
            await connection.execute(f"ALTER SYSTEM {change}")
            await connection.execute("SELECT pg_reload_conf()")

            async def holds() -> bool:
                return bool(await connection.fetchval("SELECT sync_state FROM pg_stat_replication") == wanted)

            await eventually(holds)
        finally:
            await connection.close()

    async def stop_streaming(self) -> None:
        """Let the standby receive nothing from now on, until it begins anew; return once that holds."""
        connection = await asyncpg.connect(self._standby.postgres.url, timeout=10, command_timeout=30)
        try:
            await connection.execute("ALTER SYSTEM SET primary_conninfo = ''")
            await connection.execute("SELECT pg_reload_conf()")

            async def holds() -> bool:
                return not await connection.fetchval("SELECT count(*) FROM pg_stat_wal_receiver")

            await eventually(holds)
        finally:
            await connection.close()

    async def fail_over(self) -> None:
        """Promote the standby; the primary has been killed, or is frozen and stays so until it joins again.

        Commits wait for no standby until one has joined.
        """
        self._primary, self._standby = self._standby, self._primary
        connection = await asyncpg.connect(self._primary.postgres.url, timeout=10, command_timeout=60)
        try:
            await connection.execute("SELECT pg_promote()")
            await connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
            await connection.execute("SELECT pg_reload_conf()")
        finally:
            await connection.close()
        assert self._own is not None
        self._own.lead_to(self._primary.postgres.url)
        await self._own.reset()

    async def rejoin(self) -> None:
        """Let the server that was the primary begin anew, as the standby of the other."""
        await self._standby.follow(self._primary)

    async def mislead(self) -> None:
        """Let both names lead to the standby, and end what is connected."""
        for name in self._names.values():
            name.lead_to(self._standby.postgres.url)
            await name.reset()

    async def lead_right(self) -> None:
        """Let each name lead to its server again. What is connected stays where it is."""
        for server, name in self._names.items():
            name.lead_to(server.postgres.url)

    async def stop(self) -> None:
        await self._primary.stop()

    async def stop_immediate(self) -> None:
        await self._primary.stop_immediate()

    async def kill(self) -> None:
        await self._primary.kill()

    async def freeze(self) -> None:
        await self._primary.freeze()

    async def thaw(self) -> None:
        await self._primary.thaw()

    async def recover(self) -> None:
        await self.lead_right()
        await super().recover()

    async def close(self) -> None:
        proxies = [*self._names.values(), *([] if self._own is None else [self._own])]
        for proxy in proxies:
            await proxy.__aexit__()
        await self._standby.close()
        await self._primary.close()


def _binaries(folder: Path, account: Account | None) -> Path:
    """Return the wheel's bin folder, or a copy of it where the server's account cannot reach the wheel."""
    try:
        programs = find_programs()
    except CommandFailed as error:
        raise ServerFailed(MISSING) from error
    if account is None or all(parent.stat().st_mode & 0o001 for parent in programs.parents):
        return programs
    return copy_programs(programs.parent, folder / "wheel") / programs.name


class ContainerPostgres(PrivatePostgres):
    """PostgreSQL in a container."""

    def __init__(self, *, durable: bool = True) -> None:
        port, password = free_port(), uuid.uuid4().hex
        settings = _TEST_SETTINGS | (_DURABLE if durable else _THROWAWAY)
        self._frozen = False
        self._container = Container(
            POSTGRES,
            ports={5432: port},
            env={"POSTGRES_PASSWORD": password},
            command="postgres " + " ".join(f"-c {name}={value}" for name, value in settings.items()),
        )
        self.postgres = Postgres.at(f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres")

    async def start(self) -> None:
        if not self._container.running:
            await self._container.start()
            await self._container.until(self._answers, within_s=60)

    async def _answers(self) -> bool:
        # Over TCP: while the image sets itself up, a first server answers on the socket only.
        return await self._container.run("pg_isready", "-q", "-h", "127.0.0.1", "-U", "postgres")

    async def stop(self) -> None:
        await self.thaw()
        if self._container.running:
            await self._container.stop()

    async def stop_immediate(self) -> None:
        await self.thaw()
        if self._container.running:
            await self._container.kill("SIGQUIT")

    async def kill(self) -> None:
        await self.thaw()
        if self._container.running:
            await self._container.kill()

    async def freeze(self) -> None:
        if self._container.running and not self._frozen:
            await self._container.freeze()
            self._frozen = True

    async def thaw(self) -> None:
        if self._frozen:
            await self._container.thaw()
        self._frozen = False

    async def close(self) -> None:
        await self._container.remove()


def private_postgres(*, durable: bool = True) -> PrivatePostgres:
    """Return a server of one's own, not started yet; `close` it in the end. Raises ServerFailed."""
    return ContainerPostgres(durable=durable) if uses_docker() else LocalPostgres(durable=durable)
