"""Runs the bench as a person does."""

import asyncio
import os
import signal
import sys

from bench.programs import ROOT


async def run_bench(*arguments: str) -> str:
    """Run it as typed at a terminal; return what it says on both outputs. Nothing of it stays behind."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)  # its reaper takes the rest down
            await process.wait()
    assert process.returncode == 0, said.decode()
    return said.decode()
