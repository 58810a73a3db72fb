"""The options that several of the operators' commands take, each with its help, once."""

from pathlib import Path
from typing import Annotated, Final

import typer

_PANEL: Final = "Connection"
LOCAL: Final = "http://127.0.0.1:8080"

Url = Annotated[str, typer.Option("--url", envvar="REDRIVE_URL", help="Where the API is.", rich_help_panel=_PANEL)]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        envvar="REDRIVE_TOKEN_FILE",
        dir_okay=False,
        help="Holds the token, such as .redrive/auth after `redrive up`.",
        show_default="the token in REDRIVE_TOKEN",
        rich_help_panel=_PANEL,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs: a document, or one a line.")]
Type = Annotated[str | None, typer.Option("--type", help="Only jobs of this type.")]
CreatedAfter = Annotated[str | None, typer.Option(help="A time, or 3h for three hours ago.")]
CreatedBefore = Annotated[str | None, typer.Option(help="Likewise.")]
Limit = Annotated[int, typer.Option(min=1, help="How many at most.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Timeout = Annotated[str, typer.Option(help="For how long: 90s, 5m, 24h.")]
