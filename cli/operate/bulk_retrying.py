"""Bulk retries for `redrive retry`: by ids, or by a filter with a few canaries first."""

# ruff: noqa: PLC0415 - commands import what they need when they run; see cli/main.py

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import typer

from cli.errors import CommandFailed
from cli.operate.batches import show_batch, status_of, wait_until_settled
from cli.operate.connection import asking_for_retries, note, report_refusal
from cli.operate.jobs import note_unknown_type
from cli.operate.tables import print_facts, print_json, print_table, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redrive_client import AcceptedBatch, Batch, BulkDryRun, FailedFilter, Redrive

_PAGE: Final = 50
"""How many jobs to ask for at a time, where the canaries must be picked out of them."""


@dataclass(frozen=True, slots=True)
class RetryOptions:
    """How to retry the jobs that were chosen."""

    reason: str | None
    delay_s: int
    extra_attempts: int | None
    spread_s: int
    maximum: int
    dry_run: bool
    yes: bool
    wait: bool
    timeout_s: float
    as_json: bool
    canaries: int = 0


async def retry_ids(redrive: "Redrive", ids: "Sequence[str]", options: RetryOptions) -> int:
    """Retry these jobs in one batch, and list those that were refused. Returns the exit status."""
    if options.dry_run:
        with asking_for_retries():
            preview = await redrive.preview(ids, extra_attempts=options.extra_attempts)
        _show_dry_run(preview, as_json=options.as_json)
        left_out = preview.matched - preview.retryable
        return report_refusal(f"{left_out} of {len(ids)} jobs would not be retried") if left_out else 0
    with asking_for_retries():
        accepted = await redrive.retry_many(
            ids,
            reason=options.reason,
            delay_seconds=options.delay_s,
            extra_attempts=options.extra_attempts,
            spread_seconds=options.spread_s,
        )
    status = await _follow(redrive, accepted, options)
    if accepted.skipped:
        if not options.as_json:
            typer.echo()
            print_table(("LEFT OUT", "BECAUSE"), [(each.job_id, each.code) for each in accepted.skipped])
        return report_refusal(f"{len(accepted.skipped)} of {len(ids)} jobs were not retried")
    return status


async def retry_matches(redrive: "Redrive", wanted: "FailedFilter", options: RetryOptions) -> int:
    """Print the dry run, ask for confirmation, retry the canaries, then the rest. Returns the exit status.

    A dry run has the status that the retry would have by what is known before it.
    """
    with asking_for_retries():
        preview = await redrive.preview(wanted, extra_attempts=options.extra_attempts)
    _note_a_bounded_search(preview, wanted)
    too_many = _too_many(preview, wanted, options.maximum)
    goes_on = not options.dry_run and preview.retryable > 0 and too_many is None
    if not (goes_on and options.as_json):  # a program gets one document: what was done, or else what would be
        _show_dry_run(preview, as_json=options.as_json)
    if not preview.matched and wanted.type is not None:
        await note_unknown_type(redrive, wanted.type)
    if too_many is not None:
        nothing = "nothing would be retried" if options.dry_run else "nothing was retried"
        return report_refusal(f"the filter matches {too_many} failed jobs, --max is {options.maximum}: {nothing}")
    if preview.matched and not preview.retryable:
        return report_refusal(f"nothing to retry: of {preview.matched} failed jobs, {_left_out(preview)}")
    if options.dry_run:
        return 0
    if not preview.retryable:
        typer.echo("redrive: nothing to retry", err=True)
        return 0
    if not options.yes and not typer.confirm(_question(preview.retryable, options.canaries), err=True):
        if options.as_json:
            _show_dry_run(preview, as_json=True)
        raise CommandFailed("nothing was retried")
    if (
        options.canaries
        and (status := await _lead_with_canaries(redrive, wanted, options, preview.retryable)) is not None
    ):
        return status
    with asking_for_retries():
        accepted = await redrive.retry_many(
            wanted,
            max=options.maximum,
            reason=options.reason,
            delay_seconds=options.delay_s,
            extra_attempts=options.extra_attempts,
            spread_seconds=options.spread_s,
        )
    return await _follow(redrive, accepted, options)


def _too_many(preview: "BulkDryRun", wanted: "FailedFilter", maximum: int) -> str | None:
    """How many jobs match, where these are more than may go back; None where they are not."""
    if preview.truncated and not _is_search(wanted):
        return f"more than {preview.matched}"
    return f"{preview.matched}" if preview.matched > maximum else None


def _note_a_bounded_search(preview: "BulkDryRun", wanted: "FailedFilter") -> None:
    if preview.truncated and _is_search(wanted):
        note("only the newest 10000 failed jobs are looked at; there are more")


def _is_search(wanted: "FailedFilter") -> bool:
    """Whether the API looks at the newest jobs alone, and so finds no more than may go back at once."""
    return (wanted.error_contains, wanted.fingerprint, wanted.retried_fewer_than) != (None, None, None)


def _question(retryable: int, canaries: int) -> str:
    """What to confirm before that many jobs are retried."""
    jobs = f"{retryable} job{'s' * (retryable > 1)}"
    if not canaries:
        return f"Retry {jobs}?"
    if canaries >= retryable:
        return f"Retry {jobs}, all as canaries?"
    return f"Retry {jobs}: {canaries} as canaries first, and the rest only if these complete?"


async def _choose_canaries(redrive: "Redrive", wanted: "FailedFilter", options: RetryOptions) -> list[str]:
    """The newest matches that can be retried, up to `options.canaries`.

    With extra attempts, jobs whose attempts are used up can be retried, too; the API's `retryable` leaves them out.
    """
    from redrive_client import Job, JobStatus, RetryBlock

    extended = options.extra_attempts is not None
    chosen: list[str] = []
    async for job in redrive.list(
        status=JobStatus.FAILED,
        retryable=None if extended else True,
        page_size=_PAGE if extended else options.canaries,
        **{name: getattr(wanted, name) for name in wanted.__struct_fields__},
    ):
        if isinstance(job, Job) and job.retry_blocked_by in (None, RetryBlock.ATTEMPTS_EXHAUSTED):
            chosen.append(job.id)
        if len(chosen) == options.canaries:
            break
    return chosen


async def _lead_with_canaries(
    redrive: "Redrive", wanted: "FailedFilter", options: RetryOptions, retryable: int
) -> int | None:
    """Retry the canaries; an exit status where nothing must be retried after them, or nothing is left to retry."""
    canaries = await _retry_canaries(redrive, wanted, options)
    if isinstance(canaries, int):
        return canaries
    if canaries.accepted < retryable:
        note(f"all canaries are completed ({canaries.accepted}): now the rest")
        return None
    note(f"all canaries are completed ({canaries.accepted}), and there are no other jobs to retry")
    return await _follow(redrive, canaries, options)


async def _retry_canaries(redrive: "Redrive", wanted: "FailedFilter", options: RetryOptions) -> "AcceptedBatch | int":
    """Retry a few of the matches, and wait until they have run.

    Returns their batch once all of them are completed, or the exit status where the rest must not be retried.
    """
    from redrive_client import Job, JobStatus, WaitTimeout

    chosen = await _choose_canaries(redrive, wanted, options)
    if not chosen:
        return report_refusal("no job could be chosen as a canary: nothing was retried")
    with asking_for_retries():
        accepted = await redrive.retry_many(chosen, reason=options.reason, extra_attempts=options.extra_attempts)
    batch = await wait_until_settled(redrive, accepted.batch_id, timeout_s=options.timeout_s)
    if accepted.skipped or batch.applied < len(chosen):
        return report_refusal(
            f"{len(chosen) - batch.applied} of {len(chosen)} canaries were not retried: the rest was not retried"
        )
    try:
        async with asyncio.TaskGroup() as group:
            waiting = [group.create_task(redrive.wait(job_id, timeout_s=options.timeout_s)) for job_id in chosen]
    except* WaitTimeout:
        raise CommandFailed(
            f"the canaries were not done within {options.timeout_s:.0f} s (--timeout): the rest was not retried"
        ) from None
    ended: list[Job] = [task.result() for task in waiting]
    if failed := [job for job in ended if job.status != JobStatus.COMPLETED]:
        first = printable(failed[0].last_error)
        return report_refusal(
            f"{len(failed)} of {len(chosen)} canaries ended {failed[0].status} ({first}): the rest was not retried"
        )
    return accepted


async def _follow(redrive: "Redrive", accepted: "AcceptedBatch", options: RetryOptions) -> int:
    """Print what was accepted and, with --wait, the outcome. Returns the exit status."""
    batch: Batch | None = None
    try:
        if options.wait:
            batch = await wait_until_settled(redrive, accepted.batch_id, timeout_s=options.timeout_s)
    finally:  # print what was accepted, also where waiting fails
        if options.as_json:
            facts = {name: getattr(accepted, name) for name in ("batch_id", "accepted", "skipped")}
            print_json({**facts, "batch": batch})
    if not options.as_json:
        typer.echo(f"accepted {accepted.accepted}, left out {len(accepted.skipped)}: batch {accepted.batch_id}")
        if batch is not None:
            typer.echo()
            await show_batch(redrive, batch, as_json=False)
    return 0 if batch is None else status_of(batch)


def _left_out(preview: "BulkDryRun") -> str:
    """How many matches would not be retried, by the reason; empty where all would be."""
    return ", ".join(f"{count} {code.replace('_', ' ')}" for code, count in preview.skipped.items() if count)


def _show_dry_run(preview: "BulkDryRun", *, as_json: bool) -> None:
    if as_json:
        print_json(preview)
        return
    print_facts(
        [
            ("matched", preview.matched),
            ("retryable", preview.retryable),
            ("left out", _left_out(preview) or None),
            ("such as", ", ".join(str(each) for each in preview.sample[:3]) or None),
        ]
    )
