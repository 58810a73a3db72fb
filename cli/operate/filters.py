"""Reads what operators choose jobs by: durations, times, ids, and the filter of a bulk retry.

90s 5m 24h 90d                     a duration
2026-11-23T04:00:00Z   3h          a time: as RFC 3339 has it, or so long ago
type=…,created_after=3h,error_contains=…,fingerprint=…,retried_fewer_than=3/24h
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import typer

from cli.operate.options import require_text
from shared.bounds import MAX_FILTER, MAX_TIMES, MAX_WITHIN_S

if TYPE_CHECKING:
    from uuid import UUID

    from redrive_client import FailedFilter, RetriedFewerThan

FIELDS: Final = ("type", "created_after", "created_before", "error_contains", "fingerprint", "retried_fewer_than")
_DURATION: Final = re.compile(r"(\d{1,6})([smhdw]?)", re.ASCII)
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{16}")
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_UUID: Final = "a UUID such as 0193c9a8-4a5b-4c6d-8e7f-000000000001"
_FIELD: Final = re.compile(rf",(?=(?:{'|'.join(FIELDS)})=)")


def duration_of(text: str) -> timedelta:
    """A duration; seconds where no unit is given. Raises typer.BadParameter."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a duration such as 90s, 5m, 24h or 90d")
    return timedelta(seconds=int(match[1]) * _UNITS[match[2]])


def seconds_of(text: str, option: str, *, at_most: int) -> int:
    """A duration in whole seconds. Raises typer.BadParameter, which names the option, also where it is too long."""
    seconds = int(duration_of(text).total_seconds())
    if seconds > at_most:
        raise typer.BadParameter(f"{option} takes at most {at_most} seconds: {text!r} is {seconds}")
    return seconds


def time_of(text: str | None) -> datetime | None:
    """A time. Raises typer.BadParameter."""
    if text is None:
        return None
    if _DURATION.fullmatch(text):
        try:
            return datetime.now(UTC) - duration_of(text)
        except OverflowError:
            raise typer.BadParameter(f"{text!r} ago was before the year 1") from None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise typer.BadParameter(f"{text!r} is not a time such as 2026-11-23T04:00:00Z, or 3h for three hours ago")
    return at


def id_of(text: str) -> "UUID":
    """The id of a retry or a batch. Raises typer.BadParameter."""
    return _uuid_of(text, _UUID)


def job_id_of(text: str) -> str:
    """The id of a job: a UUID, or, where the API has REDRIVE_JOB_ID=bigint, a number. Raises typer.BadParameter."""
    is_number = text.isascii() and text.isdigit()
    return text if is_number else str(_uuid_of(text, f"{_UUID}, or a number where the API has REDRIVE_JOB_ID=bigint"))


def _uuid_of(text: str, form: str) -> "UUID":
    from uuid import UUID  # noqa: PLC0415 - not for `redrive --help`

    try:
        return UUID(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not an id: {form}") from None


def failed_filter_of(texts: Sequence[str]) -> "FailedFilter":
    """The filter that `--filter` names, given once or several times. Raises typer.BadParameter.

    A comma belongs to the value before it unless a field's name follows: errors have commas in them.
    """
    from redrive_client import FailedFilter  # noqa: PLC0415 - likewise

    found: dict[str, str] = {}
    for part in (part for text in texts for part in _FIELD.split(text)):
        name, equals, value = part.partition("=")
        if name not in FIELDS:
            raise typer.BadParameter(f"{name!r} is not something to choose by; there are {', '.join(FIELDS)}")
        if not equals or not value or name in found:
            raise typer.BadParameter(f"{part!r}: give each of {', '.join(FIELDS)} at most once, as name=value")
        if name in ("type", "error_contains"):
            require_text(value, MAX_FILTER, name=name)
        found[name] = value
    return FailedFilter(
        type=found.get("type"),
        created_after=time_of(found.get("created_after")),
        created_before=time_of(found.get("created_before")),
        error_contains=found.get("error_contains"),
        fingerprint=fingerprint_of(found.get("fingerprint")),
        retried_fewer_than=retried_fewer_than_of(found.get("retried_fewer_than")),
    )


def fingerprint_of(text: str | None) -> str | None:
    """The fingerprint of a group of failures. Raises typer.BadParameter."""
    if text is not None and not _FINGERPRINT.fullmatch(text):
        raise typer.BadParameter(
            f"{text!r} is not a fingerprint: 16 of 0 to 9 and a to f, as `redrive failures` has them"
        )
    return text


def retried_fewer_than_of(text: str | None) -> "RetriedFewerThan | None":
    """TIMES/DURATION. Raises typer.BadParameter."""
    from redrive_client import RetriedFewerThan  # noqa: PLC0415 - likewise

    if text is None:
        return None
    times, slash, duration = text.partition("/")
    if not (slash and times.isascii() and times.isdigit() and len(times) <= 3):
        raise typer.BadParameter(f"{text!r} is not TIMES/DURATION such as 3/24h")
    within_s = seconds_of(duration, "retried_fewer_than", at_most=MAX_WITHIN_S)
    if not (1 <= int(times) <= MAX_TIMES and within_s):
        raise typer.BadParameter(f"{text!r}: TIMES is 1 to {MAX_TIMES}, and DURATION one second or more")
    return RetriedFewerThan(int(times), within_s)
