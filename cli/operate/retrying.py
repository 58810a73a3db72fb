"""`redrive retry`: retries one failed job or thousands, and shows the outcome."""

# ruff: noqa: PLC0415 - commands import what they need when they run; see cli/main.py

from typing import TYPE_CHECKING, Annotated, Final

import typer

from cli.errors import CommandFailed
from cli.operate.bulk_retrying import RetryOptions, retry_ids, retry_matches
from cli.operate.connection import (
    RetryRefused,
    ask,
    asking_for_retries,
    is_terminal,
    line_of_refusal,
    note,
    report_refusal,
)
from cli.operate.filters import FIELDS, duration_of, failed_filter_of, job_id_of, seconds_of
from cli.operate.options import LOCAL, AsJson, DryRun, TokenFile, Url, Yes, text_up_to
from cli.operate.retries import show_retry
from cli.operate.tables import print_json, printable
from shared.bounds import MAX_BATCH, MAX_BULK_IDS, MAX_DELAY_S, MAX_EXTRA_ATTEMPTS, MAX_REASON, MAX_SPREAD_S

if TYPE_CHECKING:
    from redrive_client import FailedFilter, Redrive, Retry

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
        int, typer.Option("--max", min=1, max=MAX_BATCH, help="With --filter: how many at most, or none at all.")
    ] = DEFAULT_MAX,
    reason: Annotated[
        str | None,
        typer.Option(
            callback=text_up_to(MAX_REASON, least=0),
            help="Why, for the audit trail; required with --filter or --fingerprint.",
        ),
    ] = None,
    delay: Annotated[
        str,
        typer.Option(
            help="Let the jobs run only after so long: 90s, 5m, at most 24h. The retry is applied at once all the "
            "same, and can then not be cancelled."
        ),
    ] = "0",
    extra_attempts: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_EXTRA_ATTEMPTS, help="Raise each job's cap so that so many attempts are left."),
    ] = None,
    spread: Annotated[str, typer.Option(help="Spread the jobs' times at random over so long, 1h at most.")] = "0",
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
    Status 3: at least one was refused, or ended rejected. A filter asks for those of its matches that can be retried:
    it is refused where there are matches and none of them can be, and where there are more than --max.
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
    if len(ids) > MAX_BULK_IDS:
        raise typer.BadParameter(f"at most {MAX_BULK_IDS} ids at once")
    options = RetryOptions(
        reason=reason,
        delay_s=seconds_of(delay, "--delay", at_most=MAX_DELAY_S),
        extra_attempts=extra_attempts,
        spread_s=seconds_of(spread, "--spread", at_most=MAX_SPREAD_S),
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
    if len(ids) == 1 and options.spread_s:
        raise typer.BadParameter("--spread is for several jobs")
    scopes = "jobs:read jobs:retry" if len(ids) == 1 else "jobs:read jobs:retry:bulk"
    scopes = scopes if extra_attempts is None else f"{scopes} jobs:retry:extend"
    chosen = ids if wanted is None else wanted

    async def work(redrive: "Redrive") -> int:
        return await _retry(redrive, chosen, options, needs=scopes)

    ask(url, token_file, work, scopes=scopes)


def _check_filtered(options: RetryOptions, option: str) -> None:
    """Raise typer.BadParameter, naming the option that was given, where a reason or a confirmation is missing."""
    if options.dry_run:
        return
    if not options.reason:
        raise typer.BadParameter(f"{option} needs --reason '…', for the audit trail")
    if not (options.yes or is_terminal()):
        raise typer.BadParameter(f"{option} needs confirmation and stdin is not a terminal; pass --yes")


async def _retry(redrive: "Redrive", chosen: "list[str] | FailedFilter", options: RetryOptions, *, needs: str) -> int:
    """Retry what was chosen. Returns the exit status. `needs`: the scopes, to be named where one is missing."""
    try:
        match chosen:
            case [job_id]:
                return await _retry_one(redrive, job_id, options)
            case list():
                return await retry_ids(redrive, chosen, options)
            case _:
                return await retry_matches(redrive, chosen, options)
    except RetryRefused as refused:
        if options.as_json:
            print_json({name: getattr(refused.problem, name) for name in ("title", "status", "code", "request_id")})
        return report_refusal(line_of_refusal(refused.problem, scopes=needs))


async def _preview_one(redrive: "Redrive", job_id: str, options: RetryOptions) -> int:
    from redrive_client import RetryBlock

    with asking_for_retries():
        dry_run = await redrive.retry(job_id, extra_attempts=options.extra_attempts, dry_run=True)
    if options.as_json:
        print_json(dry_run)
    if dry_run.blocked_by == RetryBlock.RETRY_QUEUED:  # no refusal: the answer to a second retry is the first one
        note("a retry of the job is queued already; another request would be answered with that one")
        return 0
    if not dry_run.would_retry:
        return report_refusal(f"would not be retried: {dry_run.blocked_by}")
    if not options.as_json:
        typer.echo("would be retried")
    return 0


async def _retry_one(redrive: "Redrive", job_id: str, options: RetryOptions) -> int:
    from redrive_client import RetryState, WaitTimeout

    if options.dry_run:
        return await _preview_one(redrive, job_id, options)
    with asking_for_retries():
        accepted = await redrive.retry(
            job_id, reason=options.reason, delay_seconds=options.delay_s, extra_attempts=options.extra_attempts
        )
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
