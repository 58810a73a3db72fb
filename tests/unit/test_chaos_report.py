"""The tables that `make chaos` writes."""

import json
import re
from pathlib import Path

import pytest

from tests.acceptance.chaos import report

FAULTS = {
    "kind": "faults", "promise": "P10 crash loop", "kills": 60, "acked": 200, "applied": 190, "parked": 10, "lost": 0,
    "doubled": 0, "unexpected": 0, "bound": 0.015, "seed": 7, "scale": 100.0, "seconds": 61.2, "commit": "1a2b3c4",
}  # fmt: skip
DOOR = {
    "kind": "door", "promise": "P13 bad ids", "what": "ids sent", "tried": 10_000, "wrong": 0, "bound": 0.0003,
    "scale": 100.0, "seconds": 30, "commit": "1a2b3c4",
}  # fmt: skip
ALL = [FAULTS | {"promise": f"{promise} any"} for promise in report.PROMISES]
PAGE = f"before\n\n{report.BEGIN}\n\nold\n\n{report.END}\n\nafter\n"


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    page = tmp_path / "reliability.md"
    page.write_text(PAGE, "utf-8")
    monkeypatch.setattr(report, "PAGE", page)
    return page


def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *results: object) -> None:
    """Run the command on these results."""
    lines = tmp_path / "results"
    lines.write_text("".join(json.dumps(result) + "\n" for result in results), "utf-8")
    monkeypatch.setattr("sys.argv", ["report", str(lines)])
    report.main()


def test_every_promise_is_counted_on_the_page_and_has_a_test() -> None:
    folder = Path(report.__file__).parent
    tests = "".join(path.read_text("utf-8") for path in folder.glob("test_*.py"))

    assert f"P1 to {report.PROMISES[-1]} are the promises" in report.PAGE.read_text("utf-8")
    assert set(re.findall(r'"(P\d+) ', tests)) == set(report.PROMISES)


def test_faults_and_what_was_sent_to_the_door_have_a_table_each(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, monkeypatch, DOOR, *ALL[2:], ALL[0], FAULTS | {"promise": "P2 killed", "acked": 1_000})

    text = page.read_text("utf-8")
    number = len(report.PROMISES)
    acked = 200 * (number - 1) + 1_000
    rest = f"**0** | **0** | **0** | **{3 / acked:.1e}** | | |"
    rows = [line for line in text.splitlines() if line.startswith(("| P", "| **"))]
    assert rows == [
        "| P1 any | 60 | 200 | 190 | 10 | 0 | 0 | 0 | 1.5e-02 | 7 | 61 |",
        "| P2 killed | 60 | 1,000 | 190 | 10 | 0 | 0 | 0 | 1.5e-02 | 7 | 61 |",
        *(f"| {promise} any | 60 | 200 | 190 | 10 | 0 | 0 | 0 | 1.5e-02 | 7 | 61 |" for promise in report.PROMISES[2:]),
        f"| **all** | **{60 * number:,}** | **{acked:,}** | **{190 * number:,}** | **{10 * number}** | {rest}",
        "| P13 bad ids | ids sent | 10,000 | 0 | 3.0e-04 | – | 30 |",  # noqa: RUF001 - a dash
    ]
    assert re.search(r"^Run on \d{4}-\d\d-\d\d of commit 1a2b3c4 at scale 100, on ", text, re.MULTILINE)
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text


@pytest.mark.parametrize(
    ("notes", "told"),
    [
        ({"longest_pause_s": 0.6}, "; longest pause 0.6 s"),
        ({"longest_pause_s": 0.0, "lost_within_ms": 0}, "; longest pause 0.0 s"),
        ({"lost_within_ms": 2_002}, "; lost: accepted in the last 2,002 ms"),
        (
            {"longest_pause_s": 4.5, "lost_within_ms": 2_002},
            "; longest pause 4.5 s; lost: accepted in the last 2,002 ms",
        ),
    ],
)
def test_a_row_tells_the_longest_pause_and_what_was_lost(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: dict[str, object], told: str
) -> None:
    written(tmp_path, monkeypatch, *ALL, FAULTS | {"promise": "P22 primary lost", "notes": notes})

    assert f"| P22 primary lost{told} | 60 |" in page.read_text("utf-8")


@pytest.mark.parametrize(
    "results",
    [
        [*ALL, FAULTS | {"doubled": 1}],
        [*ALL, FAULTS | {"notes": {"failed": "too late"}}],
        [*ALL, DOOR | {"wrong": 1}],
        ALL[1:],
        [*ALL, FAULTS | {"scale": 3.0}],
        [*ALL, FAULTS | {"commit": "1a2b3c4+"}],
        [],
    ],
    ids=["doubled", "failed", "door", "one is missing", "two scales", "two commits", "nothing"],
)
def test_a_run_that_was_not_clean_and_whole_leaves_the_old_table(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: list[object]
) -> None:
    with pytest.raises(SystemExit):
        written(tmp_path, monkeypatch, *results)

    assert page.read_text("utf-8") == PAGE
