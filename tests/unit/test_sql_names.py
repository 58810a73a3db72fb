"""A statement has the name of the method that runs it, or one that begins with it, where the method has several."""

import ast
from collections.abc import Iterator
from pathlib import Path

from shared.sql import blocks

_TOP = Path(__file__).parents[2] / "shared"


def names_in_functions() -> Iterator[tuple[str, str]]:
    """Every text in a function of `shared`, with the function's name; without leading underscores."""
    for path in _TOP.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                for node in ast.walk(function):
                    if isinstance(node, ast.Constant) and isinstance(node.value, str):
                        yield node.value, function.name.lstrip("_")


def test_every_statement_has_the_name_of_the_method_that_runs_it() -> None:
    names = {name for path in (_TOP / "sql").glob("*.sql") for name in blocks(path.read_text("utf-8"))}
    runs = {(text, function) for text, function in names_in_functions() if text in names}

    rightly = {text for text, function in runs if text == function or text.startswith(f"{function}_")}
    assert names - rightly == set()


def test_every_sql_file_is_ascii_which_each_encoding_of_a_database_can_hold() -> None:
    files = [path for folder in ("shared", "cli", "deploy") for path in (_TOP.parent / folder).rglob("*.sql")]
    assert len(files) >= 10

    assert [str(path) for path in files if not path.read_bytes().isascii()] == []
