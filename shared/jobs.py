"""Jobs: reads `control_plane.jobs`, one job by its key, or a page of a project's jobs.

1. Single reads go through a Coalescer: however many clients poll, the database gets a few queries, each for many keys.
2. A job is first read light: MAX_LISTED_ERROR characters of its error, and the hash and the size of its payload.
   Watches compare light jobs. All of a job (`whole`) is read just before it is sent, a few jobs at a time (`rest_of`).
3. A row that cannot be shown (a NULL where the contract has none, an error of the database for this row) fails alone: a
   read of it raises JobUnreadable, and a list has an UnreadableJob in its place.
4. In a database without an encoding (SQL_ASCII) a text may hold bytes that are no UTF-8, and is cut by bytes. Such a
   byte behind the first MAX_LISTED_ERROR of an error spoils no list and no watch, but the job's own read; and where the
   cut falls into a character, the job is unreadable, too.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import msgspec

from shared.allowance import Allowance
from shared.coalesce import Coalescer, Splitter
from shared.database import in_time
from shared.errors import DatabaseUnfit, JobNotFound, JobUnreadable, RedriveError, StatementRefused
from shared.failed import LOOKED_AT as FAILED_LOOKED_AT
from shared.failed import FailedFilter, FailedJobs
from shared.models import (
    FINAL_STATUSES,
    MAX_ERROR,
    MAX_LISTED_ERROR,
    Job,
    JobKey,
    JobStatus,
    Payload,
    PendingRetry,
    Position,
    ProjectId,
    RetryId,
    UnreadableJob,
    Version,
)
from shared.rows import JobRows, RefusedRow, Wanted, below, bounds_of, order_of
from shared.seen import Seen

if TYPE_CHECKING:
    from uuid import UUID

    from shared.database import Database, Row
    from shared.job_ids import JobIds


# Not JobStatus(…): the owner may have other words.
_STATUSES: Final = {str(status): status for status in JobStatus}

_HASH_DIGITS: Final = 16

OVERLAP_AFTER_S: Final = 0.02
"""A look-up of jobs takes a millisecond or two. After this time the next one starts beside it."""

IN_HAND_BYTES: Final = 16 * 2**20
"""How many bytes of payloads are in memory at a time, between the database and the answer, in some four copies."""

WHOLE_AT_ONCE: Final = 8
"""How many jobs one query reads whole: a job may have a megabyte, in three copies."""

_LIMIT: Final = 6
"""Which argument of `page` and `positions` says how many rows."""


class JobFilter(NamedTuple):
    """Which jobs of a project; None for all. The times are exclusive."""

    status: str | None = None
    type: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


class JobPage(NamedTuple):
    """A part of a list, newest first, and the position of each job; `more`: the list continues.

    `end` is the position of the last row that was chosen, where the list goes on: that row may be deleted since.
    `truncated`, of failed jobs only: there are more than were looked at.
    """

    jobs: Sequence[Job | UnreadableJob]
    positions: Sequence[Position]
    end: Position | None
    more: bool
    truncated: bool | None = None


class Jobs:
    """The jobs of all projects, in one database. `final_statuses` are the owner's statuses that are final."""

    def __init__(self, database: "Database", ids: "JobIds", *, final_statuses: frozenset[str] = FINAL_STATUSES) -> None:
        self._database = database
        self._ids = ids
        self._final = final_statuses
        self._sql = ids.statements("jobs")
        self._failed = FailedJobs(database, ids)
        self._rows = JobRows(database, ids)
        self._coalescer: Coalescer[JobKey, Job] = Coalescer(
            self._find, overlap_after_s=OVERLAP_AFTER_S, probe=self._probe, refusal=JobUnreadable
        )
        self._with_payload: Coalescer[JobKey, Job] = Coalescer(
            self._find_with_payload,
            max_batch=WHOLE_AT_ONCE,
            overlap_after_s=OVERLAP_AFTER_S,
            probe=self._probe_payload,
            refusal=JobUnreadable,
        )
        self._whole: Coalescer[JobKey, Job] = Coalescer(
            self._find_whole,
            max_batch=WHOLE_AT_ONCE,
            overlap_after_s=OVERLAP_AFTER_S,
            probe=self._probe,
            refusal=JobUnreadable,
        )
        self._whole_with_payload: Coalescer[JobKey, Job] = Coalescer(
            self._find_whole_with_payload,
            max_batch=1,
            overlap_after_s=OVERLAP_AFTER_S,
            probe=self._probe_payload,
            refusal=JobUnreadable,
        )
        self._splitter: Splitter[JobKey, Job] = Splitter(self._find_any, probe=self._probe, refusal=JobUnreadable)
        self._in_hand = Allowance(IN_HAND_BYTES)

    def _job_of(self, row: "Row | tuple[Any, ...]", most: int = MAX_LISTED_ERROR) -> Job:
        """A row, by position: names would cost a dictionary look-up each. Raises JobUnreadable.

        Of an error longer than `most` characters, one more than `most` was read.
        """
        (
            job_id, project_id, kind, status, attempts, max_attempts, last_error,
            scheduled_at, started_at, completed_at, created_at, version, pending_id, pending_at, redriven_at,
        ) = row  # fmt: skip
        if kind is None or status is None or created_at is None or attempts is None:
            raise JobUnreadable
        truncated = last_error is not None and len(last_error) > most
        return Job(
            id=self._ids.shown(job_id),
            project_id=ProjectId(project_id),
            type=kind,
            status=_STATUSES.get(status, status),
            attempts=attempts,
            max_attempts=max_attempts,
            last_error=last_error[:most] if truncated else last_error,
            last_error_truncated=truncated,
            scheduled_at=scheduled_at,
            started_at=started_at,
            completed_at=completed_at,
            created_at=created_at,
            version=Version(version),
            pending_retry=None if pending_id is None else PendingRetry(RetryId(pending_id), pending_at),
            redriven_at=redriven_at,
            final=status in self._final,
        )

    async def _probe(self) -> None:
        """Run the statement for no job: it fails here where no row is at fault."""
        await self._database.fetch(self._sql["find"], [], [], 1)

    async def _probe_payload(self) -> None:
        await self._database.fetch(self._sql["find_with_payload"], [], [], 1, True)  # noqa: FBT003 - SQL's

    def _arguments_of(self, keys: Sequence[JobKey]) -> tuple[list["UUID | str"], list[ProjectId]]:
        """The ids and projects of keys, as arguments of a statement."""
        return [self._ids.stored(key.id) for key in keys], [key.project_id for key in keys]

    async def _find(self, keys: Sequence[JobKey], most: int = MAX_LISTED_ERROR) -> dict[JobKey, Job | RedriveError]:
        ids, projects = self._arguments_of(keys)
        found: dict[JobKey, Job | RedriveError] = {}
        for row in await self._database.fetch(self._sql["find"], ids, projects, most + 1):
            key = JobKey(self._ids.shown(row[0]), row[1])
            try:
                found[key] = self._job_of(row, most)
            except JobUnreadable as error:
                found[key] = error
        return found

    async def _find_with_payload(
        self, keys: Sequence[JobKey], most: int = MAX_LISTED_ERROR, *, whole: bool = False
    ) -> dict[JobKey, Job | RedriveError]:
        ids, projects = self._arguments_of(keys)
        found: dict[JobKey, Job | RedriveError] = {}
        for row in await self._database.fetch(self._sql["find_with_payload"], ids, projects, most + 1, whole):
            *columns, hashed, payload = row
            key = JobKey(self._ids.shown(row[0]), row[1], with_payload=True)
            try:
                job = self._job_of(tuple(columns), most)
            except JobUnreadable as error:
                found[key] = error
                continue
            raw = None if payload is None else msgspec.Raw(payload.encode())
            found[key] = msgspec.structs.replace(
                job, payload=Payload(hashed[:_HASH_DIGITS], int(hashed[_HASH_DIGITS:]), raw)
            )
        return found

    async def _find_whole(self, keys: Sequence[JobKey]) -> dict[JobKey, Job | RedriveError]:
        return await self._find(keys, MAX_ERROR)

    async def _find_whole_with_payload(self, keys: Sequence[JobKey]) -> dict[JobKey, Job | RedriveError]:
        return await self._find_with_payload(keys, MAX_ERROR, whole=True)

    async def _find_any(self, keys: Sequence[JobKey]) -> dict[JobKey, Job | RedriveError]:
        """The jobs behind keys with and without payload, light, in one query for each kind."""
        plain = [key for key in keys if not key.with_payload]
        hashed = [key for key in keys if key.with_payload]
        found = await self._find(plain) if plain else {}
        return found | (await self._find_with_payload(hashed) if hashed else {})

    async def find_many(self, keys: Sequence[JobKey]) -> Mapping[JobKey, Job]:
        """The jobs behind up to some thousand distinct keys, light, in one query.

        A key that matches nothing, or a row that cannot be shown, is missing. Raises DatabaseUnavailable.
        """
        found = await self._splitter.load(keys)
        return {key: job for key, job in found.items() if isinstance(job, Job)}

    async def find_these(self, keys: Sequence[JobKey]) -> Mapping[JobKey, Job | UnreadableJob]:
        """The same for a single client, in a slot; with the rows that cannot be shown."""
        async with self._database.slot():
            return await self._find_listed(keys)

    async def _find_listed(self, keys: Sequence[JobKey]) -> dict[JobKey, Job | UnreadableJob]:
        found = await self._splitter.load(keys)
        return {key: job if isinstance(job, Job) else UnreadableJob(key.id) for key, job in found.items()}

    async def changed(self, seen: Mapping[JobKey, Seen[Job]]) -> Sequence[JobKey]:
        """Which of the jobs have changed since they were seen, are gone, or cannot be read.

        Marks at which of its rows a job was found as it was seen: most rows stay, and their texts are not read again.
        Raises DatabaseUnavailable.
        """
        return list(await Splitter(partial(self._compare, seen), probe=self._probe).load(list(seen)))

    async def _compare(
        self, seen: Mapping[JobKey, Seen[Job]], keys: Sequence[JobKey]
    ) -> Mapping[JobKey, bool | RedriveError]:
        """Which of these jobs have changed: in one query, which fails where one of them cannot be read."""
        jobs = [seen[key].value for key in keys]
        rows = await self._database.fetch(
            self._sql["changed"],
            *self._arguments_of(keys),
            [job.version for job in jobs],
            [None if job.pending_retry is None else job.pending_retry.id for job in jobs],
            [None if job.payload is None else job.payload.hash for job in jobs],
            [seen[key].mark for key in keys],
        )
        changed: dict[JobKey, bool | RedriveError] = {}
        for place, mark, is_changed in rows:
            key = keys[place - 1]
            if is_changed:
                changed[key] = True
            else:
                seen[key].mark = mark
        return changed

    async def get(self, key: JobKey) -> Job:
        """The job as of now, light. Raises JobNotFound, JobUnreadable, DatabaseUnavailable."""
        job = await (self._with_payload if key.with_payload else self._coalescer).get(key)
        if job is None:
            raise JobNotFound
        return job

    def rest_of(self, key: JobKey, job: Job) -> AbstractAsyncContextManager[Job] | None:
        """Read all of the job, to send it within the block; None where `job` is whole already.

        Waits, within `in_time`, while IN_HAND_BYTES of payloads are in memory. Raises as `get` does.
        """
        return None if job.whole else self._read_whole(key, 0 if job.payload is None else job.payload.bytes)

    @asynccontextmanager
    async def _read_whole(self, key: JobKey, payload_bytes: int) -> AsyncIterator[Job]:
        async with in_time(), self._in_hand.take(MAX_ERROR + payload_bytes):
            yield await self._get_whole(key)

    async def _get_whole(self, key: JobKey) -> Job:
        job = await (self._whole_with_payload if key.with_payload else self._whole).get(key)
        if job is None:
            raise JobNotFound
        return job

    async def page(self, project_id: ProjectId, wanted: JobFilter, *, after: Position | None, limit: int) -> JobPage:
        """Up to `limit` jobs of the project that follow `after`, newest first.

        Where the status or the type of some cannot be read, a list by these goes over the newest FAILED_LOOKED_AT jobs
        only, and shows those rows as well.

        Raises JobUnreadable where not even their ids can be read, and DatabaseUnavailable.
        """
        since, until = bounds_of(wanted.created_after, wanted.created_before)
        at, above, timeless = below(after, self._ids)
        # One more than the limit, to know whether there is a next page.
        arguments: list[object] = [project_id, wanted.type, since, at, above, until, limit + 1]
        async with self._database.slot():
            try:
                if wanted.status is None:
                    rows = await self._database.fetch(self._sql["page"], *arguments, timeless)
                else:
                    rows = await self._database.fetch(self._sql["page_of_status"], *arguments, wanted.status, timeless)
            except (StatementRefused, DatabaseUnfit):
                return await self._list_apart(project_id, wanted, after, [*arguments, timeless, wanted.status])
        shown = [self._listed_of(row) for row in rows[:limit]]
        positions = [position for _, position in shown]
        return JobPage(
            [job for job, _ in shown], positions, end=positions[-1] if positions else None, more=len(rows) > limit
        )

    async def page_of_failed(
        self,
        project_id: ProjectId,
        wanted: FailedFilter,
        *,
        retryable: bool | None,
        after: Position | None,
        limit: int,
    ) -> JobPage:
        """As `page`, of the failed jobs that match: of the newest FAILED_LOOKED_AT by type and time, and of no more."""
        async with self._database.slot():
            chosen = await self._failed.match(
                project_id, wanted, retryable=retryable, looked_at=FAILED_LOOKED_AT, after=after, limit=limit + 1
            )
            truncated = await self._failed.has_more(project_id, wanted)
            shown = {JobKey(job.id, project_id): job.position for job in chosen[:limit]}
            found = await self._find_listed(list(shown)) if shown else {}
        return JobPage(
            [found[key] for key in shown if key in found],
            [position for key, position in shown.items() if key in found],
            end=chosen[:limit][-1].position if chosen else None,
            more=len(chosen) > limit,
            truncated=truncated,
        )

    def _listed_of(self, row: "Row") -> tuple[Job | UnreadableJob, Position]:
        *columns, at = row
        position = Position(at, row[0])
        try:
            return self._job_of(tuple(columns)), position
        except JobUnreadable:
            return UnreadableJob(self._ids.shown(row[0])), position

    async def _positions(self, arguments: list[object]) -> "Sequence[Row]":
        return await self._database.fetch(self._sql["positions"], *arguments)

    async def _list_apart(
        self, project_id: ProjectId, wanted: JobFilter, after: Position | None, arguments: list[object]
    ) -> JobPage:
        """The same page, of which a row could not be read: the ids first, then the jobs behind them."""
        await self._probe()
        try:
            await self._positions([*arguments[:_LIMIT], 0, *arguments[_LIMIT + 1 :]])
        except StatementRefused:
            return JobPage([], [], end=None, more=False)  # a text that this database cannot hold: no job has it
        most = cast("int", arguments[_LIMIT])
        try:
            rows = await self._positions(arguments)
            listed = [Position(row["place"], row["id"]) for row in rows]
        except (StatementRefused, DatabaseUnfit) as error:
            if wanted.status is None and wanted.type is None:
                raise JobUnreadable from error
            listed = await self._positions_apart(project_id, wanted, after, most)
        more = len(listed) == most
        positions = {JobKey(self._ids.shown(each.id), project_id): each for each in (listed[:-1] if more else listed)}
        found = await self._find_listed(list(positions)) if positions else {}
        return JobPage(
            [found[key] for key in positions if key in found],
            [position for key, position in positions.items() if key in found],
            end=[*positions.values()][-1] if positions else None,
            more=more,
        )

    async def _positions_apart(
        self, project_id: ProjectId, wanted: JobFilter, after: Position | None, most: int
    ) -> list[Position]:
        """Of the newest jobs, those of the status and type, and those of which the database lets neither be read."""
        rows = await self._rows.newest(
            project_id,
            Wanted(),
            created_after=wanted.created_after,
            created_before=wanted.created_before,
            limit=FAILED_LOOKED_AT,
        )
        return [
            row.position
            for row in rows
            if (after is None or order_of(row.position) < order_of(after))
            and (
                isinstance(row, RefusedRow) or (wanted.status in (None, row.status) and wanted.type in (None, row.type))
            )
        ][:most]
