"""Every statement of ours, as SQL: named blocks in the files beside this one.

A block begins with `-- name: word` and ends where the next begins. It has the name of the method that runs it, or one
that begins with the method's, where the method has several. (tests/unit/test_sql_names.py)
"""

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType

_BLOCK = re.compile(r"^-- name: (\w+)\n(.*?)(?=^-- name: |\Z)", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> Mapping[str, str]:
    """The named blocks of `text`, without their semicolons; ValueError for a name that stands twice."""
    found: dict[str, str] = {}
    for name, body in _BLOCK.findall(text):
        if name in found:
            raise ValueError(f"block {name!r} stands twice")
        found[name] = body.strip().rstrip(";")
    return MappingProxyType(found)


@cache
def statements(file: str, package: str = __name__) -> Mapping[str, str]:
    """The blocks of `<file>.sql` in `package`, by name."""
    return blocks((resources.files(package) / f"{file}.sql").read_text("utf-8"))
