"""One system with Redrive beside it, in a database of the test's own: its table, its worker, and the logins of ours."""

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import asyncpg

from shared import adapters
from shared.migrations import migrate
from tests.adapters.systems import ROOT, System
from tests.eventually import eventually
from tests.jobs import VERSION_SQL
from tests.servers.postgres import Postgres
from tests.workers import RunningWorker, a_worker

if TYPE_CHECKING:
    from tests.adapters.drivers.jobs import AskedJob

FAILED: Final = 30
PASSWORD: Final = "a-password-of-the-tests"

# Counts each row of the system's own table that leaves its failed state. The ledger has no part in it.
_EFFECTS: Final = """
CREATE TABLE public.test_effects (job_id text, at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION public.test_effect() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    INSERT INTO test_effects (job_id) VALUES (new.id::text);
    RETURN NULL;
END
$$;
CREATE TRIGGER test_effect AFTER UPDATE ON {t} FOR EACH ROW
    WHEN ({was_failed} AND NOT {is_failed}) EXECUTE FUNCTION public.test_effect();
"""


@dataclass(frozen=True, slots=True)
class Roles:
    """Logins that belong to one system's databases: the tables' owner, and the two programs."""

    owner: str
    api: str
    worker: str

    def url(self, database_url: str, role: str) -> str:
        parts = urlsplit(database_url)
        return parts._replace(netloc=f"{role}:{PASSWORD}@{parts.hostname}:{parts.port}").geturl()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A database to copy: the system installed, its worker done with some jobs, and Redrive beside it."""

    system: System
    postgres: Postgres
    roles: Roles
    jobs: Mapping[str, Sequence[str]]
    """The ids of its jobs, by what became of them: failed, worked, running, later, cancelled."""


async def drive(system: System, url: str, *words: str, given: object = None) -> Any:  # noqa: ANN401 - JSON
    """Let a system's driver do one thing."""
    process = await asyncio.create_subprocess_exec(
        *system.command,
        *words,
        cwd=ROOT,
        env={**os.environ, **system.environment, "DATABASE_URL": url},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(120):
        out, err = await process.communicate(json.dumps(given).encode())
    assert process.returncode == 0, err.decode()
    return json.loads(out) if out.strip() else None


@asynccontextmanager
async def working(system: System, url: str, mode: str, *, grace_s: float = 0) -> AsyncIterator[None]:
    """Run a system's own worker until the block ends; it is killed then, after `grace_s` for what it has in hand."""
    process = await asyncio.create_subprocess_exec(
        *system.command,
        "work",
        mode,
        cwd=ROOT,
        env={**os.environ, **system.environment, "DATABASE_URL": url},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # some start processes of their own
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            while (line := await process.stdout.readline()) != b"up\n":  # some log before that
                assert line, f"the worker of {system.name} did not start"
        yield
    finally:
        try:
            if grace_s > 0:
                with suppress(ProcessLookupError, TimeoutError):
                    os.killpg(process.pid, signal.SIGTERM)
                    await asyncio.wait_for(process.wait(), grace_s)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def prepare(system: System, server: Postgres, suffix: str) -> Prepared:
    """Make the database to copy. The system's own worker fails `FAILED` jobs, works three and hangs in one."""
    roles = Roles(*(f"redrive_adapters_{who}_{suffix}" for who in ("owner", "api", "worker")))
    name = f"redrive_test_adapter_{suffix}"
    admin = server.url_of(name)
    connection = await asyncpg.connect(server.url, timeout=10)
    try:
        for role in (roles.owner, roles.api, roles.worker):
            await connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
        await connection.execute(f'CREATE DATABASE "{name}" TEMPLATE template0 OWNER {roles.owner}')
    finally:
        await connection.close()
    connection = await asyncpg.connect(admin, timeout=10)
    try:
        await connection.execute(f"GRANT ALL ON SCHEMA public TO {roles.owner}")
        jobs = await _install(system, roles.url(admin, roles.owner))
        await _add_redrive(system, roles, admin)
        await _run_jobs(system, roles.url(admin, roles.owner), connection)
        if system.cancelled is not None:
            await connection.execute(
                f"UPDATE {system.table} SET {system.cancelled} WHERE id::text = ANY ($1)", jobs["cancelled"]
            )
        await connection.execute(f"GRANT redrive_api TO {roles.api}; GRANT redrive_worker TO {roles.worker}")
        await connection.execute(
            _EFFECTS.format(
                t=system.table,
                was_failed=system.failed.format(row="old"),
                is_failed=system.failed.format(row="new"),
            )
        )
    finally:
        await connection.close()
    return Prepared(system, Postgres(server.url, name), roles, jobs)


async def _install(system: System, owner: str) -> dict[str, Sequence[str]]:
    asked: list[AskedJob] = [{"do": "fail"} for _ in range(FAILED)]
    asked += [{"do": "work"}, {"do": "work"}, {"do": "work"}, {"do": "hang"}]
    asked += [{"do": "fail", "delay_s": 3600} for _ in range(3)]
    ids = await drive(system, owner, "install", given=asked)
    worked = FAILED + 3
    return {
        "failed": ids[:FAILED],
        "worked": ids[FAILED:worked],
        "running": ids[worked : worked + 1],
        "later": ids[worked + 1 : worked + 3],
        "cancelled": ids[worked + 3 :],
    }


async def _run_jobs(system: System, owner: str, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    failed = f"SELECT count(*) FROM {system.table} AS j WHERE {system.failed.format(row='j')}"
    waiting = "SELECT count(*) FROM control_plane.jobs WHERE status = 'pending'"

    async def are_run() -> bool:
        return (await connection.fetchval(failed), await connection.fetchval(waiting)) == (FAILED, 3)

    async with working(system, owner, "fail"):
        await eventually(are_run, within_s=120, every_s=0.1, what=f"the worker of {system.name} has run its jobs")


async def _add_redrive(system: System, roles: Roles, admin: str) -> None:
    await _run_adapter(system, roles.url(admin, roles.owner))
    await asyncio.to_thread(migrate, admin)


async def _run_adapter(system: System, owner: str, schema: str | None = None) -> None:
    connection = await asyncpg.connect(owner, timeout=10)
    try:
        await connection.execute(adapters.get(system.adapter).sql(schema=schema, project=system.project))
    finally:
        await connection.close()


async def discard(prepared: Prepared) -> None:
    await prepared.postgres.remove_template()
    connection = await asyncpg.connect(prepared.postgres.url, timeout=10)
    try:
        for role in (prepared.roles.owner, prepared.roles.api, prepared.roles.worker):
            await connection.execute(f"DROP ROLE {role}")
    finally:
        await connection.close()


class Rig:
    """A copy of a prepared database."""

    def __init__(self, prepared: Prepared, url: str, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self.system = prepared.system
        self.jobs = prepared.jobs
        self.pool = pool
        self.admin_url = url
        self.owner_url = prepared.roles.url(url, prepared.roles.owner)
        self.api_url = prepared.roles.url(url, prepared.roles.api)
        self.worker_url = prepared.roles.url(url, prepared.roles.worker)

    @classmethod
    @asynccontextmanager
    async def on(cls, prepared: Prepared) -> AsyncIterator["Rig"]:
        async with prepared.postgres.database() as url, asyncpg.create_pool(url, min_size=0, max_size=4) as pool:
            yield cls(prepared, url, pool)

    @property
    def failed(self) -> Sequence[str]:
        return self.jobs["failed"]

    def working(self, mode: str, *, grace_s: float = 0) -> AbstractAsyncContextManager[None]:
        """Run its own worker until the block ends, and `grace_s` longer for what it has in hand."""
        return working(self.system, self.owner_url, mode, grace_s=grace_s)

    def worker(self, amqp_url: str | None = None) -> AbstractAsyncContextManager[RunningWorker]:
        """Run a worker of Redrive's, under its own login, until the block ends."""
        job_id = self.system.settings.get("job_id", "uuid")
        return a_worker(self.worker_url, amqp_url, job_id=job_id, worker_batch_size=20)

    async def add_adapter(self, schema: str) -> None:
        """Run the adapter again, for another schema."""
        await _run_adapter(self.system, self.owner_url, schema)

    async def age(self, ids: Sequence[str]) -> None:
        """Let all that happened to these jobs have happened long ago."""
        await self.update(self.system.aged, ids)
        await self.pool.execute(self.system.aged_too)

    async def prune(self) -> None:
        """Let its own maintenance run once."""
        await drive(self.system, self.owner_url, "prune")

    async def update(self, columns: str, ids: Sequence[str]) -> None:
        """Set columns of the system's table."""
        await self.pool.execute(f"UPDATE {self.system.table} SET {columns} WHERE id::text = ANY ($1)", ids)

    async def row(self, job_id: str) -> asyncpg.Record | None:
        """The job as the view shows it."""
        return await self.pool.fetchrow("SELECT * FROM control_plane.jobs WHERE id::text = $1", job_id)

    async def version(self, job_id: str) -> str:
        """The version of the job as it is now."""
        version = await self.pool.fetchval(f"SELECT {VERSION_SQL} FROM control_plane.jobs WHERE id::text = $1", job_id)
        return str(version)

    async def outcome(self, request_id: str) -> str | None:
        """What became of a request."""
        row = await self.pool.fetchrow(
            "SELECT outcome FROM redrive.retry_requests WHERE id = $1::text::uuid", request_id
        )
        return None if row is None else row["outcome"]

    async def statuses(self) -> dict[str, str]:
        """The status that the view shows of every job."""
        rows = await self.pool.fetch("SELECT id::text, status FROM control_plane.jobs")
        return {row["id"]: row["status"] for row in rows}

    async def still_failed(self) -> set[str]:
        """The jobs that its own table calls failed."""
        failed = self.system.failed.format(row="j")
        rows = await self.pool.fetch(f"SELECT id::text FROM {self.system.table} AS j WHERE {failed}")
        return {row["id"] for row in rows}

    async def completed(self) -> set[str]:
        """The jobs that its own worker completed, of those that failed first: marked so, or gone."""
        shown = await self.statuses()
        return {each for each in self.failed if shown.get(each, "completed") == "completed"}

    async def effects(self) -> dict[str, int]:
        """How often each job left its failed state."""
        rows = await self.pool.fetch("SELECT job_id, count(*) FROM public.test_effects GROUP BY job_id")
        return {row["job_id"]: row["count"] for row in rows}

    async def fill(self, count: int) -> None:
        """Add copies of a failed job."""
        await self.pool.execute(self.system.fill.format(t=self.system.table), count, self.failed[0])
        await self.pool.execute("ANALYZE")
