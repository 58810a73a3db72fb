"""Failed jobs, chosen by what they have in common. Lists and bulk retries choose alike.

The filters that need a job's error or its retries are applied to the newest LOOKED_AT failed jobs that pass the other
filters; jobs without a time come last. A job that cannot be shown is chosen by what can be read of it, and is blocked.
Where the database refuses to read a job at all, it is unknown whether that is meant: it is chosen, and blocked.
"""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import msgspec

from shared.bounds import MAX_TIMES, MAX_WITHIN_S
from shared.errors import DatabaseUnfit, StatementRefused
from shared.models import JobId, Position, ProjectId, RetryBlock
from shared.rows import JobRow, JobRows, RefusedRow, Wanted, below, bounds_of, order_of

if TYPE_CHECKING:
    from shared.database import Database
    from shared.job_ids import JobIds

LOOKED_AT: Final = 10_000

JOB_UNREADABLE: Final = "job_unreadable"
_BLOCKS: Final = {JOB_UNREADABLE: JOB_UNREADABLE, **{str(block): block for block in RetryBlock}}


class RetriedFewerThan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Jobs whose retries were applied fewer than so many times within the last so many seconds."""

    times: Annotated[int, msgspec.Meta(ge=1, le=MAX_TIMES)]
    within_seconds: Annotated[int, msgspec.Meta(ge=1, le=MAX_WITHIN_S)]


class FailedFilter(NamedTuple):
    """Which failed jobs; None for all. The times are exclusive."""

    type: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    error_contains: str | None = None
    fingerprint: str | None = None
    retried_fewer_than: RetriedFewerThan | None = None

    @property
    def looked_at(self) -> int | None:
        """How many jobs the search looks at; None for all, where an index finds them."""
        looks = (self.error_contains, self.fingerprint, self.retried_fewer_than)
        return None if looks == (None, None, None) else LOOKED_AT


class FailedJob(NamedTuple):
    """A failed job, its position in the list, and why it cannot be retried: a RetryBlock, JOB_UNREADABLE or None."""

    id: JobId
    position: Position
    blocked_by: str | None


class FailedJobs:
    """Finds failed jobs. The caller holds a slot of the database."""

    def __init__(self, database: "Database", ids: "JobIds") -> None:
        self._database = database
        self._ids = ids
        self._sql = ids.statements("failed")
        self._rows = JobRows(database, ids)

    async def match(
        self,
        project_id: ProjectId,
        chosen: FailedFilter,
        *,
        limit: int,
        extra_attempts: int = 0,
        looked_at: int | None = None,
        retryable: bool | None = None,
        after: Position | None = None,
    ) -> list[FailedJob]:
        """Up to `limit` jobs that match, newest first. `looked_at` bounds the search where the filter does not.

        Raises JobUnreadable where the jobs cannot even be read one by one, and DatabaseUnavailable.
        """
        fewer = chosen.retried_fewer_than
        bound = chosen.looked_at or looked_at
        arguments: list[object] = [
            project_id,
            chosen.type,
            *bounds_of(chosen.created_after, chosen.created_before),
            chosen.error_contains,
            chosen.fingerprint,
            None if fewer is None else fewer.times,
            None if fewer is None else fewer.within_seconds,
            extra_attempts,
            bound,
            limit,
            retryable,
            *below(after, self._ids),
        ]
        try:
            rows = await self._database.fetch(self._sql["match"], *arguments)
        except (StatementRefused, DatabaseUnfit):
            if await self._is_empty(arguments):
                return []
            found = await self._match_apart(project_id, chosen, extra_attempts, bound or LOOKED_AT + 1)
            return [
                job
                for job in found
                if (retryable is None or (job.blocked_by is None) == retryable)
                and (after is None or order_of(job.position) < order_of(after))
            ][:limit]
        return [
            FailedJob(
                self._ids.shown(row["id"]),
                Position(row["place"], row["id"]),
                _BLOCKS.get(row["blocked_by"]),
            )
            for row in rows
        ]

    async def _is_empty(self, arguments: "list[object]") -> bool:
        """Whether no job can match, because the database cannot hold a text of the filter.

        Raises DatabaseUnfit where the statement is at fault, and no row is.
        """
        nothing = [*arguments]
        nothing[9] = nothing[10] = 0
        try:
            await self._database.fetch(self._sql["match"], *nothing)
        except StatementRefused:
            return True
        return False

    async def _match_apart(
        self, project_id: ProjectId, chosen: FailedFilter, extra_attempts: int, limit: int
    ) -> list[FailedJob]:
        """All that match among the newest `limit` failed jobs, where these cannot be read at once."""
        fewer = chosen.retried_fewer_than
        wanted = Wanted(
            error=True,
            contained=chosen.error_contains,
            grouped=chosen.fingerprint is not None,
            retried_within_s=None if fewer is None else fewer.within_seconds,
            extra_attempts=extra_attempts,
        )
        rows = await self._rows.newest(
            project_id,
            wanted,
            created_after=chosen.created_after,
            created_before=chosen.created_before,
            failed=True,
            limit=limit,
        )
        return [FailedJob(row.id, row.position, _block_of(row)) for row in rows if _is_chosen(row, chosen)]

    async def has_more(self, project_id: ProjectId, chosen: FailedFilter) -> bool:
        """Whether there are more failed jobs, by type and time alone, than are looked at."""
        rest = [chosen.type, *bounds_of(chosen.created_after, chosen.created_before), LOOKED_AT]
        sql = self._sql["has_more"]
        try:
            ((more,),) = await self._database.fetch(sql, project_id, *rest)
        except (StatementRefused, DatabaseUnfit):
            try:
                await self._database.fetch(sql, "", *rest)  # no project has this name, so no row is at fault
            except StatementRefused:
                return False  # no job has a type that the database cannot hold
            return await self._rows.has_more(
                project_id, chosen.created_after, chosen.created_before, looked_at=LOOKED_AT
            )
        return bool(more)


def _is_chosen(row: JobRow | RefusedRow, chosen: FailedFilter) -> bool:
    if isinstance(row, RefusedRow):
        return True
    fewer = chosen.retried_fewer_than
    return (
        chosen.type in (None, row.type)
        and chosen.fingerprint in (None, row.fingerprint)
        and row.contains
        and (fewer is None or row.times < fewer.times)
    )


def _block_of(row: JobRow | RefusedRow) -> str | None:
    if isinstance(row, RefusedRow) or not row.is_readable:
        return JOB_UNREADABLE
    if row.is_queued:
        return RetryBlock.RETRY_QUEUED
    return RetryBlock.ATTEMPTS_EXHAUSTED if row.is_exhausted else None
