"""Conditional reading (RFC 9110, section 13): entity tags, what they are compared with, and when to come back.

A job's tag is its version, the queued retry's id where there is one, and where the payload is with it, a hash of that:

    "7741"   "7741-0193c9a8-…"   "7741+3f9c01ab77d2e410"

Nothing else goes into its body, so two bodies are equal exactly when their tags are.
"""

import math
import re
from datetime import datetime
from typing import TYPE_CHECKING

from aiohttp import hdrs

from shared.batches import Batch
from shared.models import Job, JobStatus, Retry, Version

if TYPE_CHECKING:
    from multidict import MultiMapping

_TAG = re.compile(r'(W/)?"([^"\x00-\x1f\x7f]*)"')
_TAGS = re.compile(rf"[ \t,]*(?:{_TAG.pattern}[ \t]*(?:,[ \t,]*|\Z))*")
_ADDED = re.compile(r"(?:--gzip|-gzip|-br|-zstd|-deflate)\Z")
_VERSION = re.compile(r"(\d+)(?:-[0-9a-f-]{36})?(?:\+[0-9a-f]{16})?")

MAX_SCHEDULED_WAIT_S = 300
MAX_GUESSED_WAIT_S = 30


def field_of(headers: "MultiMapping[str]", name: str) -> str | None:
    """A list that may be spread over several lines, as the one line that it means (RFC 9110, 5.3); None without any."""
    if name not in headers:
        return None
    lines = headers.getall(name)
    return lines[0] if len(lines) == 1 else ", ".join(lines)


def condition_of(headers: "MultiMapping[str]") -> str | None:
    """What `If-None-Match` names; None where it is not there, or names nothing."""
    named = field_of(headers, hdrs.IF_NONE_MATCH)
    return named if named and named.strip(" \t,") else None


def _tags_in(text: str) -> list[str]:
    """The texts of a list's entity tags, as we gave them; none where there is anything else in it.

    Proxies that compress make a tag weak (nginx) or put a suffix behind it (Apache), and do not take it back where it
    comes in again. Our tags are strong and end in digits, so both were added on the way, and are dropped. That is more
    lenient than RFC 9110, 13.1.1, which has weak tags never match in `If-Match`.
    """
    return [_ADDED.sub("", tag) for _, tag in _TAG.findall(text)] if _TAGS.fullmatch(text) else []


def etag_of_job(job: Job) -> str:
    """The tag of the job as it is read: its version, the queued retry, and the payload's hash where it is with it."""
    pending = "" if job.pending_retry is None else f"-{job.pending_retry.id}"
    return f'"{job.version}{pending}{"" if job.payload is None else f"+{job.payload.hash}"}"'


def etag_of_retry(retry: Retry) -> str:
    """The tag of a retry: its state, and when it came to that; and when it was last redriven."""
    times = (at for at in (retry.redriven_at, retry.processed_at) if at is not None)
    return f'"{retry.state}{"".join(f"-{int(at.timestamp() * 1_000_000)}" for at in times)}"'


def etag_of_batch(batch: Batch) -> str:
    """The tag of a batch: how many of its requests have come to each end."""
    return f'"{batch.total}-{batch.applied}-{batch.rejected}-{batch.cancelled}-{batch.dead_lettered}"'


def matches(if_none_match: str | None, etag: str) -> bool:
    """Whether the client has this; what cannot be read matches nothing. See `_tags_in` for what is overlooked."""
    if if_none_match is None:
        return False
    if if_none_match == etag or if_none_match.strip() == "*":
        return True
    return etag[:-1] in if_none_match and etag[1:-1] in _tags_in(if_none_match)


def versions_of(if_match: str | None) -> frozenset[Version] | None:
    """The job versions that an `If-Match` names; None for no condition. See `_tags_in` for what is overlooked."""
    if if_match is None or if_match.strip() == "*":
        return None
    return frozenset(Version(found[1]) for tag in _tags_in(if_match) if (found := _VERSION.fullmatch(tag)))


def retry_after_of_job(job: Job, now: datetime) -> int | None:
    """In how many seconds to look again; None once there is nothing to wait for."""
    if job.done:
        return None
    if job.status is JobStatus.PENDING and job.scheduled_at is not None and job.scheduled_at > now:
        return min(MAX_SCHEDULED_WAIT_S, math.ceil((job.scheduled_at - now).total_seconds()))
    changed_at = job.created_at
    requested_at = None if job.pending_retry is None else job.pending_retry.requested_at
    for at in (job.scheduled_at, job.started_at, job.completed_at, requested_at):
        if at is not None and changed_at < at <= now:
            changed_at = at
    return _guess(changed_at, now)


def retry_after_of_request(request: Retry | Batch, now: datetime) -> int | None:
    """In how many seconds to look again; None once all of it is settled."""
    return None if request.done else _guess(request.requested_at, now)


def _guess(changed_at: datetime, now: datetime) -> int:
    """A quarter of the age: what has stood for long is likely to stand for longer."""
    return min(MAX_GUESSED_WAIT_S, max(1, math.ceil((now - changed_at).total_seconds() / 4)))
