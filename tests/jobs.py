"""Jobs for tests, and a count of what became of them that does not trust the ledger."""

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import asyncpg

from shared.messages import RetryMessage
from shared.models import JobId, JobKey, ProjectId, Version
from shared.retries import RetryRequest

if TYPE_CHECKING:
    from uuid import UUID

# An effect is an update that puts a job back, be it one that is pending already. The table has no constraint that could
# hide a second one, and the function runs as its owner, so that programs under roles of their own are counted, too.
_EFFECTS = """
CREATE TABLE public.test_effects (project_id text, job_id uuid, at timestamptz DEFAULT clock_timestamp());

CREATE FUNCTION public.test_effect() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO public.test_effects (project_id, job_id) VALUES (NEW.project_id, NEW.id);
    RETURN NULL;
END
$$;

CREATE TRIGGER test_effect AFTER UPDATE OF status ON control_plane.jobs
    FOR EACH ROW WHEN (NEW.status = 'pending') EXECUTE FUNCTION public.test_effect();
"""


VERSION_SQL = """
lpad(to_hex(hash_record_extended(row(
    type::text, status::text, coalesce(attempts, 0)::int, coalesce(max_attempts, 3)::int,
    left(last_error::text, 65536), scheduled_at::timestamptz, started_at::timestamptz, completed_at::timestamptz,
    created_at::timestamptz
), 0)), 16, '0')
"""
"""A job's version, as it is promised."""


@dataclass(frozen=True, slots=True)
class MadeJob:
    """A job as it was when it was made, or last changed by the maker."""

    id: JobId
    project_id: ProjectId
    version: Version

    @property
    def key(self) -> JobKey:
        return JobKey(self.id, self.project_id)


def a_retry_of(job: MadeJob, *, actor: str = "tester", extra_attempts: int = 0, delay_seconds: int = 0) -> RetryRequest:
    """A request as the api makes it."""
    return RetryRequest(job=job.key, actor=actor, extra_attempts=extra_attempts, delay_seconds=delay_seconds)


def a_message_for(
    job: MadeJob, *, request_id: "UUID | None" = None, project_id: str | None = None, any_version: bool = False
) -> RetryMessage:
    """A message that asks for a retry of the job as it was seen, or as it is; under an id of its own, it is another
    program's.
    """
    return RetryMessage(
        request_id=request_id or uuid.uuid4(),
        job_id=job.id,
        project_id=project_id or job.project_id,
        job_version=None if any_version else job.version,
    )


class JobMaker:
    """Makes jobs in one database, changes them as their owner would, and counts effects."""

    def __init__(self, database_url: str, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._database_url = database_url
        self.pool = pool

    @classmethod
    @asynccontextmanager
    async def on(cls, database_url: str) -> AsyncIterator[Self]:
        """Use a migrated database, from now on counting effects in it."""
        async with asyncpg.create_pool(database_url, min_size=0, max_size=4, timeout=10, command_timeout=30) as pool:
            await pool.execute(_EFFECTS)
            yield cls(database_url, pool)

    async def make(
        self,
        count: int,
        *,
        status: str,
        project_id: str = "p1",
        kind: str = "email",
        attempts: int | None = 1,
        max_attempts: int | None = 3,
        last_error: str | None = None,
        payload: str = "{}",
        job_id: "UUID | None" = None,
    ) -> list[MadeJob]:
        """Jobs that differ in nothing but their ids; `job_id` is the id of the only one."""
        rows = await self.pool.fetch(
            f"""
            INSERT INTO control_plane.jobs (
                id, project_id, type, payload, status, attempts, max_attempts, last_error, started_at, completed_at
            )
            SELECT coalesce($9, gen_random_uuid()), $2, $3, $4::jsonb, $5::text, $6::int, $7::int, $8,
                CASE WHEN $5::text <> 'pending' THEN now() END,
                CASE WHEN $5::text IN ('failed', 'completed') THEN now() END
            FROM generate_series(1, $1::int)
            RETURNING id, project_id, {VERSION_SQL} AS version
            """,
            count, project_id, kind, payload, status, attempts, max_attempts, last_error, job_id,
        )  # fmt: skip
        return [MadeJob(JobId(id_), ProjectId(project), Version(version)) for id_, project, version in rows]

    async def failed(
        self,
        *,
        project_id: str = "p1",
        kind: str = "email",
        attempts: int | None = 1,
        max_attempts: int | None = 3,
        last_error: str = "it broke",
        job_id: "UUID | None" = None,
    ) -> MadeJob:
        (job,) = await self.make(
            1,
            status="failed",
            project_id=project_id,
            kind=kind,
            attempts=attempts,
            max_attempts=max_attempts,
            last_error=last_error,
            job_id=job_id,
        )
        return job

    async def many_failed(self, count: int, *, project_id: str = "p1") -> list[MadeJob]:
        return await self.make(count, status="failed", project_id=project_id, last_error="it broke")

    async def pending(self, *, project_id: str = "p1") -> MadeJob:
        (job,) = await self.make(1, status="pending", project_id=project_id, attempts=0)
        return job

    async def running(self, *, project_id: str = "p1") -> MadeJob:
        (job,) = await self.make(1, status="running", project_id=project_id)
        return job

    async def completed(self, *, project_id: str = "p1") -> MadeJob:
        (job,) = await self.make(1, status="completed", project_id=project_id)
        return job

    async def fail_again(self, job: MadeJob, *, last_error: str = "it broke again") -> MadeJob:
        """Let the job fail as the control plane would: a failure of another version."""
        version = await self.pool.fetchval(
            "UPDATE control_plane.jobs SET status = 'failed', last_error = $3 WHERE project_id = $1 AND id = $2"
            f" RETURNING {VERSION_SQL}",
            job.project_id,
            job.id,
            last_error,
        )
        return MadeJob(job.id, job.project_id, Version(version))

    async def fail_all_again(self) -> None:
        """Let whatever is pending fail, as the control plane would."""
        await self.pool.execute(
            "UPDATE control_plane.jobs SET status = 'failed', last_error = 'it broke again' WHERE status = 'pending'"
        )

    async def row(self, job: MadeJob) -> asyncpg.Record:
        """The job's row as it is now, all columns."""
        row = await self.pool.fetchrow(
            "SELECT * FROM control_plane.jobs WHERE project_id = $1 AND id = $2", job.project_id, job.id
        )
        assert row is not None
        return row

    async def status_of(self, job: MadeJob) -> str:
        return str((await self.row(job))["status"])

    async def effects_of(self, job: MadeJob) -> int:
        """How often the job was put back."""
        counted = await self.pool.fetchval(
            "SELECT count(*) FROM public.test_effects WHERE project_id = $1 AND job_id = $2", job.project_id, job.id
        )
        return int(counted)

    async def effects(self, jobs: Sequence[MadeJob]) -> list[int]:
        """How often each job was put back, in the order asked."""
        rows = await self.pool.fetch(
            "SELECT project_id, job_id, count(*) FROM public.test_effects GROUP BY project_id, job_id"
        )
        counted = {(project_id, job_id): effects for project_id, job_id, effects in rows}
        return [counted.get((job.project_id, job.id), 0) for job in jobs]

    async def all_effects(self) -> int:
        """How often any job was put back."""
        return int(await self.pool.fetchval("SELECT count(*) FROM public.test_effects"))

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """Let nobody else read or write the jobs table, as a migration of its owner's may."""
        connection = await asyncpg.connect(self._database_url)
        try:
            await connection.execute("BEGIN; LOCK TABLE control_plane.jobs")
            yield
        finally:
            connection.terminate()  # not politely: a test may have stopped the server meanwhile

    async def lock_is_waited_for(self) -> bool:
        """Whether a statement waits for a lock on the jobs table."""
        return bool(
            await self.pool.fetchval(
                "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'control_plane.jobs'::regclass AND NOT granted)"
            )
        )

    async def ledger_row(self, request_id: "UUID") -> asyncpg.Record | None:
        """A row of the ledger, all columns."""
        return await self.pool.fetchrow("SELECT * FROM redrive.retry_requests WHERE id = $1", request_id)

    async def outcome_of(self, request_id: "UUID") -> str | None:
        """What became of a request; None while nothing has, or where the ledger does not know it."""
        row = await self.ledger_row(request_id)
        return None if row is None else row["outcome"]

    async def queued(self) -> int:
        """How many requests wait to be settled."""
        return int(await self.pool.fetchval("SELECT count(*) FROM redrive.retry_requests WHERE state = 'queued'"))
