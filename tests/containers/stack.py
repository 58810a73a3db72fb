"""docker-compose.yml, run by Docker Compose as a project of the tests' own, with secrets and a port of its own."""

import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.compose import ROOT
from tests.servers.processes import free_port

IMAGE: Final = "redrive:local"
BASE: Final = "python:3.11-slim-bookworm"
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def docker(*arguments: str, timeout_s: float = 120) -> str:
    """Run a docker command and return what it printed. Raises CalledProcessError, with its output as notes."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode != 0:
        error = subprocess.CalledProcessError(done.returncode, done.args, done.stdout, done.stderr)
        error.add_note(done.stdout[-2000:] + done.stderr[-2000:])
        raise error
    return done.stdout.strip()


@dataclass(frozen=True, slots=True)
class Stack:
    """One Compose project."""

    project: str
    env: Path
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def compose(self, *arguments: str, timeout_s: float = 180) -> str:
        command = ("compose", "--project-name", self.project, "--env-file", str(self.env), "--progress", "quiet")
        return docker(*command, *arguments, timeout_s=timeout_s)

    def up(self, *services: str, workers: int = 2) -> None:
        """Start all, or these, and wait until they are healthy."""
        scale = [] if services else ["--scale", f"worker={workers}"]
        self.compose("up", "--detach", "--wait", *scale, *services)

    def run(self, service: str, *command: str) -> str:
        return self.compose("exec", "--no-TTY", service, *command)

    def sql(self, statement: str) -> str:
        return self.run("postgres", "psql", "-qAt", "--username=postgres", "--dbname=redrive", "--command", statement)

    def container(self, service: str, number: int = 1) -> str:
        return f"{self.project}-{service}-{number}"

    def containers(self) -> list[str]:
        return self.compose("ps", "--all", "--format", "{{.Name}}").split()

    def inspected(self, template: str, *containers: str) -> list[str]:
        """A line for each of the containers, or for each of all."""
        return docker("inspect", "--format", template, *(containers or self.containers())).splitlines()

    def logs(self, *services: str) -> list[str]:
        return _COLOUR.sub("", self.compose("logs", "--no-log-prefix", *services)).splitlines()

    def token(self) -> str:
        scopes = "jobs:read jobs:retry jobs:retry:bulk"
        return self.run("api", "redrive", "token", "--project", "p1", "--sub", "check", "--scope", scopes)

    def kill(self, service: str, number: int = 1) -> None:
        """Kill its first process as the kernel would, so that its restart policy applies: `docker kill` is an order."""
        (pid,) = self.inspected("{{.State.Pid}}", self.container(service, number))
        as_root = ("--rm", "--pid=host", "--privileged", "--user=0", "--network=none", "--entrypoint=python")
        docker("run", *as_root, IMAGE, "-c", f"import os; os.kill({pid}, 9)")

    def renew_secrets(self) -> None:
        made = subprocess.run([ROOT / "deploy" / "new-env"], capture_output=True, text=True, check=True).stdout
        limits = "".join(f"REDRIVE_LIMIT_{each}=off\n" for each in ("IP", "READ", "RETRY", "BULK"))
        self.env.write_text(made.replace("API_PORT=8080", f"API_PORT={self.port}") + limits)

    def set_passwords(self) -> None:
        """Run what `make passwords` runs, on this project."""
        known = {"COMPOSE_PROJECT_NAME": self.project, "COMPOSE_ENV_FILES": str(self.env)}
        command = (str(ROOT / "deploy" / "set-passwords"), "--scale", "worker=2")
        subprocess.run(command, env={**os.environ, **known}, capture_output=True, timeout=300, check=True)

    def variable(self, name: str) -> str:
        found = re.search(rf"^{name}=(.*)$", self.env.read_text(), re.MULTILINE)
        assert found is not None
        return found[1]


@contextmanager
def a_stack(folder: Path) -> Iterator[Stack]:
    """A project that is not started yet; in the end nothing of it is left but the image."""
    os.environ.setdefault("REVISION", revision())
    stack = Stack(f"redrive-check-{uuid.uuid4().hex[:8]}", folder / "env", free_port())
    stack.renew_secrets()
    try:
        yield stack
    finally:
        if "KEEP" in os.environ:
            sys.stderr.write(f"left running: {stack}\n")
        else:
            stack.compose("down", "--volumes", "--timeout", "10")


def revision() -> str:
    """The commit of this checkout."""
    command: Sequence[str] = ("git", "rev-parse", "HEAD")
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
