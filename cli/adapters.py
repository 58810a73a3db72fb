"""`redrive adapter`: SQL that makes another system's jobs table readable and retryable, for its owner to run."""

from typing import Annotated

import typer

from cli.operate.tables import print_table
from shared import adapters

app = typer.Typer(
    name="adapter",
    help="Print SQL that lets Redrive serve the jobs of another system: Procrastinate, Oban, pg-boss and others.",
    no_args_is_help=True,
)


@app.command("list")
def list_() -> None:
    """List the adapters, what each was tested with, and the setting that its job ids need."""
    print_table(
        ("NAME", "TESTED WITH", "SETTING"),
        [(adapter.name, adapter.tested, adapter.setting) for adapter in adapters.ADAPTERS.values()],
    )


@app.command("print")
def print_(
    name: Annotated[str, typer.Argument(help="An adapter's name; `redrive adapter list` shows them.", metavar="NAME")],
    *,
    schema: Annotated[
        str | None,
        typer.Option(help="The schema of the system's own tables.", show_default="where that system puts them"),
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(
            help="A job's project: an SQL expression, such as j.queue or \"'p1'\"; j is the system's table.",
            metavar="EXPRESSION",
            show_default="its queue, or 'default'",
        ),
    ] = None,
) -> None:
    """Print an adapter's SQL. Read it, and run it as the owner of the system's tables; Redrive never runs it.

    It makes a view `control_plane.jobs`, a trigger that puts a failed job back as that system does, and their rights.
    Needs no database and no settings.
    """
    try:
        typer.echo(adapters.get(name).sql(schema=schema, project=project), nl=False)
    except adapters.AdapterRefused as error:
        raise typer.BadParameter(str(error)) from None
