"""A project's jobs and retries in numbers: `/api/jobs/stats`, `types`, `series`, `/api/failures`, `/api/retries/stats`.

Each is counted once in COUNTED_EVERY_S at most, for a project and its filters, as far as api/counts.py keeps what was
counted; `as_of` says when.
"""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from api.answers import Answer
from api.counts import Counts
from api.pages import text_of, time_of
from api.problems import InvalidParameter
from shared.models import JobId, JobStatus
from shared.overview import STATUSES, Cell, FailureGroup, StatusStats

if TYPE_CHECKING:
    from collections.abc import Mapping

    from api.door import Call
    from shared.overview import Overview

COUNTED_EVERY_S: Final = 5.0
RETRIES_COUNTED_EVERY_S: Final = 1.0
"""Shorter: operators watch retries while they run, and counting them reads one index."""

MAX_BUCKETS: Final = 96
DEFAULT_SPAN: Final = timedelta(hours=24)
BUCKETS: Final = {
    "1m": timedelta(minutes=1),
    "5m": timedelta(minutes=5),
    "15m": timedelta(minutes=15),
    "1h": timedelta(hours=1),
    "6h": timedelta(hours=6),
    "1d": timedelta(days=1),
}
DEFAULT_BUCKET: Final = "15m"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class _Stats(msgspec.Struct, frozen=True):
    count: int
    capped: bool
    oldest_at: datetime | None


class _FailedStats(_Stats, frozen=True):
    retryable: int
    exhausted: int


class _StatsBody(msgspec.Struct, frozen=True):
    data: dict[str, _Stats]
    as_of: datetime


class _Type(msgspec.Struct, frozen=True):
    type: str
    jobs: int


class _TypesBody(msgspec.Struct, frozen=True):
    data: list[_Type]
    sampled: int
    truncated: bool
    as_of: datetime


class _Count(msgspec.Struct, frozen=True):
    count: int
    capped: bool


class _Bucket(msgspec.Struct, frozen=True):
    at: datetime
    pending: _Count
    running: _Count
    failed: _Count
    completed: _Count
    other: _Count


class _SeriesBody(msgspec.Struct, frozen=True):
    data: list[_Bucket]
    as_of: datetime


class _Group(msgspec.Struct, frozen=True):
    fingerprint: str
    type: str
    error: str
    jobs: int
    retryable: int
    exhausted: int
    queued: int
    first_at: datetime | None
    last_at: datetime | None
    sample: list[JobId]


class _FailuresBody(msgspec.Struct, frozen=True):
    data: list[_Group]
    sampled: int
    truncated: bool
    as_of: datetime


class _Waits(msgspec.Struct, frozen=True):
    p50: int
    p95: int


class _RetryStats(msgspec.Struct, frozen=True):
    queued: _Count
    oldest_requested_at: datetime | None
    last_hour: dict[str, _Count]
    wait_ms: _Waits | None


class _RetryStatsBody(msgspec.Struct, frozen=True):
    data: _RetryStats
    as_of: datetime


_encoder = msgspec.json.Encoder()


class OverviewResource:
    """The counts of a project. Jobs are counted by `overview`, retries by `ledger_overview`."""

    def __init__(self, overview: "Overview", ledger_overview: "Overview") -> None:
        self._overview = overview
        self._ledger_overview = ledger_overview
        self._counts = Counts(COUNTED_EVERY_S)
        self._retry_counts = Counts(RETRIES_COUNTED_EVERY_S)

    async def get_stats(self, call: "Call") -> Answer:
        """How many jobs of the project have which status. Raises InvalidParameter."""
        kind = text_of(call.parameters, "type")

        async def count(as_of: datetime) -> bytes:
            stats = await self._overview.stats(call.project_id, type=kind)
            return _encoder.encode(_StatsBody({status: _stats_of(status, stats[status]) for status in STATUSES}, as_of))

        return Answer(await self._counts.get(("stats", call.project_id, kind), count))

    async def get_types(self, call: "Call") -> Answer:
        """The types of the project's newest jobs."""

        async def count(as_of: datetime) -> bytes:
            types = await self._overview.types(call.project_id)
            named = [_Type(kind, jobs) for kind, jobs in types.jobs]
            return _encoder.encode(_TypesBody(named, types.sampled, types.truncated, as_of))

        return Answer(await self._counts.get(("types", call.project_id), count))

    async def get_series(self, call: "Call") -> Answer:
        """How many jobs were created in each bucket of time, by status. Raises InvalidParameter."""
        kind = text_of(call.parameters, "type")
        span = _span_of(call.parameters)

        async def count(as_of: datetime) -> bytes:
            cells = await self._overview.series(
                call.project_id, type=kind, start=span.start, buckets=span.buckets, by=span.by, end=span.end
            )
            shown = [
                _Bucket(span.start + n * span.by, *(_count_of(cell[status]) for status in STATUSES))
                for n, cell in enumerate(cells)
            ]
            return _encoder.encode(_SeriesBody(shown, as_of))

        return Answer(await self._counts.get(("series", call.project_id, kind, span), count))

    async def get_failures(self, call: "Call") -> Answer:
        """The newest failed jobs, grouped by error. Raises InvalidParameter."""
        kind = text_of(call.parameters, "type")
        after, before = time_of(call.parameters, "created_after"), time_of(call.parameters, "created_before")

        async def count(as_of: datetime) -> bytes:
            found = await self._overview.failures(
                call.project_id, type=kind, created_after=after, created_before=before
            )
            groups = [_group_of(group) for group in found.groups]
            return _encoder.encode(_FailuresBody(groups, found.sampled, found.truncated, as_of))

        return Answer(await self._counts.get(("failures", call.project_id, kind, after, before), count))

    async def get_retry_stats(self, call: "Call") -> Answer:
        """The project's retries: how many are queued, how they ended, how long they waited."""

        async def count(as_of: datetime) -> bytes:
            stats = await self._ledger_overview.retries(call.project_id)
            body = _RetryStats(
                _count_of(stats.queued),
                stats.oldest_requested_at,
                {state: _count_of(cell) for state, cell in stats.settled.items()},
                None if stats.wait_ms is None else _Waits(*stats.wait_ms),
            )
            return _encoder.encode(_RetryStatsBody(body, as_of))

        return Answer(await self._retry_counts.get(call.project_id, count))


def _stats_of(status: str, stats: StatusStats) -> _Stats:
    if status != JobStatus.FAILED:
        return _Stats(stats.jobs, stats.capped, stats.oldest_at)
    return _FailedStats(
        stats.jobs, stats.capped, stats.oldest_at, retryable=stats.jobs - stats.exhausted, exhausted=stats.exhausted
    )


def _count_of(cell: Cell) -> _Count:
    return _Count(cell.jobs, cell.capped)


def _group_of(group: FailureGroup) -> _Group:
    return _Group(
        group.fingerprint,
        group.type,
        group.error,
        group.jobs,
        group.retryable,
        group.exhausted,
        group.queued,
        group.first_at,
        group.last_at,
        list(group.sample),
    )


class _Span(NamedTuple):
    """The buckets of a series: the start of the first, their number, their length, and the end of the last."""

    start: datetime
    buckets: int
    by: timedelta
    end: datetime


def _span_of(parameters: "Mapping[str, str]") -> _Span:
    """What `from`, `to` and `by` ask for. Raises InvalidParameter.

    Without `to` the last bucket is the current one. Without `from` the first is the one in which the day before `to`
    begins, or, where these are too many, the one after it.
    """
    by = BUCKETS.get(parameters.get("by", DEFAULT_BUCKET))
    if by is None:
        raise InvalidParameter("by")
    given_from, given_to = time_of(parameters, "from"), time_of(parameters, "to")
    wrong = next((name for name in ("to", "from") if name in parameters), "by")
    to = given_to or datetime.now(UTC)
    if given_from is not None and given_from >= to:
        raise InvalidParameter(wrong)
    try:
        end = _EPOCH - (_EPOCH - to) // by * by
        start = _EPOCH + ((given_from or to - DEFAULT_SPAN) - _EPOCH) // by * by
        if given_from is None and (end - start) // by > MAX_BUCKETS:
            start = end - DEFAULT_SPAN
    except OverflowError as error:
        raise InvalidParameter(wrong) from error
    buckets = (end - start) // by
    if buckets > MAX_BUCKETS:
        raise InvalidParameter(wrong)
    return _Span(start, buckets, by, given_to or end)
