"""What readers paste and type, against what reads it: commands, options, variables, targets, calls, the client."""

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import typer.main
from prometheus_client import CollectorRegistry

import redrive_client
from api.app import create_app
from api.auth import Scope
from cli.main import app
from redrive_client import Redrive
from shared.settings import PREFIX, ApiSettings, CheckSettings, WorkerSettings, read
from tests.tokens import SECRET

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "redrive_client" / "README.md"]
    if path.name != "CHANGELOG.md"  # it names what is gone, too
)
_SHELL: Final = ("", "sh", "console")
"""The languages of blocks that hold what is typed into a shell."""
_PUNCTUATION: Final = frozenset("();<>|&")
_NAMED_REDRIVE: Final = ("-n", "-p", "namespace")
"""Words after which `redrive` is the name of something else."""


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    language: str
    text: str


def blocks() -> Iterator[Block]:
    for page in PAGES:
        for language, text in re.findall(
            r"^```(\w*)[^\n]*\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
        ):
            yield Block(page, language, text)


def inline() -> Iterator[tuple[Path, str]]:
    """What stands between backticks in the text of a page."""
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
        for code in re.findall(r"`([^`]+)`", text):
            yield page, " ".join(code.split())


def typed(block: Block) -> list[str]:
    """The lines of a block that are typed: all, or those after a prompt where it has prompts; continued ones as one."""
    lines = block.text.replace("\\\n", " ").splitlines()
    after_prompt = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return after_prompt or lines


def words_of(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = "#"
    try:
        return list(lexer)
    except ValueError:
        return []  # a line that is no command's, with one quote in it


def commands_in(line: str) -> Iterator[list[str]]:
    """The arguments of each call of `redrive` in a line of shell, also behind `exec …` or `run …`."""
    found: list[str] | None = None
    for before, word in pairwise(["", *words_of(line), ";"]):
        if set(word) <= _PUNCTUATION:
            if found and re.match(r"[\w-]", found[0]):  # not a line of a drawing
                yield found
            found = None
        elif found is not None:
            found.append(word)
        elif word.rpartition("/")[2] == "redrive" and before not in _NAMED_REDRIVE:
            found = []


@cache
def redrive() -> Any:  # noqa: ANN401 - typer's own click has no public types
    """The command line, without what an option does while it is parsed, such as to change a shell's start-up file."""
    command = typer.main.get_command(app)
    for option in command.params:
        option.callback = None
    return command


def problem_of(args: list[str]) -> str | None:
    """What the parser of `redrive` has against these arguments; nothing is run."""
    args = ["2" if word == "N" else word for word in args if word != "--help"]  # the docs write N for a number
    command = redrive()
    context, name = None, "redrive"
    while args:
        try:
            context = command.make_context(name, args, parent=context)
        except Exception as error:  # noqa: BLE001 - typer's own click has no public name for its exceptions
            return f"{type(error).__name__}: {error}"
        if not hasattr(command, "commands"):
            break
        name, *args = [*context._protected_args, *context.args] or [""]
        if name and name not in command.commands:
            return f"no command {name}"
        command = command.commands.get(name)
    return None


@pytest.mark.parametrize("line", ["redrive jobs lst", "redrive retry ID --forse", "a && redrive api --processes many"])
def test_a_mistake_is_found(line: str) -> None:
    (args,) = commands_in(line)

    assert problem_of(args) is not None


PASTED: Final = sorted(
    {
        (str(block.page.relative_to(ROOT)), " ".join(args), tuple(args))
        for block in blocks()
        if block.language in _SHELL
        for line in typed(block)
        for args in commands_in(line)
    }
)


@pytest.mark.parametrize(("args"), [pytest.param(args, id=f"{page}: {text}") for page, text, args in PASTED])
def test_a_command_that_is_pasted_is_understood(args: tuple[str, ...]) -> None:
    assert problem_of(list(args)) is None


MENTIONED: Final = sorted(
    {(str(page.relative_to(ROOT)), code, tuple(args)) for page, code in inline() for args in commands_in(code)}
)


@pytest.mark.parametrize("args", [pytest.param(args, id=f"{page}: {text}") for page, text, args in MENTIONED])
def test_a_command_that_the_text_names_is_one(args: tuple[str, ...]) -> None:
    problem = problem_of(list(args))

    assert problem is None or problem.startswith("MissingParameter"), problem  # a name may stand alone


def options_of(command: Any) -> set[str]:  # noqa: ANN401 - typer's own click has no public types
    mine = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    return mine.union(*map(options_of, getattr(command, "commands", {}).values()))


def test_an_option_that_the_text_names_is_one_of_a_command() -> None:
    known = options_of(redrive()) | {"--build-arg", "--enable-feature"}  # Docker's, Prometheus's
    named = {(page.name, re.split("[ =]", code)[0]) for page, code in inline() if code.startswith("--")}

    assert len(named) > 20
    assert {(page, option) for page, option in named if option not in known} == set()


def test_what_is_made_is_a_target_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+|\.env):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    shell = [(block.page, line) for block in blocks() if block.language in _SHELL for line in typed(block)]
    named = {
        (page.name, target)
        for page, text in [*inline(), *shell]
        for target in re.findall(r"(?:^|&& |\|\| )make ([a-z.-]+)", text)
    }

    assert len(named) > 20
    assert {(page, target) for page, target in named if target not in targets} == set()


def test_the_part_of_the_tests_that_the_docs_run_has_some() -> None:
    parts = re.findall(r'TESTS="(tests/\w+) -k (\w+)"', "".join(map(Path.read_text, [*PAGES, ROOT / "Makefile"])))

    assert len(parts) > 1
    assert [part for part in parts if not list((ROOT / part[0]).glob(f"test_*{part[1]}*.py"))] == []


def test_a_variable_that_the_docs_name_is_read() -> None:
    sources = [path for path in ROOT.glob("*/**/*.py") if ".venv" not in path.parts]
    code = "".join(path.read_text("utf-8") for path in [*sources, ROOT / "Makefile"])
    read_somewhere = set(re.findall(rf"\b{PREFIX}[A-Z_]+\b", code))
    fields = ApiSettings.model_fields | WorkerSettings.model_fields | CheckSettings.model_fields
    settings = {f"{PREFIX}{name.upper()}" for name in fields}
    files = {f"{PREFIX}{name.upper()}_FILE" for name, field in fields.items() if "Secret" in str(field.annotation)}
    named = {name for page in PAGES for name in re.findall(rf"\b{PREFIX}[A-Z_]+\b", page.read_text("utf-8"))}

    assert named - settings - files - read_somewhere == set()


def test_a_call_of_the_api_that_the_docs_name_is_a_route() -> None:
    settings = read(ApiSettings, database_url="postgresql://", jwt_secret=SECRET)
    routes = [
        (route.method, re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(route.resource.canonical)))
        for route in create_app(settings, CollectorRegistry()).app.router.routes()
        if route.resource is not None
    ]
    named = {
        (page.name, method, path)
        for page, code in inline()
        for method, path in re.findall(r"^(GET|POST|PUT|PATCH|DELETE) (/[^\s?]*)", code)
    }
    typed_paths = {
        (block.page.name, "POST" if "-X POST" in line else "GET", f"/api{path}")
        for block in blocks()
        if block.language in _SHELL
        for line in typed(block)
        for path in re.findall(r" \$U(/\S+)", line)
    }

    assert len(named) > 20
    assert len(typed_paths) > 3
    assert {
        call
        for call in named | typed_paths
        if not any(call[1] == method and re.fullmatch(path, call[2]) for method, path in routes)
    } == set()


def test_a_scope_that_the_docs_name_is_one() -> None:
    named = {scope for page in PAGES for scope in re.findall(r"\bjobs:[a-z:]*[a-z]", page.read_text("utf-8"))}

    assert named == set(Scope)


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(block.text, id=str(block.page.relative_to(ROOT)))
        for block in blocks()
        if block.language == "python"
    ],
)
def test_an_example_in_python_fits_the_client(source: str) -> None:
    tree = compile(source, "<example>", "exec", flags=ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    assert isinstance(tree, ast.Module)
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module="redrive_client", names=names):
                assert [each.name for each in names if not hasattr(redrive_client, each.name)] == []
            case ast.Call(func=ast.Attribute(value=ast.Name(id="redrive"), attr=method)) as call:
                signature = inspect.signature(getattr(Redrive, method))
                signature.bind(None, *call.args, **{str(each.arg): each.value for each in call.keywords})
            case _:
                pass
