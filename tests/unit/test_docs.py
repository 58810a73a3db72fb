"""What users read, against what the programs do: settings, routes, metrics, log events, and what links point at."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from pydantic.fields import FieldInfo

import api.metrics
import worker.metrics
from api.app import create_app
from shared.database import Database
from shared.errors import DatabaseUnavailable
from shared.otel_settings import HONOURED
from shared.setting_types import Limit
from shared.settings import PREFIX, ApiSettings, CheckSettings, Environment, WorkerSettings, read
from shared.telemetry import metrics_registry
from tests.tokens import SECRET

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def rows(text: str, first: str) -> list[list[str]]:
    """The rows of all tables whose first column matches `first`, without their header."""
    cells = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return [row for row in cells if re.fullmatch(first, row[0])]


def written(field: FieldInfo) -> str:
    """A default as the table of settings has it."""
    match value := field.default:
        case None | ():
            return "–"  # noqa: RUF001 - a dash, as in the table
        case Limit():
            return f"`{value.requests}/{value.seconds}`"
        case bool():
            return f"`{str(value).lower()}`"
        case frozenset():
            return f"`{','.join(map(str, sorted(value)))}`"
        case _ if field.is_required():
            return "required"
        case _:
            return f"`{value}`"


def defaults(kind: type[Environment]) -> dict[str, str]:
    return {f"{PREFIX}{name.upper()}": written(field) for name, field in kind.model_fields.items()}


def test_the_table_of_settings_has_every_setting_with_its_default() -> None:
    table = {row[0].strip("`"): row[1] for row in rows(text_of("README.md"), rf"`{PREFIX}\w+`")}
    expected = defaults(WorkerSettings) | defaults(ApiSettings) | defaults(CheckSettings)
    expected["REDRIVE_OPS_PORT"] = "`9090`, worker `9091`"

    assert (defaults(ApiSettings)["REDRIVE_OPS_PORT"], defaults(WorkerSettings)["REDRIVE_OPS_PORT"]) == (
        "`9090`",
        "`9091`",
    )
    assert table == expected


def test_the_table_of_settings_names_every_secret() -> None:
    table = {row[0].strip("`") for row in rows(text_of("README.md"), rf"`{PREFIX}\w+`") if row[2].endswith("secret")}
    kinds = (ApiSettings, WorkerSettings, CheckSettings)
    files = {
        f"{PREFIX}{name.upper()}"
        for kind in kinds
        for name, field in kind.model_fields.items()
        if "Secret" in str(field.annotation)
    }

    assert table == files


def test_the_table_of_calls_has_every_route() -> None:
    settings = read(ApiSettings, database_url="postgresql://", jwt_secret=SECRET)
    routes = {
        (route.method, route.resource.canonical)
        for route in create_app(settings, CollectorRegistry()).app.router.routes()
        if route.resource is not None
    }

    told = {
        tuple(call.split(" "))
        for row in rows(text_of("README.md"), r"`[A-Z]+ /.*")
        for call in re.findall(r"`([A-Z]+ /[^`]+)`", row[0])
    }

    assert told == routes


@pytest.mark.parametrize(("title", "program"), [("The api", api.metrics), ("The worker", worker.metrics)])
async def test_every_metric_is_explained(title: str, program: object) -> None:
    registry = metrics_registry()
    program.Metrics(registry)  # type: ignore[attr-defined]
    registered = {
        (f"{family.name}_total" if family.type == "counter" else family.name, family.type)
        for family in registry.collect()
        if family.name.startswith("redrive_")
    }
    text = text_of("docs/observability.md")
    sections = (text.partition(f"{heading}\n")[2].partition("\n#")[0] for heading in ("## Metrics", f"### {title}"))

    assert {(row[0].strip("`"), row[1]) for each in sections for row in rows(each, "`redrive_.*`")} == registered


def test_every_check_of_readiness_is_explained() -> None:
    sources = "".join(map(text_of, ("api/serving.py", "worker/app.py", "cli/processes.py")))
    named = {name for pair in re.findall(r'checks\["(\w+)"\]|\{"(\w+)": (?:api|Status)\.', sources) for name in pair}
    section = text_of("docs/observability.md").partition("## Readiness\n")[2].partition("\n## ")[0]

    assert {"database", "settling"} <= named
    assert {row[0].strip("`") for row in rows(section, "`[a-z]+`")} == named - {""}


def test_every_alert_is_explained_and_is_the_same_for_the_operator() -> None:
    groups = yaml.safe_load(text_of("deploy/prometheus/redrive.rules.yaml"))["groups"]
    alerts = [rule["alert"] for group in groups for rule in group["rules"]]
    told = [row[0].strip("`") for row in rows(text_of("docs/observability.md"), "`Redrive[A-Za-z]+`")]
    for_operator = yaml.safe_load(text_of("deploy/kubernetes/components/prometheusrule/prometheusrule.yaml"))

    assert told == alerts
    assert for_operator["spec"]["groups"] == groups


def events() -> Iterator[tuple[str, str]]:
    """Event and level of every log call of the programs, those for debugging aside."""
    modules = [path for folder in ("api", "worker", "shared") for path in (ROOT / folder).rglob("*.py")]
    for path in [*modules, ROOT / "cli" / "processes.py", ROOT / "cli" / "signals.py"]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="log"), attr=level), args=[ast.Constant(value=str(event)), *_]
                ) if level != "debug":
                    yield event, {"exception": "error"}.get(level, level)


def test_every_log_event_is_explained() -> None:
    told = {
        (event, row[1])
        for row in rows(text_of("docs/observability.md"), r"(`[a-z -]+`(, )?)+")
        for event in re.findall(r"`([^`]+)`", row[0])
        if row[1] in {"info", "warning", "error"}
    }

    assert told == set(events())


def test_every_variable_of_opentelemetry_that_has_an_effect_is_explained() -> None:
    told = {
        name
        for row in rows(text_of("docs/observability.md"), r"(`OTEL_[A-Z_]+`(, )?)+")
        for name in re.findall(r"`(OTEL_\w+)`", row[0])
    }
    of_traces = {name.replace("_OTLP_", "_OTLP_TRACES_") for name in told if name.startswith("OTEL_EXPORTER_OTLP_")}

    assert told | of_traces == HONOURED


async def test_pgbouncer_is_told_of_every_parameter_that_connections_send(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, str] = {}

    async def connect(*_: object, server_settings: dict[str, str], **__: object) -> None:
        sent.update(server_settings)
        raise ConnectionRefusedError

    monkeypatch.setattr("asyncpg.connect", connect)
    default = read(WorkerSettings, database_url="postgresql://").db_timeout
    async with Database("postgresql://h/x", program="x", timeout_s=default, pool_size=1).opened() as database:
        with pytest.raises(DatabaseUnavailable):
            await database.ping()
    unknown = {name: value for name, value in sent.items() if name not in {"application_name", "timezone"}}
    text = text_of("docs/deploying.md")
    (ignored,) = re.findall(r"^ignore_startup_parameters = (.*)$", text, re.MULTILINE)

    assert set(ignored.split(", ")) == set(unknown)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    paths = set(re.findall(r"`((?:tests|docs|deploy|api|worker|shared|cli)/[\w./-]+)`", text))

    assert {path for path in paths if not (ROOT / path).exists()} == set()


def test_a_link_that_leads_nowhere_is_found_in_markdown_and_in_html(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "links", tmp_path / ".ci")
    (tmp_path / "here.webp").touch()
    page = """# A page
[a](#a-page) [b](here.webp) [c](https://example.com/) [d](gone-1.md) [e](#gone-2)
<picture>
  <source srcset="here.webp, gone-3.webp 2x">
  <img alt="f" src="gone-4.webp"> <img alt="g" src="here.webp">
</picture>
<a href="gone-5.md">h</a> <a href="https://example.com/">i</a> and `<a href="of-an-example.md">`
```html
<img src="of-an-example.webp">
```
"""
    (tmp_path / "README.md").write_text(page)
    command = [sys.executable, str(tmp_path / ".ci" / "links")]
    said = subprocess.run(command, capture_output=True, text=True, check=False)

    assert said.returncode == 1
    found = re.findall(r"^README\.md: (.*)$", said.stderr, re.MULTILINE)
    assert found == ["gone-1.md", "#gone-2", "gone-3.webp", "gone-4.webp", "gone-5.md"]


def nav_pages(entry: str | list[Any] | dict[str, Any]) -> Iterator[str]:
    """The pages of the site's navigation, or of a part of it."""
    if isinstance(entry, str):
        yield entry
    else:
        for each in entry.values() if isinstance(entry, dict) else entry:
            yield from nav_pages(each)


def test_every_page_has_its_place_in_the_site() -> None:
    made = set(re.findall(r'"(\w+\.md)"[,)]', text_of(".ci/docs_site.py")))  # from what lies outside of docs/
    pages = {str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/**/*.md")}

    assert set(nav_pages(yaml.safe_load(text_of("mkdocs.yml"))["nav"])) == pages | made


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text_of("docs/security.md")))

    missing = {
        f"{path}::{name}"
        for path, name in named
        if not re.search(rf"^(async )?def {name}\(", text_of(path), re.MULTILINE)
    }

    assert len(named) > 20
    assert missing == set()
