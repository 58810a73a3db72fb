"""Reading from a replica, deciding on the primary: two databases that differ show which of them is asked."""

from collections.abc import AsyncIterator

import pytest

from api.serving import readiness
from shared.ops import Status
from tests.api_server import Api, Serve
from tests.integration.api.conftest import module_fixture
from tests.jobs import JobMaker, MadeJob
from tests.servers.postgres import Postgres
from tests.servers.proxy import Proxy
from tests.tokens import token

pytestmark = pytest.mark.asyncio(loop_scope="module")


@module_fixture
async def replica_url(postgres: Postgres) -> AsyncIterator[str]:
    async with postgres.database() as url:
        yield url


@module_fixture
async def replica(replica_url: str) -> AsyncIterator[JobMaker]:
    """Jobs as a replica shows them that lags behind."""
    async with JobMaker.on(replica_url) as maker:
        yield maker


@module_fixture
async def api(database_url: str, replica_url: str, serve: Serve) -> Api:
    return await serve(database_url, database_read_url=replica_url, watch_interval=0.05)


async def test_what_is_read_comes_from_the_replica(api: Api, jobs: JobMaker, replica: JobMaker) -> None:
    here, there = await jobs.failed(project_id="p-read"), await replica.pending(project_id="p-read")
    reader = token(project_id="p-read")

    assert (await api.get(f"/api/jobs/{there.id}", token=reader)).data["status"] == "pending"
    assert (await api.get(f"/api/jobs/{here.id}", token=reader)).code == "job-not-found"
    assert (await api.get("/api/jobs", token=reader)).data[0]["id"] == str(there.id)
    assert (await api.get(f"/api/jobs?ids={here.id},{there.id}", token=reader)).json["not_found"] == [str(here.id)]
    assert (await api.get("/api/jobs/stats", token=reader)).data["pending"]["count"] == 1
    assert (await api.get("/api/jobs/stats", token=reader)).data["failed"]["count"] == 0


async def test_what_is_waited_for_or_wanted_fresh_comes_from_the_primary(
    api: Api, jobs: JobMaker, replica: JobMaker
) -> None:
    job = await replica.failed()
    await jobs.pool.execute(
        "INSERT INTO control_plane.jobs (id, project_id, type, status) VALUES ($1, 'p1', 'email', 'completed')", job.id
    )
    path = f"/api/jobs/{job.id}"
    behind = (await api.get(path)).headers["ETag"]

    assert (await api.get(path)).data["status"] == "failed"
    assert (await api.get(f"{path}?fresh=false")).data["status"] == "failed"
    assert (await api.get(f"{path}?fresh=true")).data["status"] == "completed"
    assert (await api.get(path, headers={"Prefer": "wait=0"})).data["status"] == "completed"
    waited = await api.get(path, headers={"Prefer": "wait=1", "If-None-Match": behind})
    assert (waited.status, waited.data["status"]) == (200, "completed")
    assert (await api.get(f"{path}?fresh=1")).code == "invalid-parameter"


async def test_the_link_from_a_retry_to_its_job_is_fresh(api: Api, jobs: JobMaker) -> None:
    job = await jobs.failed()

    retry = (await api.post(f"/api/jobs/{job.id}/retry")).data

    assert retry["links"]["job"] == f"/api/jobs/{job.id}?fresh=true"
    assert (await api.get(retry["links"]["job"])).data["pending_retry"]["id"] == retry["id"]


async def test_what_is_decided_is_decided_on_the_primary(api: Api, jobs: JobMaker, replica: JobMaker) -> None:
    async def at_the_replica(job: MadeJob, status: str) -> None:
        await replica.pool.execute(
            "INSERT INTO control_plane.jobs (id, project_id, type, status, attempts) VALUES ($1, 'p1', 'email', $2, 1)",
            job.id,
            status,
        )

    completed, failed, unknown = await jobs.completed(), await jobs.failed(), await replica.failed()
    await at_the_replica(completed, "failed")
    await at_the_replica(failed, "running")

    assert (await api.post(f"/api/jobs/{completed.id}/retry")).code == "job-not-failed"
    assert (await api.post(f"/api/jobs/{completed.id}/retry?dry_run=true")).data["blocked_by"] == "not_failed"
    assert (await api.post(f"/api/jobs/{unknown.id}/retry")).code == "job-not-found"
    accepted = await api.post(f"/api/jobs/{failed.id}/retry")
    assert accepted.status == 202
    # The ledger is read where it is written: who has just been told where to look finds it there.
    assert (await api.get(accepted.headers["Location"])).data == accepted.data
    assert (await api.get(f"/api/jobs/{failed.id}/retries")).data == [accepted.data]
    row = await jobs.ledger_row(accepted.data["id"])
    assert row is not None
    assert row["job_version"] == failed.version


@pytest.mark.parametrize("away", ["database", "replica"])
async def test_an_api_is_ready_while_both_answer(database_url: str, replica_url: str, away: str, serve: Serve) -> None:
    async with Proxy.to(database_url) as database, Proxy.to(replica_url) as replica:
        running = await serve(database.url_of(database_url), database_read_url=replica.url_of(replica_url))
        before = await readiness(running.parts)
        lost = {"database": database, "replica": replica}[away]
        await lost.refuse()
        await lost.reset()
        meanwhile = await readiness(running.parts)
        await lost.heal()
        after = await readiness(running.parts)

    assert before.checks == after.checks == {"database": Status.OK, "replica": Status.OK}
    assert meanwhile.checks == {**before.checks, away: Status.UNAVAILABLE}
    assert [each.status for each in (before, meanwhile, after)] == [Status.OK, Status.UNAVAILABLE, Status.OK]


async def test_without_a_replica_there_is_no_check_of_one(database_url: str, serve: Serve) -> None:
    running = await serve(database_url)
    assert (await readiness(running.parts)).checks == {"database": Status.OK}
