"""Adapters: SQL that makes another system's jobs table readable and retryable as `control_plane.jobs`.

An adapter is a view of that table, and a trigger that puts a failed job back as that system itself does. It is printed
for the table's owner to read and run; no program of ours runs it. The files beside this one are templates: `frame.sql`
is what all of them share, `{schema}` the schema of that system's tables, `{project}` an expression for a job's project.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Final

from shared.errors import RedriveError

_MAX_NAME_BYTES: Final = 63
_PLACEHOLDER: Final = re.compile(r"\{(schema|project|adapter|name|system|tested|versions|settings|functions)\}")
_FUNCTION: Final = re.compile(r"^CREATE OR REPLACE FUNCTION (control_plane\.\w+\([^)]*\))", re.MULTILINE)
_QUOTED: Final = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"")
_DOLLAR_TAG: Final = "$redrive$"
_PLAIN: Final = frozenset({"graphile_worker", "pgboss", "public"})
"""Schemas that SQL takes without quotes; every other name is quoted."""


class AdapterRefused(RedriveError):
    """An adapter that there is not, or a schema or project that no SQL can be made of; `str()` says why."""

    code = "adapter-refused"


@dataclass(frozen=True, slots=True)
class Adapter:
    """One system's adapter."""

    name: str
    system: str
    tested: str
    """The versions that the tests have run with."""
    setting: str
    """The setting that the programs need for its ids; empty for UUIDs of version 4."""
    schema: str
    project: str
    """The project where the owner names none: a column of the table `j`, or a constant."""
    versions: tuple[int, int] | None = None
    """The first and the last version of its tables that was tested, where they have one and the adapter reads it."""

    def sql(self, *, schema: str | None = None, project: str | None = None) -> str:
        """The SQL to print. Raises AdapterRefused."""
        values = {
            "schema": quoted(self.schema if schema is None else schema),
            "project": checked_expression(self.project if project is None else project),
            "name": self.name,
            "system": self.system,
            "versions": "" if self.versions is None else "; schema version {} to {}".format(*self.versions),
            "tested": self.tested,
            "settings": self.setting or "no setting for its ids",
        }
        template = _template(self.name)
        values["functions"] = ", ".join(_FUNCTION.findall(template))
        values["adapter"] = _filled(template, values).strip()
        return _filled(_template("frame"), values)


ADAPTERS: Final[Mapping[str, Adapter]] = MappingProxyType(
    {
        adapter.name: adapter
        for adapter in (
            Adapter(
                "chancy",
                "Chancy",
                "0.26.0",
                "REDRIVE_JOB_ID_VERSIONS=any",
                "public",
                "j.queue",
                versions=(8, 8),
            ),
            Adapter("django-tasks-db", "django-tasks-db", "0.13.0", "", "public", "j.queue_name", versions=(21, 21)),
            Adapter(
                "graphile-worker",
                "Graphile Worker",
                "0.17.3",
                "REDRIVE_JOB_ID=bigint",
                "graphile_worker",
                "'default'",
                versions=(19, 19),
            ),
            Adapter("oban", "Oban", "0.7.0, for Python", "REDRIVE_JOB_ID=bigint", "public", "j.queue"),
            Adapter("pg-boss", "pg-boss", "10.4.2, 12.38.0", "", "pgboss", "j.name", versions=(24, 46)),
            Adapter("pgqueuer", "PgQueuer", "1.6.0", "REDRIVE_JOB_ID=bigint", "public", "'default'"),
            Adapter(
                "procrastinate",
                "Procrastinate",
                "3.10.0",
                "REDRIVE_JOB_ID=bigint",
                "public",
                "j.queue_name",
                versions=(2, 2),
            ),
            Adapter(
                "river",
                "River",
                "its table, made by hand",
                "REDRIVE_JOB_ID=bigint",
                "public",
                "j.queue",
                versions=(6, 6),
            ),
        )
    }
)
"""By name, in the order of their names."""


def get(name: str) -> Adapter:
    """The adapter of that name. Raises AdapterRefused."""
    if (adapter := ADAPTERS.get(name)) is None:
        raise AdapterRefused(f"there is no adapter {name!r}; there are {', '.join(ADAPTERS)}")
    return adapter


def quoted(name: str) -> str:
    """A name as an SQL identifier. Raises AdapterRefused for what cannot be the name of a schema."""
    if not name:
        raise AdapterRefused("the schema is empty; name the one that the system's tables are in")
    if not name.isprintable():
        raise AdapterRefused("the schema has a character in its name that cannot be printed")
    if (size := len(name.encode())) > _MAX_NAME_BYTES:
        raise AdapterRefused(f"the schema's name has {size} bytes; PostgreSQL's names have at most {_MAX_NAME_BYTES}")
    _refuse_dollar_tag("schema", name)
    return name if name in _PLAIN else '"' + name.replace('"', '""') + '"'


def checked_expression(text: str) -> str:
    """An SQL expression, as it is given. Raises AdapterRefused for what would not be a part of the view's SELECT.

    It is the owner's own SQL, run by the owner: this finds slips, and does not guard against the owner.
    """
    if not text.strip():
        raise AdapterRefused("the project is empty; give an SQL expression, such as j.queue or \"'p1'\"")
    if not text.isprintable():
        raise AdapterRefused("the project has a character that cannot be printed; give an SQL expression in one line")
    _refuse_dollar_tag("project", text)
    bare = _QUOTED.sub("", text)
    if "'" in bare or '"' in bare:
        raise AdapterRefused(f"the project {text} has a quote that is not closed; a constant is written as 'p1'")
    if any(part in bare for part in (";", "--", "/*", "*/")):
        raise AdapterRefused(f"the project {text} is no single SQL expression: it has a semicolon or a comment")
    depth = 0
    for bracket in re.findall(r"[()]", bare):
        depth += 1 if bracket == "(" else -1
        if depth < 0:
            break
    if depth != 0:
        raise AdapterRefused(f"the project {text} has brackets that do not match")
    return text.strip()


def _refuse_dollar_tag(what: str, text: str) -> None:
    if _DOLLAR_TAG in text:
        raise AdapterRefused(f"the {what} has {_DOLLAR_TAG} in it, which ends the text of a function in this SQL")


def _template(name: str) -> str:
    return (resources.files(__name__) / f"{name}.sql").read_text("utf-8")


def _filled(template: str, values: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), template)
