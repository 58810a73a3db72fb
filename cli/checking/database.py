"""What `redrive check` looks at in a database: whether a program's own role could do all of its work there.

Rights are asked for one by one, so that each that is missing has its GRANT. Then every statement of the program is
planned, which needs the rights, columns and types that running it needs, and changes nothing.
"""

import re
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from cli.checking.findings import Finding, Verdict
from cli.checking.views import look_at_view
from cli.operate.tables import printable
from shared import migrations
from shared.connections import words_of
from shared.errors import DatabaseUnavailable, DatabaseUnfit, RedriveError, StatementRefused, StatementTimeout
from shared.relation import (
    COLUMNS,
    JOBS,
    UPDATED,
    columns_of,
    find_relation,
    missing_columns,
    missing_trigger,
    odd_types,
    parameters_of,
)
from shared.sql import JobIdType, statements

if TYPE_CHECKING:
    from shared.database import Database, Row

MANY_JOBS: Final = 100_000
"""From here on it is felt when a statement reads all of a project's jobs."""
OLDEST: Final = 14
"""The first release of PostgreSQL that will do."""

_CLEARED: Final = frozenset({"last_error", "started_at", "completed_at"})
_NEW_KEY: Final = (
    "INSERT INTO redrive.cursor_key (key) VALUES "
    "(sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())));"
)

# What stands first in an index on the jobs, and what is slow without one; any one of the columns' orders serves.
_INDEXES: Final = {
    (("id",), ("project_id", "id")): "every read of a job",
    (("project_id", "created_at", "id"),): "lists of jobs",
    (("project_id", "status", "created_at", "id"),): "counts, lists and bulk retries of the jobs of one status",
}
_NEEDED: Final = frozenset({"id", "project_id", "created_at"})
"""The columns by which jobs are found and put in order."""
_CASTS: Final = {"integer": "bigint", "timestamp with time zone": "timestamptz"}
_LOOK_S: Final = 1.0
"""How long one look at rows may take."""
_COMPARED: Final = 10_000
_LOOKED_UP: Final = 1_000
"""How many jobs are compared with one another, and how many with all, where no key says that each is there once."""
_FILES: Final = {
    "api": ("jobs", "failed", "rows", "overview", "retries", "batches", "idempotency", "outbox"),
    "worker": ("settlement", "outbox", "dead_letters"),
}
"""The files with the statements that each program runs."""
_READING: Final = ("jobs", "failed", "rows", "overview")
"""Those of them that read jobs: all that an api runs on a replica, and not all where it only reads."""
_GRANT: Final = re.compile(r"GRANT ([A-Z, ]+) ON (redrive\.\w+) TO ([\w, ]+);")


class _Table(NamedTuple):
    """A table of Redrive's, and what a program may do to it."""

    name: str
    rights: tuple[str, ...]


class _Place(NamedTuple):
    """A database, and what is to be done there: by which programs, and whether they write to it."""

    database: "Database"
    programs: Collection[str]
    writes: bool
    job_id: JobIdType

    @property
    def updates_jobs(self) -> bool:
        return self.writes and "worker" in self.programs

    async def ask(self, name: str, *arguments: object) -> "list[Row]":
        return await self.database.fetch(statements("check", "cli.checking")[name], *arguments)


Looks = AsyncIterator[tuple[Verdict, str]]


async def database_findings(
    database: "Database", name: str, programs: Collection[str], *, writes: bool, job_id: JobIdType = "uuid"
) -> AsyncIterator[Finding]:
    """Look at a database that answers, for `programs`, of `api` and `worker`; `writes`: they write to it, too.

    `job_id`: of what type the jobs' ids are, as the settings say.
    """
    place = _Place(database, programs, writes, job_id)
    refusals: set[str] = set()
    for look in (_of_server, _of_migrations, _of_jobs, _of_ledger):
        try:
            async for verdict, text in look(place):
                yield Finding(verdict, f"{name}: {text}")
        except RedriveError as error:
            text = _words_of(error)
            if text not in refusals:  # a server that refuses one look refuses the others alike
                yield Finding(Verdict.FAILED, f"{name}: {text}")
            refusals.add(text)


async def _of_server(place: _Place) -> Looks:
    ((version, role, encoding, read_only, in_recovery),) = await place.ask("server")
    if version < OLDEST * 10_000:
        yield Verdict.FAILED, f"PostgreSQL {version // 10_000}: {OLDEST} is the oldest that will do"
    if place.writes and read_only:
        why = "it is a standby" if in_recovery else "default_transaction_read_only is on, for it or for this role"
        yield Verdict.FAILED, f"cannot be written to: {why}"
    if encoding == "SQL_ASCII":
        yield Verdict.WARNING, "its encoding is SQL_ASCII: a text that is not UTF-8 makes its job unreadable"
    yield Verdict.OK, f"answers, PostgreSQL {version // 10_000}, as role {role}"


async def _of_migrations(place: _Place) -> Looks:
    wanted = migrations.names()
    ((found, readable),) = await place.ask("has_migrations")
    if found and not readable:
        yield Verdict.NOTE, "migrations: this role may not look which are applied"
        return
    applied = {row["version"] for row in await place.ask("migrations")} if found else set()
    migrations.require_known(applied)
    if missing := migrations.missing_beside(applied):
        yield Verdict.FAILED, f"{len(missing)} of {len(wanted)} migrations are missing: run `redrive migrate`"
    else:
        yield Verdict.OK, f"all {len(wanted)} migrations applied"


async def _of_jobs(place: _Place) -> Looks:
    """The jobs table. Another program owns it: the check reports what is wrong and changes nothing."""
    relation = await find_relation(place.database.fetch, "control_plane", "jobs")
    if relation is None:
        yield Verdict.FAILED, f"{JOBS} is not there: run `redrive migrate`, or the SQL of your adapter"
        return
    for look in (_of_relation, _of_statements, _unreadable, _trigger_for_the_api):
        wrong = False
        async for verdict, text in look(place, relation):
            wrong |= verdict is Verdict.FAILED
            yield verdict, text
        if wrong:  # each statement would say the same again
            break
    else:
        can = "can be read and updated" if place.updates_jobs else "can be read"
        yield Verdict.OK, f"{JOBS} {can}, all statements fit"
    async for text in _missing_indexes(place):
        yield Verdict.WARNING, text


async def _of_relation(place: _Place, relation: "Row") -> Looks:
    columns = await columns_of(place.database.fetch, relation["oid"])
    for text in _rights_on_jobs(relation, columns, watches="api" in place.programs, updates=place.updates_jobs):
        yield Verdict.FAILED, text
    if place.updates_jobs:
        # What a trigger of the owner's makes of the new row is not known.
        verdict = Verdict.WARNING if relation["is_rewritten"] else Verdict.FAILED
        async for text in _unwritable(place, relation, columns):
            yield verdict, text
    async for look in _uniqueness(place, relation):
        yield look
    if relation["kind"] == "v":
        async for look in look_at_view(
            place.database,
            relation,
            place.programs,
            job_id=place.job_id,
            updates=place.updates_jobs,
            many=MANY_JOBS,
        ):
            yield look
    elif relation["kind"] not in "rp":
        yield Verdict.NOTE, f"{JOBS} is no table or view: row-level security and indexes were not looked at"
        if place.updates_jobs and not relation["is_updatable"]:
            yield Verdict.FAILED, f"{JOBS} cannot be updated"
    commands = ["SELECT", "UPDATE"] if place.updates_jobs else ["SELECT"]
    async for verdict, text in _row_security(place, relation, JOBS, commands):
        yield verdict, text


async def _of_statements(place: _Place, relation: "Row") -> Looks:
    refusals = await _refusals(place)
    for text in refusals:
        yield Verdict.FAILED, text
    columns = await columns_of(place.database.fetch, relation["oid"])
    for text, is_fatal in await odd_types(place.database.fetch, columns, place.job_id):
        if is_fatal or refusals:
            yield Verdict.FAILED, text
        else:
            yield Verdict.NOTE, f"{text}; it serves as well"


async def _trigger_for_the_api(place: _Place, relation: "Row") -> Looks:
    """What `look_at_view` finds for a worker: the api takes no retry that no worker could put into effect."""
    is_the_apis = place.writes and not place.updates_jobs and relation["kind"] == "v"
    if is_the_apis and (fault := await missing_trigger(place.database.fetch, relation["oid"])):
        yield Verdict.FAILED, fault


async def _unreadable(place: _Place, _relation: "Row") -> Looks:
    """Columns that the database refuses to read of some rows, such as an expression of a view that fails for one."""
    async for text in _odd_ids(place):
        yield Verdict.WARNING, text
    sql = statements("check", "cli.checking")["sample"]
    for name, (wanted, _) in COLUMNS.items():
        cast = "text" if name in {"id", "payload"} else _CASTS.get(wanted, wanted)
        try:
            await place.database.fetch_within(
                _LOOK_S, sql.replace("status::text", f"{name}::{cast}").replace("SELECT status", f"SELECT {name}")
            )
        except StatementTimeout:
            return
        except (StatementRefused, DatabaseUnfit) as error:
            told = f"{JOBS}.{name} cannot be read of some rows: {_words_of(error)}"
            if name in _NEEDED:
                yield Verdict.FAILED, f"{told}; other jobs are not found then either: keep such rows out of the view"
            else:
                yield Verdict.WARNING, f"{told}; each such job is job-unreadable"


async def _odd_ids(place: _Place) -> AsyncIterator[str]:
    """Numbers that no client can name: they are in no list, and no retry reaches them."""
    if place.job_id != "bigint":
        return
    with suppress(StatementRefused, DatabaseUnavailable):
        for (number,) in await place.database.fetch_within(_LOOK_S, statements("check", "cli.checking")["least_id"]):
            if int(number) < 1:
                told = f"{JOBS} has ids below 1, such as {number}"
                yield f"{told}: these jobs are in no list and cannot be read or retried"


def _rights_on_jobs(relation: "Row", columns: "Collection[Row]", *, watches: bool, updates: bool) -> Iterator[str]:
    role = relation["role"]
    if not relation["usage"]:
        yield f"no right to use the schema control_plane; type: GRANT USAGE ON SCHEMA control_plane TO {role};"
    known = {row["name"]: row for row in columns}
    yield from missing_columns(columns)
    # The api also reads a table's xmin, where a row that moved shows that a job may have changed.
    read = [name for name in (*COLUMNS, *(["xmin"] if watches else [])) if name in known]
    if hidden := [name for name in read if not known[name]["may_select"]]:
        # Who has a right on some columns was given these on purpose.
        columns_of = "" if len(hidden) == len(read) else f" ({', '.join(hidden)})"
        yield f"no right to read {', '.join(hidden)} of {JOBS}; type: GRANT SELECT{columns_of} ON {JOBS} TO {role};"
    if updates and (fixed := [name for name in UPDATED if name in known and not known[name]["may_update"]]):
        names = ", ".join(fixed)
        yield f"no right to update {names} of {JOBS}; type: GRANT UPDATE ({names}) ON {JOBS} TO {role};"


async def _unwritable(place: _Place, relation: "Row", columns: "Collection[Row]") -> AsyncIterator[str]:
    """What a retry writes and the table cannot hold."""
    for row in columns:
        if row["name"] in _CLEARED and row["not_null"]:
            yield f"{JOBS}.{row['name']} is NOT NULL, and a retry clears it"
    for row in columns:
        if row["name"] == "status":
            checks = await place.ask("status_checks", relation["oid"])
            conditions = {
                "its type": "status::text = 'pending'",
                **{each["name"]: each["condition"] for each in checks},
            }
            for name, condition in conditions.items():
                if await _refuses_pending(place, condition, row["full_type"]):
                    yield f"{JOBS}.status cannot be 'pending', which a retry makes it: {name} refuses that"


async def _refuses_pending(place: _Place, condition: str, full_type: str) -> bool:
    sql = statements("check", "cli.checking")["status_allowed"].replace("AS text)", f"AS {full_type})")
    try:
        ((allowed,),) = await place.database.fetch(sql.replace("status IS NOT NULL", condition))
    except StatementRefused:
        return True
    except DatabaseUnavailable:  # the type may be in a schema that is not ours to use
        return False
    return not allowed


async def _uniqueness(place: _Place, relation: "Row") -> Looks:
    """Whether (project_id, id) names one job: by a key, or, where there can be none, by a look at some jobs."""
    keys = await place.ask("unique_keys", relation["oid"])
    has_key = any({"id"} <= set(row["columns"]) <= {"id", "project_id"} for row in keys)
    if relation["kind"] in "rp" and not has_key:
        yield (
            Verdict.FAILED,
            f"neither (id) nor (project_id, id) of {JOBS} is unique: a retry could put back more jobs than one",
        )
        return
    if relation["kind"] == "r":
        ((has_children,),) = await place.ask("has_children", relation["oid"])
        has_key = not has_children
    if not has_key:
        async for look in _doubled_jobs(place):
            yield look


async def _doubled_jobs(place: _Place) -> Looks:
    """Look for a job that is there twice: among all jobs where these are few, else among some, or twins of some."""
    sql = statements("check", "cli.checking")
    whether = f"whether (project_id, id) of {JOBS} is unique"
    try:
        ((jobs, doubled),) = await place.database.fetch_within(_LOOK_S, sql["doubled_among"], _COMPARED)
    except (StatementRefused, DatabaseUnavailable) as error:
        yield Verdict.NOTE, f"{whether} was not looked at: {_words_of(error)}"
        return
    if doubled is None and jobs == _COMPARED:
        with suppress(StatementRefused, DatabaseUnavailable):  # without an index it takes too long
            for (twin,) in await place.database.fetch_within(_LOOK_S, sql["doubled_anywhere"], _LOOKED_UP):
                doubled = twin
    if doubled is not None:
        why = f"a project has more than one job {printable(doubled)}, and a retry could put back all of them"
        yield Verdict.FAILED, f"(project_id, id) of {JOBS} is not unique: {why}"
    elif jobs == _COMPARED:
        yield Verdict.NOTE, f"{whether} was looked at among {_COMPARED} jobs, and not among all"


async def _row_security(place: _Place, relation: "Row", name: str, commands: Collection[str]) -> Looks:
    """Whether row-level security could hide rows from this role: no error tells, they are just not there."""
    if not relation["row_security"]:
        return
    rows = await place.ask("policies", relation["oid"])
    role = relation["role"]
    for command in commands:
        policies = [row for row in rows if row["command"] in {command, "ALL"}]
        check = "WITH CHECK" if command == "INSERT" else "USING"
        policy = f"CREATE POLICY redrive_{command.lower()} ON {name} FOR {command} TO {role} {check} (true);"
        lets_none = f"row-level security of {name} lets role {role} {command} no row"
        odd = [row["name"] for row in policies if not row["lets_all"]]
        if not any(row["permissive"] for row in policies):
            yield Verdict.FAILED, f"{lets_none}; type: {policy}"
        elif blocking := _blocking(policies, command):
            remedy = _remedy(policies, blocking, policy)
            yield Verdict.FAILED, f"{lets_none}: policy {', '.join(blocking)} is never true; {remedy}"
        elif odd and command == "SELECT" and await _hides_rows(place, relation, name):
            remedy = _remedy(policies, odd, policy)
            yield Verdict.FAILED, f"{lets_none}, though it has some: policy {', '.join(odd)} hides them; {remedy}"
        elif odd:
            hides = f"row-level security of {name} may keep rows from role {role} ({command}, policy {', '.join(odd)})"
            yield Verdict.WARNING, f"{hides}: a job that is hidden is answered as not found"


async def _hides_rows(place: _Place, relation: "Row", name: str) -> bool:
    """Whether the role sees no row of a table that has some; False where that cannot be known in time."""
    sql = statements("check", "cli.checking")["hides_rows"].replace("control_plane.jobs", name)
    try:
        ((hidden,),) = await place.database.fetch_within(_LOOK_S, sql, relation["oid"])
    except (StatementRefused, DatabaseUnavailable):
        return False
    return bool(hidden)


def _remedy(policies: "Collection[Row]", blocking: Collection[str], policy: str) -> str:
    """What to do about policies that keep every row from a role."""
    if restrictive := [row["name"] for row in policies if row["name"] in blocking and not row["permissive"]]:
        return f"a restrictive policy holds whatever others permit: let {', '.join(restrictive)} be true for this role"
    return f"type: {policy}"


def _blocking(policies: "Collection[Row]", command: str) -> list[str]:
    """The policies that alone keep every row from a command: any restrictive one, or all that permit."""
    kinds = {"SELECT": ("hides_all",), "INSERT": ("refuses_all",)}.get(command, ("hides_all", "refuses_all"))
    for kind in kinds:
        if restrictive := [row["name"] for row in policies if not row["permissive"] and row[kind]]:
            return restrictive
        if all(row[kind] for row in policies if row["permissive"]):
            return [row["name"] for row in policies if row["permissive"]]
    return []


async def _of_ledger(place: _Place) -> Looks:
    """The tables of the schema redrive: rights as the migrations grant them, and row-level security."""
    wrong = False
    for table in _tables(place.programs):
        async for verdict, text in _of_table(place, table):
            wrong |= verdict is Verdict.FAILED
            yield verdict, text
    if not wrong:
        yield Verdict.OK, "the ledger can be read and written" if place.writes else "the ledger can be read"


async def _of_table(place: _Place, table: _Table) -> Looks:
    relation = await find_relation(place.database.fetch, *table.name.split("."))
    if relation is None:
        yield Verdict.FAILED, f"{table.name} is not there: run `redrive migrate`"
        return
    role = relation["role"]
    if not relation["usage"]:
        yield Verdict.FAILED, f"no right to use the schema redrive; type: GRANT USAGE ON SCHEMA redrive TO {role};"
        return
    rights = [right for right in table.rights if place.writes or right == "SELECT"]
    held = {row["name"] for row in await place.ask("table_rights", relation["oid"], rights) if row["held"]}
    if missing := ", ".join(right for right in rights if right not in held):
        grant = f"GRANT {missing} ON {table.name} TO {role};"
        yield Verdict.FAILED, f"no right to {missing} on {table.name}; type: {grant}"
    async for verdict, text in _row_security(place, relation, table.name, rights):
        yield verdict, text
    if table.name == "redrive.cursor_key" and "SELECT" in held:
        ((found_key,),) = await place.ask("has_cursor_key")
        if not found_key:
            yield Verdict.FAILED, f"{table.name} is empty: no list has a second page; type: {_NEW_KEY}"


def _tables(programs: Collection[str]) -> list[_Table]:
    """What the migrations grant to the programs' roles."""
    roles = {f"redrive_{program}" for program in programs}
    rights: dict[str, list[str]] = {}
    for name in migrations.names():
        for granted, table, to in _GRANT.findall(migrations.sql_of(name)):
            if roles & {role.strip() for role in to.split(",")} and not table.endswith("schema_migrations"):
                rights.setdefault(table, []).extend(right.strip() for right in granted.split(","))
    return [_Table(name, tuple(dict.fromkeys(each))) for name, each in rights.items()]


def statements_of(programs: Collection[str], *, writes: bool, job_id: JobIdType = "uuid") -> dict[str, str]:
    """Every statement that the programs run, by `file.name`; where nothing is written, those that read jobs."""
    files = {file for program in programs for file in _FILES[program]} if writes else set(_READING)
    return {f"{file}.{name}": sql for file in sorted(files) for name, sql in statements(file, job_id=job_id).items()}


async def _refusals(place: _Place) -> list[str]:
    """Why statements of the programs could not run: each reason once, with one of the statements."""
    found: dict[str, str] = {}
    for name, sql in statements_of(place.programs, writes=place.writes, job_id=place.job_id).items():
        try:
            await place.database.fetch(f"EXPLAIN {sql}", *[None] * parameters_of(sql))
        except (StatementRefused, DatabaseUnavailable) as error:
            text = _words_of(error)
            found.setdefault(text, f"the statement `{name}` cannot run: {text}")
    return list(found.values())


def _words_of(error: RedriveError) -> str:
    """The server's words where the error itself has only its code."""
    refused = isinstance(error, StatementRefused) and isinstance(error.__cause__, Exception)
    return words_of(error.__cause__) if refused and error.__cause__ else str(error)


async def _missing_indexes(place: _Place) -> AsyncIterator[str]:
    """What reads all of a project's jobs for want of an index, where there are many; the table is not ours to mend."""
    found = await place.ask("job_indexes")
    if not found or found[0]["jobs"] < MANY_JOBS:
        return
    for wanted, slow in _INDEXES.items():
        if not any(tuple(row["columns"][: len(each)]) == each for row in found for each in wanted):
            yield f"{JOBS} has no index on ({', '.join(wanted[0])}), which is for {slow}"
