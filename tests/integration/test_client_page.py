"""docs/client.md: its examples, typed as they stand, on what `redrive up` has in its database."""

import ast
import asyncio
import doctest
import inspect
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cli.local.demo import PROJECT, Demo
from redrive_client import Redrive
from shared.database import Database
from tests.api_server import Serve
from tests.tokens import token
from tests.workers import a_worker

PAGE = Path(__file__).parents[2] / "docs/client.md"
ALL = "jobs:read jobs:payload jobs:retry jobs:retry:bulk jobs:retry:extend"


@pytest.fixture
async def up(
    database_url: str, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> AsyncIterator[None]:
    """The demo's jobs and the stand-in that runs them, an api and a worker, and the variables that lead there."""
    demo, stop = Demo(database), asyncio.Event()
    await demo.seed()
    header = tmp_path / "auth"
    header.write_text(f"Authorization: Bearer {token(project_id=PROJECT, sub='you', scope=ALL)}\n")
    api = await serve(database_url)
    async with a_worker(database_url), asyncio.TaskGroup() as tasks:
        monkeypatch.setenv("REDRIVE_URL", f"http://127.0.0.1:{api.port}")
        monkeypatch.setenv("REDRIVE_TOKEN_FILE", str(header))
        tasks.create_task(demo.run_jobs(stop=stop))
        yield
        stop.set()


async def typed(source: str, names: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> str:
    """What `python -m asyncio` prints for an example; what the programs log meanwhile is none of it."""
    printed: list[str] = []

    def display(value: object) -> None:
        if value is not None:
            printed.append(f"{value!r}\n")

    names["print"] = lambda *values: printed.append(" ".join(map(str, values)) + "\n")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "displayhook", display)
        running = eval(compile(source, str(PAGE), "single", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
        if inspect.iscoroutine(running):
            await running
    return "".join(printed)


@pytest.mark.usefixtures("up")
async def test_every_example_prints_what_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, object] = {"__name__": "__console__"}
    examples = doctest.DocTestParser().get_examples(PAGE.read_text("utf-8"))
    assert len(examples) > 40
    try:
        for example in examples:
            place = f"line {example.lineno + 1}: {example.source}"
            assert await typed(example.source, names, monkeypatch) == example.want, place
    finally:
        await typed("await stack.aclose()", names, monkeypatch)


def test_every_public_method_has_an_example() -> None:
    examples = "".join(each.source for each in doctest.DocTestParser().get_examples(PAGE.read_text("utf-8")))
    public = [name for name, member in vars(Redrive).items() if callable(member) and not name.startswith("_")]
    assert len(public) >= 19
    assert [name for name in public if not re.search(rf"\bredrive\.{name}\(", examples)] == []
