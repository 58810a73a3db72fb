"""What is installed: pinned with hashes, and looked up among known vulnerabilities where those can be reached."""

import asyncio
import os
import subprocess
import sys
import tomllib
from functools import partial

import pytest
from aiohttp import web
from pytest_aiohttp import AiohttpRawServer
from yarl import URL

from tests.compose import ROOT
from tests.servers.processes import free_port

KNOWN = {
    "id": "OSV-0-0", "summary": "made up",
    "affected": [{"package": {"name": "aiohttp", "ecosystem": "PyPI"},
                  "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "999.0"}]}]}],
}  # fmt: skip


async def audited(advisories: object) -> subprocess.CompletedProcess[str]:
    proxies = {"HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"}
    env = {name: value for name, value in os.environ.items() if name.upper() not in proxies}
    command = [sys.executable, str(ROOT / ".ci" / "audit")]
    run = partial(subprocess.run, env=env | {"REDRIVE_ADVISORIES_URL": str(advisories)}, capture_output=True, text=True)
    return await asyncio.to_thread(run, command, check=False)


async def advisor(start: AiohttpRawServer, status: int, vulnerable: str = "") -> URL:
    """The address of a server that knows of one vulnerable package, or that answers with that status only."""

    async def answer(request: web.BaseRequest) -> web.Response:
        asked = (await request.json())["package"]["name"]
        return web.json_response({"vulns": [KNOWN]} if asked == vulnerable else {}, status=status)

    return (await start(answer)).make_url("/v1/query")


async def test_a_known_vulnerability_fails_the_audit(aiohttp_raw_server: AiohttpRawServer) -> None:
    done = await audited(await advisor(aiohttp_raw_server, 200, vulnerable="aiohttp"))

    assert done.returncode == 1
    assert "OSV-0-0, fixed in 999.0" in done.stderr


@pytest.mark.parametrize("answers", [False, True], ids=["no server", "a broken server"])
async def test_where_no_advisory_can_be_had_the_audit_says_so_in_one_line_and_fails_nothing(
    aiohttp_raw_server: AiohttpRawServer, *, answers: bool
) -> None:
    if answers:
        done = await audited(await advisor(aiohttp_raw_server, 500))
    else:
        done = await audited(f"http://127.0.0.1:{free_port()}/v1/query")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("advisories not reached (")
    assert done.stdout.count("\n") == 1


def test_everything_that_is_locked_has_its_hash_and_is_installed_as_it_is_locked() -> None:
    lock = tomllib.loads((ROOT / "uv.lock").read_text("utf-8"))
    files = [
        file
        for package in lock["package"]
        if "registry" in package["source"]
        for file in [*package.get("wheels", ()), *([package["sdist"]] if "sdist" in package else [])]
    ]

    assert len(files) > 1000
    assert [file["url"] for file in files if not file.get("hash", "").startswith("sha256:")] == []
    ours = [package["name"] for package in lock["package"] if "registry" not in package["source"]]
    assert ours == ["redrive", "redrive-client"]
    for recipe in ("Makefile", "Dockerfile"):
        syncs = [line for line in (ROOT / recipe).read_text("utf-8").splitlines() if " sync --" in line]
        assert syncs
        assert all("--locked" in line for line in syncs)
