"""`redrive retry`: retries one failed job or thousands, and shows the outcome."""

# ruff: noqa: PLC0415 - commands import what they need when they run; see cli/main.py

from typing import TYPE_CHECKING, Annotated, Final

import typer

from cli.errors import CommandFailed
from cli.operate.bulk_retrying import RetryOptions, retry_ids, retry_matches
from cli.operate.connection import ask, is_terminal, line_of_refusal, note, report_refusal
from cli.operate.filters import FIELDS, duration_of, failed_filter_of, job_id_of
from cli.operate.options import LOCAL, AsJson, DryRun, TokenFile, Url, Yes
from cli.operate.retries import show_retry
from cli.operate.tables import print_json, printable

if TYPE_CHECKING:
    from redrive_client import Redrive, Retry

MAX_IDS: Final = 1000
DEFAULT_MAX: Final = 1000
# What lists have as options of their own: found by who tries them here, and told what to type.
_ELSEWHERE: Final = tuple(f"--{field.replace('_', '-')}" for field in FIELDS if field != "fingerprint")


def retry(
    job_ids: Annotated[list[str] | None, typer.Argument(help="Jobs' ids.", metavar="ID", show_default=False)] = None,
    *,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help="Which failed jobs: NAME=VALUE, comma between several; the names are above.",
            metavar="NAME=VALUE,…",
        ),
    ] = None,
    fingerprint: Annotated[
        str | None, typer.Option(help="The failed jobs of this group of `redrive failures`; as --filter fingerprint=….")
    ] = None,
    elsewhere: Annotated[str | None, typer.Option(*_ELSEWHERE, hidden=True)] = None,
    canary: Annotated[
        int,
        typer.Option(
            "--canary",
            min=0,
            max=100,
            help="With a filter: retry so many first, and the rest only if none of these has failed again.",
            show_default="none",
        ),
    ] = 0,
    maximum: Annotated[
        int, typer.Option("--max", min=1, max=10_000, help="With --filter: how many at most, or none at all.")
    ] = DEFAULT_MAX,
    reason: Annotated[
        str | None, typer.Option(help="Why, for the audit trail; required with --filter or --fingerprint.")
    ] = None,
    delay: Annotated[
        str,
        typer.Option(
            help="Let the jobs run only after so long: 90s, 5m. The retry is applied at once all the same, and can "
            "then not be cancelled."
        ),
    ] = "0",
    extra_attempts: Annotated[
        int | None, typer.Option(min=1, max=10, help="Raise each job's cap so that so many attempts are left.")
    ] = None,
    spread: Annotated[str, typer.Option(help="Spread the jobs' times at random over so long.")] = "0",
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the retries are settled.")] = True,
    timeout: Annotated[str, typer.Option(help="Wait for so long: 90s, 5m.")] = "1m",
    url: Url = LOCAL,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Put failed jobs back in line: these, or all that a filter matches.

    --filter takes type=TYPE, created_after=TIME, created_before=TIME, error_contains=TEXT, fingerprint=FINGERPRINT and
    retried_fewer_than=TIMES/DURATION, such as --filter type=email,created_after=3h,retried_fewer_than=3/24h. A TIME is
    2026-11-23T04:00:00Z, or 3h for three hours ago.

    A filter first shows what would happen, and asks. The worker checks an accepted retry again when it applies it.
    Status 3: at least one was refused, or ended rejected.
    """
    if elsewhere is not None:
        raise typer.BadParameter(
            f"{', '.join(_ELSEWHERE)} are no options here: put them into --filter, such as "
            "--filter type=email,created_after=3h"
        )
    ids = [job_id_of(each) for each in job_ids or ()]
    filters = [*(filters or ()), *(() if fingerprint is None else (f"fingerprint={fingerprint}",))]
    wanted = failed_filter_of(filters) if filters else None
    if bool(ids) == (wanted is not None):
        raise typer.BadParameter("give either ids, or --filter or --fingerprint")
    if len(ids) > MAX_IDS:
        raise typer.BadParameter(f"at most {MAX_IDS} ids at once")
    options = RetryOptions(
        reason=reason,
        delay_s=int(duration_of(delay).total_seconds()),
        extra_attempts=extra_attempts,
        spread_s=int(duration_of(spread).total_seconds()),
        maximum=maximum,
        dry_run=dry_run,
        yes=yes,
        wait=wait,
        timeout_s=duration_of(timeout).total_seconds(),
        as_json=as_json,
        canaries=canary,
    )
    if canary and (wanted is None or not wait):
        raise typer.BadParameter("--canary needs --filter or --fingerprint, and waits")
    if wanted is not None:
        _check_filtered(options, "--filter" if fingerprint is None else "--fingerprint")

    async def work(redrive: "Redrive") -> int:
        if wanted is not None:
            return await retry_matches(redrive, wanted, options)
        if len(ids) == 1:
            if options.spread_s:
                raise typer.BadParameter("--spread is for several jobs")
            return await _retry_one(redrive, ids[0], options)
        return await retry_ids(redrive, ids, options)

    scopes = "jobs:read jobs:retry" if len(ids) == 1 else "jobs:read jobs:retry:bulk"
    ask(url, token_file, work, scopes=scopes if extra_attempts is None else f"{scopes} jobs:retry:extend")


def _check_filtered(options: RetryOptions, option: str) -> None:
    """Raise typer.BadParameter, naming the option that was given, where a reason or a confirmation is missing."""
    if options.dry_run:
        return
    if not options.reason:
        raise typer.BadParameter(f"{option} needs --reason '…', for the audit trail")
    if not (options.yes or is_terminal()):
        raise typer.BadParameter(f"{option} needs confirmation and stdin is not a terminal; pass --yes")


async def _retry_one(redrive: "Redrive", job_id: str, options: RetryOptions) -> int:
    from redrive_client import Conflict, NotFound, RetryState, WaitTimeout

    try:
        if options.dry_run:
            dry_run = await redrive.retry(job_id, extra_attempts=options.extra_attempts, dry_run=True)
            if options.as_json:
                print_json(dry_run)
            elif dry_run.would_retry:
                typer.echo("would be retried")
            return 0 if dry_run.would_retry else report_refusal(f"would not be retried: {dry_run.blocked_by}")
        accepted = await redrive.retry(
            job_id, reason=options.reason, delay_seconds=options.delay_s, extra_attempts=options.extra_attempts
        )
    except (Conflict, NotFound) as error:
        if options.as_json:
            print_json({name: getattr(error, name) for name in ("title", "status", "code", "request_id")})
        return report_refusal(line_of_refusal(error))
    if accepted.deduplicated:
        note(f"{printable(accepted.retry.actor)} had requested this retry before")
    retry: Retry = accepted.retry
    if options.wait:
        try:
            retry = await redrive.wait_retry(retry.id, timeout_s=options.timeout_s)
        except WaitTimeout as error:
            if options.as_json:
                print_json(retry)
            raise CommandFailed(
                f"accepted, and not settled within {options.timeout_s:.0f} s; type: redrive retries show {retry.id}"
            ) from error
    show_retry(retry, as_json=options.as_json)
    return (
        0
        if retry.state in (RetryState.QUEUED, RetryState.APPLIED)
        else report_refusal(f"the retry is {retry.state}: {retry.outcome}")
    )
