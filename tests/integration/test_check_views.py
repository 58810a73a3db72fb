"""`redrive check` where control_plane.jobs is a view over a table of another system: it names what does not fit."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Final

import asyncpg
import pytest

from cli.checking.database import database_findings
from cli.checking.findings import Finding, Verdict
from shared.database import Database
from shared.migrations import migrate
from tests.commands import commanded
from tests.logins import Logins, Users

COLUMNS: Final = """
    no AS id, queue AS project_id, 'work'::text AS type, '{}'::jsonb AS payload,
    CASE state WHEN 'dead' THEN 'failed' ELSE 'pending' END AS status, tries AS attempts, tries + 1 AS max_attempts,
    error AS last_error, due AS scheduled_at, NULL::timestamptz AS started_at, NULL::timestamptz AS completed_at,
    made AS created_at
"""
TRIGGER: Final = """
CREATE TRIGGER retry_job INSTEAD OF UPDATE ON control_plane.jobs
FOR EACH ROW EXECUTE FUNCTION control_plane.retry_job();
"""
THEIRS: Final = f"""
CREATE SCHEMA theirs;
CREATE TABLE theirs.work (
    no bigint PRIMARY KEY, queue text NOT NULL, state text NOT NULL, tries int NOT NULL, error text,
    due timestamptz NOT NULL DEFAULT now(), made timestamptz NOT NULL DEFAULT now()
);
CREATE VIEW control_plane.jobs AS SELECT {COLUMNS} FROM theirs.work;
CREATE FUNCTION control_plane.retry_job() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE theirs.work SET state = 'waiting', error = NULL, due = new.scheduled_at WHERE no = old.id AND state = 'dead';
    RETURN CASE WHEN found THEN new END;
END
$$;
{TRIGGER}
INSERT INTO theirs.work (no, queue, state, tries) SELECT n, 'p' || n % 9, 'dead', 1 FROM generate_series(1, 50) AS n;
ANALYZE theirs.work;
"""
OTHER_VIEW: Final = "DROP VIEW control_plane.jobs; CREATE VIEW control_plane.jobs AS SELECT "
SECURED: Final = "ALTER TABLE theirs.work ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY"


@pytest.fixture
async def users(empty_database_url: str) -> AsyncIterator[Users]:
    """Users with the rights that docs/deploying.md gives; the jobs are a view, whose owner is an ordinary role."""
    async with Logins.on(empty_database_url) as logins:
        found = await logins.made(empty_database_url)
        owner = logins.renamed("jobs_owner")
        await run(
            found.admin,
            f"CREATE ROLE {owner}; GRANT CREATE ON DATABASE {database_of(found.admin)} TO {owner}; SET ROLE {owner};"
            f"CREATE SCHEMA control_plane; {THEIRS}",
        )
        await asyncio.to_thread(migrate, found.admin)
        yield found


def database_of(url: str) -> str:
    return url.rpartition("/")[2]


async def run(url: str, sql: str) -> None:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def looked_at(url: str, *programs: str) -> list[Finding]:
    async with Database(url, program="test", timeout_s=2, pool_size=1).opened() as database:
        return [each async for each in database_findings(database, "database", programs, writes=True, job_id="bigint")]


async def told(users: Users) -> dict[Verdict, str]:
    """What is said to each program, by how bad it is."""
    found = await looked_at(users.api, "api") + await looked_at(users.worker, "worker")
    return {verdict: "\n".join(each.text for each in found if each.verdict is verdict) for verdict in Verdict}


async def test_a_view_that_fits_is_in_order(users: Users) -> None:
    said = await told(users)

    assert (said[Verdict.FAILED], said[Verdict.WARNING]) == ("", "")
    assert "no adapter" in said[Verdict.NOTE]
    for program, url in (("api", users.api), ("worker", users.worker)):
        check = await commanded("check", program, DATABASE_URL=url, JOB_ID="bigint", JWT_SECRET="x" * 32)
        assert check.status == 0, check


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("DROP TRIGGER retry_job ON control_plane.jobs", "needs an INSTEAD OF UPDATE trigger, and it has none"),
        (
            "UPDATE pg_trigger SET tgenabled = 'D' WHERE tgname = 'retry_job'",
            "needs an INSTEAD OF UPDATE trigger, and its trigger retry_job is disabled",
        ),
        (
            OTHER_VIEW + COLUMNS.replace("error AS last_error,", "") + " FROM theirs.work",
            "control_plane.jobs has no column last_error",
        ),
        (
            OTHER_VIEW + COLUMNS.replace("no AS id", "no::text AS id") + " FROM theirs.work;" + TRIGGER,
            "control_plane.jobs.id is of type text, wanted: bigint",
        ),
        (
            f"{OTHER_VIEW}{COLUMNS} FROM theirs.work UNION ALL SELECT {COLUMNS} FROM theirs.work WHERE no = 7;"
            + TRIGGER,
            "(project_id, id) of control_plane.jobs is not unique: a project has more than one job 7,",
        ),
        ("REVOKE UPDATE ON control_plane.jobs FROM redrive_worker", "no right to update status"),
        ("REVOKE ALL ON theirs.work FROM {owner}", "permission denied for table work"),
        (
            SECURED,
            "security of theirs.work, which control_plane.jobs reads as role {owner}, lets that role see no row",
        ),
    ],
)
async def test_what_a_program_could_not_work_with_is_named(users: Users, change: str, named: str) -> None:
    owner = re.sub(r".*//redrive_owner(_\w+):.*", r"jobs_owner\1", users.owner)
    await run(
        users.admin,
        change.replace("{owner}", owner) + ";"
        "GRANT SELECT ON control_plane.jobs TO redrive_api, redrive_worker"
        + ("" if "REVOKE UPDATE" in change else "; GRANT UPDATE ON control_plane.jobs TO redrive_worker"),
    )

    assert named.replace("{owner}", owner) in (await told(users))[Verdict.FAILED]


MANY: Final = """
INSERT INTO theirs.work (no, queue, state, tries)
SELECT n, 'p' || n % 9, 'dead', 1 FROM generate_series(51, 10100) AS n;
CREATE TABLE theirs.old AS SELECT * FROM theirs.work WHERE no = 7;
"""
OLD_TOO: Final = f"{OTHER_VIEW}{COLUMNS} FROM theirs.work UNION ALL SELECT {COLUMNS} FROM theirs.old; {TRIGGER}"
GRANTED: Final = """
GRANT SELECT ON control_plane.jobs TO redrive_api, redrive_worker;
GRANT UPDATE ON control_plane.jobs TO redrive_worker;
"""


async def test_of_many_jobs_some_are_looked_up_among_all_and_that_not_all_were_is_said(users: Users) -> None:
    assert "is unique" not in (await told(users))[Verdict.NOTE]  # all of fifty jobs were looked at
    await run(users.admin, MANY)
    many = await told(users)
    await run(users.admin, OLD_TOO + GRANTED)
    doubled = await told(users)

    assert many[Verdict.FAILED] == ""
    assert "(project_id, id) of control_plane.jobs is unique was looked at among 10000 jobs" in many[Verdict.NOTE]
    assert "is not unique: a project has more than one job 7," in doubled[Verdict.FAILED]


async def test_that_jobs_could_not_be_compared_in_time_is_said(users: Users) -> None:
    slow = "FROM theirs.work, LATERAL (SELECT pg_sleep(0.2 + 0 * no) OFFSET 0) AS slow"
    await run(users.admin, f"{OTHER_VIEW}{COLUMNS} {slow};{TRIGGER}{GRANTED}")

    (note, *_) = [line for line in (await told(users))[Verdict.NOTE].splitlines() if "is unique" in line]
    assert note.endswith("is unique was not looked at: canceling statement due to statement timeout")


async def test_a_materialized_view_may_have_a_key_and_is_looked_at_without_one(users: Users) -> None:
    async def said() -> str:
        return "\n".join(each.text for each in await looked_at(users.api, "api") if "unique" in each.text)

    made = f"DROP VIEW control_plane.jobs; CREATE MATERIALIZED VIEW control_plane.jobs AS SELECT {COLUMNS}"
    await run(users.admin, f"{MANY} {made} FROM theirs.work; GRANT SELECT ON control_plane.jobs TO redrive_api")
    assert "is unique was looked at among 10000 jobs" in await said()

    await run(users.admin, "CREATE UNIQUE INDEX ON control_plane.jobs (project_id, id)")
    assert await said() == ""


@pytest.mark.parametrize("program", ["api", "worker"])
async def test_a_trigger_is_needed_by_who_takes_retries_as_by_who_settles_them(users: Users, program: str) -> None:
    await run(users.admin, "DROP TRIGGER retry_job ON control_plane.jobs")

    found = await looked_at(users.api if program == "api" else users.worker, program)
    assert [each.text for each in found if each.verdict is Verdict.FAILED] == [
        "database: control_plane.jobs cannot be updated: a view needs an INSTEAD OF UPDATE trigger, and it has none"
    ]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            SECURED + "; CREATE POLICY few ON theirs.work USING (queue <> 'p1')",
            "row-level security of theirs.work, which control_plane.jobs reads as role jobs_owner",
        ),
        ("ALTER FUNCTION control_plane.retry_job() SECURITY INVOKER", "is not SECURITY DEFINER"),
        (
            "ALTER FUNCTION control_plane.retry_job() RESET search_path",
            "sets no search_path; type: ALTER FUNCTION control_plane.retry_job() SET search_path = pg_catalog",
        ),
        (
            "ALTER TABLE theirs.work DROP CONSTRAINT work_pkey",
            "reads all of theirs.work to find one job: no index serves",
        ),
        (
            "ALTER TABLE theirs.work DROP CONSTRAINT work_pkey, ADD PRIMARY KEY (state, no)",
            "reads all of the index work_pkey of theirs.work to find one job: its first column, state,",
        ),
    ],
)
async def test_what_is_slow_or_may_hide_jobs_is_a_warning(users: Users, change: str, named: str) -> None:
    await run(users.admin, change)

    said = await told(users)
    assert named in said[Verdict.WARNING]
    assert said[Verdict.FAILED] == ""


async def test_an_index_that_begins_with_the_project_serves(users: Users) -> None:
    await run(users.admin, "ALTER TABLE theirs.work DROP CONSTRAINT work_pkey, ADD PRIMARY KEY (queue, no)")

    assert (await told(users))[Verdict.WARNING] == ""


async def test_a_policy_that_lets_all_through_hides_nothing(users: Users) -> None:
    await run(
        users.admin,
        SECURED + "; CREATE POLICY every_one ON theirs.work USING (true)",
    )

    said = await told(users)
    assert (said[Verdict.FAILED], said[Verdict.WARNING]) == ("", "")


async def test_lists_without_an_index_in_their_order_are_slow_on_a_large_table(users: Users) -> None:
    await run(users.admin, "UPDATE pg_class SET reltuples = 1000000, relpages = 20000 WHERE relname = 'work'")
    assert "lists of jobs (jobs.page, jobs.page_of_status) read and sort" in (await told(users))[Verdict.WARNING]

    await run(users.admin, "CREATE INDEX ON theirs.work (queue, made, no)")
    await run(users.admin, "UPDATE pg_class SET reltuples = 1000000, relpages = 20000 WHERE relname = 'work'")
    assert "lists of jobs" not in (await told(users))[Verdict.WARNING]


@pytest.mark.parametrize(
    ("tested", "version", "verdict", "named"),
    [
        ("", None, Verdict.OK, "control_plane.jobs is the adapter some-system, tested with 1.2, 2.0"),
        ("; schema version 24 to 26", 25, Verdict.OK, "tested with 1.2, 2.0; its tables have version 25"),
        (
            "; schema version 24 to 26",
            27,
            Verdict.FAILED,
            "that system's tables have version 27, and 24 to 26 was tested",
        ),
        (
            "; schema version 24 to 26",
            23,
            Verdict.FAILED,
            "that system's tables have version 23, and 24 to 26 was tested",
        ),
        ("; schema version 24", 25, Verdict.FAILED, "that system's tables have version 25, and 24 was tested"),
        ("; schema version 24", None, Verdict.FAILED, "that system's tables have version None, and 24 was tested"),
    ],
)
async def test_the_adapter_and_the_version_of_its_system_are_looked_at(
    users: Users, tested: str, version: int | None, verdict: Verdict, named: str
) -> None:
    await run(
        users.admin,
        f"COMMENT ON VIEW control_plane.jobs IS 'redrive adapter some-system; tested with 1.2, 2.0{tested}'",
    )
    if tested:
        await run(
            users.admin,
            "CREATE FUNCTION control_plane.schema_version() RETURNS bigint LANGUAGE sql SECURITY DEFINER"
            f" SET search_path = pg_catalog, pg_temp RETURN {version or 'NULL'}::bigint",
        )

    assert named in (await told(users))[verdict]
