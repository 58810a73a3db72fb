"""The image by itself."""

import hashlib
import json
import subprocess

import pytest

from tests.compose import ROOT
from tests.containers.stack import BASE, docker, revision


def size_of(image: str) -> int:
    return int(docker("image", "inspect", "--format", "{{.Size}}", image))


def test_the_image_adds_at_most_150_mb_to_its_base(image: str) -> None:
    assert size_of(image) - size_of(BASE) <= 150_000_000


def test_the_image_does_not_run_as_root(image: str) -> None:
    assert docker("run", "--rm", "--entrypoint=id", image, "-u") == "10001"


def test_nothing_in_the_image_may_be_written_by_others(image: str) -> None:
    find = ("find", "/opt/redrive", "-perm", "-002", "!", "-type", "l")

    assert docker("run", "--rm", f"--entrypoint={find[0]}", image, *find[1:]) == ""


def test_the_image_says_what_it_was_made_of(image: str) -> None:
    labels = json.loads(docker("image", "inspect", "--format", "{{json .Config.Labels}}", image))
    version = docker("run", "--rm", image, "--version").split()[-1]

    assert labels["org.opencontainers.image.version"] == version
    assert labels["org.opencontainers.image.revision"] == revision()


def test_the_image_has_the_sources_of_this_checkout_and_no_older_ones(image: str) -> None:
    program = """
import hashlib, sysconfig
from pathlib import Path
root = Path(sysconfig.get_path("purelib"), "redrive", "_path")
for name in ("api", "cli", "redrive_client", "shared", "worker"):
    for path in (root / name).rglob("*"):
        if path.suffix in (".py", ".sql"):
            print(hashlib.sha256(path.read_bytes()).hexdigest(), path.relative_to(root))
"""
    inside = set(docker("run", "--rm", "--entrypoint=python", image, "-c", program).splitlines())
    packages = ("api", "cli", "redrive_client", "shared", "worker")
    paths = [path for name in packages for path in (ROOT / name).rglob("*") if path.suffix in (".py", ".sql")]

    assert {f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.relative_to(ROOT)}" for path in paths} == inside


def test_the_image_works_with_nothing_but_its_own_files(image: str) -> None:
    assert "migrate" in docker("run", "--rm", "--read-only", "--cap-drop=ALL", "--network=none", image, "--help")


@pytest.mark.parametrize("program", ["api", "worker", "migrate"])
def test_without_settings_a_program_ends_with_status_2(image: str, program: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        docker("run", "--rm", "--network=none", image, program)

    assert caught.value.returncode == 2
