"""What operators read: tables and facts on stdout, progress on stderr; or JSON.

Texts come from jobs and their owners. Nothing in them reaches the terminal as a command: what is not printable is
shown as a dot.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

_PIPE_WIDTH: Final = 200


def printable(text: object) -> str:
    """The text on one line, safe for a terminal."""
    words = " ".join(str(text).split())
    return "".join(each if each.isprintable() else "·" for each in words)


def time_text(at: datetime | None) -> str:
    """A time to the second, in UTC; a dash for none."""
    return "-" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, wide: str = "") -> None:
    """Print rows under headings; the column `wide` is cut where the others leave it too little room."""
    from rich.console import Console  # noqa: PLC0415 - not for `redrive --help`
    from rich.table import Table  # noqa: PLC0415 - likewise
    from rich.text import Text  # noqa: PLC0415 - likewise

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPE_WIDTH)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True, overflow="ellipsis", ratio=1 if column == wide else None)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)


def print_facts(facts: Sequence[tuple[str, object]]) -> None:
    """Print one fact a line, its name before it; without those that are None."""
    width = max(len(name) for name, _ in facts)
    for name, fact in facts:
        if fact is not None:
            typer.echo(f"{name:<{width}}  {printable(fact)}")


def print_json(value: object) -> None:
    """Print one JSON document on a line."""
    import msgspec  # noqa: PLC0415 - likewise

    typer.echo(msgspec.json.encode(value).decode())


@contextmanager
def progress(quiet: bool) -> "Iterator[Progress]":  # noqa: FBT001 - whether there is one at all
    """A progress display on stderr, for as long as the block lasts; none where stderr is no terminal."""
    from rich.console import Console  # noqa: PLC0415 - likewise
    from rich.progress import (  # noqa: PLC0415 - likewise
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as shown:
        yield shown
