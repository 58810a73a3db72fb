"""Reading `control_plane.jobs`: one job by its key, or a project's newest.

Single reads go through a Coalescer: however many clients poll, the database sees a few queries at a time, each for all
the keys that have gathered.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from shared.coalesce import Coalescer
from shared.errors import JobNotFound
from shared.models import Job, JobId, JobKey, JobStatus, PendingRetry, Place, ProjectId, RetryId, Version
from shared.sql import statements

if TYPE_CHECKING:
    from shared.database import Database, Row


# Not JobStatus(…): a row with any other status would fail the query of everybody who is read together with it.
_STATUSES: Final = {str(status): status for status in JobStatus}


def _job_of(row: "Row") -> Job:
    """A row of `find_jobs` or of a list, by position: names would cost a dictionary look-up each."""
    (
        job_id, project_id, kind, status, attempts, max_attempts, last_error,
        scheduled_at, started_at, completed_at, created_at, version,
        pending_id, pending_at, _, payload,
    ) = row  # fmt: skip
    return Job(
        id=JobId(job_id),
        project_id=ProjectId(project_id),
        type=kind,
        status=_STATUSES.get(status, status),
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


LATE_S: Final = 0.02
"""A look-up of jobs by their ids takes a millisecond or two; one that takes so long holds nobody up any more."""

PAYLOADS: Final = 8
"""So many jobs are read with their payloads at a time: one may have a megabyte, and is held three times meanwhile."""

STATS_CAP: Final = 10_000
"""Where counting stops: what a person wants to know beyond it is that it is many."""


class JobFilter(NamedTuple):
    """Which jobs of a project; None leaves a question open. The times are exclusive."""

    status: JobStatus | None = None
    type: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


class StatusStats(NamedTuple):
    """How many jobs of a status there are, counted up to STATS_CAP, and how many of them have no attempts left."""

    jobs: int
    capped: bool
    oldest_at: datetime | None
    exhausted: int


class JobStore:
    """Jobs as they stand."""

    def __init__(self, database: "Database") -> None:
        self._database = database
        self._sql = statements("jobs")
        self._coalescer: Coalescer[JobKey, Job] = Coalescer(self._load, late_s=LATE_S)
        self._with_payload: Coalescer[JobKey, Job] = Coalescer(self._load, max_batch=PAYLOADS, late_s=LATE_S)

    async def _load(self, keys: Sequence[JobKey]) -> Mapping[JobKey, Job]:
        ids, projects, payloads = zip(*keys, strict=True)
        rows = await self._database.fetch(self._sql["find_jobs"], ids, projects, payloads)
        jobs = ((_job_of(row), row["with_payload"]) for row in rows)
        return {JobKey(job.id, job.project_id, with_payload): job for job, with_payload in jobs}

    async def find_many(self, keys: Sequence[JobKey]) -> Mapping[JobKey, Job]:
        """The jobs behind up to some thousand distinct keys, in one query; a key that matches nothing is missing.

        Raises DatabaseUnavailable.
        """
        return await self._load(keys)

    async def find_these(self, keys: Sequence[JobKey]) -> Mapping[JobKey, Job]:
        """The same for one client, in turn."""
        async with self._database.turn():
            return await self._load(keys)

    async def changed(self, seen: Mapping[JobKey, Job]) -> Sequence[JobKey]:
        """Which of the jobs are no longer as they were seen, deleted ones too. Raises DatabaseUnavailable."""
        rows = await self._database.fetch(
            self._sql["changed_jobs"],
            [key.id for key in seen],
            [key.project_id for key in seen],
            [job.version for job in seen.values()],
            [None if job.pending_retry is None else job.pending_retry.id for job in seen.values()],
        )
        changed = {(row["id"], row["project_id"]) for row in rows}
        return [key for key in seen if (key.id, key.project_id) in changed]

    async def get(self, key: JobKey) -> Job:
        """The job as of now. Raises JobNotFound, for foreign jobs too, and DatabaseUnavailable."""
        job = await (self._with_payload if key.with_payload else self._coalescer).get(key)
        if job is None:
            raise JobNotFound
        return job

    async def page(self, project_id: ProjectId, wanted: JobFilter, *, after: Place | None, limit: int) -> list[Job]:
        """Up to `limit` jobs of the project that follow `after`, newest first. Raises DatabaseUnavailable."""
        arguments = [
            project_id,
            wanted.type,
            wanted.created_after,
            None if after is None else after.at,
            None if after is None else after.id,
            wanted.created_before,
            limit,
        ]
        async with self._database.turn():
            if wanted.status is None:
                rows = await self._database.fetch(self._sql["list_jobs"], *arguments)
            else:
                rows = await self._database.fetch(self._sql["list_jobs_of_status"], *arguments, wanted.status)
        return [_job_of(row) for row in rows]

    async def stats(self, project_id: ProjectId, *, type: str | None) -> dict[JobStatus, StatusStats]:  # noqa: A002 - its name in the contract
        """How many jobs stand where; every status is there. Raises DatabaseUnavailable."""
        async with self._database.turn():
            rows = await self._database.fetch(self._sql["job_stats"], project_id, type, STATS_CAP + 1)
        return {
            JobStatus(row["status"]): StatusStats(
                jobs=min(row["jobs"], STATS_CAP),
                capped=row["jobs"] > STATS_CAP,
                oldest_at=row["oldest_at"],
                exhausted=min(row["exhausted"], STATS_CAP),
            )
            for row in rows
        }
