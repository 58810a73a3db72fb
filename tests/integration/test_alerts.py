"""Alerts and dashboard ask for what the programs really show, and the dashboard for all of it."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.api_server import Serve
from tests.compose import ROOT
from tests.eventually import eventually
from tests.jobs import JobMaker
from tests.workers import a_worker

_FROM_PROMETHEUS = {"instance", "job"}
_SELECTOR = re.compile(r"\b((?:redrive|process|python)_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
_GROUPING = re.compile(r"\bby \(([^)]*)\)")


class Query(NamedTuple):
    """An expression, and the labels that the text beside it names."""

    expr: str
    named: set[str]


def rules() -> list[dict[str, Any]]:
    content = yaml.safe_load((ROOT / "deploy/prometheus/redrive.rules.yaml").read_text("utf-8"))
    return [rule for group in content["groups"] for rule in group["rules"]]


def queries() -> Iterator[Query]:
    """All expressions of alerts and dashboard."""
    for rule in rules():
        yield Query(rule["expr"], set())
    for panel in json.loads((ROOT / "deploy/grafana/redrive.json").read_text("utf-8"))["panels"]:
        for target in panel.get("targets", []):
            yield Query(target["expr"], set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])))


Shown = dict[str, dict[str, set[str]]]
"""The labels of each sample, and the values that each had."""


@pytest.fixture
async def shown(database_url: str, jobs: JobMaker, serve: Serve) -> Shown:
    """What both programs show once a job was read, and a retry settled."""
    api = await serve(database_url)
    job = await jobs.failed()
    async with a_worker(database_url) as worker:
        assert (await api.get(f"/api/jobs/{job.id}")).status == 200
        assert (await api.post(f"/api/jobs/{job.id}/retry")).status == 202

        async def settled() -> bool:
            return await jobs.queued() == 0

        await eventually(settled)
        texts = [generate_latest(api.registry).decode(), await worker.metrics()]
    found: Shown = defaultdict(lambda: defaultdict(set))
    for text in texts:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                for label, value in (sample.labels or {"": ""}).items():
                    found[sample.name][label].add(value)
    return found


async def test_every_query_asks_for_metrics_labels_and_values_that_the_programs_show(shown: Shown) -> None:
    asked = 0
    for query in queries():
        selectors = _SELECTOR.findall(query.expr)
        labels = {label for name, _ in selectors for label in shown.get(name, {})} | _FROM_PROMETHEUS
        assert {name for name, _ in selectors} <= shown.keys(), query
        for name, matchers in selectors:
            for label, operator, value in _MATCHER.findall(matchers):
                assert label in {*shown[name], *_FROM_PROMETHEUS}, query
                assert operator in ("=~", "!~") or value in shown[name][label], query
        grouped = {label.strip() for group in _GROUPING.findall(query.expr) for label in group.split(",")}
        assert grouped <= labels, query
        assert query.named <= (grouped or _FROM_PROMETHEUS), query
        asked += len(selectors)
    assert asked > 40


async def test_the_dashboard_has_every_metric_of_ours(shown: Shown) -> None:
    asked = {name for query in queries() for name, _ in _SELECTOR.findall(query.expr)}
    ours = {name for name in shown if name.startswith("redrive_") and not name.endswith("_created")}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in ours}

    assert families - {name.removesuffix("_bucket") for name in asked} == set()
