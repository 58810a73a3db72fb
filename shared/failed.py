"""Failed jobs, chosen by what they have in common. Lists and bulk retries choose alike.

The filters that need a job's error or its retries are applied to the newest LOOKED_AT failed jobs that pass the other
filters.
"""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import msgspec

from shared.errors import StatementRefused
from shared.models import JobId, Position, ProjectId, RetryBlock
from shared.sql import statements

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shared.database import Database, Row

LOOKED_AT: Final = 10_000


class RetriedFewerThan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Jobs whose retries were applied fewer than so many times within the last so many seconds."""

    times: Annotated[int, msgspec.Meta(ge=1, le=100)]
    within_seconds: Annotated[int, msgspec.Meta(ge=1, le=604_800)]


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
    """A failed job, its position in the list, and why it cannot be retried, or None."""

    id: JobId
    position: Position
    blocked_by: RetryBlock | None


class FailedJobs:
    """Finds failed jobs. The caller holds a slot of the database."""

    def __init__(self, database: "Database") -> None:
        self._database = database
        self._sql = statements("failed")

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

        Raises StatementRefused where the database refuses to look at one of them, and DatabaseUnavailable.
        """
        fewer = chosen.retried_fewer_than
        arguments = [
            project_id,
            *chosen[:5],
            None if fewer is None else fewer.times,
            None if fewer is None else fewer.within_seconds,
            extra_attempts,
            chosen.looked_at or looked_at,
            limit,
            retryable,
            *((None, None) if after is None else after),
        ]
        rows = await self._match(arguments)
        return [
            FailedJob(
                JobId(row["id"]),
                Position(row["place"], row["id"]),
                None if row["blocked_by"] is None else RetryBlock(row["blocked_by"]),
            )
            for row in rows
        ]

    async def _match(self, arguments: "list[object]") -> "Sequence[Row]":
        """The rows; none where the database refuses a text of the filter that it cannot hold: no job has it."""
        sql = self._sql["match"]
        try:
            return await self._database.fetch(sql, *arguments)
        except StatementRefused:
            nothing = [*arguments]
            nothing[9] = nothing[10] = 0
            try:
                await self._database.fetch(sql, *nothing)
            except StatementRefused:
                return []
            raise

    async def has_more(self, project_id: ProjectId, chosen: FailedFilter) -> bool:
        """Whether there are more failed jobs, by type and time alone, than are looked at."""
        try:
            ((more,),) = await self._database.fetch(self._sql["has_more"], project_id, *chosen[:3], LOOKED_AT)
        except StatementRefused:
            return False
        return bool(more)
