"""What the figures were measured on, and how busy it was."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import aiohttp
import asyncpg

from bench.results import Machine
from tests.servers.postgres import Postgres
from tests.servers.rabbitmq import Rabbitmq

_LIBRARIES = (
    "aio-pika", "aiohttp", "aiormq", "asyncpg", "celery", "fastapi", "httptools", "kombu", "msgspec", "psycopg",
    "pyjwt", "uvicorn", "uvloop",
)  # fmt: skip
_SETTINGS = ("shared_buffers", "fsync", "full_page_writes", "synchronous_commit", "max_wal_size", "work_mem")
NONE = "none"


async def machine_of(postgres: Postgres, rabbitmq: Rabbitmq | None) -> Machine:
    """This machine, with the servers that were used on it."""
    connection = await asyncpg.connect(postgres.url, timeout=10)
    try:
        postgresql = await connection.fetchval("SHOW server_version")
        settings = {name: str(await connection.fetchval(f"SHOW {name}")) for name in _SETTINGS}
    finally:
        await connection.close()
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        kernel=_kernel(),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        libraries={name: found for name in _LIBRARIES if (found := _version_of(name)) is not None},
        postgresql=str(postgresql),
        postgresql_settings=settings,
        rabbitmq=NONE if rabbitmq is None else await _rabbitmq_version(rabbitmq),
        wrk=_wrk_version(),
    )


def load_average() -> float:
    """How many processes wanted a processor in the last minute."""
    return round(os.getloadavg()[0], 2)


def _kernel() -> str:
    """Its name and version; what a build adds to them says nothing to other readers."""
    return f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}"


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version_of(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


async def _rabbitmq_version(rabbitmq: Rabbitmq) -> str:
    try:
        overview = await rabbitmq.manage("GET", "/api/overview")
    except aiohttp.ClientError:
        return "unknown"
    return str(overview.get("rabbitmq_version")) if isinstance(overview, dict) else "unknown"


def _wrk_version() -> str:
    program = shutil.which("wrk")
    if program is None:
        return NONE
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout  # exits with 1
    return said.split("[")[0].removeprefix("wrk").strip()
