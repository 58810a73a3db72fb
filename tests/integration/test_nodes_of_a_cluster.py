"""Several URLs of one broker: a node that is not there is not missed, and `redrive check` names it."""

from functools import partial
from urllib.parse import urlsplit

import pytest

from shared import topology
from tests.api_server import Serve
from tests.commands import commanded
from tests.eventually import eventually
from tests.jobs import JobMaker
from tests.queues import Queues
from tests.servers.processes import free_port
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import Rabbitmq
from tests.tokens import SECRET
from tests.workers import a_worker


def _with_nowhere(url: str) -> str:
    """The URLs of two nodes, of which the first is not there."""
    parts = urlsplit(url)
    login, at, _ = parts.netloc.rpartition("@")
    return ",".join([parts._replace(netloc=f"{login}{at}127.0.0.1:{free_port()}").geturl(), url])


async def test_retries_go_by_the_node_that_is_there(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues, serve: Serve
) -> None:
    urls = _with_nowhere(amqp_url)
    failed = await jobs.many_failed(20)
    api = await serve(database_url, amqp_url=urls)
    async with a_worker(database_url, urls) as worker:
        for job in failed:
            assert (await api.post(f"/api/jobs/{job.id}/retry")).status == 202
        await queues.publish(b"poison")

        async def all_put_back() -> bool:
            return await jobs.effects(failed) == [1] * len(failed)

        await eventually(all_put_back, within_s=20)
        await worker.sampled("redrive_messages_unreadable_total", 1)
    assert await queues.waiting(topology.RETRIES_DEAD) == 1
    listed = await commanded("dead", "list", "--json", DATABASE_URL=database_url, AMQP_URL=urls)
    assert [letter["reason"] for letter in listed.json] == ["not JSON"]


@pytest.mark.parametrize("fault", ["refuse", "black_hole"])
async def test_a_node_that_is_lost_in_mid_work_is_followed_by_the_next(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues, serve: Serve, *, fault: str
) -> None:
    """Closed, or silent without being closed: then RabbitMQ gives out again what the silent consumer held, once two
    heartbeats are missing.
    """
    async with Proxy.to(amqp_url) as one, Proxy.to(amqp_url) as two:
        urls = f"{one.url_of(amqp_url)},{two.url_of(amqp_url)}"
        api = await serve(database_url, amqp_url=urls)
        async with a_worker(database_url, urls):
            for lost, other in ((one, two), (two, one)):
                await other.heal()
                if fault == "refuse":
                    await lost.refuse()
                else:
                    await lost.black_hole()
                job = await jobs.failed()
                assert (await api.post(f"/api/jobs/{job.id}/retry")).status == 202
                await eventually(partial(jobs.effects_of, job), within_s=60)
                await eventually(queues.drained)


async def test_the_check_names_the_node_that_is_away_and_counts_members(
    database_url: str, amqp_url: str, queues: Queues, rabbitmq: Rabbitmq
) -> None:
    assert queues is not None
    if rabbitmq.management_url is None:
        pytest.fail("this test asks the management API")
    urls = _with_nowhere(amqp_url)
    nowhere = urls.partition(",")[0].rpartition("@")[2].partition("/")[0]
    settings = {"DATABASE_URL": database_url, "AMQP_URL": urls, "JWT_SECRET": SECRET}

    done = await commanded("check", **settings, AMQP_MANAGEMENT_URL=rabbitmq.management_url)
    assert done.status == 0, done.out
    assert f"broker: the node {nowhere} cannot be used" in done.out
    for queue in (topology.RETRIES, topology.RETRIES_BULK, topology.RETRIES_DEAD):
        assert f"broker: {queue}: 1 of 1 members online" in done.out
    assert "not looked at: how many members" in (await commanded("check", **settings)).out
