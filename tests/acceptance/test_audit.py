"""What is installed: pinned with hashes, and looked up among known vulnerabilities wherever somebody can be asked."""

import json
import os
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.compose import ROOT
from tests.servers.processes import free_port

KNOWN = {
    "id": "OSV-0-0", "summary": "made up",
    "affected": [{"package": {"name": "aiohttp", "ecosystem": "PyPI"},
                  "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "999.0"}]}]}],
}  # fmt: skip


def audited(advisories: str) -> subprocess.CompletedProcess[str]:
    proxies = {"HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"}
    env = {name: value for name, value in os.environ.items() if name.upper() not in proxies}
    command = [sys.executable, str(ROOT / ".ci" / "audit")]
    return subprocess.run(
        command, env=env | {"REDRIVE_ADVISORIES_URL": advisories}, capture_output=True, text=True, check=False
    )


@contextmanager
def advising(status: int, vulnerable: str = "") -> Iterator[str]:
    """Somebody who knows of one vulnerable package, or who answers with that status only."""

    class Advisor(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]["name"]
            body = json.dumps({"vulns": [KNOWN]} if asked == vulnerable else {}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Advisor)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


def test_a_known_vulnerability_fails_the_audit() -> None:
    with advising(200, vulnerable="aiohttp") as advisories:
        done = audited(advisories)

    assert done.returncode == 1
    assert "OSV-0-0, fixed in 999.0" in done.stderr


@pytest.mark.parametrize("answers", [False, True], ids=["nobody there", "somebody who is broken"])
def test_where_nobody_can_be_asked_the_audit_says_so_in_one_line_and_fails_nothing(*, answers: bool) -> None:
    if answers:
        with advising(500) as advisories:
            done = audited(advisories)
    else:
        done = audited(f"http://127.0.0.1:{free_port()}/v1/query")

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
