"""The schema, as dbmate files beside this one, and `migrate`, which brings a database up to date with them.

dbmate's own words and file format (`-- migrate:up`), so that a team which has it can run the files itself. What has
been applied stands in `redrive.schema_migrations`.
"""

import asyncio
import os
import shutil
import subprocess
import sysconfig
from importlib import resources
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg

from shared.database import UNUSABLE_URL
from shared.errors import DatabaseUnavailable, RedriveError

TABLE = "redrive.schema_migrations"


class MigrationFailed(RedriveError):
    """A migration did not go through; `str()` is what dbmate said of it. What came before it stays applied."""

    code = "migration-failed"


def folder() -> Path:
    """Where the migrations lie."""
    return Path(str(resources.files(__name__)))


def text() -> str:
    """All migrations, in order, for somebody who wants to read or run them by hand."""
    return "\n".join(f"-- {path.name}\n{path.read_text('utf-8')}" for path in sorted(folder().glob("*.sql")))


def migrate(url: str, *, timeout_s: float = 60) -> None:
    """Bring the database at `url` up to date. Safe to run again, and by several at once: they wait for each other.

    Raises DatabaseUnavailable when the server does not answer, MigrationFailed when it objects.
    """
    program = shutil.which("dbmate", path=sysconfig.get_path("scripts")) or shutil.which("dbmate")
    if program is None:
        raise MigrationFailed("dbmate is not installed beside Python: reinstall redrive")
    command = [
        program, "--env", "DATABASE_URL", "--env-file", os.devnull, "--migrations-dir", str(folder()),
        "--migrations-table", TABLE, "--no-dump-schema", "--migration-lock", "migrate",
    ]  # fmt: skip
    # The URL goes by the environment: arguments can be read by everybody on the machine.
    environment = {"DATABASE_URL": asyncio.run(_url_for_dbmate(url)), "PATH": os.environ.get("PATH", "")}
    try:
        done = subprocess.run(  # noqa: S603 - our own program, our own arguments
            command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DatabaseUnavailable("the migration took too long") from error
    if done.returncode != 0:
        raise MigrationFailed(done.stderr.strip() or done.stdout.strip())


async def _url_for_dbmate(url: str) -> str:
    """`url` with the TLS mode said outright: dbmate's driver insists on TLS where asyncpg only prefers it."""
    try:
        async with asyncio.timeout(10):
            connection = await asyncpg.connect(url)
    except UNUSABLE_URL:
        raise DatabaseUnavailable("the URL cannot be used") from None
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise DatabaseUnavailable(type(error).__name__) from error
    try:
        encrypted = await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    finally:
        await connection.close()
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    query.setdefault("sslmode", "require" if encrypted else "disable")
    return urlunsplit(("postgres", *parts[1:3], urlencode(query), ""))
