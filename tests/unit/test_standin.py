"""tests/containers/standin/engine, as far as it goes without an engine: what it makes, and when it refuses to."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.compose import ROOT

STANDIN = ROOT / "tests" / "containers" / "standin"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder for an engine, and a `docker` that finds none."""
    (tmp_path / "bin").mkdir()
    docker_ends_with(tmp_path, 1)
    return tmp_path


def docker_ends_with(machine: Path, status: int) -> None:
    program = machine / "bin" / "docker"
    program.write_text(f"#!/bin/sh\nexit {status}\n")
    program.chmod(0o755)


def engine(machine: Path, command: str) -> subprocess.CompletedProcess[str]:
    path = f"{machine / 'bin'}:{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "STANDIN_ROOT": str(machine / "root")}
    return subprocess.run([STANDIN / "engine", command], env=variables, capture_output=True, text=True, check=False)


def test_each_image_that_redrive_names_has_a_stand_in(machine: Path) -> None:
    files = [(ROOT / name).read_text("utf-8") for name in ("Dockerfile", "docker-compose.yml")]
    named = set(re.findall(r"^ARG PYTHON=(\S+)$", files[0], re.MULTILINE))
    named |= set(re.findall(r"^ *image: (?!redrive:)(\S+)$", files[1], re.MULTILINE))

    assert len(named) == 3
    assert set(engine(machine, "images").stdout.split()) == named
    assert {path.parent.name for path in STANDIN.glob("*/Dockerfile")} == {image.split(":")[0] for image in named}


def test_no_engine_is_made_where_one_answers(machine: Path) -> None:
    docker_ends_with(machine, 0)
    refused = engine(machine, "start")

    assert refused.returncode == 1
    assert "answers" in refused.stderr
    assert not (machine / "root").exists()


def test_an_engine_that_answers_is_used_as_it_is(machine: Path) -> None:
    docker_ends_with(machine, 0)
    found = engine(machine, "env")

    assert (found.returncode, found.stdout) == (0, "")


def test_without_an_engine_make_containers_says_how_to_have_one(machine: Path) -> None:
    found = engine(machine, "env")

    assert (found.returncode, found.stdout) == (1, "")
    assert "make containers-engine" in found.stderr
    assert not (machine / "root").exists()


def test_the_engine_of_its_own_is_used_where_no_other_answers(machine: Path) -> None:
    own = machine / "root" / "engine" / "usr" / "bin"
    own.mkdir(parents=True)
    (machine / "root" / ".redrive-standin").touch()
    (own / "docker").write_text(f'#!/bin/sh\n[ "$DOCKER_HOST" = unix://{machine}/root/docker.sock ]\n')
    (own / "docker").chmod(0o755)
    found = engine(machine, "env")

    assert found.returncode == 0
    program = f"{found.stdout}command -v docker; docker"
    pointed = subprocess.run(["bash", "-ec", program], capture_output=True, text=True, check=False)
    assert (pointed.returncode, pointed.stdout.strip()) == (0, str(own / "docker"))


@pytest.mark.parametrize("command", ["stop", "remove"])
def test_a_folder_that_it_did_not_make_is_left_alone(machine: Path, command: str) -> None:
    (machine / "root").mkdir()
    (machine / "root" / "kept").touch()
    refused = engine(machine, command)

    assert refused.returncode == 1
    assert (machine / "root" / "kept").exists()
