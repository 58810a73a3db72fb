"""Two parts of the bench in its short form, one for another: `make bench-smoke` runs all of it."""

from pathlib import Path

import pytest

from bench import report
from bench.results import decoded
from tests.bench.running import run_bench


@pytest.mark.timeout(300)
async def test_parts_of_it_are_measured_one_after_the_other_and_shown_together(tmp_path: Path) -> None:
    for part in ("reading", "waiting"):
        await run_bench("--smoke", "--without", "celery,chromium,fastapi,wrk", "--out", str(tmp_path), part)

    results = decoded((tmp_path / "results.json").read_bytes())
    assert set(results.runs) == {"reading", "waiting"}
    assert all(run.smoke for run in results.runs.values())
    assert results.reading is not None
    assert results.waiting is not None
    assert not sum(read.loads.errors for read in results.reading.reads)
    assert not results.waiting.unheard
    for name in (report.PAGE, report.READING_PLOT):
        assert (tmp_path / name).stat().st_size > 1_000
