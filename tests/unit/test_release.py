"""What a release must agree on, as far as files can tell; `make release-check` builds and tries it."""

import re
import tomllib
from typing import Any, Final

import yaml

from tests.compose import ROOT

_WORKFLOW: Final[dict[Any, Any]] = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text("utf-8"))
_ACTIONS: Final = {"actions/checkout", "actions/attest-build-provenance"}


def version_of(folder: str) -> str:
    found: str = tomllib.loads((ROOT / folder / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    return found


def test_both_distributions_and_the_image_have_one_version() -> None:
    image = re.findall(r"^ARG VERSION=(.*)$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)

    assert {version_of("redrive_client"), *image} == {version_of(".")}


def test_the_changelog_has_a_section_for_what_comes_next_or_for_this_version() -> None:
    sections = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)

    assert sections[0] in ("Unreleased", version_of("."))


def test_the_workflow_publishes_what_release_check_has_tried_and_asks_for_no_more_rights_than_that_takes() -> None:
    assert _WORKFLOW["permissions"] == {}
    (job,) = _WORKFLOW["jobs"].values()
    runs = [step.get("run", "") for step in job["steps"]]
    checked = next(at for at, run in enumerate(runs) if "release-check" in run)
    published = next(at for at, run in enumerate(runs) if "publish" in run)

    assert checked < published
    assert job["permissions"] == {"attestations": "write", "contents": "write", "id-token": "write"}
    assert {step["uses"].partition("@")[0] for step in job["steps"] if "uses" in step} <= _ACTIONS
    assert not any("${{" in run for run in runs)  # a name of a tag must not become a part of a script
