"""`redrive adapter`: what is listed, what is printed, and what is refused."""

import re
from pathlib import Path

import pytest

from cli.main import main
from shared import adapters

FOLDER = Path(adapters.__file__).parent


def redrive(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(("adapter", *args))
    assert isinstance(ended.value.code, int | None)
    return ended.value.code or 0, *capsys.readouterr()


def test_every_file_of_an_adapter_is_listed_and_every_listed_one_is_there() -> None:
    files = {path.stem for path in FOLDER.glob("*.sql")} - {"frame"}

    assert files == set(adapters.ADAPTERS)
    assert list(adapters.ADAPTERS) == sorted(adapters.ADAPTERS)


def test_the_list_has_a_line_for_each_within_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = redrive(capsys, "list")
    heading, *lines = out.splitlines()

    assert status == 0
    assert heading.split("  ")[0] == "NAME"
    assert [line.split()[0] for line in lines] == list(adapters.ADAPTERS)
    assert all(adapters.ADAPTERS[line.split()[0]].tested in line for line in lines)
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("name", adapters.ADAPTERS)
def test_what_is_printed_has_no_placeholder_and_says_where_the_owner_decides(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    status, out, err = redrive(capsys, "print", name)

    assert (status, err) == (0, "")
    assert not re.search(r"\{(schema|project|adapter|name|system|tested|versions|setting|functions)", out)
    assert "You decide" in out
    assert f"IS 'redrive adapter {name}; tested with {adapters.get(name).tested}" in out
    made = set(re.findall(r"CREATE OR REPLACE FUNCTION (control_plane\.\w+\([^)]*\))", out))
    (dropped,) = re.findall(r"DROP FUNCTION (.*);", out)
    assert made == set(dropped.split(", "))
    assert ("control_plane.schema_version()" in made) == ("; schema version " in out)
    assert out.isascii()
    assert out.endswith("COMMIT;\n")


@pytest.mark.parametrize("name", adapters.ADAPTERS)
def test_a_schema_is_quoted_wherever_it_stands(capsys: pytest.CaptureFixture[str], name: str) -> None:
    _, out, _ = redrive(capsys, "print", name, "--schema", 'My "jobs"')

    default = adapters.get(name).schema
    assert 'FROM "My ""jobs""".' in out
    assert f"{default}." not in out.replace("control_plane.", "")


def test_a_placeholder_in_what_is_given_is_left_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = redrive(capsys, "print", "chancy", "--schema", "{project}", "--project", "'{schema}'")

    assert 'FROM "{project}".chancy_jobs AS j' in out
    assert "('{schema}')::text AS project_id" in out


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (("print", "celery"), "there is no adapter 'celery'"),
        (("print", "chancy", "--schema", ""), "the schema is empty"),
        (("print", "chancy", "--schema", "a\nb"), "cannot be printed"),
        (("print", "chancy", "--schema", "é" * 32), "64 bytes"),
        (("print", "chancy", "--schema", "a$redrive$b"), "$redrive$"),
        (("print", "chancy", "--project", " "), "the project is empty"),
        (("print", "chancy", "--project", "'p1"), "not closed"),
        (("print", "chancy", "--project", "1; DROP TABLE x"), "semicolon"),
        (("print", "chancy", "--project", "j.queue -- mine"), "comment"),
        (("print", "chancy", "--project", "lower(j.queue"), "brackets"),
        (("print", "chancy", "--project", ") FROM x WHERE (1=1"), "brackets"),
        (("print", "chancy", "--project", "j.queue\n"), "one line"),
    ],
)
def test_what_makes_no_sql_is_refused_in_plain_words(
    capsys: pytest.CaptureFixture[str], given: tuple[str, ...], reason: str
) -> None:
    status, out, err = redrive(capsys, *given)

    assert (status, out) == (2, "")
    assert reason in " ".join(err.replace("│", " ").split())


@pytest.mark.parametrize("given", ["j.queue", "'it''s; fine -- here'", 'lower(j."Queue (old")', "'('"])
def test_an_expression_is_taken_as_it_is_given(given: str) -> None:
    assert adapters.checked_expression(given) == given
