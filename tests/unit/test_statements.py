"""Statements: their names, which are those of the methods that run them, and the fragments that they share."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

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


def test_a_statement_has_its_fragments_with_their_values() -> None:
    text = """\
-- fragment: job
-- What is found by {id}.
SELECT {columns} FROM jobs
WHERE {named}

-- fragment: named
id = $1

-- name: find
-- Reads.
{job columns=a,b};

-- name: count
{job columns=count(*)};
"""

    assert {name: " ".join(sql.split()) for name, sql in blocks(text).items()} == {
        "find": "-- Reads. SELECT a,b FROM jobs WHERE id = $1",
        "count": "SELECT count(*) FROM jobs WHERE id = $1",
    }


def test_a_fragment_of_every_file_is_one_of_this_file_too() -> None:
    found = blocks("-- name: find\nSELECT {version} FROM jobs;")

    assert "redrive.job_version(" in found["find"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("-- name: find\nSELECT {unknown};", KeyError),
        ("-- fragment: part\n{word}\n-- name: find\nSELECT {part};", KeyError),
        ("-- name: find\nSELECT 1;\n-- name: find\nSELECT 2;", ValueError),
    ],
)
def test_a_fragment_or_value_that_is_missing_and_a_name_that_stands_twice_are_refused(
    text: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        blocks(text)
