"""`redrive jobs`: counts, lists and shows jobs, and waits for one."""

# ruff: noqa: PLC0415 - commands import what they need when they run; see cli/main.py

import asyncio
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from cli.errors import CommandFailed
from cli.operate.connection import ask, note, note_empty
from cli.operate.filters import duration_of, fingerprint_of, job_id_of, time_of
from cli.operate.options import (
    LOCAL,
    AsJson,
    CreatedAfter,
    CreatedBefore,
    Limit,
    Timeout,
    TokenFile,
    Type,
    Url,
    text_up_to,
)
from cli.operate.tables import lines_of, print_facts, print_json, print_table, printable, time_text
from shared.bounds import MAX_FILTER, MAX_STATUS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from redrive_client import Job, Redrive, StatusStats, UnreadableJob

app = typer.Typer(name="jobs", help="Count, list and get jobs.", no_args_is_help=True)

_STATUSES = ("pending", "running", "failed", "completed", "other")
_COLUMNS = ("ID", "TYPE", "STATUS", "TRIES", "CREATED", "ERROR")
_WATCHED_EVERY_S = 2.0
_HOME_AND_CLEAR = "\x1b[H\x1b[2J"
JobId = Annotated[str, typer.Argument(help="A job's id.", metavar="ID", show_default=False)]


@app.command()
def stats(
    *,
    type_: Type = None,
    url: Url = LOCAL,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Count the project's jobs by status."""

    async def work(redrive: "Redrive") -> None:
        found = await redrive.stats(type=type_)
        if type_ is not None and not any(getattr(found, name).count for name in _STATUSES):
            await note_unknown_type(redrive, type_)
        if as_json:
            print_json(found)
            return
        rows = [
            (name, _count(each), time_text(each.oldest_at), *_failed_counts(each))
            for name in _STATUSES
            for each in (getattr(found, name),)
        ]
        print_table(("STATUS", "JOBS", "OLDEST", "RETRYABLE", "EXHAUSTED"), rows)

    ask(url, token_file, work)


def _count(stats: "StatusStats") -> str:
    return f"{stats.count}{'+' if stats.capped else ''}"


def _failed_counts(stats: "StatusStats") -> tuple[object, object]:
    return ("", "") if stats.retryable is None else (stats.retryable, stats.exhausted)


@app.command("list")
def list_(
    *,
    status: Annotated[
        str | None,
        typer.Option(
            callback=text_up_to(MAX_STATUS),
            help="pending, running, failed, completed, or another word that the table has.",
        ),
    ] = None,
    type_: Type = None,
    created_after: CreatedAfter = None,
    created_before: CreatedBefore = None,
    fingerprint: Annotated[
        str | None, typer.Option(help="Only failed jobs of this group of `redrive failures`.")
    ] = None,
    error_contains: Annotated[
        str | None,
        typer.Option(callback=text_up_to(MAX_FILTER), help="Only failed jobs with this text in their error."),
    ] = None,
    limit: Limit = 20,
    watch: Annotated[bool, typer.Option("--watch", help="Show them anew every two seconds, until Ctrl-C.")] = False,
    url: Url = LOCAL,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """List the newest jobs, with the errors of those that failed."""
    from redrive_client import JobStatus

    after, before = time_of(created_after), time_of(created_before)
    status = _status_for(status, fingerprint=fingerprint_of(fingerprint), error_contains=error_contains)
    if watch and (as_json or not sys.stdout.isatty()):
        raise typer.BadParameter("--watch is for a terminal, and without --json")

    def chosen(redrive: "Redrive") -> "AsyncIterator[Job | UnreadableJob]":
        return redrive.list(
            status=status,
            type=type_,
            created_after=after,
            created_before=before,
            error_contains=error_contains,
            fingerprint=fingerprint,
            page_size=min(limit, 200),
        )

    options = {
        "--status": status,
        "--type": type_,
        "--created-after": created_after,
        "--created-before": created_before,
        "--fingerprint": fingerprint,
        "--error-contains": error_contains,
    }

    async def show(redrive: "Redrive", rows: list[tuple[object, ...]]) -> None:
        print_table(_COLUMNS, rows, wide="ERROR")
        if not rows:
            await note_empty(redrive, "jobs", options)

    async def work(redrive: "Redrive") -> None:
        while watch:
            rows = await _rows_of(chosen(redrive), limit)
            sys.stdout.write(_HOME_AND_CLEAR)  # typer.echo would remove it where no colours are wanted
            typer.echo(f"{time_text(datetime.now(UTC))}, every {_WATCHED_EVERY_S:.0f} s\n")
            await show(redrive, rows)
            await asyncio.sleep(_WATCHED_EVERY_S)
        rows = await _rows_of(chosen(redrive), limit, as_json=as_json)
        if not as_json:
            await show(redrive, rows)
        if not rows and status is not None and status not in list(JobStatus):
            note(f"no job of these has the status '{printable(status)}'")
        if not rows and type_ is not None:
            await note_unknown_type(redrive, type_)

    with _ended_by_ctrl_c(watch=watch):
        ask(url, token_file, work)


@contextmanager
def _ended_by_ctrl_c(*, watch: bool) -> "Iterator[None]":
    """Let a watch end in order at Ctrl-C, with the shell's prompt on a line of its own."""
    try:
        yield
    except KeyboardInterrupt:
        if not watch:
            raise
        typer.echo()


def _status_for(status: str | None, *, fingerprint: str | None, error_contains: str | None) -> str | None:
    """The status to list: `failed` where jobs are chosen by their error. Raises typer.BadParameter for another then."""
    if fingerprint is None and error_contains is None:
        return status
    if status not in (None, "failed"):
        raise typer.BadParameter("--fingerprint and --error-contains are for failed jobs")
    return "failed"


async def _rows_of(
    jobs: "AsyncIterator[Job | UnreadableJob]", limit: int, *, as_json: bool = False
) -> list[tuple[object, ...]]:
    """Up to `limit` jobs as rows under _COLUMNS; each is printed, too, where JSON is wanted."""
    rows: list[tuple[object, ...]] = []
    async for job in jobs:
        if as_json:
            print_json(job)
        rows.append(_listed(job))
        if len(rows) == limit:
            break
    return rows


@app.command()
def get(
    job_id: JobId,
    *,
    payload: Annotated[bool, typer.Option("--payload", help="Show what the job works on, too.")] = False,
    url: Url = LOCAL,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Show one job."""
    wanted = job_id_of(job_id)

    async def work(redrive: "Redrive") -> None:
        _show(await redrive.get(wanted, include_payload=payload), as_json=as_json)

    ask(url, token_file, work, scopes="jobs:read jobs:payload" if payload else "jobs:read")


@app.command()
def wait(
    job_id: JobId,
    *,
    timeout: Timeout = "5m",
    url: Url = LOCAL,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Wait until a job is done, and show it. Status 1 if it is not completed then, or not done in time."""
    from rich.console import Console

    from redrive_client import JobStatus, WaitTimeout

    wanted, timeout_s = job_id_of(job_id), duration_of(timeout).total_seconds()

    async def work(redrive: "Redrive") -> None:
        try:
            with Console(stderr=True).status("waiting"):
                job = await redrive.wait(wanted, timeout_s=timeout_s)
        except WaitTimeout as error:
            last = "" if error.last is None else f": it is {error.last.status}"
            raise CommandFailed(f"the job was not done within {timeout}{last}") from error
        _show(job, as_json=as_json)
        if job.status is JobStatus.FAILED:
            raise CommandFailed(f"the job has failed: {printable(job.last_error)}")
        if job.status is not JobStatus.COMPLETED:
            raise CommandFailed(f"the job has ended: it is {printable(job.status)}")

    ask(url, token_file, work)


async def note_unknown_type(redrive: "Redrive", type_: str) -> None:
    """Print a note where the project has no job of the type at all: most often it is misspelt."""
    async for _ in redrive.list(type=type_, page_size=1):
        return
    note(f"the project has no job of type {printable(type_)!r} in any status")


def _listed(job: "Job | UnreadableJob") -> tuple[object, ...]:
    from redrive_client import UnreadableJob

    if isinstance(job, UnreadableJob):
        return (job.id, "-", "unreadable", "-", "-", "the server cannot show this row of the table")
    return (job.id, job.type, job.status, _attempts(job), time_text(job.created_at), job.last_error or "")


def _attempts(job: "Job") -> str:
    return f"{job.attempts}/{job.max_attempts}"


def _show(job: "Job", *, as_json: bool) -> None:
    if as_json:
        print_json(job)
        return
    retry = "yes" if job.retryable else f"no: {job.retry_blocked_by}"
    pending = (
        None if job.pending_retry is None else f"{job.pending_retry.id} ({time_text(job.pending_retry.requested_at)})"
    )
    print_facts(
        [
            ("id", job.id),
            ("type", job.type),
            ("status", job.status),
            ("attempts", _attempts(job)),
            (
                "error",
                None if job.last_error is None else lines_of(f"{job.last_error}{' …' * job.last_error_truncated}"),
            ),
            ("created", time_text(job.created_at)),
            ("scheduled", time_text(job.scheduled_at)),
            ("started", time_text(job.started_at)),
            ("completed", time_text(job.completed_at)),
            ("retryable", retry),
            ("retry queued", pending),
        ]
    )
    if job.payload is not None:
        typer.echo("payload       ", nl=False)
        print_json(job.payload)
