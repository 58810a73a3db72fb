"""What `redrive check` looks at where `control_plane.jobs` is a view: its trigger, the tables behind it, its adapter.

A view hides what a check of a table sees: its owner's rights decide instead of ours, row-level security of a table
behind it leaves rows out without an error, and a look-up may read a whole table. The plans of the statements tell the
last. They are made with everything switched off that needs no index, so that a small table is planned as a large one.
"""

import re
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from cli.checking.findings import Verdict
from shared.errors import DatabaseUnavailable, StatementRefused
from shared.relation import JOBS, adapter_of, missing_trigger, parameters_of, triggers_of
from shared.sql import JobIdType, statements

if TYPE_CHECKING:
    from shared.database import Database, Row

LOOK_UPS: Final = {
    "api": ("jobs.find", "jobs.find_with_payload", "jobs.changed", "batches.blocks", "batches.insert_requests"),
    "worker": ("settlement.apply", "settlement.block_unmoved", "settlement.block"),
}
"""The statements that find jobs by their ids, of each program."""
LISTS: Final[Mapping[str, Mapping[str, Mapping[int, object]]]] = {
    "api": {"jobs.page": {1: "p1", 7: 51}, "jobs.page_of_status": {1: "p1", 7: 51, 8: "failed"}},
    "worker": {},
}
"""The lists of jobs, of each program, with the arguments without which a plan would read nothing."""

_ALIAS: Final = re.compile(r"\b\w+\.(?=[\w\"])")
_BY_INDEX_ALONE: Final = ("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "jit")

Looks = AsyncIterator[tuple[Verdict, str]]


async def look_at_view(
    database: "Database", view: "Row", programs: Collection[str], *, job_id: JobIdType, updates: bool, many: int
) -> Looks:
    """Look at the view behind `view`, a row of `relation`. From `many` rows on, slow lists are worth a warning."""
    if updates:
        async for look in _of_triggers(database, view):
            yield look
    tables = await _ask(database, "tables_behind", view["oid"])
    for text, verdict in _of_row_security(tables):
        yield verdict, text
    for text in await _slow_look_ups(database, tables, programs, job_id):
        yield Verdict.WARNING, text
    if max((row["rows"] for row in tables), default=0) >= many:
        for text in await _slow_lists(database, tables, programs, job_id):
            yield Verdict.WARNING, text
    async for look in _of_adapter(database, view):
        yield look


async def _ask(database: "Database", name: str, *arguments: object) -> "list[Row]":
    return await database.fetch(statements("check", "cli.checking")[name], *arguments)


async def _of_triggers(database: "Database", view: "Row") -> Looks:
    """The trigger that puts a job back. A view that is simple enough can be updated without one."""
    if fault := await missing_trigger(database.fetch, view["oid"]):
        yield Verdict.FAILED, fault
    for row in await triggers_of(database.fetch, view["oid"]):
        if not row["enabled"]:
            continue
        if not row["as_owner"]:
            why = f"{row['function']} is not SECURITY DEFINER, so it needs the rights of role {view['role']}"
            yield Verdict.WARNING, f"the trigger {row['name']} of {JOBS}: {why} on the tables behind the view"
        elif not row["has_path"]:
            why = f"{row['function']} is SECURITY DEFINER and sets no search_path"
            yield Verdict.WARNING, f"the trigger {row['name']} of {JOBS}: {why}; type: {row['remedy']}"


def _of_row_security(tables: "Collection[Row]") -> Iterator[tuple[str, Verdict]]:
    """Row-level security counts for who reads the table: the view's owner, or, with security_invoker, this role."""
    for row in tables:
        if not row["row_security"]:
            continue
        what = f"row-level security of {row['name']}, which {JOBS} reads as role {row['reader']}"
        if not row["policies"]:
            yield f"{what}, lets that role see no row: make the table's owner the owner of the view", Verdict.FAILED
        elif not row["lets_all"]:
            yield f"{what}, may keep rows from it: a job that is hidden is answered as not found", Verdict.WARNING


async def _slow_look_ups(
    database: "Database", tables: "Collection[Row]", programs: Collection[str], job_id: JobIdType
) -> list[str]:
    """Look-ups of one job that read all of a table, or all of an index: each table and index once."""
    indexes = {
        row["name"]: row["first"] for row in await _ask(database, "indexes_behind", [row["oid"] for row in tables])
    }
    found: dict[str, str] = {}
    for name in (name for program in programs for name in LOOK_UPS[program]):
        for node in await _scans(database, _Plan(name, {}, job_id, _BY_INDEX_ALONE), tables):
            table, index = f"{node['Schema']}.{node['Relation Name']}", node.get("Index Name")
            first = indexes.get(index or "")
            if index is None and "Bitmap" not in node["Node Type"]:
                found.setdefault(table, f"`{name}` reads all of {table} to find one job: no index serves")
            elif index is not None and first is not None and not _is_compared(first, node.get("Index Cond", "")):
                why = f"its first column, {first}, is compared with nothing that stands before the look-up"
                found.setdefault(index, f"`{name}` reads all of the index {index} of {table} to find one job: {why}")
    return list(found.values())


async def _slow_lists(
    database: "Database", tables: "Collection[Row]", programs: Collection[str], job_id: JobIdType
) -> list[str]:
    """Lists that sort all jobs of a project, because no index has them in their order."""
    switched_off = (*_BY_INDEX_ALONE, "enable_sort")
    slow = [
        name
        for program in programs
        for name, arguments in LISTS[program].items()
        if any(node["Sorted"] for node in await _scans(database, _Plan(name, arguments, job_id, switched_off), tables))
    ]
    if not slow:
        return []
    return [f"lists of jobs ({', '.join(slow)}) read and sort all of a project's jobs: see docs/adapters for an index"]


class _Plan(NamedTuple):
    """A statement to be planned, `file.name`, with some of its arguments by their numbers; the others are NULL."""

    name: str
    arguments: Mapping[int, object]
    job_id: JobIdType
    switched_off: Collection[str]


async def _scans(database: "Database", wanted: _Plan, tables: "Collection[Row]") -> list[dict[str, Any]]:
    """The scans of tables behind the view in a plan; `Sorted`: all that one finds is sorted."""
    file, _, block = wanted.name.partition(".")
    sql = statements(file, job_id=wanted.job_id)[block]
    arguments = [wanted.arguments.get(number) for number in range(1, parameters_of(sql) + 1)]
    try:
        async with database.transaction() as session:
            for setting in wanted.switched_off:
                await session.fetch(f"SET LOCAL {setting} = off")
            ((text,),) = await session.fetch(f"EXPLAIN (VERBOSE, FORMAT JSON) {sql}", *arguments)
    except (StatementRefused, DatabaseUnavailable):
        return []  # another look says why
    behind = {row["name"] for row in tables} | {part for row in tables for part in row["parts"]}
    plan = msgspec.json.decode(text)[0]["Plan"]
    return [node for node in _nodes(plan) if f"{node.get('Schema')}.{node.get('Relation Name')}" in behind]


def _nodes(plan: Mapping[str, Any], *, limited: bool = False, is_sorted: bool = False) -> Iterator[dict[str, Any]]:
    """All nodes of a plan. A bitmap's index stands below its table: it gets the table's name.

    A sort counts below a limit, which would else end the scan early.
    """
    yield {**plan, "Sorted": is_sorted}
    limited = limited or plan["Node Type"] == "Limit"
    is_sorted = is_sorted or (limited and plan["Node Type"] == "Sort")
    for child in plan.get("Plans", ()):
        of_table = {key: plan[key] for key in ("Schema", "Relation Name") if plan["Node Type"] == "Bitmap Heap Scan"}
        yield from _nodes({**of_table, **child}, limited=limited, is_sorted=is_sorted)


def _is_compared(first: str, condition: str) -> bool:
    """Whether the first column of an index, or its expression, stands in the condition of a scan along it."""
    expression = first.removeprefix("(").removesuffix(")") if first.startswith("(") else first
    return re.search(rf"(?<![\w\"]){re.escape(expression)}(?![\w\"])", _ALIAS.sub("", condition)) is not None


async def _of_adapter(database: "Database", view: "Row") -> Looks:
    """Which adapter the view is of, and whether the system behind it is one that was tested."""
    adapter = await adapter_of(database.fetch, view["oid"])
    if adapter is None:
        yield Verdict.NOTE, f"{JOBS} is a view of no adapter of Redrive's: which systems it fits is not known"
    elif adapter.fault:
        yield Verdict.FAILED, adapter.fault
    else:
        yield Verdict.OK, adapter.words
