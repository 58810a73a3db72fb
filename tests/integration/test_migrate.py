"""`redrive migrate`: what it applies, what it says, and what it does not touch."""

import asyncio
import os
import re
import subprocess
from typing import Final

import asyncpg
import pytest

from shared.migrations import TABLE, folder, names, text
from tests.commands import COMMAND, Done, commanded
from tests.compose import ROOT
from tests.logins import program_of_postgres, psql
from tests.tokens import SECRET

_BEFORE_THE_FIRST_RELEASE: Final = ("20261123000001", "20261126000002")


async def execute(database_url: str, *statements: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def checked(database_url: str) -> Done:
    return await commanded("check", DATABASE_URL=database_url, JWT_SECRET=SECRET)


def schema_of(database_url: str) -> list[str]:
    """The schema as pg_dump writes it, with rights and recorded versions; without the lines that are random."""
    dump = [program_of_postgres("pg_dump"), f"--dbname={database_url}"]
    schema, versions = (
        subprocess.run([*dump, *options], capture_output=True, text=True, check=True).stdout
        for options in (["--schema-only"], ["--data-only", "--table=redrive.schema_migrations"])
    )
    return [line for line in (schema + versions).splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]


async def test_migrate_says_what_is_missing_and_what_it_applied(empty_database_url: str) -> None:
    missing = await commanded("migrate", "--check", DATABASE_URL=empty_database_url)
    applied = await commanded("migrate", DATABASE_URL=empty_database_url)
    again = await commanded("migrate", "--check", DATABASE_URL=empty_database_url)

    names = [line.removeprefix("missing ") for line in missing.out.splitlines()]
    assert names
    assert missing.status == 1
    assert missing.err == f"redrive: migrations are missing: {len(names)}; `redrive migrate` applies them\n"
    assert applied.out.splitlines() == [*(f"applied {name}" for name in names), "the database is up to date"]
    assert (again.status, again.out, again.err) == (0, "the database is up to date\n", "")


async def test_migrate_makes_an_empty_database_ready_and_may_be_run_again(empty_database_url: str) -> None:
    before = await checked(empty_database_url)
    assert before.status == 1
    assert re.search(
        r"^failed   database: (\d) of \1 migrations are missing: run `redrive migrate`$", before.out, re.MULTILINE
    )

    for _ in range(2):
        assert (await commanded("migrate", DATABASE_URL=empty_database_url)).status == 0

    assert (await checked(empty_database_url)).status == 0


async def test_the_printed_migrations_run_by_hand_make_what_migrate_makes(
    empty_database_url: str, database_url: str
) -> None:
    await asyncio.to_thread(psql, empty_database_url, text(), {}, "--single-transaction")

    assert schema_of(empty_database_url) == schema_of(database_url)
    assert (await checked(empty_database_url)).status == 0


async def test_of_the_printed_migrations_those_that_are_missing_may_be_run_alone(
    empty_database_url: str, database_url: str
) -> None:
    """As at an upgrade by hand: the database has the first migrations, and another release prints all."""
    printed = text()
    for name in names():
        assert printed.count(f"\n-- {name}\n") == 1
    first_lines = printed.partition(f"-- {names()[0]}\n")[0]
    applied = printed.partition(f"-- {names()[2]}\n")[0]
    await asyncio.to_thread(psql, empty_database_url, applied, {}, "--single-transaction")
    missing = (await commanded("migrate", "--check", DATABASE_URL=empty_database_url)).out.splitlines()
    assert missing == [f"missing {name}" for name in names()[2:]]

    kept = first_lines + printed.removeprefix(applied)
    await asyncio.to_thread(psql, empty_database_url, kept, {}, "--single-transaction")

    assert schema_of(empty_database_url) == schema_of(database_url)
    assert (await checked(empty_database_url)).status == 0


def test_dbmate_cannot_take_a_migration_back(database_url: str) -> None:
    """A team that runs the files with its own dbmate keeps the ledger, whatever it types."""
    before = schema_of(database_url)
    command = [
        str(COMMAND.with_name("dbmate")), "--url", f"{database_url}?sslmode=disable", "--env-file", os.devnull,
        "--migrations-dir", str(folder()), "--migrations-table", TABLE, "--no-dump-schema", "rollback",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode != 0
    assert "migrations of Redrive only go forward" in done.stderr
    assert schema_of(database_url) == before


@pytest.fixture
async def unreleased_url(empty_database_url: str) -> str:
    """A database as a checkout from before the first release made it: the same schema, under other versions."""
    await execute(
        empty_database_url,
        text(),
        "DELETE FROM redrive.schema_migrations",
        *(f"INSERT INTO redrive.schema_migrations VALUES ('{version}')" for version in _BEFORE_THE_FIRST_RELEASE),
    )
    return empty_database_url


async def test_a_schema_that_no_release_made_is_left_alone_and_the_commands_say_what_to_do(unreleased_url: str) -> None:
    before = schema_of(unreleased_url)
    sentence = (
        "redrive.schema_migrations has 20261123000001, 20261126000002, of no release; `DROP SCHEMA redrive CASCADE` "
        "and `redrive migrate` begin anew and delete the ledger; docs/deploying.md, Upgrading, says how to keep it"
    )
    for args in (["migrate"], ["migrate", "--check"]):
        refused = await commanded(*args, DATABASE_URL=unreleased_url)
        assert (refused.status, refused.out) == (1, "")
        assert refused.err == f"redrive: this release does not continue the schema of the database ({sentence})\n"

    assert f"failed   database: {sentence}\n" in (await checked(unreleased_url)).out
    assert schema_of(unreleased_url) == before


async def test_a_schema_that_no_release_made_goes_on_after_the_documented_statements(unreleased_url: str) -> None:
    documented = (ROOT / "docs" / "deploying.md").read_text("utf-8")
    block = r"^```sql\n(BEGIN;\nDELETE FROM redrive\.schema_migrations;.*?)^```"
    (statements,) = re.findall(block, documented, re.MULTILINE | re.DOTALL)

    await execute(unreleased_url, statements)

    assert (await commanded("migrate", DATABASE_URL=unreleased_url)).status == 0
    assert (await checked(unreleased_url)).status == 0


async def test_a_schema_of_a_later_release_is_up_to_date(database_url: str) -> None:
    await execute(database_url, "INSERT INTO redrive.schema_migrations VALUES ('99991231235959')")

    for args in (["migrate"], ["migrate", "--check"]):
        done = await commanded(*args, DATABASE_URL=database_url)
        assert (done.status, done.out, done.err) == (0, "the database is up to date\n", "")
    assert (await checked(database_url)).status == 0
