"""The two servers that a whole test run shares: started once, by the process that controls the run.

pytest-xdist's workers collect the same tests in processes of their own, so it is the controller that starts servers, in
the background, as soon as it knows that a test needs them; it tells the workers through files in the run's folder. The
controller stops them, too, and if it dies instead, its reaper does.
"""

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from tests.servers.docker import CHOICE, uses_docker
from tests.servers.postgres import Postgres, PrivatePostgres, private_postgres
from tests.servers.processes import ServerFailed, make_folder, remove_folder, run_apart
from tests.servers.rabbitmq import PrivateRabbitmq, Rabbitmq, private_rabbitmq

_PATIENCE_S = 100
_DATABASE_URL, _AMQP_URL = "REDRIVE_TEST_DATABASE_URL", "REDRIVE_TEST_AMQP_URL"

Report = Callable[[], Coroutine[Any, Any, Mapping[str, str | None]]]


class SharedServers:
    """The controller's side."""

    def __init__(self) -> None:
        self.folder = make_folder("run")
        self._threads: list[threading.Thread] = []
        self._own: list[PrivatePostgres | PrivateRabbitmq] = []
        self._given: Postgres | None = None

    def start(self) -> None:
        """Begin to start both, and return once it is known from where they come; nothing the second time.

        Raises ServerFailed if one is missing.
        """
        if self._threads:
            return
        if not all(map(os.environ.get, (_DATABASE_URL, _AMQP_URL))):
            os.environ[CHOICE] = "docker" if uses_docker() else "local"
        self._tell("choice", {CHOICE: os.environ.get(CHOICE)})
        for name, report in (("postgres", self._postgres()), ("rabbitmq", self._rabbitmq())):
            self._threads.append(threading.Thread(target=self._run, args=(name, report), name=f"start {name}"))
        for thread in self._threads:
            thread.start()

    def _postgres(self) -> Report:
        if given := os.environ.get(_DATABASE_URL):
            server, postgres = None, Postgres.at(given)
            self._given = postgres
        else:
            server = private_postgres(durable=False)
            postgres = server.postgres
            self._own.append(server)

        async def report() -> Mapping[str, str | None]:
            if server:
                await server.start()
            await postgres.prepare()
            return {"url": postgres.url, "template": postgres.template}

        return report

    def _rabbitmq(self) -> Report:
        given = os.environ.get(_AMQP_URL)
        server = None if given else private_rabbitmq()
        if server:
            self._own.append(server)

        async def report() -> Mapping[str, str | None]:
            if server:
                await server.start()
            rabbitmq = server.rabbitmq if server else await Rabbitmq.at(given or "")
            return {"url": rabbitmq.url, "management_url": rabbitmq.management_url}

        return report

    def _run(self, name: str, report: Report) -> None:
        try:
            self._tell(name, asyncio.run(report()))
        except Exception as error:  # noqa: BLE001  # whatever it is, the tests that wait for the server raise it
            self._tell(name, {"error": f"{type(error).__name__}: {error}"})

    def _tell(self, name: str, facts: Mapping[str, str | None]) -> None:
        unfinished = self.folder / f"{name}.new"
        unfinished.write_text(json.dumps(facts))
        unfinished.replace(self.folder / f"{name}.json")

    def stop(self) -> None:
        """Kill the servers, started or still starting, and remove what belongs to them."""
        run_apart(self._stop())
        for thread in self._threads:
            thread.join()
        remove_folder(self.folder)

    async def _stop(self) -> None:
        for server in self._own:
            await server.close()
        if self._given and (self.folder / "postgres.json").exists():
            await self._given.remove_template()


def _facts_of(folder: Path, name: str) -> dict[str, str | None]:
    """Wait for what the controller tells about a server; raise ServerFailed if it is bad news."""
    told = folder / f"{name}.json"
    deadline = time.monotonic() + _PATIENCE_S
    while not told.exists():
        if time.monotonic() > deadline:
            raise ServerFailed(f"{name} was not up within {_PATIENCE_S} s")
        time.sleep(0.02)
    facts: dict[str, str | None] = json.loads(told.read_text())
    if error := facts.get("error"):
        raise ServerFailed(error)
    return facts


def adopt_choice(folder: Path) -> None:
    """Let this process's private servers come from where the shared ones come from, without asking again."""
    if choice := _facts_of(folder, "choice")[CHOICE]:
        os.environ[CHOICE] = choice


def shared_postgres(folder: Path) -> Postgres:
    """Return the run's PostgreSQL, as soon as it is ready."""
    facts = _facts_of(folder, "postgres")
    assert facts["url"] is not None
    assert facts["template"] is not None
    return Postgres(facts["url"], facts["template"])


def shared_rabbitmq(folder: Path) -> Rabbitmq:
    """Return the run's RabbitMQ, as soon as it is ready."""
    facts = _facts_of(folder, "rabbitmq")
    assert facts["url"] is not None
    return Rabbitmq(facts["url"], facts["management_url"])
