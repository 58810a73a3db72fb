"""Checks whether `control_plane.jobs`, another system's table or view, fits Redrive.

1. `faults_of` looks at its columns and types, at a view's trigger, and at the version of an adapter's system.
2. `Guard` runs it in each program, at the start and now and then, and has the database refuse calls while there are
   faults.
3. `redrive check` tells the same faults by the same functions, and more.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from shared.errors import DatabaseUnavailable, DatabaseUnfit, RedriveError, StatementRefused
from shared.sql import JobIdType, statements

if TYPE_CHECKING:
    from shared.database import Database, Row

log = structlog.stdlib.get_logger(__name__)

JOBS: Final = "control_plane.jobs"
UPDATED: Final = ("status", "last_error", "started_at", "completed_at", "scheduled_at", "max_attempts")
"""The columns that a retry changes."""
TIMES: Final = ("scheduled_at", "started_at", "completed_at", "created_at")

_TEXT: Final = frozenset({"text", "character varying", "character", "name", "citext"})
_COUNT: Final = frozenset({"integer", "smallint", "bigint"})
COLUMNS: Final[dict[str, tuple[str, frozenset[str]]]] = {
    "id": ("uuid", frozenset({"uuid"})),
    **dict.fromkeys(("project_id", "type", "status", "last_error"), ("text", _TEXT)),
    "payload": ("jsonb", frozenset({"jsonb", "json"})),
    **dict.fromkeys(("attempts", "max_attempts"), ("integer", _COUNT)),
    **dict.fromkeys(TIMES, ("timestamp with time zone", frozenset({"timestamp with time zone"}))),
}
"""What a column may be of: the type that is wanted, and those that serve as well."""
# With REDRIVE_JOB_ID=bigint. The index on a narrower integer serves look-ups by a bigint, too.
_NUMBERED: Final = {**COLUMNS, "id": ("bigint", _COUNT)}
_READS: Final = (("jobs", "find"), ("jobs", "page"), ("jobs", "changed"))
"""Together they use every column in every way in which a statement of ours does."""
_PARAMETER: Final = re.compile(r"\$(\d+)")
_ADAPTER: Final = re.compile(
    r"redrive adapter (?P<name>[\w-]+); tested with (?P<tested>[^;]+)"
    r"(?:; schema version (?P<oldest>\d+)(?: to (?P<newest>\d+))?)?"
)
_SQL: Final = statements("look", __name__)

_MEND: Final = (
    "mend control_plane.jobs, which `redrive check` looks at, and no restart is needed; "
    "or, where REDRIVE_JOB_ID is wrong, set it right and restart"
)
FIRST_LOOK_S: Final = 1.0
"""How long a program waits at its start for the first look."""
LOOK_AGAIN_S: Final = 5.0
"""How long after a fault, or a database that did not answer, a program looks again."""
LOOK_EVERY_S: Final = 30.0
"""How long after a look that found no fault: a table may be changed while programs run."""

Fetch = Callable[..., "Awaitable[list[Row]]"]
"""Runs a statement with its arguments; answers all rows."""


class OddType(NamedTuple):
    """A column of another type than the contract's. `is_fatal`: it cannot work; else `_are_refused` decides."""

    text: str
    is_fatal: bool


@dataclass(frozen=True, slots=True)
class FoundAdapter:
    """The adapter that a view is of; `fault`: why this version of its system is untested."""

    words: str
    fault: str | None


async def find_relation(fetch: Fetch, schema: str, name: str) -> "Row | None":
    """A table or view: `oid`, `kind` as pg_class has it, and what this role may do there."""
    found = await fetch(_SQL["find_relation"], schema, name)
    return found[0] if found else None


async def columns_of(fetch: Fetch, oid: int) -> "list[Row]":
    """The relation's columns with their types, and what this role may do to each."""
    return await fetch(_SQL["columns_of"], oid)


def missing_columns(found: "Collection[Row]") -> Iterator[str]:
    """A line that names the columns that are not there."""
    known = {row["name"] for row in found}
    if missing := [name for name in COLUMNS if name not in known]:
        yield f"{JOBS} has no column {', '.join(missing)}"


async def odd_types(fetch: Fetch, found: "Collection[Row]", job_id: JobIdType) -> list[OddType]:
    """The columns of other types than the contract's."""
    all_wanted = _NUMBERED if job_id == "bigint" else COLUMNS
    odd = [
        (row, all_wanted[row["name"]][0])
        for row in found
        if row["name"] in all_wanted and row["base"] not in all_wanted[row["name"]][1]
    ]
    read = await _types_read(fetch, job_id) if odd else {}
    return [_odd_type(row, wanted, read, job_id) for row, wanted in odd]


def _odd_type(row: "Row", wanted: str, read: "dict[str, str]", job_id: JobIdType) -> OddType:
    name = row["name"]
    text = f"{JOBS}.{name} is of type {row['type']}, wanted: {wanted}"
    if name == "id":
        other = "uuid" if job_id == "bigint" else "bigint"
        hint = f"; REDRIVE_JOB_ID is {job_id}, for such a table set it to {other}"
        return OddType(f"{text}{hint if row['base'] in {'uuid', *_COUNT} else ''}", is_fatal=True)
    if name in TIMES:
        return OddType(text, is_fatal=read.get(name) != wanted)
    return OddType(text, is_fatal=name == "payload")  # what is not JSON by its type may be anything


async def _types_read(fetch: Fetch, job_id: JobIdType) -> dict[str, str]:
    """Of what type the times are when a job is read: a statement of ours may have made them what they should be."""
    sql = _SQL["types_read"].replace("FIND_JOBS", statements("jobs", job_id=job_id)["find"])
    try:
        rows = await fetch(sql, *[None] * parameters_of(sql))
    except (StatementRefused, DatabaseUnavailable):
        return {}
    return dict(rows[0].items())


async def missing_trigger(fetch: Fetch, view: int) -> str | None:
    """Why a view takes no retry: it has no trigger, or only a disabled one. One that is simple enough needs none."""
    triggers = await triggers_of(fetch, view)
    if any(row["enabled"] for row in triggers):
        return None
    if not triggers and not await fetch(_SQL["fixed_columns"], view, list(UPDATED)):
        return None
    found = f"its trigger {', '.join(row['name'] for row in triggers)} is disabled" if triggers else "it has none"
    return f"{JOBS} cannot be updated: a view needs an INSTEAD OF UPDATE trigger, and {found}"


async def triggers_of(fetch: Fetch, view: int) -> "list[Row]":
    """The INSTEAD OF UPDATE triggers of a view."""
    return await fetch(_SQL["triggers_of"], view)


async def adapter_of(fetch: Fetch, view: int) -> FoundAdapter | None:
    """Which adapter a view is of, by its comment, and whether the system behind it is one that was tested.

    The adapter's function `control_plane.schema_version()` answers the version of that system's tables. Raises
    DatabaseUnavailable.
    """
    ((comment, has_version),) = await fetch(_SQL["adapter_of"], view)
    found = _ADAPTER.match(comment or "")
    if found is None:
        return None
    words = f"{JOBS} is the adapter {found['name']}, tested with {found['tested']}"
    if not (has_version and found["oldest"]):
        return FoundAdapter(words, None)
    try:
        ((version,),) = await fetch(_SQL["schema_version"])
    except (StatementRefused, DatabaseUnfit) as error:
        return FoundAdapter(words, f"{words}; the version of that system's tables cannot be read: {error}")
    oldest, newest = int(found["oldest"]), int(found["newest"] or found["oldest"])
    if version is not None and oldest <= version <= newest:
        return FoundAdapter(f"{words}; its tables have version {version}", None)
    tested = f"{oldest}" if oldest == newest else f"{oldest} to {newest}"
    return FoundAdapter(words, f"{words}: that system's tables have version {version}, and {tested} was tested")


def parameters_of(sql: str) -> int:
    """How many parameters a statement has."""
    return max((int(number) for number in _PARAMETER.findall(sql)), default=0)


async def faults_of(fetch: Fetch, *, job_id: JobIdType, updates: bool, versions: bool = True) -> list[str]:
    """Why no program could work with the relation, a line for each.

    `updates`: retries are to be put into effect there. `versions`: the version of an adapter's system counts. Raises
    DatabaseUnavailable.
    """
    found = await find_relation(fetch, *JOBS.split("."))
    if found is None or not (its_columns := await columns_of(fetch, found["oid"])):
        return [f"{JOBS} is not there"]
    told = list(missing_columns(its_columns))
    odd = await odd_types(fetch, its_columns, job_id)
    refused = bool(odd) and not told and await _are_refused(fetch, job_id)
    told += [each.text for each in odd if each.is_fatal or refused]
    if found["kind"] == "v":
        if updates and (fault := await missing_trigger(fetch, found["oid"])):
            told.append(fault)
        if versions and (adapter := await adapter_of(fetch, found["oid"])) and adapter.fault:
            told.append(adapter.fault)
    return told


async def _are_refused(fetch: Fetch, job_id: JobIdType) -> bool:
    """Whether the database refuses to plan a statement that reads jobs."""
    for file, name in _READS:
        sql = statements(file, job_id=job_id)[name]
        try:
            await fetch(f"EXPLAIN {sql}", *[None] * parameters_of(sql))
        except (StatementRefused, DatabaseUnfit):
            return True
    return False


class Guard:
    """Keeps a program from jobs that it could not work with: while there are faults, the database refuses calls."""

    def __init__(self, database: "Database", *, job_id: JobIdType, updates: bool) -> None:
        self._database = database
        self._job_id: JobIdType = job_id
        self._updates = updates
        self._looked = asyncio.Event()
        self._fitted = False

    @property
    def has_looked(self) -> bool:
        """Whether `run` has looked once, at the relation or for the database."""
        return self._looked.is_set()

    async def first_look(self) -> None:
        """Wait until `run` has looked once, for FIRST_LOOK_S at most: a program starts without its database, too."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_LOOK_S):
                await self._looked.wait()

    async def run(self) -> None:
        """Look as soon as the database answers, and again and again. Log faults once, and once that they are mended.

        A system that is upgraded while the programs run is left to `redrive check`: what was tested may still hold.
        """
        told: list[str] = []
        while True:
            pause_s = LOOK_AGAIN_S
            try:
                found = await self._faults()
            except RedriveError:
                pass  # the callers that need the database report that themselves
            else:
                if found and found != told:
                    log.error("jobs cannot be served", faults=found, mend=_MEND)
                if told and not found:
                    log.info("jobs can be served")
                self._database.refuse("; ".join(found) or None)
                told = found
                if not found:
                    self._fitted = True
                    pause_s = LOOK_EVERY_S
            self._looked.set()
            await asyncio.sleep(pause_s)

    async def _faults(self) -> list[str]:
        return await faults_of(
            self._database.look, job_id=self._job_id, updates=self._updates, versions=not self._fitted
        )
