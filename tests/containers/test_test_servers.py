"""The tests' own containers (tests/servers)."""

import asyncio
import signal
import sys

from tests.compose import ROOT
from tests.containers.stack import docker
from tests.eventually import eventually
from tests.servers.postgres import ContainerPostgres, PrivatePostgres
from tests.servers.rabbitmq import ContainerRabbitmq, PrivateRabbitmq

_MINE = ("ps", "--all", "--format", "{{.Names}} {{.Ports}}", "--filter", "name=redrive-test-")


async def test_servers_that_are_started_at_once_start_and_listen_on_this_machine_alone() -> None:
    servers: list[PrivatePostgres | PrivateRabbitmq] = [ContainerPostgres(), ContainerPostgres(durable=False)]
    servers += [ContainerRabbitmq(), ContainerRabbitmq()]
    before = set(docker(*_MINE).splitlines())
    try:
        async with asyncio.TaskGroup() as starting:
            for server in servers:
                starting.create_task(server.start())
        mine = set(docker(*_MINE).splitlines()) - before
        assert len(mine) == len(servers)
        assert not [line for line in mine if "0.0.0.0" in line or "[::]" in line or "127.0.0.1:" not in line]
    finally:
        for server in servers:
            await server.close()

    assert set(docker(*_MINE).splitlines()) <= before


async def test_the_containers_of_a_process_that_is_killed_are_removed() -> None:
    program = """
import asyncio
from tests.servers.postgres import ContainerPostgres
async def main():
    server = ContainerPostgres()
    await server.start()
    print(server._container._name, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    name = (await process.stdout.readline()).decode().strip()
    assert name in docker(*_MINE)

    process.send_signal(signal.SIGKILL)
    await process.wait()
    await eventually(lambda: name not in docker(*_MINE), within_s=30, every_s=0.5)
