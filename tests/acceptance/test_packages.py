"""The distributions: what they put into an environment, and the commands in one where every name of ours is taken."""

import email
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from redrive.__main__ import PACKAGES
from tests.acceptance import every_help
from tests.acceptance.programs import Program
from tests.acceptance.up import Up
from tests.commands import Done, commanded
from tests.eventually import eventually
from tests.jobs import JobMaker
from tests.namesakes import folder_of_namesakes
from tests.servers.processes import ROOT, free_port, make_folder
from tests.tokens import SECRET, token

CLIENT = ROOT / "redrive_client"
RAISING = 'raise RuntimeError("a namesake was imported")\n'


def build(project: Path, kind: str, into: Path) -> Path:
    """Build a `wheel` or an `sdist` of a project with the hatchling of this environment, and return its file."""
    folder = Path(tempfile.mkdtemp(dir=into))
    command = [sys.executable, "-P", "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    (built,) = folder.iterdir()
    return built


def unpack(sdist: Path, into: Path) -> Path:
    subprocess.run(
        ["tar", "-xzf", sdist, "-C", into], check=True
    )  # some Pythons' tarfile wants a `filter`, some have none
    return into / sdist.name.removesuffix(".tar.gz")


def files(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def top_level(wheel: Path) -> set[str]:
    """The names that a wheel puts into site-packages, other than its own description."""
    return {name.partition("/")[0] for name in files(wheel) if ".dist-info/" not in name}


def needs(wheel: Path) -> set[str]:
    """The distributions that a wheel requires, extras left out."""
    (text,) = (content for name, content in files(wheel).items() if name.endswith("/METADATA"))
    required = email.message_from_bytes(text).get_all("Requires-Dist") or []
    return {re.split(r"[^\w-]", each)[0] for each in required if "extra ==" not in each}


@dataclass(frozen=True, slots=True)
class Built:
    """Wheels and source distributions of this checkout."""

    server: Path
    client: Path
    server_source: Path
    client_source: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    into = tmp_path_factory.mktemp("dist")
    return Built(
        build(ROOT, "wheel", into),
        build(CLIENT, "wheel", into),
        build(ROOT, "sdist", into),
        build(CLIENT, "sdist", into),
    )


def test_each_wheel_puts_one_name_into_an_environment(built: Built) -> None:
    assert top_level(built.server) == {"redrive"}
    assert top_level(built.client) == {"redrive_client"}


def test_the_client_needs_nothing_of_the_server_and_the_server_finds_the_client_in_its_own_wheel(built: Built) -> None:
    assert needs(built.client) == {"aiohttp", "msgspec"}
    assert needs(built.client) < needs(built.server)
    assert "redrive-client" not in needs(built.server)

    own = {name: content for name, content in files(built.client).items() if name.startswith("redrive_client/")}
    carried = {name.removeprefix("redrive/_path/"): content for name, content in files(built.server).items()}
    assert own == {name: content for name, content in carried.items() if name.startswith("redrive_client/")}
    assert "redrive_client/py.typed" in own


def test_a_wheel_from_the_source_distribution_is_the_wheel_from_the_checkout(built: Built, tmp_path: Path) -> None:
    for source, wheel in ((built.server_source, built.server), (built.client_source, built.client)):
        assert files(build(unpack(source, tmp_path), "wheel", tmp_path)) == files(wheel)


def test_a_source_distribution_has_nothing_that_merely_lies_in_the_checkout(built: Built) -> None:
    with tarfile.open(built.server_source) as archive:
        top = {name.split("/")[1] for name in archive.getnames()}

    packages = PACKAGES | {"redrive"}
    assert top - packages == {"CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml", ".gitignore"}


def test_both_distributions_have_the_licence_of_this_repository() -> None:
    assert (CLIENT / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def put_namesakes(folder: Path, names: frozenset[str]) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(RAISING)


@dataclass(frozen=True, slots=True)
class Installed:
    """A virtual environment with both distributions; what they need is this environment's, found behind them."""

    folder: Path

    @classmethod
    def of(cls, built: Built) -> Self:
        place = cls(make_folder("installed"))
        venv.create(place.folder, with_pip=False, symlinks=True)
        uv = Path(sys.executable).with_name("uv")
        command = [str(uv), "pip", "install", "--quiet", "--offline", "--no-cache", "--no-deps"]
        subprocess.run([*command, "--python", place.python, built.server, built.client], check=True, timeout=60)
        (place.packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
        (place.folder / "bin" / "dbmate").symlink_to(Path(sysconfig.get_path("scripts")) / "dbmate")
        return place

    @property
    def packages(self) -> Path:
        (found,) = self.folder.glob("lib/python*/site-packages")
        return found

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def command(self) -> Path:
        return self.folder / "bin" / "redrive"


@pytest.fixture(scope="module")
def crowded(built: Built) -> Installed:
    """An environment in which a `.pth` file loads `shared`, and `worker`, a namespace package, before a command starts.

    The other names of ours are packages there that no command may import.
    """
    place = Installed.of(built)
    put_namesakes(place.packages, PACKAGES - {"redrive_client", "shared", "worker"})
    (place.packages / "worker").mkdir()
    (place.packages / "shared").mkdir()
    for name in ("__init__.py", "settings.py"):
        (place.packages / "shared" / name).write_text("")
    (place.packages / "a_tool.pth").write_text("import shared.settings, worker\n")
    return place


@pytest.fixture
def started_there(crowded: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    """Programs and commands of this test are those of the installed wheel, with namesakes on PYTHONPATH as well."""
    put_namesakes(tmp_path / "elsewhere", PACKAGES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "elsewhere"))
    for module in ("programs", "up"):
        monkeypatch.setattr(f"tests.acceptance.{module}.COMMAND", crowded.command)
    monkeypatch.setattr("tests.commands.COMMAND", crowded.command)
    return crowded


def worked(done: Done) -> str:
    assert done.status == 0, done.err
    return done.out


@pytest.mark.timeout(240)  # a dozen interpreters, one after the other, so that each has its time on a busy machine
@pytest.mark.usefixtures("started_there")
async def test_the_commands_work_where_other_packages_have_the_names_of_ours(empty_database_url: str) -> None:
    assert "applied" in worked(await commanded("migrate", DATABASE_URL=empty_database_url))
    port = free_port()
    settings = {"DATABASE_URL": empty_database_url, "JWT_SECRET": SECRET, "PORT": str(port)}
    assert "ok" in worked(await commanded("check", **settings))
    assert worked(await commanded("token", "--project", "p1", **settings)).startswith("ey")
    worked(await commanded("migrate", "--check", DATABASE_URL=empty_database_url))
    worked(await commanded("prune", "--older-than", "90d", DATABASE_URL=empty_database_url))
    async with (
        JobMaker.on(empty_database_url) as jobs,
        Program.started("api", "--processes", "2", **settings) as api,
        Program.started("worker", DATABASE_URL=empty_database_url) as worker,
    ):
        job = await jobs.failed()
        await api.until_ready()
        await worker.until_ready()
        on_api = {"URL": f"http://127.0.0.1:{port}", "TOKEN": token()}
        assert str(job.id) in worked(await commanded("jobs", "list", **on_api))
        worked(await commanded("retry", str(job.id), **on_api))

        async def put_back() -> bool:
            return await jobs.effects_of(job) == 1

        await eventually(put_back, within_s=30)
        assert str(job.id) in worked(await commanded("retries", "list", "--json", **on_api))


def test_every_command_is_found_where_other_packages_have_the_names_of_ours(started_there: Installed) -> None:
    command = [str(started_there.python), "-P", every_help.__file__]
    said = subprocess.run(command, cwd=folder_of_namesakes(), capture_output=True, text=True, check=False, timeout=60)

    assert said.returncode == 0, said.stderr
    statuses = json.loads(said.stdout)
    assert {"", "up", "adapter print", "jobs list"} < set(statuses)
    assert {words: status for words, status in statuses.items() if status != 0} == {}


@pytest.mark.usefixtures("started_there")
async def test_the_whole_runs_on_one_machine_from_the_installed_wheel(tmp_path: Path) -> None:
    async with Up.ready(tmp_path / "data") as up:
        up.terminate()
        assert await up.status() == 0, up.err


def test_it_starts_as_a_module_in_a_folder_that_holds_namesakes(started_there: Installed, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    command = [str(started_there.python), "-m", "redrive", "--version"]
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)

    assert (said.returncode, said.stdout.split()[0]) == (0, "redrive"), said.stderr


def test_an_application_imports_its_own_packages_and_the_client(built: Built, tmp_path: Path) -> None:
    installed = Installed.of(built)
    (tmp_path / "worker").mkdir()  # a namespace package
    (tmp_path / "worker" / "tasks.py").write_text("")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "__init__.py").write_text("")
    (tmp_path / "api.py").write_text("")
    # The client first: it must leave the import path as it is.
    program = (
        "import redrive_client, api, shared, worker.tasks; "
        "print(api.__file__, shared.__file__, worker.tasks.__file__, redrive_client.__file__)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(installed.python), "-c", program]
    said = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60
    )

    assert said.returncode == 0, said.stderr
    *own, client = said.stdout.split()
    expected = [tmp_path / "api.py", tmp_path / "shared" / "__init__.py", tmp_path / "worker" / "tasks.py"]
    assert [Path(each) for each in own] == expected
    assert Path(client).parent.name == "redrive_client"
    assert Path(client).parents[1].name == "site-packages"
