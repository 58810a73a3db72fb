"""Overviews of a project: its jobs counted by status, type, time and error, and its retries.

Every count looks at a bounded number of rows; the answer says where there may be more. With an index on (project_id,
status, created_at, id) the jobs of a status are counted by themselves. Without it this takes longer the larger the
project is: after FIRST_S the statement is cancelled, and the newest rows of the project are counted instead.

Where the database refuses to count because of a row that it cannot read, the newest jobs are read apart and counted
here, without that row.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import product
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from shared.errors import DatabaseUnfit, StatementRefused, StatementTimeout
from shared.models import JobId, JobStatus, ProjectId
from shared.rows import JobRow, JobRows, RefusedRow, Wanted, bounds_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from shared.database import Database, Row
    from shared.job_ids import JobIds

    _Rows = Sequence[Row] | Sequence[dict[str, Any]]

LOOKED_AT: Final = 10_000
"""How many rows a count looks at. Beyond that, a person only needs to know that there are many."""
CELL: Final = 1_000
CELLS: Final = 24_000
"""How many rows a series looks at for one cell, and for all of them."""
GROUPS: Final = 100
SAMPLE: Final = 5
TYPES: Final = 500
WAITS: Final = 1_000

OTHER: Final = "other"
"""The status under which jobs with a status of the owner's own are counted."""
STATUSES: Final = (*(str(status) for status in JobStatus), OTHER)

FIRST_S: Final = 0.8
SECOND_S: Final = 0.7
"""How long each form of a statement may take; together they are well within the time of an answer."""
LONGEST_TYPE: Final = 1_000
_MICROSECOND: Final = timedelta(microseconds=1)
FEW_FAILURES: Final = 1_000
"""How many errors the second form reads: the first may have failed because they take long."""


class StatusStats(NamedTuple):
    """How many jobs have a status, the oldest of them, and how many have no attempts left."""

    jobs: int
    capped: bool
    oldest_at: datetime | None
    exhausted: int


class Types(NamedTuple):
    """Types with how many jobs each has, the most frequent first; `truncated`: there are more jobs, or types."""

    jobs: Sequence[tuple[str, int]]
    sampled: int
    truncated: bool


class Cell(NamedTuple):
    """How many jobs of one status were made in one bucket of time; `capped`: there may be more."""

    jobs: int = 0
    capped: bool = False


class FailureGroup(NamedTuple):
    """Failed jobs of one type and one error; `retryable`, `exhausted` and `queued` add up to `jobs`."""

    fingerprint: str
    type: str
    error: str
    jobs: int
    retryable: int
    exhausted: int
    queued: int
    first_at: datetime | None
    last_at: datetime | None
    sample: Sequence[JobId]


class Failures(NamedTuple):
    """Groups of failed jobs, the largest first; `truncated`: more jobs have failed than the `sampled` ones."""

    groups: Sequence[FailureGroup]
    sampled: int
    truncated: bool


class RetryStats(NamedTuple):
    """What waits, what was settled in the last hour, and the median and 95th percentile of the waits, in ms."""

    queued: Cell
    oldest_requested_at: datetime | None
    settled: dict[str, Cell]
    wait_ms: tuple[int, int] | None


class Overview:
    """Counts. Each method reads in a slot of the database's, and may raise DatabaseUnavailable.

    A method that counts jobs raises JobUnreadable where not even their ids and times can be read.
    """

    def __init__(self, database: "Database", ids: "JobIds") -> None:
        self._database = database
        self._ids = ids
        self._rows = JobRows(database, ids)
        self._sql = ids.statements("overview")

    async def stats(self, project_id: ProjectId, *, type: str | None) -> dict[str, StatusStats]:  # noqa: A002 - its name in the contract
        """How many jobs stand where, for each of STATUSES. Where even the newest jobs take too long: 0, and capped."""
        try:
            rows = await self._count(
                "stats",
                "stats_of_newest",
                (project_id, type, LOOKED_AT),
                bound=2,
                nothing=-1,
                apart=lambda: self._stats_apart(project_id, type),
            )
        except StatementTimeout:
            return {status: StatusStats(0, capped=True, oldest_at=None, exhausted=0) for status in STATUSES}
        return {
            row["status"]: StatusStats(
                jobs=min(row["jobs"], LOOKED_AT),
                capped=row["looked_at"] > LOOKED_AT,
                oldest_at=row["oldest_at"],
                exhausted=min(row["exhausted"], LOOKED_AT),
            )
            for row in rows
        }

    async def types(self, project_id: ProjectId) -> Types:
        """The types of the newest jobs."""
        async with self._database.slot():
            rows: _Rows
            try:
                rows = await self._database.fetch(self._sql["types"], project_id, LOOKED_AT, TYPES)
            except (StatementRefused, DatabaseUnfit):
                rows = await self._types_apart(project_id)
        if not rows:
            return Types([], 0, truncated=False)
        return Types(
            [(row["type"], row["jobs"]) for row in rows],
            rows[0]["looked_at"],
            truncated=rows[0]["more"] or rows[0]["types"] > TYPES,
        )

    async def series(
        self,
        project_id: ProjectId,
        *,
        type: str | None,  # noqa: A002 - its name in the contract
        start: datetime,
        buckets: int,
        by: timedelta,
        end: datetime,
    ) -> list[dict[str, Cell]]:
        """The cells of each bucket, by status, beginning at `start`; jobs made at `end` or later are not counted."""
        arguments = (project_id, type, start, buckets, int(by.total_seconds()), CELL, CELLS, end)
        found = [dict.fromkeys(STATUSES, Cell()) for _ in range(buckets)]
        rows = await self._count(
            "series",
            "series_of_newest",
            arguments,
            bound=3,
            apart=lambda: self._series_apart(project_id, type, start, buckets, by, end),
        )
        for row in rows:
            found[row["bucket"]][row["status"]] = Cell(row["jobs"], row["capped"])
        return found

    async def failures(
        self,
        project_id: ProjectId,
        *,
        type: str | None,  # noqa: A002 - its name in the contract
        created_after: datetime | None,
        created_before: datetime | None,
    ) -> Failures:
        """The newest failed jobs, in groups."""
        chosen = (project_id, type, *bounds_of(created_after, created_before))
        rows = await self._count(
            "failures",
            "failures_of_newest",
            (*chosen, LOOKED_AT, GROUPS, SAMPLE),
            bound=4,
            second=(*chosen, FEW_FAILURES, GROUPS, SAMPLE, LOOKED_AT),
            apart=lambda: self._failures_apart(project_id, type, created_after, created_before),
        )
        if not rows:
            return Failures([], 0, truncated=False)
        groups = [
            FailureGroup(
                fingerprint=row["fingerprint"],
                type=row["type"] or "",
                error=row["error"],
                jobs=row["jobs"],
                retryable=row["retryable"],
                exhausted=row["exhausted"],
                queued=row["queued"],
                first_at=row["first_at"],
                last_at=row["last_at"],
                sample=[self._ids.shown(each) for each in row["sample"]],
            )
            for row in rows
            if row["fingerprint"] is not None
        ]
        return Failures(groups, rows[0]["sampled"], rows[0]["truncated"])

    async def retries(self, project_id: ProjectId) -> RetryStats:
        """How the project's retries go."""
        async with self._database.slot():
            (row,) = await self._database.fetch(self._sql["retries"], project_id, LOOKED_AT, WAITS)
        return RetryStats(
            queued=Cell(min(row["queued"], LOOKED_AT), row["queued"] > LOOKED_AT),
            oldest_requested_at=row["oldest_requested_at"],
            settled={
                state: Cell(min(row[state], LOOKED_AT), row["capped"])
                for state in ("applied", "rejected", "cancelled", "dead_lettered")
            },
            wait_ms=None if row["p50"] is None else (row["p50"], row["p95"]),
        )

    async def _count(
        self,
        name: str,
        second_name: str,
        arguments: Sequence[object],
        *,
        bound: int,
        second: Sequence[object] | None = None,
        nothing: int = 0,
        apart: "Callable[[], Awaitable[_Rows]]",
    ) -> "_Rows":
        """The rows of a statement, or of its second form where the first takes too long, or of `apart` for a bad row.

        `bound` is where `arguments` say how many rows to look at. With `nothing` there it looks at no row: what the
        database refuses even then is a type that it cannot hold. No job has that, so nothing is counted.
        """
        sql = self._sql[name]
        async with self._database.slot():
            try:
                try:
                    return await self._database.fetch_within(FIRST_S, sql, *arguments)
                except StatementTimeout:
                    return await self._database.fetch_within(SECOND_S, self._sql[second_name], *(second or arguments))
            except (StatementRefused, DatabaseUnfit):
                few = [*arguments]
                few[bound] = nothing
                try:
                    await self._database.fetch(sql, *few)
                except StatementRefused:
                    few[:2] = "", None  # no project has this name, so nothing is counted
                    return await self._database.fetch(sql, *few)
                return await apart()

    async def _stats_apart(self, project_id: ProjectId, kind: str | None) -> "_Rows":
        rows = await self._rows.newest(project_id, Wanted(), limit=LOOKED_AT + 1)
        counted: dict[str, list[JobRow]] = {status: [] for status in STATUSES}
        for row in rows:
            if isinstance(row, JobRow) and kind in (None, row.type):
                counted[_status_of(row)].append(row)
        refused = sum(isinstance(row, RefusedRow) for row in rows) if kind is None else 0
        return [
            {
                "status": status,
                "jobs": len(jobs) + (refused if status == OTHER else 0),
                "oldest_at": min((job.created_at for job in jobs if job.created_at is not None), default=None),
                "exhausted": sum(job.is_exhausted for job in jobs),
                "looked_at": len(rows),
            }
            for status, jobs in counted.items()
        ]

    async def _types_apart(self, project_id: ProjectId) -> "_Rows":
        rows = await self._rows.newest(project_id, Wanted(), limit=LOOKED_AT + 1)
        looked_at = rows[:LOOKED_AT]
        counted = Counter((row.type or "")[:LONGEST_TYPE] for row in looked_at if isinstance(row, JobRow))
        return [
            {
                "type": kind,
                "jobs": jobs,
                "looked_at": len(looked_at),
                "types": len(counted),
                "more": len(rows) > LOOKED_AT,
            }
            for kind, jobs in sorted(counted.items(), key=lambda each: (-each[1], each[0]))[:TYPES]
        ]

    async def _series_apart(  # noqa: PLR0917 - the statement's arguments
        self, project_id: ProjectId, kind: str | None, start: datetime, buckets: int, by: timedelta, end: datetime
    ) -> "_Rows":
        """A job that is refused is in no cell. Where there are more jobs than are read, every cell may have more."""
        rows = await self._rows.newest(
            project_id, Wanted(), created_after=start - _MICROSECOND, created_before=end, limit=LOOKED_AT + 1
        )
        counted = Counter(
            (_status_of(row), (row.created_at - start) // by)
            for row in rows
            if isinstance(row, JobRow) and row.created_at is not None and kind in (None, row.type)
        )
        capped = len(rows) > LOOKED_AT
        cells: Iterable[tuple[str, int]] = product(STATUSES, range(buckets)) if capped else counted
        return [
            {"status": status, "bucket": bucket, "jobs": counted[status, bucket], "capped": capped}
            for status, bucket in cells
        ]

    async def _failures_apart(
        self,
        project_id: ProjectId,
        kind: str | None,
        created_after: datetime | None,
        created_before: datetime | None,
    ) -> "_Rows":
        """Of the newest FEW_FAILURES. A job that is refused is in no group, but among the `sampled` ones."""
        rows = await self._rows.newest(
            project_id,
            Wanted(error=True, grouped=True),
            created_after=created_after,
            created_before=created_before,
            failed=True,
            limit=FEW_FAILURES + 1,
        )
        grouped: dict[tuple[str, str], list[JobRow]] = {}
        looked_at = rows[:FEW_FAILURES]
        for row in looked_at:
            if isinstance(row, JobRow) and row.is_readable and kind in (None, row.type):
                grouped.setdefault((row.type or "", row.error or ""), []).append(row)
        looked: dict[str, Any] = {"sampled": len(looked_at), "truncated": len(rows) > FEW_FAILURES}
        groups = sorted(grouped.items(), key=lambda each: (-len(each[1]), each[0]))[:GROUPS]
        return [looked | _group_of(*each) for each in groups] or [looked | {"fingerprint": None}]


def _status_of(row: JobRow) -> str:
    return row.status if row.status in STATUSES and row.status is not None else OTHER


def _group_of(key: tuple[str, str], jobs: Sequence[JobRow]) -> dict[str, Any]:
    """A row of the statement `failures`, of jobs from new to old."""
    queued = sum(job.is_queued for job in jobs)
    exhausted = sum(job.is_exhausted and not job.is_queued for job in jobs)
    times = [job.created_at for job in jobs if job.created_at is not None]
    return {
        "fingerprint": jobs[0].fingerprint,
        "type": key[0][:LONGEST_TYPE],
        "error": key[1],
        "jobs": len(jobs),
        "retryable": len(jobs) - exhausted - queued,
        "exhausted": exhausted,
        "queued": queued,
        "first_at": min(times),
        "last_at": max(times),
        "sample": [job.position.id for job in jobs[:SAMPLE]],  # as the database has it
    }
