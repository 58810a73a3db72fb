"""Can servers be containers here? Exit status 0: an engine answers and has the images, pulled where they were missing.

    python -m tests.servers.images      0  yes      1  no, and why, in one line      3  no engine answers

A process of its own: where nothing answers, docker-py leaves a socket open, which fails the tests.
"""

import contextlib
import sys

import docker
from docker.errors import DockerException, ImageNotFound

from tests.servers.docker import IMAGES, NO_ENGINE

ANSWER_S = 5
PULL_S = 120
"""How long a registry may say nothing while an image is pulled."""


def main() -> int:
    try:
        engine = docker.from_env(timeout=ANSWER_S)
        engine.ping()
    except (DockerException, OSError):
        sys.stdout.write("no Docker engine answers")
        return NO_ENGINE
    with contextlib.closing(engine):
        for image in IMAGES:
            try:
                _have(engine, image)
            except (DockerException, OSError) as error:
                sys.stdout.write(f"the Docker engine has no {image} and cannot pull it ({_reason(error)})")
                return 1
    return 0


def _have(engine: docker.DockerClient, image: str) -> None:
    try:
        engine.images.get(image)
    except ImageNotFound:
        engine.api.timeout = PULL_S
        engine.images.pull(image)


def _reason(error: Exception) -> str:
    said = getattr(error, "explanation", None) or error
    return " ".join(str(said).split())[:200]


if __name__ == "__main__":
    sys.exit(main())
