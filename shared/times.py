"""Times as PostgreSQL sends and takes them: microseconds since 2000. It has times that no datetime of Python is."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)  # PostgreSQL's
_MICROSECOND: Final = timedelta(microseconds=1)
_FIRST: Final = datetime.min.replace(tzinfo=UTC)
_LAST: Final = datetime.max.replace(tzinfo=UTC)


def _time_of(wire: tuple[int]) -> datetime:
    """A timestamptz; `infinity`, and what lies beyond the years 1 to 9999, becomes the nearest time that Python has.

    asyncpg raises for such a time, or drops its time zone: one odd row would fail a query for many others.
    """
    try:
        return _EPOCH + timedelta(0, 0, wire[0])  # by name, it would take half as long again
    except OverflowError:
        return _FIRST if wire[0] < 0 else _LAST


def in_utc(time: datetime) -> datetime:
    """The same time in UTC; one that is not in the years 1 to 9999 there becomes the nearest time that Python has.

    At the ends of these years there are such times: 0001-01-01T00:00:00+01:00.
    """
    try:
        return time.astimezone(UTC)
    except OverflowError:
        return _FIRST if time < _EPOCH else _LAST


def wire_of(time: datetime) -> int:
    """The time as PostgreSQL sends and takes it: microseconds since 2000."""
    return (time - _EPOCH) // _MICROSECOND


def _encoded(time: datetime | int) -> tuple[int]:
    """A timestamptz: a datetime, or microseconds since 2000, because no datetime holds infinity."""
    return (time if isinstance(time, int) else wire_of(time),)


async def take_any_time(connection: Any) -> None:  # noqa: ANN401 - asyncpg types its callbacks' argument so
    """Have a connection send and take every timestamptz as microseconds."""
    await connection.set_type_codec(
        "timestamptz", schema="pg_catalog", format="tuple", encoder=_encoded, decoder=_time_of
    )
