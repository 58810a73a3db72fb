"""`redrive` commands as processes of their own, and clients that know nothing but their addresses."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp

from tests.acceptance.up import COMMAND, environment
from tests.eventually import eventually
from tests.logins import BrokerUsers, Users
from tests.namesakes import folder_of_namesakes
from tests.ops_port import OpsPort
from tests.servers.processes import ROOT, free_port
from tests.servers.reaper import reaper
from tests.tokens import SECRET, token


class Program(OpsPort):
    """One that was started. `err` is what it has logged."""

    def __init__(self, process: asyncio.subprocess.Process, ops_port: int) -> None:
        super().__init__(ops_port)
        self._process = process
        self._err: list[bytes] = []
        self._reading = asyncio.create_task(self._read())

    @classmethod
    @asynccontextmanager
    async def started(cls, *command: str, module: str | None = None, **settings: str) -> AsyncIterator[Self]:
        """Start one; it is killed in the end, if it still runs. `module`: of the tests, to be run in place of it."""
        ops_port = free_port()
        redrive = [COMMAND] if module is None else [sys.executable, "-m", module]
        process = await asyncio.create_subprocess_exec(
            *redrive,
            *command,
            env=environment(**{"OPS_PORT": str(ops_port), **settings}),
            cwd=folder_of_namesakes() if module is None else ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        reaper().tell("adopt", process.pid)
        program = cls(process, ops_port)
        try:
            yield program
        finally:
            program.send(signal.SIGKILL)
            await program.ended()
            reaper().tell("release", process.pid)

    async def _read(self) -> None:
        assert self._process.stderr is not None
        while chunk := await self._process.stderr.read(65_536):
            self._err.append(chunk)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def err(self) -> str:
        return b"".join(self._err).decode()

    @property
    def log(self) -> list[dict[str, Any]]:
        """Its log, line by line, each of which must be one whole object."""
        return [json.loads(line) for line in self.err.splitlines()]

    async def ready(self) -> bool:
        assert self._process.returncode is None, self.err
        return await self.readiness() == 200

    async def until_ready(self) -> None:
        try:
            await eventually(self.ready, within_s=60, every_s=0.1)  # three interpreters start, on a busy machine
        except AssertionError as error:
            error.add_note(self.err)
            raise

    def send(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            os.kill(self._process.pid, number)

    async def ended(self, *, within_s: float = 30) -> int:
        """Its exit status, once it has ended by itself."""
        async with asyncio.timeout(within_s):
            status = await self._process.wait()
            await self._reading
        return status


@dataclass(slots=True)
class Answers:
    """What a client got: how many of each status, and what went wrong without one."""

    statuses: dict[int, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, status: int) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1


class Deployment:
    """An api and some workers on one database and one virtual host, under their own users of both."""

    def __init__(self, stack: AsyncExitStack, api: dict[str, str], worker: dict[str, str]) -> None:
        self._stack = stack
        self._worker_settings = worker
        self.api_settings = api
        self.url = f"http://127.0.0.1:{api['PORT']}"
        self.api: Program
        self.workers: list[Program] = []
        self.client: aiohttp.ClientSession

    @classmethod
    @asynccontextmanager
    async def running(
        cls, users: Users, broker_users: BrokerUsers, *, workers: int = 2, **settings: str
    ) -> AsyncIterator[Self]:
        """Start all of it, and wait until it is ready."""
        api = {
            "DATABASE_URL": users.api, "AMQP_URL": broker_users.api, "JWT_SECRET": SECRET, "LIMIT_IP": "off",
            "LIMIT_READ": "off", "LIMIT_RETRY": "off", "LIMIT_BULK": "off", "PORT": str(free_port()), **settings,
        }  # fmt: skip
        worker = {"DATABASE_URL": users.worker, "AMQP_URL": broker_users.worker, **settings}
        async with AsyncExitStack() as stack:
            deployment = cls(stack, api, worker)
            deployment.api = await stack.enter_async_context(Program.started("api", **api))
            for _ in range(workers):
                await deployment.add_worker()
            deployment.client = await stack.enter_async_context(
                aiohttp.ClientSession(
                    deployment.url,
                    headers={"Authorization": f"Bearer {token()}"},
                    timeout=aiohttp.ClientTimeout(total=20),
                )
            )
            for program in (deployment.api, *deployment.workers):
                await program.until_ready()
            yield deployment

    async def add_worker(self) -> Program:
        """One worker more, which may not be ready yet."""
        worker = await self._stack.enter_async_context(Program.started("worker", **self._worker_settings))
        self.workers.append(worker)
        return worker

    async def get(self, path: str) -> dict[str, Any]:
        async with self.client.get(path) as answer:
            assert answer.status == 200, await answer.text()
            found: dict[str, Any] = (await answer.json())["data"]
            return found

    async def retry(self, job_id: object) -> int:
        async with self.client.post(f"/api/jobs/{job_id}/retry") as answer:
            await answer.read()
            return answer.status

    async def retry_all(self, job_ids: "list[object]", *, at_once: int = 20) -> Answers:
        """Ask for all of them, so many at a time; a client whose connection ends sends no more."""
        answers, left = Answers(), iter(job_ids)

        async def ask() -> None:
            for job_id in left:
                try:
                    async with self.client.post(f"/api/jobs/{job_id}/retry") as answer:
                        await answer.read()
                        answers.add(answer.status)
                        if answer.headers.get("Connection") == "close":
                            return
                except aiohttp.ClientError as error:
                    answers.failures.append(repr(error))
                    return

        await asyncio.gather(*(ask() for _ in range(at_once)))
        return answers
