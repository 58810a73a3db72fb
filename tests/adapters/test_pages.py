"""The commands of each system's page, pasted into a shell: from an installed system to the first retry."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cli.local.embedded import find_programs
from tests.adapters.drivers.jobs import QUEUE
from tests.adapters.rig import Rig
from tests.adapters.systems import ROOT
from tests.eventually import eventually
from tests.servers.processes import free_port

pytestmark = pytest.mark.timeout(300)  # the first test of each system waits for its preparation


def commands_for(rig: Rig, api_ops: int, worker_ops: int) -> str:
    """The commands of its page, with this test's names in place of the page's."""
    page = (ROOT / "docs" / "adapters" / f"{rig.system.adapter}.md").read_text("utf-8")
    script = "".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    places = {
        "postgresql://postgres@localhost/app": rig.admin_url,
        "postgresql://owner@localhost/app": rig.owner_url,
        "redrive api &": f"REDRIVE_OPS_PORT={api_ops} redrive api &",
        "redrive worker &": f"REDRIVE_OPS_PORT={worker_ops} redrive worker &",
        "localhost:9090": f"127.0.0.1:{api_ops}",
        "--project QUEUE" if "--project QUEUE" in script else "--project p1": f"--project {QUEUE}",
        "retry ID": f"retry {rig.failed[0]}",
    }
    for place, mine in places.items():
        assert place in script, place
        script = script.replace(place, mine)
    return f"set -e\n{script}"


async def test_the_commands_of_the_page_work_as_pasted(rig: Rig, tmp_path: Path) -> None:
    await rig.pool.execute("DROP SCHEMA redrive CASCADE; DROP SCHEMA control_plane CASCADE")  # nothing of ours is there
    owner, name = urlsplit(rig.owner_url).username, urlsplit(rig.admin_url).path[1:]
    await rig.pool.execute(f"GRANT CREATE ON DATABASE {name} TO {owner}")
    port, api_ops, worker_ops = free_port(), free_port(), free_port()
    programs = [Path(sys.executable).parent, find_programs()]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("REDRIVE_")}
    with (tmp_path / "out").open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-c",
            commands_for(rig, api_ops, worker_ops),
            cwd=tmp_path,
            env={
                **clean,
                "PATH": ":".join([*map(str, programs), os.environ["PATH"]]),
                "REDRIVE_PORT": str(port),
                "REDRIVE_URL": f"http://127.0.0.1:{port}",
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        async with asyncio.timeout(120):
            assert await process.wait() == 0, (tmp_path / "out").read_text("utf-8")

        async def is_put_back() -> bool:
            return await rig.effects() == {rig.failed[0]: 1}

        await eventually(is_put_back, within_s=20)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the programs that it has left in the background
