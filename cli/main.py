"""The command line: commands that start programs and set things up, and the operators' commands added to them.

    0  done        1  failed, with the reason in one line on stderr        2  wrong usage or settings
    3  a retry was refused, or ended rejected

A command imports what it needs when it runs, so that `redrive --help` does not wait for a web server to load.
"""

# ruff: noqa: PLC0415 - the imports within commands, for the reason above

import os
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli import adapters
from cli.errors import is_expected, line_of
from cli.operate import batches, dead_letters, failures, jobs, pruning, retries, retrying
from shared.errors import RedriveError, SettingsError

if TYPE_CHECKING:
    from shared.settings import ApiSettings

_ONE_MACHINE = "Everything on one machine"
_PROGRAMS = "The programs"
_SETTING_UP = "Setting up"
_OPERATING = "Operating"

app = typer.Typer(
    name="redrive",
    help=(
        "Job status and exactly-once retries beside a PostgreSQL jobs table.\n\n"
        "Start with **redrive up**: a database, the API, a worker and demo jobs, on this machine. "
        "The programs read their settings from the environment: REDRIVE_DATABASE_URL and so on."
    ),
    epilog=(
        "Exit status: 0 done, 1 failed (the reason in one line on stderr), 2 wrong usage or settings, "
        "3 a retry was refused or ended rejected."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command that `args`, or the process's own arguments, name; ends by SystemExit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # an error text in Chinese must not fail on a terminal that has only ASCII
    try:
        app(args, prog_name="redrive")
    except SettingsError as error:
        _print_error("wrong settings:", *(f"  {problem}" for problem in error.problems))
        sys.exit(2)
    except (RedriveError, OSError, ExceptionGroup) as error:
        if not is_expected(error):
            raise  # a bug of Redrive: show the traceback
        _print_error(line_of(error))
        sys.exit(1)


def _print_error(first: str, *more: str) -> None:
    typer.echo("\n".join((f"redrive: {first}", *more)), err=True)


def _colours() -> bool | None:
    """Whether to print colours: None where a terminal decides it (https://no-color.org, https://force-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return True if os.environ.get("FORCE_COLOR", "0") not in ("", "0") else None


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it so
    if wanted:
        typer.echo(f"redrive {version('redrive')}")
        raise typer.Exit


@app.callback()
def _redrive(
    context: typer.Context,
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    context.color = _colours()


@app.command(rich_help_panel=_ONE_MACHINE)
def up(
    *,
    demo: Annotated[
        bool, typer.Option("--demo/--no-demo", help="Make demo jobs, and run a stand-in control plane for them.")
    ] = True,
    data_dir: Annotated[
        Path, typer.Option(file_okay=False, help="Where the database and the token secret are kept.")
    ] = Path(".redrive"),
    port: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="Where the API listens.", show_default="REDRIVE_PORT or 8080")
    ] = None,
    ops_port: Annotated[
        int | None,
        typer.Option(min=1, max=65_535, help="Where health and metrics are.", show_default="REDRIVE_OPS_PORT or 9090"),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=16, help="How many workers run.")] = 1,
    adapter: Annotated[
        str | None,
        typer.Option(
            help="Show the jobs of the real system of this name, run by its own worker: procrastinate.", metavar="NAME"
        ),
    ] = None,
) -> None:
    """Run all of Redrive here: PostgreSQL, API, workers and a demo. Ctrl-C stops it.

    Prints the API's URL, a token, three curl lines to paste, and the database's URL; `. .redrive/env` lets a shell's
    commands work on all of it. Needs no Docker and no RabbitMQ; with REDRIVE_AMQP_URL set, retries travel through
    RabbitMQ. A second start finds the data of the first. Nothing outside the data folder is changed.
    """
    began_at = time.monotonic()  # loading the programs is part of starting them
    from cli.local.up import WITH_ADAPTER, Plan, run_up

    if adapter is not None and adapter not in WITH_ADAPTER:
        raise typer.BadParameter(
            f"there is no demo of {adapter!r}: --adapter takes {', '.join(WITH_ADAPTER)}. The other systems of "
            "`redrive adapter list` have SQL to run in a database of yours: `redrive adapter print NAME`"
        )
    if adapter is not None and not demo:
        raise typer.BadParameter("--adapter is a demo: it cannot be used with --no-demo")
    run_up(
        Plan(
            data_dir=data_dir,
            port=port,
            ops_port=ops_port,
            workers=workers,
            demo=demo,
            began_at=began_at,
            adapter=adapter,
        ),
        say=typer.echo,
        warn=lambda text: _print_error(f"note: {text}"),
    )


@app.command(rich_help_panel=_PROGRAMS)
def api(
    *,
    processes: Annotated[int, typer.Option(min=1, max=64, help="How many processes share the port.")] = 1,
    one_of_several: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve the HTTP API, and hand accepted retries to RabbitMQ.

    Needs REDRIVE_DATABASE_URL and a key to check tokens with (REDRIVE_JWT_SECRET, REDRIVE_JWT_PUBLIC_KEY or
    REDRIVE_JWKS_URL). SIGTERM ends it once the requests in hand are answered. With several processes, one that dies is
    replaced, and each process counts limits for itself.
    """
    from cli.ports import Port, require_free
    from cli.signals import StopSignals
    from shared.settings import ApiSettings, read
    from shared.telemetry import configure_logging

    settings = read(ApiSettings)
    configure_logging(level=settings.log_level, json=settings.log_format == "json")
    if one_of_several is not None:
        _one_of_several(settings, one_of_several)
        return
    require_free(
        settings.host,
        [Port(settings.port, "the API", "REDRIVE_PORT"), Port(settings.ops_port, "its ops port", "REDRIVE_OPS_PORT")],
    )
    with StopSignals() as signals:
        if processes > 1:
            from cli.processes import END_AT, run_processes

            signals.run(
                lambda stop: run_processes(settings, processes, stop=stop),
                grace_s=settings.shutdown_grace,
                share=END_AT,
            )
        else:
            from api.serving import run

            signals.run(lambda stop: run(settings, stop=stop), grace_s=settings.shutdown_grace)


def _one_of_several(settings: "ApiSettings", ops_path: str) -> None:
    """One process of `--processes`: a signal ends it, and so does the end of the process that started it."""
    import asyncio

    from api.serving import run
    from cli.processes import until_orphaned
    from cli.signals import StopSignals

    async def program(stop: asyncio.Event) -> None:
        watching = asyncio.create_task(until_orphaned(stop))
        await run(settings, stop=stop, ops_path=ops_path, share_port=True)
        watching.cancel()

    with StopSignals() as signals:
        signals.run(program, grace_s=settings.shutdown_grace)


@app.command(rich_help_panel=_PROGRAMS)
def worker() -> None:
    """Apply retry requests: put each failed job back in line, exactly once per request.

    Needs REDRIVE_DATABASE_URL. Takes requests from RabbitMQ where REDRIVE_AMQP_URL is set, else from the ledger. Start
    more of them to scale. SIGTERM ends it once the batch in hand is settled.
    """
    from cli.ports import Port, require_free
    from cli.signals import StopSignals
    from shared.settings import WorkerSettings, read
    from shared.telemetry import configure_logging
    from worker.app import run

    settings = read(WorkerSettings)
    configure_logging(level=settings.log_level, json=settings.log_format == "json")
    require_free(settings.host, [Port(settings.ops_port, "the worker's ops port", "REDRIVE_OPS_PORT")])
    with StopSignals() as signals:
        signals.run(lambda stop: run(settings, stop=stop), grace_s=settings.shutdown_grace)


@app.command(rich_help_panel=_SETTING_UP)
def migrate(
    *,
    print_: Annotated[bool, typer.Option("--print", help="Only print the migrations; changes nothing.")] = False,
    check_: Annotated[
        bool, typer.Option("--check", help="Only list the migrations that are missing; status 1 if there are any.")
    ] = False,
) -> None:
    """Bring the database up to date, and say what was applied. Safe to run again, and by several at once.

    Needs REDRIVE_DATABASE_URL, naming a user who may create a schema and roles.
    """
    from shared import migrations
    from shared.settings import WorkerSettings, read

    if print_:
        typer.echo(migrations.text())
        return
    settings = read(WorkerSettings)
    if check_:
        if missing := migrations.missing(settings.url("database_url")):
            for name in missing:
                typer.echo(f"missing {name}")
            _print_error(f"migrations are missing: {len(missing)}; `redrive migrate` applies them")
            raise typer.Exit(1)
    else:
        for name in migrations.migrate(settings.url("database_url")):
            typer.echo(f"applied {name}")
    typer.echo("the database is up to date")


@app.command(rich_help_panel=_SETTING_UP)
def check(
    program: Annotated[
        Literal["api", "worker"] | None,
        typer.Argument(help="Check the settings of this program only.", show_default=False),
    ] = None,
) -> None:
    """See whether all is in place: settings, database, migrations, RabbitMQ; one line each.

    Warns of REDRIVE_ variables that nothing reads, and names settings without effect. On RabbitMQ, declares the
    exchange and queues if they are missing, as both programs do when they start; where this user may not, looks whether
    they are there. Status 2 for wrong settings, 1 for anything else that is not in place.
    """
    import asyncio

    from cli.checking.findings import INDENT, Finding, Verdict, wrapped
    from cli.checking.report import report
    from shared.telemetry import configure_logging

    configure_logging(level="ERROR", json=False)  # the findings say what the libraries would warn of
    colours = {
        Verdict.OK: typer.colors.GREEN,
        Verdict.NOTE: typer.colors.BLUE,
        Verdict.WARNING: typer.colors.YELLOW,
        Verdict.FAILED: typer.colors.RED,
    }

    def say(finding: Finding) -> None:
        text = wrapped(finding.text, is_terminal=sys.stdout.isatty())
        typer.echo(f"{typer.style(f'{finding.verdict:<{INDENT - 1}}', fg=colours[finding.verdict])} {text}")

    if status := asyncio.run(report(program, say)):
        _print_error("not ready: see the lines that say failed")
        raise typer.Exit(status)


@app.command(rich_help_panel=_SETTING_UP)
def token(
    *,
    project: Annotated[str, typer.Option(help="The project whose jobs the token may read: letters, digits, _ and -.")],
    sub: Annotated[
        str | None, typer.Option(help="The actor that the audit trail shows.", show_default="project:<project>")
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option(
            help='What the token may do, such as "jobs:read jobs:retry".', show_default="read and retry single jobs"
        ),
    ] = None,
    job: Annotated[
        list[str] | None,
        typer.Option(
            "--job", help="Only for this job; may be given up to 20 times.", show_default="all of the project"
        ),
    ] = None,
    ttl: Annotated[int, typer.Option(min=1, help="How many seconds the token is valid.")] = 3600,
) -> None:
    """Print a token for a project, signed with REDRIVE_JWT_SECRET.

    Carries REDRIVE_JWT_ISSUER and REDRIVE_JWT_AUDIENCE where they are set.
    """
    from cli.tokens import check_project, check_scope, check_token, check_ttl, require_secret, token_for
    from shared.settings import ApiSettings, read

    try:
        check_project(project)
        check_scope(scope)
        check_ttl(ttl)
        require_secret()
        # A token needs no database and no broker, and their secrets may be others' to read.
        settings = read(ApiSettings, database_url="postgresql://", database_read_url=None, amqp_url=None)
        signed = token_for(project, settings, subject=sub, scope=scope, jobs=job or (), ttl_s=ttl)
        check_token(signed, settings, subject=sub)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    typer.echo(signed)


app.add_typer(adapters.app, rich_help_panel=_SETTING_UP)
for _group in (jobs, retries, batches, dead_letters):
    app.add_typer(_group.app, rich_help_panel=_OPERATING)
app.command(rich_help_panel=_OPERATING)(failures.failures)
app.command(rich_help_panel=_OPERATING)(retrying.retry)
app.command(rich_help_panel=_SETTING_UP)(pruning.prune)
