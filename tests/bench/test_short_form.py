"""The whole bench in its short form: that it works, and that its results hold every figure. Not the figures.

By `make bench-smoke`: it takes four minutes. `tests/acceptance/test_bench.py` runs two of its parts.
"""

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import adapters, before, carrying, growth, ledger, reading, report, scaling, settling
from bench.plan import SMOKE
from bench.results import Results, decoded
from bench.targets import targets_of
from tests.bench.running import run_bench
from tests.commands import COMMAND

BROWSER = "chromium"


def left_out() -> list[str]:
    """What is not there; the results say so. The browser never takes part: it takes longer than all the rest."""
    modules = {name for name in ("celery", "fastapi") if importlib.util.find_spec(name) is None}
    return sorted(modules | {BROWSER} | (set() if shutil.which("wrk") else {"wrk"}))


@pytest.mark.timeout(300)  # it starts some fifteen programs and two servers
async def test_its_short_form_fills_in_every_figure(tmp_path: Path) -> None:
    without = left_out()
    await run_bench("--smoke", "--without", ",".join(without), "--out", str(tmp_path))

    results = decoded((tmp_path / "results.json").read_bytes())  # strict: a figure that is missing is an error
    assert set(results.runs) == {
        "reading", "waiting", "growth", "retrying", "scaling", "ledger", "memory", "adapters", "console",
        "tracing",
    }  # fmt: skip
    assert all(run.smoke and run.without == without for run in results.runs.values())
    every_request_was_answered_well(results)
    all_took_part(results, without)
    not_measured = [target.what for target in targets_of(results) if target.measured is None]
    assert len(not_measured) == 1 + 2 * ("fastapi" in without) + ("celery" in without)

    for name in (report.PAGE, report.READING_PLOT, report.GROWTH_PLOT):
        assert (tmp_path / name).stat().st_size > 1_000


def every_request_was_answered_well(results: Results) -> None:
    assert results.reading is not None
    assert results.waiting is not None
    assert results.retrying is not None
    assert results.growth is not None
    assert results.memory is not None
    assert results.adapters is not None
    assert results.tracing is not None
    assert not sum(reads.errors for reads in results.tracing.reads)
    assert all(reads.cpu_us.median > 0 for reads in results.tracing.reads)
    assert not sum(cost.get.errors for cost in results.adapters.costs)
    assert [cost.table for cost in results.adapters.costs] == [adapters.PLAIN, adapters.NUMBERED, "river"]
    assert all(0 < each.body_bytes < 2_000_000 and each.most_bytes > 0 for each in results.memory.unread)
    assert not sum(read.loads.errors for read in results.reading.reads)
    assert not sum(call.load.errors for call in results.growth.calls)
    assert not sum(server.loads.errors for server in results.retrying.accepting)
    assert not results.waiting.unheard
    assert results.console is not None
    assert len(results.console.counted) == 2 * (4 + 4 + 1)
    assert all(counted.slowest_ms.median > 0 for counted in results.console.counted)
    assert results.ledger is not None
    for filled in results.ledger.ledgers:
        loads = [filled.accepting, filled.meanwhile, *(each.load for each in filled.calls)]
        assert not sum(load.errors for load in loads)
        assert filled.pruned == filled.rows * (results.ledger.days - results.ledger.kept_days) // results.ledger.days
    for waits in (results.retrying.waits, results.retrying.bulk.singles_meanwhile):
        assert (waits.not_accepted, waits.not_applied) == (0, 0)


def all_took_part(results: Results, without: Sequence[str]) -> None:
    fastapi = set() if "fastapi" in without else {reading.FASTAPI}
    celery = set() if "celery" in without else {settling.CELERY}
    assert results.reading is not None
    assert results.retrying is not None
    assert results.growth is not None
    for connections in SMOKE.reading.connections:
        for server in (reading.REDRIVE, reading.BARE, reading.PLAIN, *fastapi):
            assert results.reading.find(server, reading.HOT, connections) is not None
            assert results.reading.find(server, reading.RANDOM, connections) is not None
        assert results.reading.find(reading.REDRIVE, reading.NOT_MODIFIED, connections) is not None
    assert {counted.server for counted in results.reading.queries} == {reading.REDRIVE, reading.PLAIN} | fastapi
    assert len(results.retrying.accepting) == 2
    consumers = {settled.consumer for settled in results.retrying.settling}
    assert consumers == {settling.WORKER, settling.WITHOUT_BROKER, settling.ACK_ONLY} | celery
    assert {each.way for each in results.retrying.carrying} == {carrying.THROUGH_RABBITMQ, carrying.THROUGH_LEDGER}
    assert results.scaling is not None
    plan = SMOKE.scaling
    for apis in plan.apis:
        assert results.scaling.find(scaling.READS, apis=apis, workers=0, clients=plan.connections) is not None
        for workers in plan.workers:
            assert results.scaling.find(scaling.RETRIES, apis=apis, workers=workers, clients=plan.clients) is not None
    assert results.ledger is not None
    for call in ledger.CALLS:
        assert all(filled.find(call).requests > 0 for filled in results.ledger.ledgers)
    for rows in SMOKE.growth.rows:
        for call in (growth.GET_ONE, growth.FIRST_PAGE, growth.DEEP_PAGE, growth.STATS):
            assert results.growth.find(rows, call, growth.LIST_CONNECTIONS) is not None


@pytest.mark.timeout(120)
async def test_an_earlier_version_takes_part_where_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(before.VARIABLE, str(COMMAND))  # this one, for want of an earlier one that is sure to be there
    await run_bench("--smoke", "--out", str(tmp_path), "before")

    results = decoded((tmp_path / "results.json").read_bytes())
    assert results.before is not None
    assert [each.what for each in results.before.compared] == [before.HOT, before.RANDOM, before.RETRIES]
    assert all(each.before.median > 0 and each.now.median > 0 for each in results.before.compared)
    assert len(targets_of(results)) == 3
    assert "## An earlier version" in (tmp_path / report.PAGE).read_text()
