"""Writes the tables of docs/reliability.md: `python -m tests.acceptance.chaos.report RESULTS`.

A result is a line of JSON. `kind` says to which table it belongs:

    {"kind": "faults", …}    what a Tally holds
    {"kind": "door", "promise": "P13 …", "what": "ids sent", "tried": 100, "wrong": 0, "bound": 0.03, "seed": 7, …}

Both have `scale`, `seconds` and the `commit`; a `seed` that is missing or null was none. Only what is between the two
markers is replaced. A run in which anything failed, or is missing, writes no table: see `make chaos`.
"""

import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

PAGE: Final = Path(__file__).parents[3] / "docs" / "reliability.md"
BEGIN: Final = "<!-- table: written by make chaos, do not edit -->"
END: Final = "<!-- end of table -->"
_COUNTS: Final = ("kills", "acked", "applied", "parked", "lost", "doubled", "unexpected")
_NOT_CLEAN: Final = ("lost", "doubled", "unexpected", "wrong")

PROMISES: Final = [f"P{number}" for number in range(1, 27)]

Result = dict[str, Any]


def tables_of(results: list[Result]) -> str:
    """The results as Markdown, one row a test: faults first, then what was sent to the door."""
    by_number = sorted(results, key=lambda result: PROMISES.index(_promise(result)))
    faults = [result for result in by_number if result["kind"] == "faults"]
    door = [result for result in by_number if result["kind"] == "door"]
    parts = [_circumstances(results)]
    if faults:
        parts.append(_faults(faults))
    if door:
        parts.append(_door(door))
    return "\n\n".join(parts)


def _faults(results: list[Result]) -> str:
    lines = [
        "| promise | kills | acked | applied | parked | lost | doubled | unexpected | bound | seed | seconds |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for result in results:
        counts = " | ".join(f"{result[name]:,}" for name in _COUNTS)
        lines.append(
            f"| {result['promise']}{_measured(result)} | {counts} | {_bound(result)} | {_seed(result)} "
            f"| {result['seconds']:.0f} |"
        )
    kept = [result for result in results if not _may_lose(result)]
    sums = {name: sum(result[name] for result in kept) for name in _COUNTS}
    bound = 3 / sums["acked"] if sums["acked"] else 1.0
    lines.append(f"| **all** | {' | '.join(f'**{sums[name]:,}**' for name in _COUNTS)} | **{bound:.1e}** | | |")
    return "\n".join(lines)


def _door(results: list[Result]) -> str:
    lines = ["| promise | what | tried | wrong | bound | seed | seconds |", "|---|---|--:|--:|--:|--:|--:|"]
    lines += [
        f"| {result['promise']} | {result['what']} | {result['tried']:,} | {result['wrong']:,} | {_bound(result)} "
        f"| {_seed(result)} | {result['seconds']:.0f} |"
        for result in results
    ]
    return "\n".join(lines)


def _measured(result: Result) -> str:
    """What a test has measured beside the counts, for the cell of its name."""
    notes = result.get("notes", {})
    pause_s, lost_within_ms = notes.get("longest_pause_s"), notes.get("lost_within_ms")
    pause = "" if pause_s is None else f"; longest pause {pause_s:.1f} s"
    return pause + (f"; lost: accepted in the last {lost_within_ms:,} ms" if lost_within_ms else "")


def _promise(result: Result) -> str:
    return str(result["promise"].split()[0])


def _clean(result: Result) -> bool:
    wrong = [name for name in _NOT_CLEAN if result.get(name)]
    return "failed" not in result.get("notes", {}) and wrong in ([], ["lost"] if _may_lose(result) else [])


def _may_lose(result: Result) -> bool:
    """Whether it measures what an asynchronous standby does not have, which is not promised."""
    return bool(result.get("notes", {}).get("may_lose"))


def _bound(result: Result) -> str:
    return f"{result['bound']:.1e}"


def _seed(result: Result) -> str:
    return str(result.get("seed") or "–")  # noqa: RUF001 - a dash, as in the other tables of the docs


def _circumstances(results: list[Result]) -> str:
    minutes = sum(result["seconds"] for result in results) / 60
    machine = f"{os.cpu_count()} processors, {platform.system()}, Python {platform.python_version()}"
    return (
        f"Run on {datetime.now(UTC):%Y-%m-%d} of commit {results[0]['commit']} at scale {results[0]['scale']:g}, on "
        f"{machine}: {minutes:.0f} minutes of tests, up to three of them at a time."
    )


def main() -> None:
    """Put the tables of a run into the page."""
    results = [json.loads(line) for line in Path(sys.argv[1]).read_text("utf-8").splitlines()]
    if unclean := [result for result in results if not _clean(result)]:
        sys.exit(f"no table of a run that was not clean: {unclean}")
    if missing := set(PROMISES) - set(map(_promise, results)):
        sys.exit(f"no table of a run without {', '.join(sorted(missing))}")
    if len({result["scale"] for result in results}) > 1:
        sys.exit("no table of runs at several scales")
    if len({result["commit"] for result in results}) > 1:
        sys.exit("no table of runs of several commits")
    before, begin, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit("docs/reliability.md has lost its markers")
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables_of(results)}\n\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
