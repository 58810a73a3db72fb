"""The newest jobs of a project, read apart: for counts, lists and bulk retries that one row would fail.

A statement that reads many jobs at once is refused as a whole where an expression of the owner's view fails for one of
them, or where a text is not UTF-8. Then the ids of the jobs are read first, and the rest of them by their ids: in
halves, until each row that is refused stands alone. It costs some 2 * log2(n) statements for each such row, so no more
than MOST_REFUSED are looked for. Numbers that no integer holds, and NULLs, refuse no statement.
"""

from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple
from uuid import UUID

from shared.coalesce import Splitter
from shared.errors import DatabaseUnfit, JobUnreadable, RedriveError, StatementRefused
from shared.models import JobId, JobStatus, Position, ProjectId
from shared.times import wire_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shared.database import Database, Row
    from shared.job_ids import JobIds

MOST_REFUSED: Final = 30
"""How many rows that are refused are told from the others, within the time of an answer."""


_BEFORE_ALL: Final = -(2**63)
"""-infinity, as PostgreSQL sends it."""

_LOWEST: Final = UUID(int=0)


class JobRow(NamedTuple):
    """What counts and choices need of a job; `error` and `fingerprint` as `Wanted` asks for them.

    `is_readable` is False where the job cannot be shown: a NULL, or a number that no integer holds.
    """

    id: JobId
    position: Position
    type: str | None
    status: str | None
    created_at: datetime | None
    is_readable: bool
    is_queued: bool
    is_exhausted: bool
    error: str | None
    fingerprint: str | None
    contains: bool
    times: int


class RefusedRow(NamedTuple):
    """A job that the database does not let read: nothing is known of it."""

    id: JobId
    position: Position


class Wanted(NamedTuple):
    """What to read of a job beside its status, type and time: the arguments of the statement `facts`."""

    error: bool = False
    contained: str | None = None
    grouped: bool = False
    retried_within_s: int | None = None
    extra_attempts: int = 0


class JobRows:
    """Reads jobs apart. The caller holds a slot of the database."""

    def __init__(self, database: "Database", ids: "JobIds") -> None:
        self._database = database
        self._ids = ids
        self._sql = ids.statements("rows")

    async def newest(
        self,
        project_id: ProjectId,
        wanted: Wanted,
        *,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        failed: bool = False,
        limit: int,
    ) -> "list[JobRow | RefusedRow]":
        """Up to `limit` jobs made between the times, exclusive, newest first; where `failed`, no others.

        Where the database refuses to look for the failed ones, these are the failed and the refused ones among the
        newest `limit` jobs. A filter by type is the caller's.

        Raises JobUnreadable where not even ids and times can be read, or where more than MOST_REFUSED rows are refused;
        DatabaseUnavailable.
        """
        arguments = project_id, *bounds_of(created_after, created_before), limit
        try:
            found = await self._positions("newest_failed" if failed else "newest", arguments)
        except (StatementRefused, DatabaseUnfit) as error:
            if not failed:
                raise JobUnreadable from error
            return await self._failed_among(project_id, wanted, arguments)
        return await self._read(project_id, found, wanted)

    async def _failed_among(
        self, project_id: ProjectId, wanted: Wanted, arguments: "Sequence[object]"
    ) -> "list[JobRow | RefusedRow]":
        try:
            found = await self._positions("newest", arguments)
        except (StatementRefused, DatabaseUnfit) as error:
            raise JobUnreadable from error
        rows = await self._read(project_id, found, wanted)
        return [row for row in rows if isinstance(row, RefusedRow) or row.status == JobStatus.FAILED]

    async def has_more(
        self, project_id: ProjectId, created_after: datetime | None, created_before: datetime | None, *, looked_at: int
    ) -> bool:
        """Whether the project has more than `looked_at` jobs made between the times, of every status.

        Raises JobUnreadable as `newest` does, and DatabaseUnavailable.
        """
        arguments = project_id, *bounds_of(created_after, created_before), looked_at + 1
        try:
            return len(await self._positions("newest", arguments)) > looked_at
        except (StatementRefused, DatabaseUnfit) as error:
            raise JobUnreadable from error

    async def _positions(self, name: str, arguments: "Sequence[object]") -> "Mapping[JobId, Position]":
        rows = await self._database.fetch(self._sql[name], *arguments)
        return {self._ids.shown(row["id"]): Position(row["place"], row["id"]) for row in rows}

    async def _read(
        self, project_id: ProjectId, positions: "Mapping[JobId, Position]", wanted: Wanted
    ) -> "list[JobRow | RefusedRow]":
        """The rows behind the ids, in their order; those that are deleted by now are missing."""
        refused: list[JobId] = []

        async def facts(part: "Sequence[JobId]") -> "Mapping[JobId, JobRow | RedriveError]":
            stored = [self._ids.stored(each) for each in part]
            rows = await self._database.fetch(self._sql["facts"], project_id, stored, *wanted)
            return {each: _row_of(each, row, positions[each]) for row in rows for each in [self._ids.shown(row["id"])]}

        def count(job_id: JobId) -> None:
            refused.append(job_id)
            if len(refused) > MOST_REFUSED:
                raise JobUnreadable

        splitter: Splitter[JobId, JobRow] = Splitter(facts, probe=lambda: facts(()))
        rows = await splitter.load(list(positions), refused=count) if positions else {}
        return [
            RefusedRow(job_id, position) if isinstance(row := rows[job_id], RedriveError) else row
            for job_id, position in positions.items()
            if job_id in rows
        ]


def _row_of(job_id: JobId, row: "Row", position: Position) -> JobRow:
    nulls = None in (row["type"], row["status"], row["created_at"])
    return JobRow(
        job_id,
        position,
        row["type"],
        row["status"],
        row["created_at"],
        row["fit_bigint"] and not nulls,
        row["is_queued"],
        row["is_exhausted"],
        row["error"],
        row["fingerprint"],
        row["contains"],
        row["times"],
    )


def below(after: Position | None, ids: "JobIds") -> tuple[datetime | int | None, UUID, UUID]:
    """Below which time and id a list goes on, and below which id among the jobs without a time."""
    if after is None:
        return None, ids.highest, ids.highest
    return (_BEFORE_ALL, _LOWEST, after.id) if after.at is None else (after.at, after.id, ids.highest)


def order_of(position: Position) -> tuple[bool, int, int]:
    """Where a position is in a list from old to new."""
    at = position.at
    return at is not None, wire_of(at) if isinstance(at, datetime) else at or 0, position.id.int


def bounds_of(created_after: datetime | None, created_before: datetime | None) -> tuple[int | None, int | None]:
    """The first and the last time between two that do not count themselves, as PostgreSQL takes them."""
    return (
        None if created_after is None else wire_of(created_after) + 1,
        None if created_before is None else wire_of(created_before) - 1,
    )
