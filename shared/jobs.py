"""Reading `control_plane.jobs`: one job by its key, or a project's newest.

Single reads go through a Coalescer: however many clients poll, the database sees a few queries at a time, each for all
the keys that have gathered.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from shared.coalesce import Coalescer
from shared.errors import JobNotFound
from shared.models import Job, JobId, JobKey, JobStatus, PendingRetry, ProjectId, RetryId, Version
from shared.sql import statements

if TYPE_CHECKING:
    from shared.database import Database, Row


def _job_of(row: "Row") -> Job:
    """A row of `find_jobs` or `list_jobs`, by position: names would cost a dictionary look-up each."""
    (
        job_id, project_id, kind, status, attempts, max_attempts, last_error,
        scheduled_at, started_at, completed_at, created_at, version,
        pending_id, pending_at, _, payload,
    ) = row  # fmt: skip
    return Job(
        id=JobId(job_id),
        project_id=ProjectId(project_id),
        type=kind,
        status=JobStatus(status),
        attempts=attempts,
        max_attempts=max_attempts,
        last_error=last_error,
        scheduled_at=scheduled_at,
        started_at=started_at,
        completed_at=completed_at,
        created_at=created_at,
        version=Version(version),
        pending_retry=None if pending_id is None else PendingRetry(RetryId(pending_id), pending_at),
        payload=None if payload is None else msgspec.Raw(payload.encode()),
    )


class JobStore:
    """Jobs as they stand."""

    def __init__(self, database: "Database") -> None:
        self._database = database
        self._sql = statements("jobs")
        self._coalescer: Coalescer[JobKey, Job] = Coalescer(self._load)

    async def _load(self, keys: Sequence[JobKey]) -> Mapping[JobKey, Job]:
        ids, projects, payloads = zip(*keys, strict=True)
        rows = await self._database.fetch(self._sql["find_jobs"], ids, projects, payloads)
        jobs = ((_job_of(row), row["with_payload"]) for row in rows)
        return {JobKey(job.id, job.project_id, with_payload): job for job, with_payload in jobs}

    async def get(self, key: JobKey) -> Job:
        """The job as of now. Raises JobNotFound, for foreign jobs too, and DatabaseUnavailable."""
        job = await self._coalescer.get(key)
        if job is None:
            raise JobNotFound
        return job

    async def newest(self, project_id: ProjectId, *, status: JobStatus | None, limit: int) -> list[Job]:
        """Up to `limit` jobs of the project, newest first by (created_at, id). Raises DatabaseUnavailable."""
        return [_job_of(row) for row in await self._database.fetch(self._sql["list_jobs"], project_id, status, limit)]
