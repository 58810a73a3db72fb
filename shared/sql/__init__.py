"""Every statement of ours, as SQL: named blocks in the files beside this one.

A block begins with `-- name: word` and ends where the next begins. It has the name of the method that runs it, or one
that begins with the method's, where the method has several. (tests/unit/test_sql_names.py)

A block that begins with `-- fragment: word` is no statement: it replaces `{word}` in the statements of its file.

The text is for jobs whose ids are bigint: it calls `redrive.job_number(…)` and `redrive.job_uuid(…)` where an id of the
jobs table meets one of ours. For ids that are UUIDs, these calls are left out, and their arguments stay.
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
_CONVERTED = re.compile(r"redrive\.job_(?:number|uuid)\(([\w.$:]+)\)")
_COMMENTS = re.compile(r"\A(?:--[^\n]*\n)+")


def blocks(text: str) -> Mapping[str, str]:
    """The statements of `text` by name, without their semicolons; ValueError for a name that stands twice."""
    found: dict[str, str] = {}
    fragments: dict[str, str] = {}
    for kind, name, body in _BLOCK.findall(text):
        if name in found or name in fragments:
            raise ValueError(f"block {name!r} stands twice")
        if kind == "fragment":
            fragments[f"{{{name}}}"] = _COMMENTS.sub("", body).strip()
        else:
            found[name] = body.strip().rstrip(";")
    for fragment, sql in fragments.items():
        found = {name: statement.replace(fragment, sql) for name, statement in found.items()}
    return MappingProxyType(found)


@cache
def statements(file: str, package: str = __name__, *, job_id: JobIdType = "uuid") -> Mapping[str, str]:
    """The blocks of `<file>.sql` in `package`, by name, for jobs whose ids are of type `job_id`."""
    found = blocks((resources.files(package) / f"{file}.sql").read_text("utf-8"))
    if job_id == "bigint":
        return found
    return MappingProxyType({name: _CONVERTED.sub(r"\1", sql) for name, sql in found.items()})
