"""All of docker-compose.yml, as its users have it: started, asked, killed, stopped and started again, in this order."""

import asyncio
import json
import re
import uuid
from collections import Counter
from collections.abc import Sequence
from urllib.request import Request, urlopen

import aiohttp
import pytest

from tests.containers.stack import Stack
from tests.eventually import eventually

RATE = 100
"""Retries asked for in a second, while things are killed."""


def asked(stack: Stack, path: str, *, method: str = "GET", body: object = None, prefer: str = "") -> tuple[int, object]:
    """The API's answer: its status, and `data`."""
    headers = {"Authorization": f"Bearer {stack.token()}", "Content-Type": "application/json", "Prefer": prefer}
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(stack.url + path, data, headers, method=method), timeout=70) as answer:
        return answer.status, json.load(answer)["data"]


def make_jobs(stack: Stack, kind: str, count: int) -> list[str]:
    return stack.sql(f"""
        INSERT INTO control_plane.jobs (project_id, type, status, attempts, max_attempts, last_error)
        SELECT 'p1', '{kind}', 'failed', 1, 3, 'x' FROM generate_series(1, {count}) RETURNING id""").splitlines()


@pytest.mark.parametrize("program", ["api", "worker"])
def test_check_is_content_in_the_programs_own_containers(stack: Stack, program: str) -> None:
    assert "failed" not in stack.run(program, "redrive", "check", program)


def test_a_healthy_start_logs_no_error(stack: Stack) -> None:
    assert [line for line in stack.logs() if re.search(r'\[error\]|"level": "error"| ERROR: ', line)] == []


def test_only_the_api_is_published_and_on_this_machine_alone(stack: Stack) -> None:
    each = "{{range $at}}{{.HostIp}}:{{.HostPort}} {{$port}} {{end}}"
    ports = stack.inspected(f"{{{{range $port, $at := .NetworkSettings.Ports}}}}{each}{{{{end}}}}")

    assert "".join(ports).strip() == f"127.0.0.1:{stack.port} 8080/tcp"


def test_a_worker_has_no_way_out_and_cannot_write_to_its_files(stack: Stack) -> None:
    program = """
import errno, socket
for attempt in (lambda: socket.create_connection(("192.0.2.1", 443), 2), lambda: open("/opt/redrive/x", "w")):
    try:
        attempt()
        print("may")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
    assert stack.run("worker", "python", "-c", program).split() == ["ENETUNREACH", "EROFS"]


def test_rabbitmq_stops_publishers_below_the_memory_of_its_container(stack: Stack) -> None:
    (limit,) = stack.inspected("{{.HostConfig.Memory}}", stack.container("rabbitmq"))
    status = json.loads(stack.run("rabbitmq", "rabbitmq-diagnostics", "--quiet", "--formatter=json", "status"))

    assert status["vm_memory_high_watermark_limit"] <= int(limit) / 2


def test_a_job_is_read_and_retried(stack: Stack) -> None:
    (job,) = make_jobs(stack, "single", 1)

    assert asked(stack, f"/api/jobs/{job}")[0] == 200
    status, retry = asked(stack, f"/api/jobs/{job}/retry", method="POST", body={"reason": "x"})
    assert status == 202
    assert isinstance(retry, dict)
    _, settled = asked(stack, f"/api/retries/{retry['id']}", prefer="wait=20")
    assert isinstance(settled, dict)
    assert settled["state"] == "applied"


async def test_two_thousand_retries_in_bulk_are_applied(stack: Stack) -> None:
    make_jobs(stack, "bulk", 2000)
    body = {"filter": {"type": "bulk"}, "max": 5000, "reason": "x"}

    assert asked(stack, "/api/jobs/retry?dry_run=false", method="POST", body=body)[0] == 202
    await eventually(lambda: stack.sql(_PENDING.format("bulk")) == "2000", within_s=60, every_s=1)


_PENDING = "SELECT count(*) FROM control_plane.jobs WHERE type = '{}' AND status = 'pending'"


async def test_nothing_that_was_accepted_is_lost_while_everything_is_killed_in_turn(stack: Stack) -> None:
    jobs = make_jobs(stack, "killed", 25 * RATE)
    load = asyncio.create_task(accepted_of(stack, jobs))
    for victim in (("worker", 1), ("rabbitmq", 1), ("worker", 2), ("postgres", 1), ("api", 1)):
        await asyncio.sleep(25 / 6)  # spread over the load
        await asyncio.to_thread(stack.kill, *victim)
    accepted = await load

    assert len(accepted) >= 500  # of those that were asked for while a server was away, none is
    await asyncio.to_thread(stack.compose, "up", "--detach", "--wait", "--no-recreate", "--scale", "worker=2")
    assert set(stack.inspected("{{.RestartCount}}", *map(stack.container, ("rabbitmq", "postgres", "api")))) == {"1"}
    queued = "SELECT count(*) FROM redrive.retry_requests WHERE state = 'queued'"
    await eventually(lambda: stack.sql(queued) == "0", within_s=90, every_s=1)
    applied = stack.sql("""
        SELECT r.id FROM redrive.retry_requests AS r JOIN control_plane.jobs AS j ON j.id = r.job_id
        WHERE j.type = 'killed' AND r.state = 'applied' AND j.status = 'pending'""").split()
    assert accepted - set(applied) == set()


async def accepted_of(stack: Stack, jobs: Sequence[str]) -> set[str]:
    """Ask for a retry of each job, at a bounded rate, and return the ids of those that were accepted."""
    accepted: set[str] = set()
    answers: Counter[object] = Counter()
    gate = asyncio.Semaphore(32)
    headers = {"Authorization": f"Bearer {await asyncio.to_thread(stack.token)}"}
    timeout = aiohttp.ClientTimeout(total=15)

    async with aiohttp.ClientSession(stack.url, headers=headers, timeout=timeout) as session:

        async def ask(job: str) -> None:
            async with gate:
                try:
                    async with session.post(f"/api/jobs/{job}/retry", json={"reason": "load"}) as answer:
                        if answer.status == 202:
                            accepted.add((await answer.json())["data"]["id"])
                        answers[answer.status] += 1
                except (aiohttp.ClientError, TimeoutError) as error:
                    answers[type(error).__name__] += 1

        async with asyncio.TaskGroup() as asking:
            for job in jobs:
                asking.create_task(ask(job))
                await asyncio.sleep(1 / RATE)
    assert {answer for answer in answers if isinstance(answer, int)} <= {202, 503}
    return accepted


async def test_a_flood_raises_the_alarm_and_kills_nothing(stack: Stack) -> None:
    before = stack.inspected("{{.Name}} {{.RestartCount}}")
    await asyncio.to_thread(flood, stack)

    assert any("memory resource limit alarm set" in line for line in stack.logs("rabbitmq"))
    assert stack.inspected("{{.Name}} {{.RestartCount}}") == before
    assert set(stack.inspected("{{.State.OOMKilled}}")) == {"false"}
    (job,) = make_jobs(stack, "after the flood", 1)
    assert asked(stack, f"/api/jobs/{job}/retry", method="POST")[0] == 202
    await eventually(lambda: stack.sql(_PENDING.format("after the flood")) == "1", within_s=100, every_s=1)


def flood(stack: Stack) -> None:
    """Publish as much as RabbitMQ takes, for a while, as the api's user, from a container beside it."""
    program = """
import asyncio, contextlib, os, sys, aiormq
async def publish():
    connection = await aiormq.connect(sys.argv[1])
    channel = await connection.channel(publisher_confirms=False)
    while True:
        await channel.basic_publish(os.urandom(1_000_000), exchange="redrive", routing_key="retry.dead")
async def main():
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(20), asyncio.TaskGroup() as publishing:
            for _ in range(64):
                publishing.create_task(publish())
    os._exit(0)  # connections that are blocked do not close
asyncio.run(main())
"""
    url = f"amqp://redrive-api:{stack.variable('API_AMQP_PASSWORD')}@rabbitmq:5672/redrive"
    stack.compose("run", "--rm", "--no-TTY", "--no-deps", "--entrypoint=python", "api", "-c", program, url)


async def test_stopped_in_order_and_started_again_it_has_all_that_there_was(stack: Stack) -> None:
    everything = "SELECT count(*), max(id::text) FROM redrive.retry_requests"
    before = stack.sql(everything)
    stack.compose("stop")

    assert set(stack.inspected("{{.State.ExitCode}}")) == {"0"}
    stack.up()
    assert stack.sql(everything) == before


def test_new_passwords_open_old_volumes(stack: Stack) -> None:
    (job,) = make_jobs(stack, f"kept {uuid.uuid4().hex}", 1)
    stack.renew_secrets()
    stack.set_passwords()

    assert stack.sql(f"SELECT status FROM control_plane.jobs WHERE id = '{job}'") == "failed"
    for program in ("api", "worker"):
        assert "failed" not in stack.run(program, "redrive", "check", program)
    superuser = 'PGPASSWORD="$POSTGRES_PASSWORD" psql --host=postgres --username=postgres redrive -c "SELECT 1"'
    assert "1 row" in stack.run("postgres", "sh", "-c", superuser)
