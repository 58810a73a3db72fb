"""What commands print: tables and facts for people, JSON for programs.

A table on a terminal is fitted into its width. Ids, statuses, numbers and times are always whole; types, actors and
projects, and the one column named `wide`, are cut with an ellipsis to what there is. Where too little is left, columns
move to a further line of their row. A table in a pipe is never cut: a line of headings, then a line for each row. Two
blanks or more stand between cells, never within one, and a cell that would be empty is a dash: `awk -F '  +'` reads it.

Other programs wrote what the rows hold: characters that could control the terminal are shown as dots.
"""

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

_CUT: Final = frozenset({"TYPE", "ACTOR", "PROJECT", "FILTER"})
"""Columns that are cut, if they must be, beside `wide`."""
_CUT_LEAST: Final = 16
_CUT_MOST: Final = 40
_WIDE_LEAST: Final = 24
_GAP: Final = 2
_INDENT: Final = 2
_COLOURS: Final = {
    "completed": typer.colors.GREEN,
    "applied": typer.colors.GREEN,
    "running": typer.colors.CYAN,
    "pending": typer.colors.CYAN,
    "queued": typer.colors.CYAN,
    "failed": typer.colors.RED,
    "rejected": typer.colors.RED,
    "dead_lettered": typer.colors.RED,
    "cancelled": typer.colors.YELLOW,
}
"""The words that are coloured, wherever a cell or a fact is nothing but that word."""


def printable(text: object) -> str:
    """The text on one line, safe for a terminal."""
    words = " ".join(str(text).split())
    return "".join(each if each.isprintable() else "·" for each in words)


def lines_of(text: str) -> tuple[str, ...]:
    """The text's lines, with their indentation, safe for a terminal: what could control it is escaped."""
    return tuple(
        "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in line.expandtabs())
        for line in text.rstrip().replace("\r\n", "\n").split("\n")
    )


def time_text(at: datetime | None) -> str:
    """A time to the second, in UTC; a dash for none."""
    return "-" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"


@dataclass(slots=True)
class _Column:
    """A column's place in the rows, and how wide it is: as it came, and as it will be."""

    place: int
    natural: int
    width: int


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, wide: str = "") -> None:
    """Print rows under headings; the column `wide` may have a line of its own."""
    cells = [[printable(cell) or "-" for cell in row] for row in rows]
    lines = _layout(columns, cells, wide, shutil.get_terminal_size().columns if sys.stdout.isatty() else None)
    for number, row in enumerate((columns, *cells)):
        for indent, line in zip((0, *[_INDENT] * len(lines)), lines, strict=False):
            parts = [_padded(row[column.place], column.width, heading=number == 0) for column in line]
            typer.echo(" " * indent + (" " * _GAP).join(parts).rstrip())


def _layout(columns: Sequence[str], cells: Sequence[Sequence[str]], wide: str, room: int | None) -> list[list[_Column]]:
    """The columns, line by line in their order, with widths that fit `room` where what must be whole allows it.

    No column shares a line at the cost of its text: the wide one is cut only on a line of its own. So a wider terminal
    never shows less. With no bound to the room all stand on one line, as wide as they are.
    """
    if room is None:
        room = sys.maxsize
    lines: list[list[_Column]] = []
    for place, name in enumerate(columns):
        natural = max(map(_cells_of, (name, *(row[place] for row in cells))))
        own_line = room - (_INDENT if lines else 0)  # what the column has, if it has a line of its own
        width = natural
        if name == wide:
            width = min(natural, max(_WIDE_LEAST, own_line))
        elif name in _CUT and room != sys.maxsize:
            width = min(natural, _CUT_MOST, max(_CUT_LEAST, own_line))
        column = _Column(place, natural, width)
        if not lines or _width(lines[-1]) + _GAP + width > room - (_INDENT if len(lines) > 1 else 0):
            lines.append([])
        lines[-1].append(column)
    if len(lines) == 1:  # what is left is for very long types
        for column in lines[0]:
            column.width = min(column.natural, column.width + max(0, room - _width(lines[0])))
    return lines


def _width(line: Sequence[_Column]) -> int:
    return sum(column.width for column in line) + _GAP * (len(line) - 1)


def _cells_of(text: str) -> int:
    """How many places of a terminal's line the text takes: a Chinese character takes two."""
    from rich.cells import cell_len  # noqa: PLC0415 - not for `redrive --help`

    return cell_len(text)


def _padded(text: str, width: int, *, heading: bool) -> str:
    """The text in exactly so many places, cut with an ellipsis if it has more."""
    from rich.cells import set_cell_size  # noqa: PLC0415 - likewise

    if _cells_of(text) > width:
        text = f"{set_cell_size(text, width - 1)}…"
    padding = " " * (width - _cells_of(text))
    return f"{typer.style(text, bold=True) if heading else coloured(text)}{padding}"


def coloured(text: str) -> str:
    """The text, in its colour where it is the name of a status; `typer.echo` drops colours where none are wanted."""
    colour = _COLOURS.get(text)
    return text if colour is None else typer.style(text, fg=colour)


def print_facts(facts: Sequence[tuple[str, object]]) -> None:
    """Print one fact a line, its name before it; without those that are None. A tuple is lines (`lines_of`).

    On a terminal, what is longer than its width goes on below its beginning.
    """
    width = max(len(name) for name, _ in facts)
    room = max(_WIDE_LEAST, shutil.get_terminal_size().columns - width - _GAP) if sys.stdout.isatty() else sys.maxsize
    for name, fact in facts:
        if fact is None:
            continue
        lines = fact if isinstance(fact, tuple) else (printable(fact),)
        shown = [coloured(part) for line in lines for part in _folded(line, room)]
        typer.echo(f"{name:<{width}}  " + f"\n{'':<{width}}  ".join(shown))


def _folded(line: str, room: int) -> list[str]:
    """The line in parts of at most so many places, between words where that can be."""
    if _cells_of(line) <= room:
        return [line]
    from rich.console import Console  # noqa: PLC0415 - likewise
    from rich.text import Text  # noqa: PLC0415 - likewise

    return [part.plain.rstrip() for part in Text(line).wrap(Console(width=room), room, overflow="fold")]


def print_json(value: object) -> None:
    """Print one JSON document on a line; in it, too, nothing commands a terminal."""
    import msgspec  # noqa: PLC0415 - likewise

    text = msgspec.json.encode(value).decode()
    if not text.isprintable():
        text = "".join(each if each.isprintable() else _escaped(each) for each in text)
    typer.echo(text)


def _escaped(character: str) -> str:
    """A character as a JSON string may hold it: in code units of UTF-16."""
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


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
