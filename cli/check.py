"""Whether a deployment is ready: its settings, its database, its broker. Looks at everything, stops at nothing."""

import difflib
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from typing import Final, Literal
from uuid import UUID

from cli.broker_check import broker_findings
from cli.failures import CommandFailed, line_of
from cli.findings import Finding, Verdict
from shared import migrations
from shared.database import Database, open_database
from shared.errors import DatabaseUnavailable, JobNotFound, SettingsError
from shared.jobs import JobStore
from shared.models import JobId, JobKey, ProjectId
from shared.retries import RetryLedger
from shared.settings import PREFIX, ApiSettings, Settings, WorkerSettings, read, variables
from shared.sql import statements

MANY_JOBS: Final = 100_000
"""From here on it is felt when a statement reads all of a project's jobs."""

# What stands first in an index on the jobs, and what is slow without one.
_INDEXES: Final = {
    ("id",): "every read of a job",
    ("project_id", "created_at", "id"): "lists of jobs",
    ("project_id", "status", "created_at", "id"): "counts, lists and bulk retries of the jobs of one status",
}

Program = Literal["api", "worker"]
_SETTINGS: Final[dict[Program, type[Settings]]] = {"api": ApiSettings, "worker": WorkerSettings}
_ELSEWHERE: Final = ("REDRIVE_TEST_", "REDRIVE_FAILPOINT", "REDRIVE_URL", "REDRIVE_TOKEN")

_SERVICE_LINK: Final = re.compile(
    r"\w+_SERVICE_(?:HOST|PORT(?:_\w+)?)|\w+_PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?", re.ASCII
)


async def findings(program: Program | None) -> AsyncIterator[Finding]:
    """Look at everything that a program needs, or both do, in the order in which things need each other."""
    settings: list[Settings] = []
    for name, kind in _SETTINGS.items():
        if program not in (None, name):
            continue
        try:
            settings.append(read(kind))
            yield Finding(Verdict.OK, f"settings of redrive {name}")
        except SettingsError as error:
            for problem in error.problems:
                yield Finding(Verdict.FAILED, f"settings of redrive {name}: {problem}", of_settings=True)
    for finding in unknown_variables():
        yield finding
    if not settings:
        return
    # The first that could be read: both read the same database and broker from the same variables.
    async for finding in _of_database(settings[0]):
        yield finding
    if settings[0].amqp_url is None:
        yield Finding(Verdict.OK, "broker: none, retries are dispatched through the ledger")
    else:
        programs = tuple(_SETTINGS) if program is None else (program,)
        async for finding in broker_findings(settings[0].amqp_url.get_secret_value(), programs):
            yield finding


def unknown_variables() -> Iterator[Finding]:
    """A warning for each REDRIVE_ variable that nothing reads: a typo leaves the default in force, silently.

    Kubernetes puts variables of its own into a pod beside a Service named `redrive` or `redrive-…`: no typos.
    """
    known = variables(ApiSettings) | variables(WorkerSettings)
    for name in sorted(os.environ):
        if not name.startswith(PREFIX) or name in known or name.startswith(_ELSEWHERE):
            continue
        if not _SERVICE_LINK.fullmatch(name):
            meant = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            hint = f"; did you mean {meant[0]}?" if meant else ""
            yield Finding(Verdict.WARNING, f"{name}: there is no such setting{hint}")


async def _of_database(settings: Settings) -> AsyncIterator[Finding]:
    urls = {"database": settings.database_url}
    if isinstance(settings, ApiSettings) and settings.database_read_url is not None:
        urls["database for reading"] = settings.database_read_url
    for name, url in urls.items():
        async with AsyncExitStack() as opened:
            try:
                database = await opened.enter_async_context(
                    open_database(
                        url.get_secret_value(), program="redrive check", timeout_s=settings.db_timeout, pool_size=1
                    )
                )
                await database.ping()
            except (DatabaseUnavailable, OSError) as error:
                yield Finding(Verdict.FAILED, f"{name}: {line_of(error)}")
                continue
            yield Finding(Verdict.OK, f"{name}: answers")
            for look in (_of_migrations, _of_tables):
                try:
                    yield Finding(Verdict.OK, f"{name}: {await look(database)}")
                except (CommandFailed, DatabaseUnavailable) as error:
                    yield Finding(Verdict.FAILED, f"{name}: {line_of(error)}")
            async for warning in _missing_indexes(database):
                yield Finding(Verdict.WARNING, f"{name}: {warning}")


async def _of_migrations(database: Database) -> str:
    sql = statements("check", "cli")
    wanted = {path.name.partition("_")[0] for path in migrations.folder().glob("*.sql")}
    ((found,),) = await database.fetch(sql["has_migrations"])
    applied = {row["version"] for row in await database.fetch(sql["migrations"])} if found else set()
    if missing := wanted - applied:
        raise CommandFailed(f"{len(missing)} of {len(wanted)} migrations are missing: run `redrive migrate`")
    return f"all {len(wanted)} migrations applied"


async def _of_tables(database: Database) -> str:
    """Read as the programs do: that needs the columns and the rights that they need."""
    jobs = JobStore(database)
    try:
        with suppress(JobNotFound):
            await jobs.get(JobKey(JobId(UUID(int=0)), ProjectId("redrive-check"), with_payload=True))
        await RetryLedger(database, jobs).backlog()
    except DatabaseUnavailable as error:
        raise CommandFailed(f"control_plane.jobs or the ledger cannot be read ({error})") from error
    return "control_plane.jobs and the ledger can be read"


async def _missing_indexes(database: Database) -> AsyncIterator[str]:
    """What reads all of a project's jobs for want of an index, where there are many; the table is not ours to mend."""
    found = await database.fetch(statements("check", "cli")["job_indexes"])
    if not found or found[0]["jobs"] < MANY_JOBS:
        return
    for wanted, slow in _INDEXES.items():
        if not any(tuple(row["columns"][: len(wanted)]) == wanted for row in found):
            yield f"control_plane.jobs has no index on ({', '.join(wanted)}), which is for {slow}"


async def report(program: Program | None, say: Callable[[Finding], None]) -> int:
    """Tell every finding as it comes. The exit status: 2 where settings are wrong, 1 where anything else failed."""
    status = 0
    async for finding in findings(program):
        say(finding)
        if finding.verdict is Verdict.FAILED:
            status = max(status, 2 if finding.of_settings else 1)
    return status
