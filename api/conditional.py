"""Conditional requests (RFC 9110, section 13): entity tags in headers, what they match, and when to come back.

The tags themselves are made by the views (api/job_view.py, api/retry_view.py, api/batch_view.py).
"""

import math
import re
from datetime import datetime
from typing import TYPE_CHECKING

from aiohttp import hdrs

if TYPE_CHECKING:
    from multidict import MultiMapping

_TAG = re.compile(r'(W/)?"([^"\x00-\x1f\x7f]*)"')
_TAGS = re.compile(rf"[ \t,]*(?:{_TAG.pattern}[ \t]*(?:,[ \t,]*|\Z))*")
_ADDED = re.compile(r"(?:--gzip|-gzip|-br|-zstd|-deflate)\Z")

MAX_GUESSED_WAIT_S = 30


def field_of(headers: "MultiMapping[str]", name: str) -> str | None:
    """A list field; its lines, where it has several, are joined into one (RFC 9110, 5.3). None where it is missing."""
    if name not in headers:
        return None
    lines = headers.getall(name)
    return lines[0] if len(lines) == 1 else ", ".join(lines)


def condition_of(headers: "MultiMapping[str]") -> str | None:
    """The `If-None-Match` field; None where it is missing, or is an empty list."""
    named = field_of(headers, hdrs.IF_NONE_MATCH)
    return named if named and named.strip(" \t,") else None


def tags_in(text: str) -> list[str]:
    """The texts of a list's entity tags, as the views make them; none where the list holds anything else.

    Proxies that compress make a tag weak (nginx) or add a suffix (Apache), and do not undo that in requests. Our tags
    are strong and end in a hexadecimal digit, so a proxy added both, and both are dropped. That is more lenient than
    RFC 9110, 13.1.1, where a weak tag in `If-Match` never matches.
    """
    return [_ADDED.sub("", tag) for _, tag in _TAG.findall(text)] if _TAGS.fullmatch(text) else []


def matches(if_none_match: str | None, etag: str) -> bool:
    """Whether the client already has what `etag` names. A list that cannot be read matches nothing; see `tags_in`."""
    if if_none_match is None:
        return False
    if if_none_match == etag or if_none_match.strip() == "*":
        return True
    return etag[:-1] in if_none_match and etag[1:-1] in tags_in(if_none_match)


def guessed_wait_s(changed_at: datetime, now: datetime) -> int:
    """When to look again, in 1 to 30 s: a quarter of the age, because what has not changed for long changes late."""
    return min(MAX_GUESSED_WAIT_S, max(1, math.ceil((now - changed_at).total_seconds() / 4)))
