"""`redrive check` in a database: it fails for each thing that a program lacks there, and names it."""

from typing import Final
from urllib.parse import urlsplit

import asyncpg
import pytest

from cli.checking.database import database_findings, statements_of
from cli.checking.findings import Finding, Verdict, wrapped
from shared.database import Database
from shared.relation import UPDATED
from shared.sql import statements
from tests.commands import commanded
from tests.logins import Users

_COLUMNS: Final = (
    *("id", "project_id", "type", "payload", "status", "attempts", "max_attempts", "last_error"),
    *("scheduled_at", "started_at", "completed_at", "created_at"),
)
_OF_JOBS: Final[dict[str, list[tuple[str, str]]]] = {
    "api": [("SELECT", name) for name in (*_COLUMNS, "xmin")],
    "worker": [("SELECT", name) for name in _COLUMNS] + [("UPDATE", name) for name in UPDATED],
}
_OF_LEDGER: Final[dict[str, list[tuple[str, tuple[str, ...]]]]] = {
    "api": [
        ("redrive.retry_requests", ("SELECT", "INSERT", "UPDATE")),
        ("redrive.idempotency_keys", ("SELECT", "INSERT", "UPDATE")),
        ("redrive.retry_batches", ("SELECT", "INSERT")),
    ],
    "worker": [("redrive.retry_requests", ("SELECT", "INSERT", "UPDATE"))],
}


async def run(url: str, sql: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def looked_at(program: str, url: str, *, writes: bool = True) -> list[Finding]:
    async with Database(url, program="test", timeout_s=2, pool_size=1, writes=writes).opened() as database:
        return [each async for each in database_findings(database, "database", [program], writes=writes)]


async def failures(program: str, url: str, *, writes: bool = True) -> str:
    """What failed, a line each; empty where the program can do its work."""
    found = await looked_at(program, url, writes=writes)
    return "\n".join(each.text for each in found if each.verdict is Verdict.FAILED)


@pytest.mark.parametrize("program", ["api", "worker"])
async def test_each_right_that_is_missing_is_named_with_its_grant(program: str, users: Users) -> None:
    url, role = getattr(users, program), f"redrive_{program}"
    assert await failures(program, url) == ""
    for right, column in _OF_JOBS[program]:
        everything = ", ".join(name for kind, name in _OF_JOBS[program] if kind == right)
        await run(users.admin, f"REVOKE {right} ON control_plane.jobs FROM {role}")
        rest = ", ".join(name for kind, name in _OF_JOBS[program] if kind == right and name != column)
        await run(users.admin, f"REVOKE {right} ({everything}) ON control_plane.jobs FROM {role}")
        await run(users.admin, f"GRANT {right} ({rest}) ON control_plane.jobs TO {role}")
        verb = "read" if right == "SELECT" else "update"
        assert f"no right to {verb} {column} of control_plane.jobs; type: GRANT {right}" in await failures(program, url)
        await run(users.admin, f"GRANT {right} ({everything}) ON control_plane.jobs TO {role}")
    await run(users.admin, f"GRANT SELECT ON control_plane.jobs TO {role}")
    for table, rights in _OF_LEDGER[program]:
        for right in rights:
            await run(users.admin, f"REVOKE {right} ON {table} FROM {role}")
            assert f"no right to {right} on {table}; type: GRANT {right} ON {table} TO" in await failures(program, url)
            await run(users.admin, f"GRANT {right} ON {table} TO {role}")
    for schema in ("control_plane", "redrive"):
        await run(users.admin, f"REVOKE USAGE ON SCHEMA {schema} FROM {role}")
        assert f"type: GRANT USAGE ON SCHEMA {schema} TO" in await failures(program, url)
        await run(users.admin, f"GRANT USAGE ON SCHEMA {schema} TO {role}")
    assert await failures(program, url) == ""


@pytest.mark.parametrize("function", ["error_text(text)", "fingerprint(text, text)"])
@pytest.mark.parametrize("writes", [True, False])
async def test_a_function_that_an_api_may_not_call_is_named_also_where_it_only_reads(
    users: Users, function: str, *, writes: bool
) -> None:
    assert await failures("api", users.api, writes=writes) == ""
    await run(users.admin, f"REVOKE EXECUTE ON FUNCTION redrive.{function} FROM redrive_api")

    name = function.partition("(")[0]
    assert f"cannot run: permission denied for function {name}" in await failures("api", users.api, writes=writes)


async def test_a_grant_that_it_names_is_the_one_that_mends(users: Users) -> None:
    await run(users.admin, "REVOKE UPDATE (status) ON control_plane.jobs FROM redrive_worker")
    grant = (await failures("worker", users.worker)).partition("type: ")[2]
    await run(users.admin, grant)

    assert await failures("worker", users.worker) == ""


async def test_rights_column_by_column_are_enough_and_the_one_that_is_missing_is_granted_alone(users: Users) -> None:
    await run(users.admin, "REVOKE SELECT ON control_plane.jobs FROM redrive_api")
    await run(users.admin, f"GRANT SELECT ({', '.join(_COLUMNS)}) ON control_plane.jobs TO redrive_api")
    failed = await failures("api", users.api)
    grant = failed.partition("type: ")[2]
    assert "no right to read xmin of control_plane.jobs" in failed
    assert grant.startswith("GRANT SELECT (xmin) ON control_plane.jobs TO")
    await run(users.admin, grant)

    assert await failures("api", users.api) == ""


async def insert_job(url: str) -> None:
    """Insert a job, and have the server count it."""
    await run(url, "INSERT INTO control_plane.jobs (project_id, type) VALUES ('p1', 'email')")
    await run(url, "ANALYZE control_plane.jobs")


@pytest.mark.parametrize(
    ("policies", "told"),
    [
        (["one ON control_plane.jobs USING (1 = 0)"], "policy one hides them; type: CREATE POLICY redrive_select"),
        (
            ["one ON control_plane.jobs USING (project_id = current_setting('app.project', true))"],
            "policy one hides them; type: CREATE POLICY redrive_select",
        ),
        (
            ["one ON control_plane.jobs USING (true)", "two ON control_plane.jobs AS RESTRICTIVE USING (1 = 0)"],
            "policy two hides them; a restrictive policy holds whatever others permit: let two be true for this role",
        ),
    ],
)
async def test_policies_that_hide_every_row_of_a_table_with_rows_fail_with_what_to_do(
    users: Users, policies: list[str], told: str
) -> None:
    await run(users.admin, "ALTER TABLE control_plane.jobs ENABLE ROW LEVEL SECURITY")
    for policy in policies:
        await run(users.admin, f"CREATE POLICY {policy}")
    assert await failures("api", users.api) == ""  # there is no row to hide

    await insert_job(users.admin)
    failed = await failures("api", users.api)

    assert "SELECT no row, though it has some: " in failed
    assert told in failed
    if "type: " in failed:
        await run(users.admin, failed.partition("type: ")[2])
        assert await failures("api", users.api) == ""


async def test_a_policy_that_shows_some_rows_is_a_warning(users: Users) -> None:
    await run(users.admin, "ALTER TABLE control_plane.jobs ENABLE ROW LEVEL SECURITY")
    await run(users.admin, "CREATE POLICY one ON control_plane.jobs USING (project_id = 'p1')")
    await insert_job(users.admin)

    assert await failures("api", users.api) == ""


def a_view(column: str, expression: str) -> str:
    """Statements that put a view in place of the jobs table, with an expression of the owner's for a column."""
    columns = ", ".join(f"{expression} AS {name}" if name == column else name for name in _COLUMNS)
    return f"""
        ALTER TABLE control_plane.jobs RENAME TO all_jobs;
        INSERT INTO control_plane.all_jobs (project_id, type) VALUES ('p1', 'email');
        CREATE VIEW control_plane.jobs AS SELECT {columns} FROM control_plane.all_jobs;
        GRANT SELECT ON control_plane.jobs TO redrive_api;
        """


@pytest.mark.parametrize(
    ("column", "expression", "verdict"),
    [
        ("id", "type::uuid", Verdict.FAILED),
        ("created_at", "type::timestamptz", Verdict.FAILED),
        ("status", "(type::int)::text", Verdict.WARNING),
        ("max_attempts", "type::int", Verdict.WARNING),
        ("last_error", "(type::int)::text", Verdict.WARNING),
    ],
)
async def test_a_column_that_a_view_cannot_compute_is_named_in_the_server_s_words(
    users: Users, column: str, expression: str, verdict: Verdict
) -> None:
    await run(users.admin, a_view(column, expression))

    (told,) = [each for each in await looked_at("api", users.api) if "cannot be read of some rows" in each.text]

    assert told.verdict is verdict
    assert f"control_plane.jobs.{column} cannot be read of some rows: " in told.text
    assert '"email"' in told.text


async def test_row_security_that_hides_rows_is_named_for_each_command(users: Users) -> None:
    await run(users.admin, "ALTER TABLE control_plane.jobs ENABLE ROW LEVEL SECURITY")
    hidden = await failures("worker", users.worker)
    assert "row-level security of control_plane.jobs" in hidden
    for command in ("SELECT", "UPDATE"):
        assert f"{command} no row; type: CREATE POLICY" in hidden

    for line in hidden.splitlines():
        await run(users.admin, line.partition("type: ")[2])
    assert await failures("worker", users.worker) == ""

    await run(users.admin, "CREATE POLICY of_one ON control_plane.jobs FOR SELECT USING (project_id = 'p1')")
    assert await failures("worker", users.worker) == ""
    (warning,) = [each for each in await looked_at("worker", users.worker) if each.verdict is Verdict.WARNING]
    assert "may keep rows from role" in warning.text


@pytest.mark.parametrize(
    ("policies", "commands"),
    [
        (["one ON control_plane.jobs USING (false)"], {"SELECT", "UPDATE"}),
        (
            ["one ON control_plane.jobs USING (true)", "two ON control_plane.jobs AS RESTRICTIVE USING (false)"],
            {"SELECT", "UPDATE"},
        ),
        (["one ON control_plane.jobs USING (true) WITH CHECK (false)"], {"UPDATE"}),
        (["one ON control_plane.jobs USING (true)", "two ON control_plane.jobs USING (false)"], set()),
    ],
)
async def test_policies_that_are_never_true_fail(users: Users, policies: list[str], commands: set[str]) -> None:
    await run(users.admin, "ALTER TABLE control_plane.jobs ENABLE ROW LEVEL SECURITY")
    for policy in policies:
        await run(users.admin, f"CREATE POLICY {policy}")

    failed = await failures("worker", users.worker)

    assert {command for command in ("SELECT", "UPDATE") if f"{command} no row: policy" in failed} == commands
    assert len(failed.splitlines()) == len(commands)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("ALTER TABLE control_plane.jobs ALTER last_error SET NOT NULL", "jobs.last_error is NOT NULL"),
        ("ALTER TABLE control_plane.jobs ALTER started_at SET NOT NULL", "jobs.started_at is NOT NULL"),
        ("ALTER TABLE control_plane.jobs ALTER completed_at SET NOT NULL", "jobs.completed_at is NOT NULL"),
        (
            "CREATE DOMAIN told AS text NOT NULL; ALTER TABLE control_plane.jobs ALTER last_error TYPE told",
            "jobs.last_error is NOT NULL",
        ),
        ("ALTER TABLE control_plane.jobs ADD CHECK (status <> 'pending')", "status cannot be 'pending'"),
        (
            """CREATE DOMAIN state AS text CHECK (VALUE <> 'pending');
            ALTER TABLE control_plane.jobs ALTER status DROP DEFAULT, ALTER status TYPE state""",
            "status cannot be 'pending'",
        ),
    ],
)
async def test_a_table_that_cannot_hold_what_a_retry_writes_fails_the_worker_alone(
    database_url: str, change: str, said: str
) -> None:
    await run(database_url, change)

    assert said in await failures("worker", database_url)
    assert await failures("api", database_url) == ""


async def test_an_enum_without_a_status_is_told_in_the_server_s_words(database_url: str) -> None:
    await run(
        database_url,
        """CREATE TYPE state AS ENUM ('failed', 'running', 'completed'); DROP INDEX control_plane.jobs_pending_idx;
        ALTER TABLE control_plane.jobs DROP CONSTRAINT jobs_status_check, ALTER status DROP DEFAULT,
        ALTER status TYPE state USING status::state""",
    )

    assert "status cannot be 'pending'" in await failures("worker", database_url)
    # A trigger that may rewrite rows leaves it to the statements.
    await run(
        database_url,
        """CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
        CREATE TRIGGER keep BEFORE UPDATE ON control_plane.jobs FOR EACH ROW EXECUTE FUNCTION keep()""",
    )
    assert 'cannot run: invalid input value for enum state: "pending"' in await failures("worker", database_url)


async def test_a_trigger_that_may_fill_a_column_makes_not_null_a_warning(database_url: str) -> None:
    await run(
        database_url,
        "CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " NEW.last_error := coalesce(NEW.last_error, ''); RETURN NEW; END $$;"
        "CREATE TRIGGER fill BEFORE UPDATE ON control_plane.jobs FOR EACH ROW EXECUTE FUNCTION fill();"
        "ALTER TABLE control_plane.jobs ALTER last_error SET NOT NULL",
    )

    assert await failures("worker", database_url) == ""
    warned = [each.text for each in await looked_at("worker", database_url) if each.verdict is Verdict.WARNING]
    assert any("last_error is NOT NULL" in text for text in warned)


async def test_a_payload_of_a_domain_over_jsonb_serves(database_url: str) -> None:
    await run(
        database_url,
        "CREATE DOMAIN body AS jsonb; CREATE DOMAIN small AS body;"
        "ALTER TABLE control_plane.jobs ALTER payload DROP DEFAULT, ALTER payload TYPE small",
    )

    assert await failures("api", database_url) == ""


async def test_a_missing_cursor_key_fails_the_api_until_the_named_statement_ran(users: Users) -> None:
    await run(users.admin, "DELETE FROM redrive.cursor_key")
    failed = await failures("api", users.api)
    assert "redrive.cursor_key is empty" in failed
    assert await failures("worker", users.worker) == ""

    await run(users.admin, failed.partition("type: ")[2])
    assert await failures("api", users.api) == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("DROP COLUMN last_error CASCADE", "control_plane.jobs has no column last_error"),
        ("DROP CONSTRAINT jobs_pkey", "neither (id) nor (project_id, id) of control_plane.jobs is unique"),
        (
            "DROP CONSTRAINT jobs_attempts_within_max, ALTER attempts DROP DEFAULT, ALTER attempts TYPE text",
            "attempts is of type text, wanted: integer",
        ),
        ("ALTER created_at DROP DEFAULT, ALTER created_at TYPE text", "created_at is of type text, wanted: timestamp"),
        ("ALTER payload DROP DEFAULT, ALTER payload TYPE bytea USING NULL", "payload is of type bytea, wanted: jsonb"),
        ("ALTER id DROP DEFAULT, ALTER id TYPE text", "control_plane.jobs.id is of type text, wanted: uuid"),
    ],
)
async def test_a_table_that_statements_do_not_fit_is_told_by_column(database_url: str, change: str, said: str) -> None:
    await run(database_url, f"ALTER TABLE control_plane.jobs {change}")

    assert said in await failures("api", database_url)


async def test_a_key_of_project_and_id_is_enough(database_url: str) -> None:
    await run(
        database_url, "ALTER TABLE control_plane.jobs DROP CONSTRAINT jobs_pkey, ADD PRIMARY KEY (project_id, id)"
    )

    assert await failures("api", database_url) == ""


async def test_a_key_does_not_hold_for_tables_that_inherit(database_url: str) -> None:
    await run(
        database_url,
        "CREATE TABLE control_plane.old_jobs () INHERITS (control_plane.jobs);"
        "INSERT INTO control_plane.jobs (project_id, type) VALUES ('p1', 'email')",
    )
    assert await failures("api", database_url) == ""
    await run(database_url, "INSERT INTO control_plane.old_jobs SELECT * FROM ONLY control_plane.jobs")

    assert "(project_id, id) of control_plane.jobs is not unique" in await failures("api", database_url)


async def test_types_that_serve_as_well_are_no_failure(database_url: str) -> None:
    await run(database_url, "ALTER TABLE control_plane.jobs ALTER attempts TYPE numeric, ALTER type TYPE varchar(20)")

    assert await failures("api", database_url) == ""


async def test_a_database_that_takes_no_writes_is_one_that_cannot_be_worked_with(users: Users) -> None:
    user = urlsplit(users.worker).username
    await run(users.admin, f'ALTER ROLE "{user}" SET default_transaction_read_only = on')

    (failed,) = (await failures("worker", users.worker)).splitlines()
    assert "read-only" in failed


async def test_keys_that_cannot_be_fetched_fail_the_api_alone(database_url: str) -> None:
    settings = {"DATABASE_URL": database_url, "JWKS_URL": "http://127.0.0.1:1/jwks"}
    api, worker = [await commanded("check", program, **settings) for program in ("api", "worker")]

    assert (api.status, worker.status) == (1, 0)
    assert "failed   keys: REDRIVE_JWKS_URL: " in api.out


def test_every_statement_is_some_program_s() -> None:
    known = statements_of(("api", "worker"), writes=True)
    read = statements_of(("api",), writes=False)

    for file in ("batches", "idempotency", "retries", "outbox", "settlement", "dead_letters"):
        assert {f"{file}.{name}" for name in statements(file)} <= known.keys()
    for file in ("jobs", "failed", "rows", "overview"):
        assert {f"{file}.{name}" for name in statements(file)} <= known.keys() & read.keys()


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_a_finding_is_folded_to_the_terminal_and_whole_in_a_pipe(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = (
        "no right to update status of control_plane.jobs; type: GRANT UPDATE (status) ON control_plane.jobs TO x; " * 3
    )

    assert wrapped(text, is_terminal=False) == text
    lines = f"failed   {wrapped(text, is_terminal=True)}".splitlines()
    assert max(map(len, lines)) <= columns
    assert all(line.startswith(" " * 9) for line in lines[1:])
