"""Tables, at the widths that terminals have and in a pipe: what must be whole is whole, and no line is too long."""

import re
import sys
from collections.abc import Callable, Sequence

import pytest
from rich.cells import cell_len

from cli.operate.tables import print_facts, print_table

ID = "4c5a7f0c-a41c-4ddb-b9c2-e65c7e98a026"
OTHER = "01a2075a-2eea-7742-adc5-9677bda71caa"
BATCH = "01a2075a-2ede-75dc-9d1d-e0d032b2b7bc"
AT = "2026-11-25 22:20:51Z"
RETRY = "redrive retry --fingerprint 0123456789abcdef --canary 5 --reason '…'"
WIDTHS = (80, 100, 120, 200)

Shown = Callable[..., list[str]]

TABLES: dict[str, tuple[tuple[str, ...], Callable[[str], tuple[object, ...]], str, tuple[str, ...]]] = {
    "jobs": (
        ("ID", "TYPE", "STATUS", "TRIES", "CREATED", "ERROR"),
        lambda long: (ID, f"email.send{long}", "failed", "1/5", AT, f"HTTPError: 503{long}"),
        "ERROR",
        (ID, "failed", "1/5", AT),
    ),
    "retries": (
        ("ID", "JOB", "STATE", "OUTCOME", "REQUESTED", "BATCH", "ACTOR", "REASON"),
        lambda long: (OTHER, ID, "dead_lettered", "poison", AT, BATCH, f"ana{long}", f"again{long}"),
        "REASON",
        (OTHER, ID, "dead_lettered", "poison", AT, BATCH),
    ),
    "dead": (
        ("ID", "JOB", "PROJECT", "LEDGER", "REASON", "BYTES"),
        lambda long: (OTHER, ID, f"demo{long}", "dead_lettered", f"delivered too often{long}", 65_536),
        "REASON",
        (OTHER, ID, "dead_lettered", "65536"),
    ),
    "failures": (
        ("JOBS", "RETRYABLE", "SINCE", "LAST", "TYPE", "ERROR", "TO RETRY THEM"),
        lambda long: (12, 10_000, AT, AT, f"email.send{long}", f"HTTPError: 503{long}", RETRY),
        "ERROR",
        ("12", "10000", AT, RETRY),
    ),
    "batches": (
        ("ID", "REQUESTED", "TOTAL", "QUEUED", "APPLIED", "REJECTED", "CANCELLED", "DEAD", "ACTOR", "REASON"),
        lambda long: (BATCH, AT, *(10_000,) * 6, f"ana{long}", f"again{long}"),
        "REASON",
        (BATCH, AT, "10000"),
    ),
    "stats": (
        ("STATUS", "JOBS", "OLDEST", "RETRYABLE", "EXHAUSTED"),
        lambda _long: ("completed", "10000+", AT, 10_000, 10_000),
        "",
        ("completed", "10000+", AT, "10000"),
    ),
}
LONG = {
    "short": "",
    "long": "E" * 150,
    "very long": " word" * 400,
    "wide characters": "障害が発生しました" * 30,
    "combining": "e\u0301" * 150,
    "emoji": "🔥" * 90,
}


@pytest.fixture
def on_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shown:
    """The lines of a table on a terminal of a width, without colours."""

    def shown(width: int, columns: Sequence[str], *rows: Sequence[object], wide: str = "") -> list[str]:
        monkeypatch.setenv("COLUMNS", str(width))
        with monkeypatch.context() as patched:
            patched.setattr(sys.stdout, "isatty", lambda: True)
            print_table(columns, rows, wide=wide)
        return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()

    return shown


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("length", LONG)
@pytest.mark.parametrize("width", WIDTHS)
def test_what_must_be_whole_is_whole_and_no_line_is_too_long(
    on_terminal: Shown, width: int, length: str, table: str
) -> None:
    columns, row_of, wide, whole = TABLES[table]
    lines = on_terminal(width, columns, row_of(LONG[length]), wide=wide)

    assert max(map(cell_len, lines)) <= width
    text = "\n".join(lines)
    for cell in whole:
        assert cell in text
    for heading in columns:
        assert heading in text
    if wide:
        assert str(row_of("")[columns.index(wide)]) in text  # the long text is cut behind its first words


@pytest.mark.parametrize("width", WIDTHS)
def test_cells_stand_under_their_headings(on_terminal: Shown, width: int) -> None:
    columns, row_of, wide, _ = TABLES["jobs"]
    lines = on_terminal(width, columns, row_of("障害" * 40), row_of(""), wide=wide)
    height = len(lines) // 3

    assert len(lines) == 3 * height
    for line in range(height):
        heading = lines[line]
        for row in (1, 2):
            place = 0
            for name in heading.split():
                place = heading.index(name, place)
                before = "".join(_up_to(lines[row * height + line], place))
                assert before == "" or before.endswith("  "), (heading, lines[row * height + line])


def _up_to(text: str, cells: int) -> list[str]:
    """The characters that stand before a place of a terminal's line."""
    found: list[str] = []
    while text and cell_len("".join(found)) < cells:
        found.append(text[0])
        text = text[1:]
    return found


def test_an_error_keeps_a_line_of_its_own_where_the_others_leave_too_little(on_terminal: Shown) -> None:
    columns, row_of, wide, _ = TABLES["jobs"]
    error = "TimeoutError: renderer-2 did not answer within 30 s"
    row = (*row_of("")[:-1], error)

    assert len(on_terminal(200, columns, row, wide=wide)) == 2
    for width in (80, 100):
        lines = on_terminal(width, columns, row, wide=wide)
        assert len(lines) == 4
        assert error in lines[3] or lines[3].endswith("…")


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("length", [0, 5, 20, 40, 90, 300])
def test_a_wider_terminal_never_shows_less(on_terminal: Shown, table: str, length: int) -> None:
    columns, row_of, wide, _ = TABLES[table]
    row = row_of("E" * length)
    shown = [len(re.findall("E", "".join(on_terminal(width, columns, row, wide=wide)))) for width in range(40, 240)]
    assert shown == sorted(shown)


def test_an_id_is_whole_on_a_terminal_that_is_too_narrow_for_it(on_terminal: Shown) -> None:
    columns, row_of, wide, whole = TABLES["jobs"]
    text = "\n".join(on_terminal(30, columns, row_of("x" * 99), wide=wide))
    for cell in whole:
        assert cell in text


def test_a_table_without_rows_is_its_headings(on_terminal: Shown) -> None:
    assert on_terminal(80, ("ID", "ERROR"), wide="ERROR") == ["ID  ERROR"]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("columns_set", ["40", "80", "120"])
def test_in_a_pipe_a_table_is_whole_and_two_blanks_part_its_cells(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, table: str, columns_set: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns_set)
    columns, row_of, wide, _ = TABLES[table]
    row = row_of("E" * 3000)
    print_table(columns, [row, ["" for _ in row]], wide=wide)

    lines = capsys.readouterr().out.splitlines()
    assert [re.split("  +", line) for line in lines] == [[*columns], [str(cell) for cell in row], ["-" for _ in row]]


def test_what_cells_hold_is_text_on_one_line(on_terminal: Shown, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "a\tb\nc\r\x1b[2J\x9b\x07 [red]x[/red] \u202e\u2028 :fire: {}"
    lines = on_terminal(120, ("ID", "ERROR"), (ID, hostile), wide="ERROR")
    print_table(("ID", "ERROR"), [(ID, hostile)], wide="ERROR")
    print_facts([("error", hostile)])
    piped, facts = capsys.readouterr().out.splitlines()[1:]

    for line in (lines[1], piped, facts):
        assert "a b c ·[2J·· [red]x[/red] · :fire: {}" in line
    assert len(lines) == 2
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202e\u2028]", lines[1] + piped + facts)


@pytest.mark.parametrize("length", LONG)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_fact_that_is_too_long_goes_on_below_its_beginning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, length: str
) -> None:
    long = LONG[length]
    monkeypatch.setenv("COLUMNS", str(width))
    with monkeypatch.context() as patched:
        patched.setattr(sys.stdout, "isatty", lambda: True)
        print_facts([("id", ID), ("type", f"email.send{long}"), ("retry queued", (f"HTTPError: 503{long}", "at once"))])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()

    assert max(map(cell_len, lines)) <= width
    assert lines[0] == f"id            {ID}"
    for name, text in (("type", f"email.send{long}"), ("retry queued", f"HTTPError: 503{long}")):
        first = next(at for at, line in enumerate(lines) if line.startswith(f"{name} "))
        shown = lines[first][14:]
        for line in lines[first + 1 :]:
            if not line.startswith(" " * 14):
                break
            shown += line[14:]
        assert "".join(shown.split()).removesuffix("atonce") == "".join(text.split())


def test_facts_in_a_pipe_are_never_folded(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_facts([("error", "E" * 500)])

    assert capsys.readouterr().out == f"error  {'E' * 500}\n"
