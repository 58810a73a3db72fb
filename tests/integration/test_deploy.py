"""What deploy/ and docker-compose.yml set up, on real servers: users with the rights that they need, and no others."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import asyncpg
import pytest
from aio_pika.exceptions import AMQPError
from aiormq.exceptions import ChannelAccessRefused

from shared import topology
from shared.migrations import migrate
from tests.api_server import Api, Serve
from tests.commands import commanded
from tests.compose import ROOT
from tests.eventually import eventually
from tests.jobs import JobMaker, MadeJob, a_message_for
from tests.logins import BrokerUsers, Logins, Users, broker_users, psql
from tests.queues import Queues
from tests.servers.rabbitmq import Rabbitmq
from tests.tokens import token
from tests.workers import a_worker


@pytest.fixture
async def logins(empty_database_url: str) -> AsyncIterator[Logins]:
    """Names for users, who are gone afterwards."""
    async with Logins.on(empty_database_url) as logins:
        yield logins


@pytest.fixture
async def users(empty_database_url: str, logins: Logins) -> Users:
    """A database as the containers' PostgreSQL makes it, migrated by its owner."""
    found = await logins.made(empty_database_url, times=2)
    await asyncio.to_thread(migrate, found.owner)
    return found


async def outcomes(url: str, statements: Iterable[str]) -> dict[str, str | asyncpg.PostgresError]:
    """What comes of each statement; each is rolled back."""
    connection = await asyncpg.connect(url)
    found: dict[str, str | asyncpg.PostgresError] = {}
    try:
        for statement in statements:
            transaction = connection.transaction()
            await transaction.start()
            try:
                found[statement] = await connection.execute(statement)
            except asyncpg.PostgresError as error:
                found[statement] = error
            finally:
                await transaction.rollback()
    finally:
        await connection.close()
    return found


async def denied(url: str, statements: Iterable[str]) -> dict[str, str]:
    """Statements that the user may run, though he should not, with what came of them."""
    found = await outcomes(url, statements)
    # Refused for another reason proves nothing.
    return {
        each: repr(came) for each, came in found.items() if not isinstance(came, asyncpg.InsufficientPrivilegeError)
    }


async def allowed(url: str, statements: Iterable[str]) -> dict[str, str]:
    """Statements that the user may not run, though he needs to."""
    found = await outcomes(url, statements)
    return {each: repr(came) for each, came in found.items() if isinstance(came, asyncpg.PostgresError)}


_RETRIED = {
    "status": "'pending'",
    "last_error": "NULL",
    "started_at": "NULL",
    "completed_at": "NULL",
    "scheduled_at": "now()",
    "max_attempts": "4",
}
_OWNERS_ALONE = {
    "id": "gen_random_uuid()",
    "project_id": "'p2'",
    "type": "'other'",
    "payload": "'{}'",
    "attempts": "0",
    "created_at": "now()",
}
_NEW_JOB = "INSERT INTO control_plane.jobs (project_id, type) VALUES ('p1', 'email')"
_NEW_REQUEST = (
    "INSERT INTO redrive.retry_requests (id, project_id, job_id, actor) "
    "VALUES (gen_random_uuid(), 'p1', gen_random_uuid(), 'me')"
)
_NEW_BATCH = (
    "INSERT INTO redrive.retry_batches (id, project_id, actor, total, skipped) "
    "VALUES (gen_random_uuid(), 'p1', 'me', 0, '[]')"
)
_NEW_KEY = (
    "INSERT INTO redrive.idempotency_keys (project_id, key, fingerprint, retry_id) "
    "VALUES ('p1', 'k', '', gen_random_uuid())"
)

# What none of the programs may do, whatever is sent to it.
_NO_ROLE_MAY = [
    _NEW_JOB,
    *(f"UPDATE control_plane.jobs SET {name} = {value}" for name, value in _OWNERS_ALONE.items()),
    "DELETE FROM control_plane.jobs",
    "TRUNCATE control_plane.jobs",
    "ALTER TABLE control_plane.jobs ADD COLUMN spy text",
    "ALTER TABLE control_plane.jobs DISABLE TRIGGER ALL",
    "DROP TABLE control_plane.jobs",
    "CREATE INDEX ON control_plane.jobs (type)",
    "LOCK TABLE control_plane.jobs IN ACCESS EXCLUSIVE MODE",
    "CREATE TABLE control_plane.mine (id int)",
    "DELETE FROM redrive.retry_requests",
    "TRUNCATE redrive.retry_requests",
    "ALTER TABLE redrive.retry_requests DROP CONSTRAINT retry_requests_settled_whole",
    "DROP TABLE redrive.retry_requests",
    "DELETE FROM redrive.retry_batches",
    "TRUNCATE redrive.retry_batches",
    "DELETE FROM redrive.idempotency_keys",
    "TRUNCATE redrive.idempotency_keys",
    "INSERT INTO redrive.schema_migrations VALUES ('1')",
    "CREATE TABLE redrive.mine (id int)",
    "DROP SCHEMA redrive CASCADE",
    "CREATE SCHEMA mine",
    "CREATE TABLE public.mine (id int)",
    "CREATE TEMPORARY TABLE mine (id int)",
    "CREATE ROLE mine",
    "SELECT * FROM pg_authid",
    "SELECT pg_read_file('PG_VERSION')",
    "COPY (SELECT 1) TO PROGRAM 'true'",
    "SET ROLE postgres",
]
_API = {
    "may": [
        "SELECT * FROM control_plane.jobs",
        "SELECT * FROM redrive.retry_requests",
        _NEW_REQUEST,
        "UPDATE redrive.retry_requests SET published_at = now()",
        "SELECT * FROM redrive.retry_requests FOR UPDATE SKIP LOCKED",
        "SELECT * FROM redrive.retry_batches",
        _NEW_BATCH,
        "SELECT * FROM redrive.idempotency_keys",
        _NEW_KEY,
        "UPDATE redrive.idempotency_keys SET created_at = now()",
    ],
    "may not": [
        *(f"UPDATE control_plane.jobs SET {name} = {value}" for name, value in _RETRIED.items()),
        "SELECT * FROM control_plane.jobs FOR UPDATE",
        "UPDATE redrive.retry_batches SET total = 1",
        "SET ROLE redrive_worker",
    ],
}
_WORKER = {
    "may": [
        "SELECT * FROM control_plane.jobs FOR UPDATE",
        f"UPDATE control_plane.jobs SET {', '.join(f'{name} = {value}' for name, value in _RETRIED.items())}",
        "SELECT * FROM redrive.retry_requests FOR UPDATE SKIP LOCKED",
        _NEW_REQUEST,
        "UPDATE redrive.retry_requests SET published_at = now()",
    ],
    "may not": [
        "SELECT * FROM redrive.retry_batches",
        _NEW_BATCH,
        "UPDATE redrive.retry_batches SET total = 1",
        "SELECT * FROM redrive.idempotency_keys",
        _NEW_KEY,
        "UPDATE redrive.idempotency_keys SET created_at = now()",
        "SET ROLE redrive_api",
    ],
}


async def test_the_api_may_do_what_it_needs_and_nothing_else(users: Users) -> None:
    assert await allowed(users.api, _API["may"]) == {}
    assert await denied(users.api, _NO_ROLE_MAY + _API["may not"]) == {}


async def test_the_worker_may_do_what_it_needs_and_nothing_else(users: Users) -> None:
    assert await allowed(users.worker, _WORKER["may"]) == {}
    assert await denied(users.worker, _NO_ROLE_MAY + _WORKER["may not"]) == {}


async def test_the_owner_of_the_database_is_no_superuser(users: Users) -> None:
    statements = ["CREATE ROLE mine", "SELECT * FROM pg_authid", "SELECT pg_read_file('PG_VERSION')"]

    assert await denied(users.owner, statements) == {}
    await asyncio.to_thread(migrate, users.owner)  # and may migrate again


async def test_a_stranger_may_not_even_connect(users: Users, logins: Logins) -> None:
    connection = await asyncpg.connect(users.admin)
    stranger = f"stranger_{logins.suffix}"
    try:
        await connection.execute(f"CREATE ROLE {stranger} LOGIN PASSWORD 'x'")
    finally:
        await connection.close()
    parts = urlsplit(users.admin)

    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await asyncpg.connect(parts._replace(netloc=f"{stranger}:x@{parts.hostname}:{parts.port}").geturl())


async def test_both_programs_work_under_their_own_users(users: Users, serve: Serve) -> None:
    async with JobMaker.on(users.admin) as jobs, a_worker(users.worker):
        await exercised(jobs, await serve(users.api))


@pytest.mark.parametrize("dispatch", ["rabbitmq", "ledger"])
async def test_what_the_worker_lacks_the_rights_for_waits_until_it_has_them(
    users: Users, amqp_url: str, dispatch: str, serve: Serve
) -> None:
    broker = amqp_url if dispatch == "rabbitmq" else None
    api = await serve(users.api, amqp_url=broker)
    async with JobMaker.on(users.admin) as jobs, a_worker(users.worker, broker) as worker:
        await jobs.pool.execute("REVOKE UPDATE ON control_plane.jobs FROM redrive_worker")
        failed = await jobs.many_failed(10)
        for job in failed:
            assert (await api.post(f"/api/jobs/{job.id}/retry")).status == 202
        await worker.sampled_at_least("redrive_sessions_total", 3, end="database_unavailable")
        assert await jobs.queued() == len(failed)
        await jobs.pool.execute(f"GRANT UPDATE ({', '.join(_RETRIED)}) ON control_plane.jobs TO redrive_worker")
        await eventually(lambda: put_back_once(jobs, failed), within_s=20)


_THEIR_TABLE = """
CREATE ROLE jobs_owner LOGIN PASSWORD 'x';
CREATE SCHEMA control_plane AUTHORIZATION jobs_owner;
SET ROLE jobs_owner;
CREATE TABLE control_plane.jobs (
    id uuid PRIMARY KEY, project_id text NOT NULL, type text NOT NULL, payload jsonb, status text NOT NULL,
    attempts int, max_attempts int, last_error text, scheduled_at timestamptz, started_at timestamptz,
    completed_at timestamptz, created_at timestamptz NOT NULL DEFAULT now(), CHECK (attempts <= max_attempts)
);
RESET ROLE;
"""


async def test_beside_a_table_of_another_owner_the_documented_grants_are_enough(
    empty_database_url: str, logins: Logins, serve: Serve
) -> None:
    users = logins.urls(empty_database_url)
    text = (ROOT / "docs" / "deploying.md").read_text("utf-8")
    by_dba, by_owner, *_ = re.findall(r"^```sql\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    # The roles of every Redrive on this server, which may be there already, unlike on the reader's.
    by_dba = re.sub(r"^CREATE ROLE redrive_(api|worker|scaler) NOLOGIN;.*\n", "", by_dba, flags=re.MULTILINE)
    await asyncio.to_thread(psql, users.admin, _ROLES, {})
    by_dba = by_dba.replace("DATABASE app", f'DATABASE "{urlsplit(users.admin).path[1:]}"')
    script = f"{_THEIR_TABLE}{by_dba}SET ROLE jobs_owner;\n{by_owner}"
    await asyncio.to_thread(psql, users.admin, logins.renamed(script), {})

    await asyncio.to_thread(migrate, users.owner)

    async with JobMaker.on(users.admin) as jobs, a_worker(users.worker):
        await exercised(jobs, await serve(users.api))
    assert await denied(users.owner, ["SELECT * FROM control_plane.jobs", "DELETE FROM control_plane.jobs"]) == {}


_ROLES = """
SELECT format('CREATE ROLE %I NOLOGIN', role)
FROM unnest(ARRAY['redrive_api', 'redrive_worker', 'redrive_scaler']) AS role
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) \\gexec
"""


async def exercised(jobs: JobMaker, api: Api) -> None:
    """Use every route once, and see what was asked for done."""
    single, exhausted, *many = [
        await jobs.failed(),
        await jobs.failed(attempts=3, max_attempts=3),
        *await jobs.many_failed(5),
    ]
    bearer = token(scope="jobs:read jobs:payload jobs:retry jobs:retry:bulk jobs:retry:extend")
    for path in (f"/{single.id}?include=payload", "?limit=2", f"?ids={single.id}", "/stats"):
        assert (await api.get(f"/api/jobs{path}", token=bearer)).status == 200
    key = {"Idempotency-Key": "one"}
    first = await api.post(f"/api/jobs/{single.id}/retry", {"reason": "x"}, headers=key)
    again = await api.post(f"/api/jobs/{single.id}/retry", {"reason": "x"}, headers=key)
    assert (first.status, again.status, again.headers["Idempotent-Replayed"]) == (202, 202, "true")
    more = await api.post(f"/api/jobs/{exhausted.id}/retry", {"extra_attempts": 1})
    body = {"ids": [str(job.id) for job in many], "reason": "x"}
    batch = await api.post("/api/jobs/retry", body, token=bearer, headers={"Idempotency-Key": "two"})
    assert (more.status, batch.status) == (202, 202)

    everything: list[MadeJob] = [single, exhausted, *many]
    await eventually(lambda: put_back_once(jobs, everything), within_s=20)
    for path in (
        first.headers["Location"],
        batch.headers["Location"],
        "/api/retries",
        f"/api/jobs/{single.id}/retries",
    ):
        assert (await api.get(path)).status == 200
    assert (await api.call("DELETE", first.headers["Location"])).code == "retry-already-settled"


async def put_back_once(jobs: JobMaker, made: list[MadeJob]) -> bool:
    return await jobs.effects(made) == [1] * len(made)


@pytest.fixture
async def broker(amqp_url: str, rabbitmq: Rabbitmq) -> AsyncIterator[BrokerUsers]:
    """A virtual host as the containers' RabbitMQ has it; the URLs of its users."""
    if rabbitmq.management_url is None:
        pytest.fail("this test imports definitions: it needs the management API")
    async with broker_users(rabbitmq, amqp_url, times=2) as users:
        yield users


@pytest.mark.usefixtures("broker")
async def test_the_definitions_and_the_programs_declare_the_same(amqp_url: str, rabbitmq: Rabbitmq) -> None:
    vhost = urlsplit(amqp_url).path[1:]

    async def bindings() -> object:
        return await rabbitmq.manage("GET", f"/api/bindings/{vhost}")

    before = await bindings()
    async with Queues.on(amqp_url):  # other arguments would be refused
        assert await bindings() == before


@pytest.mark.parametrize("user", ["api", "worker"])
async def test_no_program_may_declare_delete_or_bind(broker: BrokerUsers, user: str) -> None:
    async def refused(attempt: Any) -> bool:  # noqa: ANN401 - a coroutine function of a channel
        connection = await aio_pika.connect(getattr(broker, user), timeout=60)
        async with connection:
            channel = await connection.channel()
            try:
                await attempt(channel)
            except ChannelAccessRefused:
                return True
            return False

    async def bind(channel: aio_pika.abc.AbstractChannel) -> None:
        queue = await channel.get_queue(topology.RETRIES_DEAD, ensure=False)
        await queue.bind(topology.EXCHANGE, topology.KEY_RETRY)

    async def to_a_queue(channel: aio_pika.abc.AbstractChannel) -> None:
        await channel.default_exchange.publish(aio_pika.Message(b""), topology.RETRIES)

    assert await refused(lambda channel: channel.declare_queue("mine"))
    assert await refused(lambda channel: channel.declare_exchange("mine"))
    assert await refused(lambda channel: channel.queue_delete(topology.RETRIES))
    assert await refused(lambda channel: channel.exchange_delete(topology.EXCHANGE))
    assert await refused(bind)
    assert await refused(to_a_queue)


async def test_the_api_reads_no_queue(broker: BrokerUsers) -> None:
    connection = await aio_pika.connect(broker.api, timeout=60)
    async with connection:
        for name in (topology.RETRIES, topology.RETRIES_BULK, topology.RETRIES_DEAD):
            queue = await (await connection.channel()).get_queue(name, ensure=False)
            with pytest.raises(AMQPError):
                await queue.get(fail=False)


@pytest.mark.parametrize("program", ["api", "worker"])
async def test_check_is_content_with_these_rights(program: str, users: Users, broker: BrokerUsers) -> None:
    settings = {"DATABASE_URL": getattr(users, program), "AMQP_URL": getattr(broker, program), "JWT_SECRET": "s" * 40}
    done = await commanded("check", program, **settings)

    assert done.status == 0, done
    can = {"api": "publish to the exchange", "worker": "publish to the exchange and read the queues"}[program]
    assert f"ok       broker: answers, and this user may {can}\n" in done.out


async def test_retries_travel_through_the_broker_with_these_rights(
    users: Users, broker: BrokerUsers, serve: Serve
) -> None:
    async with JobMaker.on(users.admin) as jobs, a_worker(users.worker, broker.worker):
        await exercised(jobs, await serve(users.api, amqp_url=broker.api))


async def test_the_worker_puts_dead_letters_aside_with_these_rights(
    users: Users, broker: BrokerUsers, amqp_url: str
) -> None:
    async with (
        JobMaker.on(users.admin) as jobs,
        Queues.on(amqp_url) as queues,
        a_worker(users.worker, broker.worker),
    ):
        job = await jobs.failed()
        await queues.publish_all([b"poison", a_message_for(job)])
        await eventually(lambda: put_back_once(jobs, [job]))
        await eventually(lambda: holds_one(queues))
        (letter,) = await queues.take_dead()

    assert letter.body == b"poison"


async def holds_one(queues: Queues) -> bool:
    return await queues.waiting(topology.RETRIES_DEAD) == 1
