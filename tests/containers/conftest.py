"""What the tests of the containers stand on: Docker, Compose, and a built image."""

from collections.abc import Iterator

import pytest

from tests.containers.stack import IMAGE, Stack, a_stack


@pytest.fixture(scope="session")
def _built(tmp_path_factory: pytest.TempPathFactory) -> str:
    with a_stack(tmp_path_factory.mktemp("build")) as stack:
        stack.compose("build", "--quiet", "api", timeout_s=900)
    return IMAGE


@pytest.fixture(scope="session")
def image(_built: str) -> str:
    """The image's name; it was built for this run."""
    return _built


@pytest.fixture(scope="module")
def stack(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All of docker-compose.yml, started for this module and healthy at first."""
    assert image
    with a_stack(tmp_path_factory.mktemp("stack")) as stack:
        stack.up()
        yield stack


@pytest.fixture
def new_stack(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A project for this test alone, with nothing started."""
    assert image
    with a_stack(tmp_path_factory.mktemp("stack")) as stack:
        yield stack
