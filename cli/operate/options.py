"""The options that several of the operators' commands take, each with its help, once; and a check of their texts."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import typer

from shared.bounds import MAX_ACTOR, MAX_FILTER

_PANEL: Final = "Connection"
LOCAL: Final = "http://127.0.0.1:8080"


def text_up_to(longest: int, *, least: int = 1) -> Callable[[str | None], str | None]:
    """A check for an option, as the API makes it; it raises typer.BadParameter."""

    def checked(text: str | None) -> str | None:
        if text is not None:
            require_text(text, longest, least=least)
        return text

    return checked


def require_text(text: str, longest: int, *, least: int = 1, name: str = "") -> None:
    """Raise typer.BadParameter for a text that the API would refuse, or that no request can carry.

    `name`: of what, where the option alone does not say it.
    """
    must = f"{name} must" if name else "must"
    if not least <= len(text) <= longest:
        bounds = f"{least} to {longest}" if least else f"at most {longest}"
        raise typer.BadParameter(f"{must} have {bounds} characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise typer.BadParameter(f"{must} be text in UTF-8") from None


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
Type = Annotated[str | None, typer.Option("--type", callback=text_up_to(MAX_FILTER), help="Only jobs of this type.")]
Actor = Annotated[
    str | None, typer.Option("--actor", callback=text_up_to(MAX_ACTOR), help="Only what this actor asked for.")
]
CreatedAfter = Annotated[str | None, typer.Option(help="A time, or 3h for three hours ago.")]
CreatedBefore = Annotated[str | None, typer.Option(help="Likewise.")]
Limit = Annotated[int, typer.Option(min=1, help="How many at most.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Timeout = Annotated[str, typer.Option(help="For how long: 90s, 5m, 24h.")]
