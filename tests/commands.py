"""The `redrive` command as a process of its own, run to its end."""

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.namesakes import folder_of_namesakes

COMMAND = Path(sys.executable).with_name("redrive")


@dataclass(frozen=True, slots=True)
class Done:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> list[Any]:
        """What it printed, a document a line."""
        return [json.loads(line) for line in self.out.splitlines()]


async def commanded(*args: str, **settings: str) -> Done:
    """Run a command with exactly these settings, without a terminal."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REDRIVE_")}
    process = await asyncio.create_subprocess_exec(
        str(COMMAND),
        *args,
        env=kept | {f"REDRIVE_{name}": value for name, value in settings.items()},
        cwd=folder_of_namesakes(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())
