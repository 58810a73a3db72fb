"""`redrive failures`: failed jobs in groups of one error, with the command that retries each group."""

from typing import TYPE_CHECKING, Annotated

import typer

from cli.operate.connection import ask, note, note_empty
from cli.operate.filters import time_of
from cli.operate.options import LOCAL, AsJson, CreatedAfter, CreatedBefore, TokenFile, Type, Url
from cli.operate.retrying import DEFAULT_MAX
from cli.operate.tables import print_json, print_table, time_text
from shared.bounds import MAX_BATCH

if TYPE_CHECKING:
    from redrive_client import FailureGroup, Redrive

_COLUMNS = ("JOBS", "RETRYABLE", "SINCE", "LAST", "TYPE", "ERROR", "TO RETRY THEM")


def failures(
    *,
    type_: Type = None,
    created_after: CreatedAfter = None,
    created_before: CreatedBefore = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many groups at most.")] = 20,
    url: Url = LOCAL,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Show failed jobs in groups of one type and one error, the largest first.

    Numbers, ids and quoted texts of an error are left out of it. Each group comes with the command that retries it.
    """
    after, before = time_of(created_after), time_of(created_before)

    async def work(redrive: "Redrive") -> None:
        found = await redrive.failures(type=type_, created_after=after, created_before=before)
        shown = found.data[:limit]
        if as_json:
            for group in shown:
                print_json(group)
        else:
            print_table(_COLUMNS, [_row_of(group) for group in shown], wide="ERROR")
            if not shown:
                options = {"--type": type_, "--created-after": created_after, "--created-before": created_before}
                await note_empty(redrive, "failed jobs", options)
        if len(found.data) > limit:
            note(f"there are {len(found.data)} groups; --limit shows more")
        if found.truncated:
            note(f"only the newest {found.sampled} failed jobs were looked at; there are more")

    ask(url, token_file, work)


def _row_of(group: "FailureGroup") -> tuple[object, ...]:
    more = f" --max {MAX_BATCH}" if group.jobs > DEFAULT_MAX else ""
    retry = f"redrive retry --fingerprint {group.fingerprint} --canary 5{more} --reason '…'" if group.retryable else ""
    first, last = time_text(group.first_at), time_text(group.last_at)
    return (group.jobs, group.retryable, first, last, group.type, group.error, retry)
