"""The schema, as dbmate files beside this one, and `migrate`, which brings a database up to date with them.

The files have dbmate's format (`-- migrate:up`), so that a team that has dbmate can run them itself. The applied
versions are in `redrive.schema_migrations`.

dbmate takes fewer URLs than Redrive: one host, and not every `sslmode`. So `migrate` connects first, and starts dbmate
with the URL of the host that answered.
"""

import asyncio
import os
import re
import shutil
import ssl
import subprocess
import sysconfig
from collections.abc import Collection, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlencode

import asyncpg
import structlog

from shared.connections import Connector, words_of
from shared.errors import DatabaseUnavailable, DatabaseUnfit, RedriveError
from shared.postgres_url import Access
from shared.sql import statements

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from shared.connections import Opened
    from shared.database import Database
    from shared.secret import Url

log = structlog.stdlib.get_logger(__name__)

TABLE = "redrive.schema_migrations"
CONNECT_S: Final = 10.0
LOOK_AGAIN_S: Final = 5.0
_SQL: Final = statements("migrations")
_APPLIED: Final = re.compile(r"^Applied: (\S+\.sql)", re.MULTILINE)
_UP: Final = re.compile(r"^-- migrate:up[^\n]*\n(.*?)^-- migrate:down", re.MULTILINE | re.DOTALL)
_BY_HAND: Final = f"""\
-- The schema of Redrive, to be read, or to be run by hand where `redrive migrate` is not: as one transaction,
-- psql --set ON_ERROR_STOP=1 --single-transaction --file THIS_FILE
-- Each migration begins with its name. Where some are applied, keep those that `redrive migrate --check` lists.

CREATE SCHEMA IF NOT EXISTS redrive;
CREATE TABLE IF NOT EXISTS {TABLE} (version varchar NOT NULL PRIMARY KEY);
"""
_PASSED_ON: Final = ("sslcert", "sslkey")


class MigrationFailed(RedriveError):
    """A migration failed; `str()` is dbmate's reason. The migrations before it stay applied."""

    code = "migration-failed"


class MigrationsUnknown(RedriveError):
    """Migrations are applied that come before the newest of this release, and that it does not have.

    No release made this schema, so none can bring it up to date. `str()` says what to do.
    """

    code = "migrations-unknown"


def folder() -> Path:
    """The folder of the migrations."""
    return Path(str(resources.files(__name__)))


def names() -> list[str]:
    """The files of all migrations, in order."""
    return sorted(path.name for path in folder().glob("*.sql"))


def version_of(name: str) -> str:
    """The version of a migration, by the name of its file."""
    return name.partition("_")[0]


def sql_of(name: str) -> str:
    """What a migration runs. It has no way back: dbmate wants a `migrate:down`, and there it is refused."""
    found = _UP.search((folder() / name).read_text("utf-8"))
    if found is None:
        raise MigrationFailed(f"{name} is no migration: reinstall redrive")
    return found[1].strip() + "\n"


def text() -> str:
    """All migrations, in order, as SQL that also records them, so that the programs know what is applied."""
    return "\n".join([_BY_HAND, *(f"-- {name}\n{sql_of(name)}{_record(name)}" for name in names())])


def _record(name: str) -> str:
    return f"INSERT INTO {TABLE} VALUES ('{version_of(name)}');\n"  # noqa: S608 - our own names


def migrate(url: "Url", *, timeout_s: float = 60) -> list[str]:
    """Apply the missing migrations to the database at `url`. Calls at the same time wait for each other.

    Returns the files that were applied, in order. Raises DatabaseUnavailable when the server does not answer,
    MigrationsUnknown when this release does not continue its schema, MigrationFailed when it refuses a migration.
    """
    program = shutil.which("dbmate", path=sysconfig.get_path("scripts")) or shutil.which("dbmate")
    if program is None:
        raise MigrationFailed("dbmate is not installed beside Python: reinstall redrive")
    command = [
        program, "--env", "DATABASE_URL", "--env-file", os.devnull, "--migrations-dir", str(folder()),
        "--migrations-table", TABLE, "--no-dump-schema", "--migration-lock", "migrate",
    ]  # fmt: skip
    environment = asyncio.run(_environment_of_dbmate(url))
    try:
        done = subprocess.run(  # noqa: S603 - our own program, our own arguments
            command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DatabaseUnavailable("the migration took too long") from error
    if done.returncode != 0:
        raise MigrationFailed(done.stderr.strip() or done.stdout.strip())
    return _APPLIED.findall(done.stdout)


async def missing_from(database: "Database") -> list[str]:
    """The files that are not applied, in order. Raises DatabaseUnavailable."""
    return missing_beside(await _applied(database.fetch))


def missing_beside(applied: Collection[str]) -> list[str]:
    """The files whose versions are not applied, in order."""
    return [name for name in names() if version_of(name) not in applied]


def require_known(applied: Collection[str]) -> None:
    """Raise MigrationsUnknown, unless these versions are this release's, or those of a later one."""
    known = [version_of(name) for name in names()]
    if unknown := sorted(version for version in applied if version not in known and version < known[-1]):
        raise MigrationsUnknown(
            f"{TABLE} has {', '.join(unknown)}, of no release; `DROP SCHEMA redrive CASCADE` and `redrive migrate` "
            "begin anew and delete the ledger; docs/deploying.md, Upgrading, says how to keep it"
        )


async def _applied(fetch: "Callable[[str], Awaitable[list[asyncpg.Record]]]") -> set[str]:
    ((is_recorded,),) = await fetch(_SQL["applied_is_recorded"])
    return {row["version"] for row in await fetch(_SQL["applied"])} if is_recorded else set()


def missing(url: "Url") -> list[str]:
    """As `missing_from`, for the database at `url`. Raises MigrationsUnknown, too."""

    async def look() -> list[str]:
        from shared.database import Database  # noqa: PLC0415 - here alone

        async with Database(url, program="redrive migrate", timeout_s=CONNECT_S, pool_size=1).opened() as database:
            applied = await _applied(database.fetch)
            require_known(applied)
            return missing_beside(applied)

    return asyncio.run(look())


class SchemaWatch:
    """Looks for missing migrations until there is none. A program is not ready before."""

    def __init__(self, database: "Database") -> None:
        self._database = database
        self.is_complete = False
        """Whether no migration is missing, or this user may not look."""

    async def run(self) -> None:
        """Log the missing migrations, once, as soon as the database answers; return when none is missing."""
        told = False
        while True:
            try:
                missing = await missing_from(self._database)
            except DatabaseUnfit as error:  # it answers, and this user may not read the table
                log.warning("migrations cannot be looked at", reason=str(error))
                missing = []
            except DatabaseUnavailable:
                await asyncio.sleep(LOOK_AGAIN_S)
                continue
            if not missing:
                self.is_complete = True
                return
            if not told:
                told = True
                log.warning("migrations missing", missing=len(missing), first=missing[0], mend="run `redrive migrate`")
            await asyncio.sleep(LOOK_AGAIN_S)


async def _facts(connection: "asyncpg.Connection[asyncpg.Record]") -> asyncpg.Record:
    """Whether the connection is encrypted, its user and its database."""
    facts: asyncpg.Record
    (facts,) = await connection.fetch(_SQL["facts"])
    return facts


async def _make_schema(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    await connection.execute(_SQL["make_schema"])


async def _environment_of_dbmate(url: "Url") -> dict[str, str]:
    """The environment to start dbmate with. It has the URL, because every user of the machine can read arguments."""
    connector = Connector(
        url, wanted=(Access.READ_WRITE,), timeout_s=CONNECT_S, settings={"application_name": "redrive migrate"}
    )
    opened = await connector.opened(timeout=CONNECT_S)
    try:
        async with asyncio.timeout(CONNECT_S):
            facts = await _facts(opened.connection)
            await _make_schema(opened.connection)
            require_known(await _applied(opened.connection.fetch))
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise DatabaseUnavailable(words_of(error)) from error
    finally:
        opened.connection.terminate()
    environment = {"PATH": os.environ.get("PATH", ""), "DATABASE_URL": _url_for_dbmate(opened, facts)}
    # These lead to passwords that are not in the URL.
    for name in ("HOME", "PGPASSFILE"):
        if value := os.environ.get(name):
            environment[name] = value
    if opened.url.passfile is not None:
        environment["PGPASSFILE"] = opened.url.passfile
    return environment


def _url_for_dbmate(opened: "Opened", facts: asyncpg.Record) -> str:
    host, url = opened.host, opened.url
    password = url.password if url.password is not None else os.environ.get("PGPASSWORD")
    user = quote(url.user or os.environ.get("PGUSER") or facts["user"], safe="")
    login = user if password is None else f"{user}:{quote(password, safe='')}"
    query = {"sslmode": "disable"}
    server = ""
    if host.name.startswith("/"):
        query |= {"host": host.name, "port": str(host.port)}
    else:
        server = f"[{quote(host.name)}]:{host.port}" if ":" in host.name else f"{quote(host.name)}:{host.port}"
        if facts["encrypted"]:
            query = _tls_for_dbmate(url.tls)
    if url.options is not None:
        query["options"] = url.options
    if url.application_name is not None:
        query["application_name"] = url.application_name
    return f"postgres://{login}@{server}/{quote(facts['database'], safe='')}?{urlencode(query, quote_via=quote)}"


def _tls_for_dbmate(tls: Mapping[str, str]) -> dict[str, str]:
    """`sslmode` and its files for dbmate, after a connection with TLS: it does not know `allow` and `prefer`."""
    mode = tls.get("sslmode") or os.environ.get("PGSSLMODE") or "prefer"
    query = {"sslmode": mode if mode.startswith("verify") else "require"}
    root = tls.get("sslrootcert") or os.environ.get("PGSSLROOTCERT")
    if root is None and mode.startswith("verify"):
        root = str(Path.home() / ".postgresql" / "root.crt")
    if root == "system":
        root = ssl.get_default_verify_paths().cafile
    if root is not None:
        query["sslrootcert"] = root
    for name in _PASSED_ON:
        if value := tls.get(name) or os.environ.get(f"PG{name.upper()}"):
            query[name] = value
    return query
