"""`redrive retries`: the audit trail, and cancelling a retry."""

# ruff: noqa: PLC0415 - commands import what they need when they run; see cli/main.py

from typing import TYPE_CHECKING, Annotated

import typer

from cli.operate.connection import ask, note_empty
from cli.operate.filters import id_of, job_id_of
from cli.operate.options import LOCAL, Actor, AsJson, Limit, TokenFile, Url
from cli.operate.tables import lines_of, print_facts, print_json, print_table, time_text

if TYPE_CHECKING:
    from redrive_client import Count, Redrive, Retry

app = typer.Typer(
    name="retries", help="The audit trail: who retried which job, why, and the outcome.", no_args_is_help=True
)

RetryId = Annotated[str, typer.Argument(help="A retry's id.", metavar="ID", show_default=False)]
COLUMNS = ("ID", "JOB", "STATE", "OUTCOME", "REQUESTED", "BATCH", "ACTOR", "REASON")


def row_of(retry: "Retry") -> tuple[object, ...]:
    """The retry as a row under COLUMNS."""
    return (
        retry.id,
        retry.job_id,
        retry.state,
        retry.outcome or "",
        time_text(retry.requested_at),
        retry.batch_id or "",
        retry.actor,
        retry.reason or "",
    )


@app.command()
def stats(*, url: Url = LOCAL, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Count the queued retries and those that the last hour settled, and show how long the newest waited."""

    async def work(redrive: "Redrive") -> None:
        found = await redrive.retry_stats()
        if as_json:
            print_json(found)
            return
        settled = {name: getattr(found.last_hour, name) for name in found.last_hour.__struct_fields__}
        waits = (
            None if found.wait_ms is None else f"median {found.wait_ms.p50} ms, 95 of 100 within {found.wait_ms.p95} ms"
        )
        print_facts(
            [
                ("queued", _count(found.queued)),
                ("oldest queued", time_text(found.oldest_requested_at)),
                *((f"{name} in the last hour", _count(count)) for name, count in settled.items()),
                ("waits", waits),
            ]
        )

    ask(url, token_file, work)


def _count(count: "Count") -> str:
    return f"{count.count}{'+' if count.capped else ''}"


@app.command("list")
def list_(
    *,
    state: Annotated[str | None, typer.Option(help="queued, applied, rejected, cancelled or dead_lettered.")] = None,
    job: Annotated[str | None, typer.Option(help="Only retries of this job.")] = None,
    batch: Annotated[str | None, typer.Option(help="Only retries of this batch.")] = None,
    actor: Actor = None,
    limit: Limit = 20,
    url: Url = LOCAL,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """List the newest retries."""
    from redrive_client import RetryState

    if state is not None and state not in list(RetryState):
        raise typer.BadParameter(f"a state is one of {', '.join(RetryState)}")
    job_id, batch_id = None if job is None else job_id_of(job), None if batch is None else id_of(batch)

    async def work(redrive: "Redrive") -> None:
        retries = redrive.list_retries(
            state=state, job_id=job_id, batch_id=batch_id, actor=actor, page_size=min(limit, 200)
        )
        rows = []
        async for retry in retries:
            if as_json:
                print_json(retry)
            rows.append(row_of(retry))
            if len(rows) == limit:
                break
        if not as_json:
            print_table(COLUMNS, rows, wide="REASON")
            if not rows:
                options = {"--state": state, "--job": job, "--batch": batch, "--actor": actor}
                await note_empty(redrive, "retries", options)

    ask(url, token_file, work)


@app.command()
def show(retry_id: RetryId, *, url: Url = LOCAL, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Show one retry: its outcome, and the error that it cleared."""
    wanted = id_of(retry_id)

    async def work(redrive: "Redrive") -> None:
        show_retry(await redrive.get_retry(wanted), as_json=as_json)

    ask(url, token_file, work)


@app.command()
def cancel(retry_id: RetryId, *, url: Url = LOCAL, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Cancel a queued retry. Status 1 if it is settled already; one with a delay is settled at once."""
    wanted = id_of(retry_id)

    async def work(redrive: "Redrive") -> None:
        show_retry(await redrive.cancel(wanted), as_json=as_json)

    ask(url, token_file, work, scopes="jobs:retry")


def show_retry(retry: "Retry", *, as_json: bool) -> None:
    """Print all of a retry."""
    if as_json:
        print_json(retry)
        return
    outcome = "" if retry.outcome is None or retry.outcome.value == retry.state.value else f" ({retry.outcome})"
    print_facts(
        [
            ("id", retry.id),
            ("job", retry.job_id),
            ("batch", retry.batch_id),
            ("state", f"{retry.state}{outcome}"),
            ("actor", retry.actor),
            ("reason", retry.reason),
            ("delay", f"{retry.delay_seconds} s" if retry.delay_seconds else None),
            ("extra attempts", retry.extra_attempts or None),
            ("requested", time_text(retry.requested_at)),
            ("processed", time_text(retry.processed_at)),
            ("cancelled by", retry.cancelled_by),
            ("redriven by", retry.redriven_by),
            ("redriven", None if retry.redriven_at is None else time_text(retry.redriven_at)),
            ("attempts before", retry.attempts_before),
            (
                "error before",
                None
                if retry.error_before is None
                else lines_of(f"{retry.error_before}{' …' * retry.error_before_truncated}"),
            ),
        ]
    )
