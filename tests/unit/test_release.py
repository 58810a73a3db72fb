"""What a release must agree on, as far as files can tell; `make release-check` builds and tries it."""

import hashlib
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from shared.migrations import folder, names
from tests.compose import ROOT

_WORKFLOW: Final[dict[Any, Any]] = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text("utf-8"))
_JOBS: Final[dict[str, Any]] = _WORKFLOW["jobs"]


def cut(checkout: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(checkout / ".ci" / "release-version"), *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What cutting a version reads and writes; the lock of this copy is left alone."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "release-version", tmp_path / ".ci")
    (tmp_path / ".ci" / "uv").write_text("")
    for path in ("CHANGELOG.md", "Dockerfile", "pyproject.toml", "redrive_client/pyproject.toml", "api/openapi.yaml"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    shutil.copytree(ROOT / "deploy" / "kubernetes", tmp_path / "deploy" / "kubernetes")
    shutil.copytree(folder(), tmp_path / "shared" / "migrations")
    return tmp_path


def section(text: str, name: str) -> str:
    (found,) = re.findall(rf"^## \[{re.escape(name)}\][^\n]*\n(.*?)(?=^## \[|^\[|\Z)", text, re.MULTILINE | re.DOTALL)
    return str(found).strip()


def test_all_that_names_the_version_names_the_same_one() -> None:
    said = cut(ROOT)

    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout == f"{version('redrive')}\n"
    locked = {each["name"]: each["version"] for each in tomllib.loads((ROOT / "uv.lock").read_text("utf-8"))["package"]}
    assert {locked["redrive"], locked["redrive-client"]} == {version("redrive")}


def test_places_that_disagree_about_the_version_are_named(checkout: Path) -> None:
    image = checkout / "deploy" / "kubernetes" / "base" / "worker.yaml"
    image.write_text(image.read_text("utf-8").replace(f"redrive:{version('redrive')}", "redrive:0.0.9"))

    said = cut(checkout)

    assert said.returncode == 1
    assert "  deploy/kubernetes/base/worker.yaml: 0.0.9\n" in said.stderr


def test_cutting_a_version_writes_it_everywhere_and_closes_the_changelog(checkout: Path) -> None:
    changelog = checkout / "CHANGELOG.md"
    changelog.write_text(changelog.read_text("utf-8").replace("## [Unreleased]\n", "## [Unreleased]\n\n- New.\n\n", 1))
    (checkout / "shared" / "migrations" / "20990101000001_new.sql").write_text("-- migrate:up\n")

    first, again = cut(checkout, "9.8.7"), cut(checkout, "9.8.8")

    assert first.returncode == 0, first.stderr
    assert cut(checkout).stdout == "9.8.7\n"
    text = changelog.read_text("utf-8")
    assert section(text, "Unreleased") == ""
    assert section(text, "9.8.7").startswith("- New.")
    assert re.search(
        r"^\[Unreleased\]: \.\./\.\./compare/v9\.8\.7\.\.\.HEAD\n\[9\.8\.7\]: \.\./\.\./", text, re.MULTILINE
    )
    released = (checkout / "shared" / "migrations" / "released.txt").read_text("utf-8")
    assert [line.split()[1] for line in released.splitlines()] == [*names(), "20990101000001_new.sql"]
    assert (again.returncode, "is empty" in again.stderr) == (1, True)


def released() -> dict[str, str]:
    """The migrations that a release has, each with its hash."""
    lines = (folder() / "released.txt").read_text("utf-8").splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


def test_a_migration_that_was_released_is_never_edited_again() -> None:
    now = {name: hashlib.sha256((folder() / name).read_bytes()).hexdigest() for name in names()}

    edited = [name for name, digest in released().items() if now.get(name) != digest]
    assert edited == [], "databases have it as it was: put it back, and write a new migration"


def test_a_new_migration_comes_after_those_that_were_released() -> None:
    assert names()[: len(released())] == sorted(released())


def test_no_migration_has_a_way_back() -> None:
    refused = "\n\n-- migrate:down\nDO $$ BEGIN RAISE EXCEPTION 'migrations of Redrive only go forward'; END $$;\n"

    assert [name for name in names() if not (folder() / name).read_text("utf-8").endswith(refused)] == []


def test_a_version_that_is_cut_has_all_its_migrations_among_the_released() -> None:
    if not section((ROOT / "CHANGELOG.md").read_text("utf-8"), "Unreleased"):
        assert sorted(released()) == names()


def test_the_changelog_begins_with_what_comes_next_and_goes_on_with_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    sections = re.findall(r"^## \[([^\]]+)\](?: - (\d{4}-\d\d-\d\d))?$", text, re.MULTILINE)

    assert [name for name, _ in sections[:2]] == ["Unreleased", version("redrive")]
    assert all(date for _, date in sections[1:])
    assert re.findall(r"^\[([^\]]+)\]: ", text, re.MULTILINE) == [name for name, _ in sections]


def test_the_workflow_publishes_what_the_tests_and_release_check_have_passed() -> None:
    commands = [step["run"] for step in _JOBS["check"]["steps"] if "run" in step]
    assert [each.partition(" TAG=")[0] for each in commands if "uv python" not in each] == [
        ".ci/run",
        "make release-check",
    ]
    before: dict[str, set[str]] = {}
    for name, job in _JOBS.items():  # in the order of the file, which is one that they can run in
        needed = job.get("needs", [])
        direct = {needed} if isinstance(needed, str) else set(needed)
        before[name] = direct.union(*(before[each] for each in direct))

    assert all("check" in found for name, found in before.items() if name != "check")
    assert before["pypi"] == {"check", "attest", "image"}  # what cannot be taken back comes behind what can
    assert _WORKFLOW[True]["push"]["tags"] == ["v[0-9]+.[0-9]+.[0-9]+"]  # YAML's `on`


@pytest.mark.parametrize("name", ["attest", "github"])
def test_the_wheels_the_source_distributions_and_the_bills_of_both_are_attested_and_released(name: str) -> None:
    text = str(_JOBS[name]["steps"])

    assert [kind for kind in ("dist/*.whl", "dist/*.tar.gz", "dist/*.cdx.json") if kind not in text] == []


def test_each_job_of_the_workflow_has_the_rights_that_it_needs_and_no_dependency_runs_beside_them() -> None:
    assert _WORKFLOW["permissions"] == {}
    assert {name: job["permissions"] for name, job in _JOBS.items()} == {
        "check": {"contents": "read"},
        "attest": {"attestations": "write", "id-token": "write"},
        "image": {"contents": "read"},
        "pypi": {"contents": "read", "id-token": "write"},
        "github": {"contents": "write"},
    }
    assert "environment" not in _JOBS["check"]
    assert all(job["environment"] == "release" for name, job in _JOBS.items() if name != "check")


def test_the_workflow_pins_its_actions_and_puts_no_expression_into_a_script() -> None:
    steps = [step for job in _JOBS.values() for step in job["steps"]]

    assert all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", step["uses"]) for step in steps if "uses" in step)
    assert not any("${{" in step.get("run", "") for step in steps)
