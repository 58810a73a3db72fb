"""`redrive dead`: lists, shows, redrives and purges dead letters.

With RabbitMQ, dead letters are the messages in the dead-letter queue; without, the requests that the ledger has as
`dead_lettered`. These commands act on the servers themselves, with the settings of the worker.
"""

# ruff: noqa: PLC0415 - commands import what they need when they run; see cli/main.py

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from cli.errors import CommandFailed
from cli.operate.connection import is_terminal, note
from cli.operate.options import AsJson, DryRun, Yes
from cli.operate.tables import print_facts, print_json, print_table, time_text
from shared.bounds import ACTOR, MAX_ACTOR

if TYPE_CHECKING:
    from shared.dead_letters import DeadLetters, DeadRequest, RequestStatus
    from shared.outbox import Outbox
    from shared.settlement import Settlement
    from worker.dead_letters import DeadLetter, DeadQueue

app = typer.Typer(
    name="dead",
    help="Dead letters: messages that no worker can read, and requests that could not be applied.",
    no_args_is_help=True,
)

MOST: Final = 10_000
_REFUSED: Final = "refused by the database"
_SHOWN_BYTES: Final = 64 * 1024
_COLUMNS: Final = ("ID", "JOB", "PROJECT", "LEDGER", "REASON", "BYTES")


class _Servers(NamedTuple):
    """What the settings name. `queue` is None where there is no broker."""

    letters: "DeadLetters"
    outbox: "Outbox"
    settlement: "Settlement"
    queue: "DeadQueue | None"


@asynccontextmanager
async def _opened() -> AsyncIterator[_Servers]:
    from shared.database import Database
    from shared.dead_letters import DeadLetters
    from shared.job_ids import job_ids
    from shared.outbox import Outbox
    from shared.settings import WorkerSettings, read
    from shared.settlement import Settlement
    from shared.telemetry import configure_logging
    from shared.topology import Topology
    from worker.dead_letters import DeadQueue

    settings = read(WorkerSettings)
    configure_logging(level="ERROR", json=False)
    ids = job_ids(settings.job_id)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(
            Database(
                settings.url("database_url"),
                program="redrive dead",
                timeout_s=settings.db_timeout,
                pool_size=1,
                pooled=settings.database_pooled,
            ).opened()
        )
        queue = None
        if settings.amqp_url is not None:
            url = settings.amqp_url.get_secret_value()
            queue = await stack.enter_async_context(
                DeadQueue.opened(url, ids, name="redrive dead", topology=Topology.of(url))
            )
        yield _Servers(DeadLetters(database, ids), Outbox(database, ids), Settlement(database, ids), queue)


@app.command("list")
def list_(
    *, limit: Annotated[int, typer.Option(min=1, max=MOST, help="How many at most.")] = 50, as_json: AsJson = False
) -> None:
    """List dead letters, the oldest first. They stay where they are."""
    from shared.topology import RETRIES_DEAD

    async def work() -> None:
        async with _opened() as servers:
            facts = [_facts_of(*each) async for each in _seen(servers, limit)]
            left = 0 if servers.queue is None else servers.queue.left
            place = "the ledger" if servers.queue is None else f"the queue {RETRIES_DEAD}"
        if as_json:
            for each in facts:
                print_json(each)
            return
        rows = [[each[name] for name in ("id", "job_id", "project_id", "state", "reason", "bytes")] for each in facts]
        print_table(_COLUMNS, [["" if cell is None else cell for cell in row] for row in rows], wide="REASON")
        if not facts:
            note(f"there is no dead letter in {place}")
        if left:
            typer.echo(f"and {left} more: --limit shows them", err=True)

    asyncio.run(work())


@app.command()
def show(
    letter_id: Annotated[str, typer.Argument(help="As `list` shows it.", metavar="ID", show_default=False)],
    *,
    as_json: AsJson = False,
) -> None:
    """Show one dead letter, whole: where it comes from, why it is here, and what is in it."""

    async def work() -> None:
        async with _opened() as servers:
            found = [_facts_of(*each, whole=True) async for each in _seen(servers, MOST, only=letter_id)]
        if not found:
            raise CommandFailed("there is no dead letter with this id; `redrive dead list` shows the ids")
        for each in found:  # two copies of one message have one id
            if as_json:
                print_json(each)
            else:
                print_facts(list(each.items()))

    asyncio.run(work())


@app.command("redrive")
def redrive_(
    *,
    maximum: Annotated[int, typer.Option("--max", min=1, max=MOST, help="How many at most, the oldest first.")],
    actor: Annotated[
        str | None,
        typer.Option(help="The name that the audit trail shows as redriven_by; your name on this system by default."),
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Queue dead letters again, as the requests that they were.

    A job that has changed since is not retried: its request ends as superseded. A letter that no worker can read stays
    in the queue.
    """
    actor = actor or _operator()
    if ACTOR.fullmatch(actor) is None:
        raise typer.BadParameter(f"an actor has 1 to {MAX_ACTOR} characters, none of them a control character")

    async def work() -> None:
        from cli.operate.redriving import RedriveResult, redrive

        results: Counter[str] = Counter()
        async with _opened() as servers:
            if servers.queue is None:
                results[RedriveResult.REDRIVEN], results[RedriveResult.RETRY_QUEUED] = await _redrive_in_ledger(
                    servers.letters, maximum, actor=actor, dry_run=dry_run
                )
            else:
                async for result in redrive(
                    servers.queue,
                    servers.letters,
                    servers.outbox,
                    maximum,
                    looking_at=MOST,
                    actor=actor,
                    dry_run=dry_run,
                ):
                    results[result] += 1
        counts = {str(result): results[result] for result in RedriveResult}
        redriven = counts.pop(RedriveResult.REDRIVEN)
        if as_json:
            print_json({"dry_run": dry_run, RedriveResult.REDRIVEN: redriven, **counts})
        else:
            would = "would be " if dry_run else ""
            left = ", ".join(f"{count} {result.replace('_', ' ')}" for result, count in counts.items())
            typer.echo(f"{redriven} {would}redriven; left: {left}")

    asyncio.run(work())


@app.command()
def purge(*, yes: Yes = False, as_json: AsJson = False) -> None:
    """Delete all dead letters. Their requests stay in the ledger, as dead-lettered."""
    if not (yes or is_terminal()):
        raise typer.BadParameter("purge needs confirmation and stdin is not a terminal; pass --yes")

    async def work() -> None:
        from cli.operate.redriving import purge

        async with _opened() as servers:
            if servers.queue is None:
                raise CommandFailed(
                    "without RabbitMQ there is no dead-letter queue to purge; `redrive prune` deletes old requests"
                )
            count = await servers.queue.count()
            if count and not yes and not typer.confirm(f"Delete {count} dead letters for good?", err=True):
                await servers.queue.give_back()
                raise CommandFailed("nothing was deleted")
            purged = await purge(servers.queue, servers.letters, servers.settlement)
        if as_json:
            print_json({"purged": purged})
        else:
            typer.echo(f"{purged} deleted")

    asyncio.run(work())


def _operator() -> str:
    """The name of the user that runs this command."""
    import getpass
    import os

    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a user id without a name, as containers have
        return f"uid:{os.getuid()}" if hasattr(os, "getuid") else "operator"


async def _redrive_in_ledger(letters: "DeadLetters", maximum: int, *, actor: str, dry_run: bool) -> tuple[int, int]:
    """Redrive without a broker: workers look at the ledger. How many were redriven, and how many had to be left."""
    ids = [each.message.id for each in await letters.dead_lettered(maximum)]
    if dry_run:
        statuses = await letters.statuses(ids)
        blocked = sum(each.job_is_queued for each in statuses.values())
        return len(ids) - blocked, blocked
    revived = await letters.redrive(ids, actor=actor, lease_s=0) if ids else set()
    return len(revived), len(ids) - len(revived)


async def _seen(
    servers: _Servers, limit: int, *, only: str | None = None
) -> "AsyncIterator[tuple[DeadLetter | DeadRequest, RequestStatus | None]]":
    """Dead letters with how their requests stand; `only` those of one id. All are back in the queue then."""
    if servers.queue is None:
        for request in await servers.letters.dead_lettered(limit):
            if only in (None, str(request.message.id)):
                yield request, None
        return
    found = [each async for each in servers.queue.letters(limit) if only in (None, each.id)]
    await servers.queue.give_back()
    ids = [request.id for letter in found for request in letter.requests]
    statuses = await servers.letters.statuses(ids) if ids else {}
    for letter in found:
        (status, *others) = {statuses.get(request.id) for request in letter.requests} or {None}
        yield letter, None if others else status


def _facts_of(
    dead: "DeadLetter | DeadRequest", status: "RequestStatus | None", *, whole: bool = False
) -> dict[str, object]:
    """What is shown of a dead letter, or of a dead request where there is no broker; `whole`: all of it."""
    from shared.messages import encoded
    from worker.dead_letters import DeadLetter

    requests = dead.requests if isinstance(dead, DeadLetter) else [dead.message]
    message = requests[0] if len(requests) == 1 else None
    facts: dict[str, object] = {
        "id": dead.id if isinstance(dead, DeadLetter) else str(dead.message.id),
        "job_id": None if message is None else message.job_id,
        "project_id": None if message is None else message.project_id,
        "state": "dead_lettered" if not isinstance(dead, DeadLetter) else None if status is None else status.state,
        "reason": dead.reason if isinstance(dead, DeadLetter) else _REFUSED,
        "bytes": len(dead.body) if isinstance(dead, DeadLetter) else None,
        "requests": len(requests),
    }
    if whole:
        if isinstance(dead, DeadLetter):
            body = dead.body
            facts |= {
                "deliveries": dead.deliveries,
                "content_type": dead.content_type,
                "headers": {name: str(value) for name, value in dead.headers.items()},
            }
        else:
            body = encoded(dead.message)
            facts["died_at"] = time_text(dead.died_at)
        facts["body"] = body[:_SHOWN_BYTES].decode("utf-8", "backslashreplace")
    return facts
