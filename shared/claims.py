"""Paths to a value in a token's claims: the name of a claim, or a JSON pointer (RFC 6901) into one.

`project_id` and `https://example.com/project_id` are names: dots, colons and slashes belong to them. A text that begins
with a slash is a pointer: `/app_metadata/project_id` leads into the object that the claim `app_metadata` is, and
`/groups/0` to the first element of the array `groups`.
"""

import re
from collections.abc import Mapping
from typing import Final

ClaimPath = tuple[str, ...]
"""The names, or indexes of arrays, that lead to a value; one or more."""

_POINTER: Final = re.compile(r"(?:/(?:[^~/]|~[01])*)+", re.DOTALL)
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,8}", re.ASCII)


def claim_path(text: str) -> ClaimPath:
    """The path that a setting names. Raises ValueError for a malformed pointer."""
    if not text.startswith("/"):
        return (text,)
    if not _POINTER.fullmatch(text):
        raise ValueError(
            "must be the name of a claim, or a JSON pointer such as /app_metadata/project_id, in which ~0 stands for ~ "
            "and ~1 for /"
        )
    return tuple(step.replace("~1", "/").replace("~0", "~") for step in text[1:].split("/"))


def value_at(path: ClaimPath, claims: Mapping[str, object]) -> object:
    """The value at the path. Raises KeyError or IndexError where there is none."""
    found: object = claims
    for step in path:
        match found:
            case dict():
                found = found[step]
            case list() if _INDEX.fullmatch(step):
                found = found[int(step)]
            case _:
                raise KeyError
    return found


def claims_with(path: ClaimPath, value: object) -> dict[str, object]:
    """The smallest claims with `value` at the path; an index becomes a name, which is read alike."""
    first, *rest = path
    for step in reversed(rest):
        value = {step: value}
    return {first: value}
