"""Servers as containers: whether they are to be, and what tests do with one."""

import asyncio
import functools
import os
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING, Any, Final

from tests.servers.processes import ROOT, ServerFailed
from tests.servers.reaper import reaper

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


POSTGRES: Final = "postgres:18"
RABBITMQ: Final = "rabbitmq:4-management"
IMAGES: Final = (POSTGRES, RABBITMQ)
NO_ENGINE: Final = 3
CHOICE: Final = "REDRIVE_TEST_SERVERS"


@functools.cache
def uses_docker() -> bool:
    """Say whether private and shared servers are containers. Asks, and pulls images, once in a process.

    REDRIVE_TEST_SERVERS decides: `docker` fails where that cannot be, `local` does not ask. Without it, containers are
    used where an engine answers and has the images or can pull them; one that cannot is told in one line.

    Raises ServerFailed.
    """
    match choice := os.environ.get(CHOICE, ""):
        case "local":
            return False
        case "docker" | "":
            command = [sys.executable, "-m", "tests.servers.images"]
            asked = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        case _:
            raise ServerFailed(f"{CHOICE}={choice} is neither docker nor local")
    reason = asked.stdout.strip() or "docker-py does not work here"
    if asked.returncode != 0 and choice == "docker":
        raise ServerFailed(f"{CHOICE}=docker, but {reason}")
    if asked.returncode not in (0, NO_ENGINE):
        sys.stderr.write(f"servers of this machine are used: {reason}\n")
    return asked.returncode == 0


class Container:
    """A container that keeps its ports and data over stop and start, and publishes them on 127.0.0.1.

    This process removes it, or the reaper does. testcontainers has a reaper, too, but two threads cannot start that at
    once, its port is open to the network, and it is an image more.
    """

    def __init__(
        self, image: str, *, ports: "Mapping[int, int]", env: "Mapping[str, str]", command: str | None = None
    ) -> None:
        from testcontainers.core.config import testcontainers_config
        from testcontainers.core.container import DockerContainer

        testcontainers_config.ryuk_disabled = True
        self._name = f"redrive-test-{uuid.uuid4().hex[:12]}"
        self._container = DockerContainer(image).with_name(self._name)
        for inside, outside in ports.items():
            self._container.ports[str(inside)] = ("127.0.0.1", outside)  # type: ignore[assignment]  # docker-py's own form
        for name, value in env.items():
            self._container.with_env(name, value)
        if command:
            self._container.with_command(command)
        self._created = False
        self.running = False

    @property
    def _docker(self) -> Any:  # noqa: ANN401  # docker-py has no types
        return self._container.get_wrapped_container()

    async def start(self) -> None:
        if self._created:
            await asyncio.to_thread(self._docker.start)
        else:
            reaper().tell("adopt", self._name, "container")
            await asyncio.to_thread(self._container.start)
            self._created = True
        self.running = True

    async def stop(self) -> None:
        """Send the image's stop signal and wait; kill it after 30 s."""
        await asyncio.to_thread(self._docker.stop, timeout=30)
        self.running = False

    async def kill(self, signal: str = "SIGKILL") -> None:
        """Send a signal that ends it, and wait until it has ended."""
        await asyncio.to_thread(self._docker.kill, signal=signal)
        await asyncio.to_thread(self._docker.wait, timeout=30)
        self.running = False

    async def freeze(self) -> None:
        await asyncio.to_thread(self._docker.pause)

    async def thaw(self) -> None:
        await asyncio.to_thread(self._docker.unpause)

    async def run(self, *command: str) -> bool:
        """Run a command inside and say whether it succeeded."""
        return int((await asyncio.to_thread(self._docker.exec_run, list(command))).exit_code) == 0

    async def until(self, ready: "Callable[[], Any]", *, within_s: float) -> None:
        """Wait until `ready`, a coroutine function, says True."""
        try:
            async with asyncio.timeout(within_s):
                while True:
                    if await ready():
                        return
                    await asyncio.sleep(0.2)
        except TimeoutError:
            logs = b"".join(self._docker.logs(tail=20, stream=True)).decode(errors="replace")
            raise ServerFailed(f"{self._container.image} was not ready within {within_s:.0f} s:\n{logs}") from None

    async def remove(self) -> None:
        if self._created:
            await asyncio.to_thread(self._container.stop)
            reaper().tell("release", self._name, "container")
            self._created = self.running = False
