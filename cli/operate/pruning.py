"""`redrive prune`: deletes old retries that are settled."""

# ruff: noqa: PLC0415 - commands import what they need when they run; see cli/main.py

import asyncio
from typing import Annotated, Final

import typer

from cli.operate.filters import duration_of
from cli.operate.options import AsJson
from cli.operate.tables import print_json, progress

_TIMEOUT_S: Final = 30.0


def prune(
    *,
    older_than: Annotated[str, typer.Option(help="Settled longer ago than this, at least 24h: 90d.")],
    as_json: AsJson = False,
) -> None:
    """Delete retries that were settled long ago, batches that have none left, and idempotency keys that expired.

    Never deletes what is queued. Needs REDRIVE_DATABASE_URL, naming the owner of Redrive's tables: the programs' roles
    may not delete. Deletes a thousand rows at a time; what was deleted when it is interrupted stays deleted.
    """
    from shared.pruning import KEPT_AT_LEAST

    if older_than.isdigit():  # taken as seconds it would be too short, and days are meant
        raise typer.BadParameter(f"--older-than: give a unit, such as {older_than}d")
    age = duration_of(older_than)
    if age < KEPT_AT_LEAST:
        raise typer.BadParameter("--older-than: at least 24h, for as long as an idempotency key stands for its request")

    async def work() -> None:
        from shared.database import Database
        from shared.pruning import Pruned, prune
        from shared.settings import WorkerSettings, read

        settings = read(WorkerSettings)
        with progress(quiet=as_json) as shown:
            task = shown.add_task("deleting", total=None)

            def tell(pruned: Pruned) -> None:
                shown.update(task, completed=sum(pruned))

            async with Database(
                settings.url("database_url"),
                program="redrive prune",
                timeout_s=_TIMEOUT_S,
                pool_size=1,
                pooled=settings.database_pooled,
            ).opened() as database:
                pruned = await prune(database, age, report=tell)
        if as_json:
            print_json(pruned._asdict())
        else:
            typer.echo(f"deleted {pruned.requests} retries, {pruned.batches} batches, {pruned.keys} idempotency keys")

    asyncio.run(work())
