"""Checks a deployment: settings, database, keys, broker. Checks all of it, also after a failure."""

import difflib
import os
import re
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Final, Literal

from api.jwks import fetch_once
from cli.checking.broker import broker_findings
from cli.checking.database import database_findings
from cli.checking.findings import Finding, Verdict
from cli.checking.members import member_findings
from cli.errors import line_of
from shared.database import Database
from shared.errors import DatabaseUnavailable, RedriveError, SettingsError
from shared.settings import PREFIX, ApiSettings, CheckSettings, Settings, WorkerSettings, read, variables

Program = Literal["api", "worker"]
_SETTINGS: Final[dict[Program, type[Settings]]] = {"api": ApiSettings, "worker": WorkerSettings}
_ELSEWHERE: Final = ("REDRIVE_TEST_", "REDRIVE_FAILPOINT", "REDRIVE_URL", "REDRIVE_TOKEN")

_SERVICE_LINK: Final = re.compile(
    r"\w+_SERVICE_(?:HOST|PORT(?:_\w+)?)|\w+_PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?", re.ASCII
)


async def findings(program: Program | None) -> AsyncIterator[Finding]:
    """Look at everything that a program needs, or both do, in the order in which things need each other."""
    settings: list[Settings] = []
    programs = tuple(_SETTINGS) if program is None else (program,)
    for name in programs:
        try:
            settings.append(read(_SETTINGS[name]))
            yield Finding(Verdict.OK, f"settings of redrive {name}")
        except SettingsError as error:
            for finding in _of_settings(name, error):
                yield finding
    own: CheckSettings | None = None
    try:
        own = read(CheckSettings)
    except SettingsError as error:
        for finding in _of_settings("check", error):
            yield finding
    for note in dict.fromkeys(note for each in settings for note in each.notes):
        yield Finding(Verdict.NOTE, note)
    for finding in unknown_variables():
        yield finding
    if settings:
        async for finding in _of_servers(settings, own, programs):
            yield finding


def _of_settings(command: str, error: SettingsError) -> Iterator[Finding]:
    for problem in error.problems:
        yield Finding(Verdict.FAILED, f"settings of redrive {command}: {problem}", of_settings=True)


async def _of_servers(
    settings: Sequence[Settings], own: CheckSettings | None, programs: Collection[str]
) -> AsyncIterator[Finding]:
    """Look at the servers that `settings` name. `own`: those of the check; None where they are wrong."""
    # The first that could be read: both read the same database and broker from the same variables.
    first = settings[0]
    async for finding in _of_database(first, programs):
        yield finding
    for each in settings:
        if isinstance(each, ApiSettings):
            yield await _of_keys(each)
    if first.amqp_url is None:
        yield Finding(Verdict.OK, "broker: none, retries are dispatched through the ledger")
        return
    url = first.amqp_url.get_secret_value()
    answers = False
    async for finding in broker_findings(url, programs):
        answers = answers or finding.verdict is Verdict.OK
        yield finding
    if answers and own is not None:
        management = own.amqp_management_url
        async for finding in member_findings(None if management is None else management.get_secret_value(), url):
            yield finding


def unknown_variables() -> Iterator[Finding]:
    """A warning for each REDRIVE_ variable that nothing reads: with a typo, the default stays in force without a word.

    Kubernetes puts variables of its own into a pod beside a Service named `redrive` or `redrive-…`: no typos.
    """
    known = variables(ApiSettings) | variables(WorkerSettings) | variables(CheckSettings)
    for name in sorted(os.environ):
        if not name.startswith(PREFIX) or name in known or name.startswith(_ELSEWHERE):
            continue
        if not _SERVICE_LINK.fullmatch(name):
            meant = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            hint = f"; did you mean {meant[0]}?" if meant else ""
            yield Finding(Verdict.WARNING, f"{name}: there is no such setting{hint}")


async def _of_database(settings: Settings, programs: Collection[str]) -> AsyncIterator[Finding]:
    urls = {"database": settings.database_url}
    if isinstance(settings, ApiSettings) and settings.database_read_url is not None:
        urls["database for reading"] = settings.database_read_url
    reads_only = isinstance(settings, ApiSettings) and settings.read_only and "worker" not in programs
    for name, url in urls.items():
        writes = name == "database" and not reads_only
        async with AsyncExitStack() as opened:
            try:
                database = await opened.enter_async_context(
                    Database(
                        url.get_secret_value(),
                        program="redrive check",
                        timeout_s=settings.db_timeout,
                        pool_size=1,
                        writes=writes,
                        replica=name != "database",
                        pooled=settings.database_pooled,
                    ).opened()
                )
                await database.ping()
            except (DatabaseUnavailable, OSError) as error:
                yield Finding(Verdict.FAILED, f"{name}: {line_of(error)}")
                continue
            async for finding in database_findings(database, name, programs, writes=writes, job_id=settings.job_id):
                yield finding


async def _of_keys(settings: ApiSettings) -> Finding:
    """Fetch the issuer's keys once; a key in the settings was checked with them."""
    if settings.jwks_url is None:
        return Finding(Verdict.OK, "keys: one, of the settings")
    try:
        found = await fetch_once(settings.jwks_url)
    except RedriveError as error:
        return Finding(Verdict.FAILED, f"keys: REDRIVE_JWKS_URL: {error}")
    return Finding(Verdict.OK, f"keys: REDRIVE_JWKS_URL has {found.usable} that can be used")


async def report(program: Program | None, say: Callable[[Finding], None]) -> int:
    """Call `say` with each finding. The exit status: 2 where settings are wrong, 1 where anything else failed."""
    status = 0
    async for finding in findings(program):
        say(finding)
        if finding.verdict is Verdict.FAILED:
            status = max(status, 2 if finding.of_settings else 1)
    return status
