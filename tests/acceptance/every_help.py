"""A program: the help of every command of the `redrive` that is installed for the interpreter which runs this file.

It prints one JSON object: the words of each command, and the exit status of its help. All in one process, because two
dozen interpreters would take long to start.
"""

import io
import json
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any

from redrive.__main__ import use_own_packages


def words_of(command: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:  # noqa: ANN401 - not public
    """The words of a command, and of all below it: Typer's own tree, so that a new one is in it."""
    yield before
    for name, each in getattr(command, "commands", {}).items():
        yield from words_of(each, (*before, name))


def main() -> None:
    use_own_packages()
    import typer.main

    from cli.main import app
    from cli.main import main as redrive

    def status_of(words: tuple[str, ...]) -> int | str:
        try:
            with redirect_stdout(io.StringIO()):
                redrive([*words, "--help"])
        except SystemExit as ended:
            return ended.code or 0
        return "did not end"

    statuses = {" ".join(words): status_of(words) for words in words_of(typer.main.get_command(app))}
    sys.stdout.write(json.dumps(statuses))


if __name__ == "__main__":
    main()
