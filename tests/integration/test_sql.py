"""Every statement of ours, prepared on the migrated schema: a column that is renamed breaks here first.

And every statement read: (project_id, id) names a job.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

import shared.sql
from shared.sql import JobIdType, blocks

_TOP = Path(__file__).parents[2]
_FOLDER = _TOP / "shared" / "sql"
_NOT_CODE = re.compile(r"--[^\n]*|'(?:[^']|'')*'")
_JOBS = re.compile(r"\b(?:FROM|JOIN|UPDATE)\s+control_plane\.jobs\b")
_LEDGER = re.compile(r"\b(?:FROM|JOIN|UPDATE)\s+redrive\.retry_requests\b")
_EQUALS = r"\s*(?:=|\bIN\b|\bUSING\b)"
_BY_PROJECT = re.compile(
    rf"\bproject_id{_EQUALS}|\(\s*(?:\w+\.)?project_id\s*,[^()]*\){_EQUALS}|USING\s*\(\s*project_id\b"
)
_BY_ID = re.compile(r"\b(?:jobs\.|j\.)?id\s*=")
_BY_JOB = re.compile(r"\bjob_id\s*(?:=|<>)")
# What takes whatever stands in line, of all projects, and names no job: it looks rows up by what they are in.
_IN_LINE = {"demo.sql: finish", "demo.sql: start"}
# What looks whether rows of any project can be seen and read; it answers and changes no job.
_OF_ALL = {f"check.sql: {name}" for name in ("doubled_among", "doubled_anywhere", "hides_rows", "least_id", "sample")}


async def unprepared(database_url: str, job_id: JobIdType) -> list[str]:
    """The statements that do not fit a database where the ids of jobs are of this type."""
    files = sorted(_FOLDER.glob("*.sql"))
    assert files
    connection = await asyncpg.connect(database_url)
    try:
        broken = []
        for path in files:
            for name, statement in shared.sql.statements(path.stem, job_id=job_id).items():
                try:
                    await connection.prepare(statement)
                except asyncpg.PostgresError as error:
                    broken.append(f"{path.name}: {name}: {error}")
    finally:
        await connection.close()
    return broken


async def test_every_block_prepares_on_the_migrated_schema(database_url: str) -> None:
    assert not await unprepared(database_url, "uuid")


async def test_every_block_prepares_where_the_ids_are_numbers(bigint_database_url: str) -> None:
    assert not await unprepared(bigint_database_url, "bigint")


async def test_each_statement_that_names_a_job_fits_no_table_with_other_ids(
    database_url: str, bigint_database_url: str
) -> None:
    named = {f"jobs.sql: {name}" for name in ("find", "find_with_payload", "changed", "page", "positions")}

    for broken in (await unprepared(database_url, "bigint"), await unprepared(bigint_database_url, "uuid")):
        assert named <= {": ".join(line.split(": ")[:2]) for line in broken}


def code_of(statement: str) -> str:
    """The statement without comments and without what stands between quotes."""
    return _NOT_CODE.sub("''", statement)


def scope_around(code: str, at: int) -> str:
    """The query around a place, without the queries in brackets within it."""
    depth, begin = 0, 0
    for place in range(at - 1, -1, -1):
        depth += {")": 1, "(": -1}.get(code[place], 0)
        if depth < 0:
            begin = place + 1
            break
    kept: list[str] = []
    hidden: list[bool] = []  # whether each open bracket holds a query
    for place in range(begin, len(code)):
        if code[place] == ")":
            if not hidden:
                break
            hidden.pop()
        elif code[place] == "(":
            hidden.append(re.match(r"\(\s*SELECT\b", code[place:]) is not None)
        if not any(hidden):
            kept.append(code[place])
    return "".join(kept)


def look_ups(code: str, table: re.Pattern[str]) -> Iterator[str]:
    """The query around each place where a statement takes rows of the table."""
    for found in table.finditer(code):
        yield scope_around(code, found.start())


def statements() -> Iterator[tuple[str, str]]:
    """Every statement of ours by file and name."""
    for path in (*sorted(_FOLDER.glob("*.sql")), *sorted((_TOP / "cli").rglob("*.sql"))):
        for name, statement in blocks(path.read_text("utf-8")).items():
            yield f"{path.name}: {name}", code_of(statement)


def faults_of(code: str) -> list[str]:
    """What a statement does by an id alone."""
    jobs = [query for query in look_ups(code, _JOBS) if not _BY_PROJECT.search(query)]
    ledger = [query for query in look_ups(code, _LEDGER) if _BY_JOB.search(query) and not _BY_PROJECT.search(query)]
    conflicts = re.findall(r"ON CONFLICT \(job_id\)|PARTITION BY job_id|DISTINCT ON \(job_id\)", code)
    return [" ".join(query.split()) for query in (*jobs, *ledger, *conflicts)]


def test_every_statement_that_finds_a_job_names_its_project() -> None:
    read = dict(statements())
    assert sum(len(list(look_ups(code, _JOBS))) for code in read.values()) >= 15
    assert sum(bool(_BY_JOB.search(code)) for code in read.values()) >= 8

    faults = {name: found for name, code in read.items() if (found := faults_of(code))}

    # These two find what is due or over, of all projects; what they change is joined to that by both.
    assert faults.keys() <= _IN_LINE | _OF_ALL
    for name, queries in faults.items():
        assert name in _OF_ALL or all("status = ''" in query and not _BY_ID.search(query) for query in queries), name


@pytest.mark.parametrize(
    "wrong",
    [
        "SELECT 1 FROM control_plane.jobs WHERE id = $1",
        "SELECT 1 FROM w JOIN LATERAL (SELECT FROM control_plane.jobs WHERE id = w.id LIMIT 1) j ON j.project_id = w.p",
        "UPDATE control_plane.jobs AS j SET status = 'x' FROM verdict WHERE j.id = verdict.job_id",
        "SELECT FROM control_plane.jobs WHERE id = ANY (ARRAY(SELECT job_id FROM r WHERE r.project_id = $1))",
        "SELECT FROM control_plane.jobs AS j WHERE j.id = $1 -- AND j.project_id = $2",
        "SELECT FROM redrive.retry_requests AS r WHERE r.job_id = $1 AND r.state = 'queued'",
        "INSERT INTO redrive.retry_requests (job_id) VALUES ($1) ON CONFLICT (job_id) DO NOTHING",
    ],
)
def test_a_statement_that_finds_a_job_by_its_id_alone_is_noticed(wrong: str) -> None:
    assert faults_of(code_of(wrong))
