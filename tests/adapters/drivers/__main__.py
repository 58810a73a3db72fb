"""Does one thing through one system's library; the package says what there is."""

import asyncio
import importlib
import inspect
import json
import logging
import os
import sys
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable


def run(system: str, action: str, *rest: str) -> None:
    logging.disable()  # nobody reads what they log, and a full pipe would stop them
    module = importlib.import_module(f"tests.adapters.drivers.{system.replace('-', '_')}")
    act = cast("Callable[..., object]", getattr(module, action))
    given = [json.load(sys.stdin)] if action == "install" else []
    answer = act(os.environ["DATABASE_URL"], *given, *rest)
    if inspect.iscoroutine(answer):
        answer = asyncio.run(answer)
    if answer is not None:
        sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    run(*sys.argv[1:])
