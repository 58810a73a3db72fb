"""Servers as containers, where a Docker engine answers."""

import asyncio
import functools
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from tests.servers.processes import ServerFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@functools.cache
def docker_answers() -> bool:
    """Say whether a Docker engine is there, asking it once."""
    # In a process of its own: where nothing answers, docker-py leaves a socket open, which fails the tests.
    ask = "import docker; docker.from_env(timeout=5).ping()"
    return subprocess.run([sys.executable, "-c", ask], capture_output=True, check=False).returncode == 0


class Container:
    """A container that keeps its ports and data over stop and start; testcontainers' own reaper removes it."""

    def __init__(
        self, image: str, *, ports: "Mapping[int, int]", env: "Mapping[str, str]", command: str | None = None
    ) -> None:
        from testcontainers.core.container import DockerContainer

        self._container = DockerContainer(image)
        for inside, outside in ports.items():
            self._container.with_bind_ports(inside, outside)
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
        await asyncio.to_thread(self._docker.start if self._created else self._container.start)
        self._created = self.running = True

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
            self._container.get_docker_client().client.close()
            self._created = self.running = False
