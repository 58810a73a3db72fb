"""Every statement of ours, as SQL: named blocks in the files beside this one.

A block begins with `-- name: word` and ends where the next begins. It has the name of the method that runs it, or one
that begins with the method's, where the method has several. (tests/unit/test_statements.py)

A block that begins with `-- fragment: word` is no statement: it replaces `{word}` in the statements of its file. One of
fragments.sql does so in every file. `{word name=value}` also replaces `{name}` in the fragment.

The text is for jobs whose ids are bigint: it calls `redrive.job_number(…)` and `redrive.job_uuid(…)` where an id of the
jobs table meets one of ours. For ids that are UUIDs, these calls are left out, and their arguments stay; and so are the
conditions before `-- only where ids are bigint`.
"""

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Literal

JobIdType = Literal["uuid", "bigint"]
"""The type of the column `id` of the jobs."""

_BLOCK = re.compile(r"^-- (name|fragment): (\w+)\n(.*?)(?=^-- name: |^-- fragment: |\Z)", re.MULTILINE | re.DOTALL)
_USE = re.compile(r"\{(\w+)((?: \w+=[^\s{}]+)*)\}")
_CONVERTED = re.compile(r"redrive\.job_(?:number|uuid)\(([\w.$:]+)\)")
_NUMBERS_ALONE = re.compile(r"AND [\w.]+ > 0 -- only where ids are bigint\n\s*")
_COMMENTS = re.compile(r"\A(?:--[^\n]*\n)+")


def blocks(text: str) -> Mapping[str, str]:
    """The statements of `text` by name, without their semicolons, with their fragments filled in.

    ValueError for a name that stands twice, KeyError for a fragment that is not there.
    """
    found, fragments = _parsed(text)
    known = {**_common_fragments(), **fragments}
    return MappingProxyType({name: _filled(statement, known) for name, statement in found.items()})


def _parsed(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """The statements and the fragments of a file, by name."""
    found: dict[str, str] = {}
    fragments: dict[str, str] = {}
    for kind, name, body in _BLOCK.findall(text):
        if name in found or name in fragments:
            raise ValueError(f"block {name!r} stands twice")
        if kind == "fragment":
            fragments[name] = _COMMENTS.sub("", body).strip()
        else:
            found[name] = body.strip().rstrip(";")
    return found, fragments


@cache
def _common_fragments() -> Mapping[str, str]:
    return _parsed((resources.files(__name__) / "fragments.sql").read_text("utf-8"))[1]


def _filled(sql: str, fragments: Mapping[str, str]) -> str:
    def fill(use: re.Match[str]) -> str:
        fragment = fragments[use[1]]
        for argument in use[2].split():
            name, value = argument.split("=", 1)
            fragment = fragment.replace(f"{{{name}}}", value)
        return _filled(fragment, fragments)

    return _USE.sub(fill, sql)


@cache
def statements(file: str, package: str = __name__, *, job_id: JobIdType = "uuid") -> Mapping[str, str]:
    """The blocks of `<file>.sql` in `package`, by name, for jobs whose ids are of type `job_id`."""
    found = blocks((resources.files(package) / f"{file}.sql").read_text("utf-8"))
    if job_id == "bigint":
        return found
    return MappingProxyType({name: _CONVERTED.sub(r"\1", _NUMBERS_ALONE.sub("", sql)) for name, sql in found.items()})
