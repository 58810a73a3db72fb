"""The main job end to end: `redrive migrate`, `api` and `worker` as processes, touched from outside only."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator

import pytest

from tests.acceptance.programs import Deployment, Program
from tests.eventually import eventually
from tests.jobs import JobMaker
from tests.logins import BrokerUsers, Logins, Users, broker_users
from tests.servers.processes import free_port
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import KILLABLE_AFTER_S, PrivateRabbitmq, Rabbitmq
from tests.tokens import SECRET


@pytest.fixture
async def users(empty_database_url: str) -> AsyncIterator[Users]:
    """The users of a database, once `redrive migrate` is through with it under the owner's."""
    async with Logins.on(empty_database_url) as logins:
        users = await logins.made(empty_database_url)
        async with Program.started("migrate", DATABASE_URL=users.owner) as migrate:
            assert await migrate.ended() == 0, migrate.err
        yield users


@pytest.fixture
async def on_broker(amqp_url: str, rabbitmq: Rabbitmq) -> AsyncIterator[BrokerUsers]:
    """The users of a virtual host; where tests cannot make any, the user of the tests' own URL."""
    if rabbitmq.management_url is None:
        yield BrokerUsers(amqp_url, amqp_url)
        return
    async with broker_users(rabbitmq, amqp_url) as users:
        yield users


@pytest.fixture
async def jobs(users: Users) -> AsyncIterator[JobMaker]:
    async with JobMaker.on(users.admin) as maker:
        yield maker


@pytest.fixture
async def on_own_broker(private_rabbitmq: PrivateRabbitmq) -> AsyncIterator[BrokerUsers]:
    rabbitmq = private_rabbitmq.rabbitmq
    async with rabbitmq.vhost() as url, broker_users(rabbitmq, url) as users:
        yield users
        await private_rabbitmq.recover()  # the users go with it


async def settled(jobs: JobMaker) -> bool:
    return await jobs.queued() == 0


async def outcomes(jobs: JobMaker) -> dict[str, int]:
    rows = await jobs.pool.fetch("SELECT outcome, count(*) FROM redrive.retry_requests GROUP BY outcome")
    return dict(map(tuple, rows))


async def test_a_client_polls_asks_for_a_retry_and_sees_it_through(
    users: Users, on_broker: BrokerUsers, jobs: JobMaker
) -> None:
    job, foreign = await jobs.failed(last_error="smtp: 421"), await jobs.failed(project_id="p2")
    async with Deployment.running(users, on_broker) as redrive:
        seen = await redrive.get(f"/api/jobs/{job.id}")
        assert (seen["status"], seen["retryable"], seen["last_error"]) == ("failed", True, "smtp: 421")

        async with redrive.client.post(seen["links"]["retry"], json={"reason": "smtp is back"}) as answer:
            assert answer.status == 202
            location = answer.headers["Location"]

        async def applied() -> bool:
            return bool((await redrive.get(location))["done"])

        await eventually(applied)
        retry = await redrive.get(location)
        assert (retry["state"], retry["outcome"], retry["reason"]) == ("applied", "applied", "smtp is back")
        assert (retry["attempts_before"], retry["error_before"]) == (1, "smtp: 421")
        put_back = await redrive.get(f"/api/jobs/{job.id}")
        assert (put_back["status"], put_back["last_error"], put_back["started_at"]) == ("pending", None, None)
        assert (put_back["attempts"], put_back["pending_retry"], put_back["done"]) == (1, None, False)

        await jobs.pool.execute("UPDATE control_plane.jobs SET status = 'completed' WHERE id = $1", job.id)
        assert (await redrive.get(f"/api/jobs/{job.id}"))["done"]
        assert await redrive.retry(job.id) == 409
        assert await redrive.retry(foreign.id) == 404
        assert await jobs.effects([job, foreign]) == [1, 0]

        for path in ("/api/jobs/%0a%7B%22level%22:%22error%22%7D", "/%0d%0a/%1b[31m", "/api/jobs/%E2%80%A8"):
            async with redrive.client.get(f"{redrive.url}{path}") as answer:
                assert answer.status in {400, 404}
        assert 'redrive_http_requests_total{method="POST",route="/api/jobs/{id}/retry",status="202"} 1.0' in (
            await redrive.api.metrics()
        )
        for program in (redrive.api, *redrive.workers):
            assert (await program.health())[1]["status"] == "ok"
            program.send(signal.SIGTERM)
        for program in (redrive.api, *redrive.workers):
            assert await program.ended() == 0
            assert {line["level"] for line in program.log} == {"info"}
            assert SECRET not in program.err


async def test_a_worker_that_is_killed_under_load_costs_nothing_and_doubles_nothing(
    users: Users, on_broker: BrokerUsers, jobs: JobMaker
) -> None:
    made = await jobs.many_failed(400)
    async with Deployment.running(users, on_broker, WORKER_BATCH_SIZE="10") as redrive:
        asking = asyncio.ensure_future(redrive.retry_all([job.id for job in made]))
        for victim in redrive.workers[:2]:
            before = sum(await jobs.effects(made))

            async def at_work(before: int = before) -> bool:
                return sum(await jobs.effects(made)) > before

            await eventually(at_work)
            victim.send(signal.SIGKILL)
            await redrive.add_worker()
        answers = await asking
        await eventually(lambda: settled(jobs), within_s=30)

    assert (answers.statuses, answers.failures) == ({202: 400}, [])
    assert await jobs.effects(made) == [1] * 400
    assert await outcomes(jobs) == {"applied": 400}


async def test_a_broker_that_goes_and_comes_back_costs_nothing_and_stops_no_request(
    users: Users, jobs: JobMaker, private_rabbitmq: PrivateRabbitmq, on_own_broker: BrokerUsers
) -> None:
    made = await jobs.many_failed(150)
    ids: list[object] = [job.id for job in made]
    async with Deployment.running(users, on_own_broker) as redrive:
        await asyncio.sleep(KILLABLE_AFTER_S)
        before = await redrive.retry_all(ids[:50])
        await private_rabbitmq.kill()
        await eventually(lambda: _degraded(redrive.api))  # missed though there is nothing to publish
        await eventually(lambda: _unready(redrive.workers[0]))
        without = await redrive.retry_all(ids[50:100])
        assert await redrive.api.readiness() == 200
        starting = asyncio.ensure_future(private_rabbitmq.start())
        meanwhile = await redrive.retry_all(ids[100:])
        await starting
        await eventually(lambda: settled(jobs), within_s=40)

    for answers in (before, without, meanwhile):
        assert (answers.statuses, answers.failures) == ({202: 50}, [])
    assert await jobs.effects(made) == [1] * 150


async def _degraded(program: Program) -> bool:
    return bool((await program.health())[1]["status"] == "degraded")


async def _unready(program: Program) -> bool:
    return await program.readiness() == 503


async def test_stopping_under_load_cuts_no_client_off_and_loses_nothing(
    users: Users, on_broker: BrokerUsers, jobs: JobMaker
) -> None:
    made = await jobs.many_failed(3000)
    async with Deployment.running(users, on_broker, WORKER_BATCH_SIZE="20") as redrive:
        asking = asyncio.ensure_future(redrive.retry_all([job.id for job in made]))

        async def at_work() -> bool:
            return sum(await jobs.effects(made)) > 50

        await eventually(at_work)
        redrive.workers[0].send(signal.SIGTERM)
        assert await redrive.workers[0].ended() == 0
        redrive.api.send(signal.SIGTERM)
        answers = await asking
        assert await redrive.api.ended() == 0
        # What the api had not published is in the ledger, for the next one.
        async with Program.started("api", **redrive.api_settings):
            await eventually(lambda: settled(jobs), within_s=30)
        redrive.workers[1].send(signal.SIGTERM)
        assert await redrive.workers[1].ended() == 0

    assert answers.failures == []
    assert answers.statuses.keys() == {202}
    assert answers.statuses[202] < 3000, "the load ended before the signal came"
    effects = await jobs.effects(made)
    assert (sum(effects), max(effects)) == (answers.statuses[202], 1)


@pytest.mark.parametrize("command", ["api", "worker"])
async def test_a_program_ends_within_its_grace_though_no_server_answers(
    database_url: str, amqp_url: str, command: str
) -> None:
    async with (
        Proxy.to(database_url) as database,
        Proxy.to(amqp_url) as broker,
        Program.started(
            command,
            DATABASE_URL=database.url_of(database_url),
            AMQP_URL=broker.url_of(amqp_url),
            SHUTDOWN_GRACE="3",
            **({"PORT": str(free_port()), "JWT_SECRET": SECRET} if command == "api" else {}),
        ) as program,
    ):
        await program.until_ready()
        await asyncio.gather(database.black_hole(), broker.black_hole())
        program.send(signal.SIGTERM)

        assert await program.ended(within_s=13) == 0  # a busy machine may need some seconds more


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("api", {"REDRIVE_DATABASE_URL", "REDRIVE_JWKS_URL", "REDRIVE_AMQP_URL", "REDRIVE_DB_TIMEOUT"}),
        ("worker", {"REDRIVE_DATABASE_URL", "REDRIVE_AMQP_URL", "REDRIVE_DB_TIMEOUT"}),
        ("migrate", {"REDRIVE_DATABASE_URL", "REDRIVE_AMQP_URL", "REDRIVE_DB_TIMEOUT"}),
    ],
)
async def test_settings_that_are_wrong_are_all_named_at_once(command: str, names: set[str]) -> None:
    async with Program.started(command, AMQP_URL="http://canary:canary@mq", DB_TIMEOUT="canary") as program:
        status = await program.ended()

    assert status == 2
    assert all(name in program.err for name in names)
    assert "canary" not in program.err
    assert "Traceback" not in program.err


async def test_a_secret_never_shows_even_when_the_database_is_away() -> None:
    url = "postgresql://redrive:canary@127.0.0.1:9/none"
    async with Program.started("worker", DATABASE_URL=url) as worker:
        await eventually(lambda: worker.err.count("\n") >= 2)
        worker.send(signal.SIGTERM)
        assert await worker.ended() == 0

    assert "canary" not in worker.err
    assert all(json.loads(line) for line in worker.err.splitlines())
