"""Writes the table of docs/reliability.md from the results of a run: `python -m tests.acceptance.chaos.report RESULTS`.

Only what stands between the two markers is replaced. A run in which anything failed writes no table: see `make chaos`.
"""

import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[3] / "docs" / "reliability.md"
BEGIN = "<!-- table: written by make chaos, do not edit -->"
END = "<!-- end of table -->"
_COUNTS = ("kills", "acked", "applied", "parked", "lost", "doubled", "unexpected")


def table_of(results: list[dict[str, Any]]) -> str:
    """The results as Markdown, one row a test, with a sum below."""
    lines = [
        _circumstances(results),
        "",
        "| promise | kills | acked | applied | parked | lost | doubled | unexpected | bound | seed | seconds |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for result in sorted(results, key=lambda result: int(result["promise"].split()[0][1:])):
        counts = " | ".join(f"{result[name]:,}" for name in _COUNTS)
        lines.append(
            f"| {result['promise']} | {counts} | {result['bound']:.1e} | {result['seed']} | {result['seconds']:.0f} |"
        )
    sums = {name: sum(result[name] for result in results) for name in _COUNTS}
    bound = 3 / sums["acked"]
    lines.append(f"| **all** | {' | '.join(f'**{sums[name]:,}**' for name in _COUNTS)} | **{bound:.1e}** | | |")
    return "\n".join(lines)


def _circumstances(results: list[dict[str, Any]]) -> str:
    scales = ", ".join(f"{scale:g}" for scale in sorted({result["scale"] for result in results}))
    minutes = sum(result["seconds"] for result in results) / 60
    machine = f"{os.cpu_count()} processors, {platform.system()}, Python {platform.python_version()}"
    return f"Run on {datetime.now(UTC):%Y-%m-%d} at scale {scales}, in {minutes:.0f} minutes, on {machine}."


def main() -> None:
    """Put the table of a run into the page."""
    results = [json.loads(line) for line in Path(sys.argv[1]).read_text("utf-8").splitlines()]
    before, begin, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end and results):
        sys.exit("docs/reliability.md has lost its markers, or there are no results")
    PAGE.write_text(f"{before}{BEGIN}\n\n{table_of(results)}\n\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
