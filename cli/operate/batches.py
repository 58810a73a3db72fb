"""`redrive batches`: shows bulk retries, waits for one, and cancels what is still queued of one."""

# ruff: noqa: PLC0415 - commands import what they need when they run; see cli/main.py

from typing import TYPE_CHECKING, Annotated

import typer

from cli.errors import CommandFailed
from cli.operate.connection import ask, note, note_empty, report_refusal
from cli.operate.filters import duration_of, id_of
from cli.operate.options import LOCAL, Actor, AsJson, Limit, Timeout, TokenFile, Url
from cli.operate.retries import COLUMNS, row_of
from cli.operate.tables import print_facts, print_json, print_table, progress, time_text

if TYPE_CHECKING:
    from uuid import UUID

    from redrive_client import Batch, Redrive

app = typer.Typer(name="batches", help="Show and cancel bulk retries.", no_args_is_help=True)

BatchId = Annotated[str, typer.Argument(help="A batch's id.", metavar="ID", show_default=False)]
_SHOWN = 20


_COLUMNS = ("ID", "REQUESTED", "TOTAL", "QUEUED", "APPLIED", "REJECTED", "CANCELLED", "DEAD", "ACTOR", "REASON")


@app.command("list")
def list_(
    *,
    actor: Actor = None,
    limit: Limit = 20,
    url: Url = LOCAL,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """List the newest bulk retries, with their counts."""

    async def work(redrive: "Redrive") -> None:
        rows = []
        async for batch in redrive.list_batches(actor=actor, page_size=min(limit, 200)):
            if as_json:
                print_json(batch)
            counts = (batch.total, batch.queued, batch.applied, batch.rejected, batch.cancelled, batch.dead_lettered)
            rows.append((batch.id, time_text(batch.requested_at), *counts, batch.actor, batch.reason or ""))
            if len(rows) == limit:
                break
        if not as_json:
            print_table(_COLUMNS, rows, wide="REASON")
            if not rows:
                await note_empty(redrive, "batches", {"--actor": actor})

    ask(url, token_file, work)


@app.command()
def get(batch_id: BatchId, *, url: Url = LOCAL, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Show the counts of a bulk retry, and some of its retries that were rejected."""
    wanted = id_of(batch_id)

    async def work(redrive: "Redrive") -> None:
        await show_batch(redrive, await redrive.get_batch(wanted), as_json=as_json)

    ask(url, token_file, work)


@app.command()
def cancel(batch_id: BatchId, *, url: Url = LOCAL, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Cancel what is still queued of a bulk retry, and show its counts afterwards.

    What is applied stays applied: those jobs are back in line. With a delay, too, retries are applied at once.
    """
    wanted = id_of(batch_id)

    async def work(redrive: "Redrive") -> None:
        batch = await redrive.cancel_batch(wanted)
        await show_batch(redrive, batch, as_json=as_json)
        if not batch.cancelled:
            note("none of its retries was queued any more: nothing was cancelled")

    ask(url, token_file, work, scopes="jobs:read jobs:retry:bulk")


@app.command()
def wait(
    batch_id: BatchId,
    *,
    timeout: Timeout = "5m",
    url: Url = LOCAL,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Wait until all of a bulk retry is settled. Status 3 if some of it was rejected."""
    wanted, timeout_s = id_of(batch_id), duration_of(timeout).total_seconds()

    async def work(redrive: "Redrive") -> int:
        batch = await wait_until_settled(redrive, wanted, timeout_s=timeout_s)
        await show_batch(redrive, batch, as_json=as_json)
        return status_of(batch)

    ask(url, token_file, work)


async def wait_until_settled(redrive: "Redrive", batch_id: "UUID", *, timeout_s: float) -> "Batch":
    """The batch once all of it is settled, with a progress bar until then. Raises CommandFailed after `timeout_s`."""
    from redrive_client import WaitTimeout

    batch = None
    with progress(quiet=False) as shown:
        task = shown.add_task("settling", total=None)
        try:
            async for batch in redrive.watch_batch(batch_id, timeout_s=timeout_s):
                shown.update(task, total=batch.total, completed=batch.total - batch.queued)
        except WaitTimeout as error:
            left = "" if batch is None else f", {batch.queued} of {batch.total} are still queued"
            raise CommandFailed(
                f"not settled within {timeout_s:.0f} s{left}; type: redrive batches wait {batch_id}"
            ) from error
    assert batch is not None  # noqa: S101 - a watch that ends by itself has seen the end
    return batch


async def show_batch(redrive: "Redrive", batch: "Batch", *, as_json: bool) -> None:
    """Print a batch, and some of what was rejected of it."""
    if as_json:
        print_json(batch)
        return
    print_facts(
        [
            ("id", batch.id),
            ("actor", batch.actor),
            ("reason", batch.reason),
            (
                "filter",
                None if batch.filter is None else ",".join(f"{key}={value}" for key, value in batch.filter.items()),
            ),
            ("requested", time_text(batch.requested_at)),
            ("total", batch.total),
            *((name, getattr(batch, name)) for name in ("queued", "applied", "rejected", "cancelled", "dead_lettered")),
        ]
    )
    rows = []
    for state in ("rejected", "dead_lettered"):
        if getattr(batch, state):
            async for retry in redrive.list_retries(batch_id=batch.id, state=state, page_size=_SHOWN):
                rows.append(row_of(retry))
                if len(rows) == _SHOWN:
                    break
    if rows:
        typer.echo()
        print_table(COLUMNS, rows, wide="REASON")


def status_of(batch: "Batch") -> int:
    """The exit status for a batch that is settled."""
    lost = batch.rejected + batch.dead_lettered
    return report_refusal(f"{lost} of {batch.total} retries were rejected") if lost else 0
