"""Requests whose end the database does not let be written as it should be: each ends all the same, or waits."""

import asyncio
from functools import partial

import pytest

from shared.messages import RetryMessage
from shared.models import Outcome
from tests.eventually import eventually
from tests.jobs import JobMaker, MadeJob, a_message_for
from tests.ledger import Ledger
from tests.logins import Users
from tests.logs import Log
from tests.queues import Queues
from tests.workers import a_worker

WIDE = 2**63 - 1

REFUSE = """
CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'not this end' USING ERRCODE = '22000'; END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON redrive.retry_requests
    FOR EACH ROW WHEN (NEW.actor = 'refused' AND NEW.outcome = ANY ('{%s}')) EXECUTE FUNCTION public.refuse();
"""
"""Let the ledger refuse to write these ends of requests of the actor `refused`."""


async def queue(jobs: JobMaker, job: MadeJob, *, actor: str = "me") -> RetryMessage:
    """A queued request for the job at any version, as the api writes it."""
    message = a_message_for(job, any_version=True)
    await jobs.pool.execute(
        "INSERT INTO redrive.retry_requests (id, project_id, job_id, actor) VALUES ($1, $2, $3, $4)",
        message.id,
        message.project_id,
        message.job_id,
        actor,
    )
    return message


async def test_a_cap_as_wide_as_a_bigint_is_written_down(database_url: str, jobs: JobMaker) -> None:
    job = await jobs.failed()
    await jobs.pool.execute("ALTER TABLE control_plane.jobs ALTER attempts TYPE bigint, ALTER max_attempts TYPE bigint")
    await jobs.pool.execute("UPDATE control_plane.jobs SET max_attempts = $1", WIDE)
    message = await queue(jobs, job)
    async with a_worker(database_url):
        await eventually(lambda: jobs.outcome_of(message.id))

    row = await jobs.ledger_row(message.id)
    assert row is not None
    assert (row["outcome"], row["attempts_before"], row["max_attempts_before"]) == ("applied", 1, WIDE)


@pytest.mark.parametrize("dispatch", ["rabbitmq", "ledger"])
async def test_what_the_ledger_cannot_hold_of_a_job_is_left_out_and_its_request_is_blocked(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues, dispatch: str
) -> None:
    wide, good = await jobs.many_failed(2)
    await jobs.pool.execute("ALTER TABLE control_plane.jobs ALTER max_attempts TYPE numeric")
    await jobs.pool.execute("UPDATE control_plane.jobs SET max_attempts = 1e30 WHERE id = $1", wide.id)
    if dispatch == "ledger":
        messages = [await queue(jobs, wide), await queue(jobs, good)]
    else:
        messages = [a_message_for(wide, any_version=True), a_message_for(good, any_version=True)]
        await queues.publish_all(messages)
    async with a_worker(database_url, amqp_url if dispatch == "rabbitmq" else None):
        for message in messages:
            await eventually(partial(jobs.outcome_of, message.id))

    assert [await jobs.outcome_of(message.id) for message in messages] == ["blocked", "applied"]
    row = await jobs.ledger_row(messages[0].id)
    assert row is not None
    assert (row["attempts_before"], row["max_attempts_before"]) == (None, None)


async def test_requests_that_cannot_be_blocked_are_dead_lettered_and_those_behind_them_are_applied(
    database_url: str, jobs: JobMaker, log: Log
) -> None:
    await jobs.pool.execute(REFUSE % "applied,blocked")
    refused = [await queue(jobs, job, actor="refused") for job in await jobs.many_failed(5)]
    last = await queue(jobs, await jobs.failed())
    async with a_worker(database_url, worker_batch_size=2):
        await eventually(lambda: jobs.outcome_of(last.id))

    assert await jobs.outcome_of(last.id) == "applied"
    assert await jobs.queued() == 0
    for message in refused:
        row = await jobs.ledger_row(message.id)
        assert row is not None
        assert (row["state"], row["outcome"]) == ("dead_lettered", "poison")
    batches = [line for line in log.lines if line["event"] == "retry batch settled"]
    assert sum(line["refused"] for line in batches) == 5
    assert sum(line["applied"] for line in batches) == 1
    assert {line["repeated"] for line in batches} == {line["rejected"] for line in batches} == {0}


async def test_a_dead_lettered_request_s_message_is_dead_lettered_too(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues
) -> None:
    await jobs.pool.execute(REFUSE % "applied,blocked")
    message = await queue(jobs, await jobs.failed(), actor="refused")
    async with a_worker(database_url, amqp_url):
        await queues.publish_all([message])
        await eventually(lambda: jobs.outcome_of(message.id))
        await eventually(queues.drained)

    assert await jobs.outcome_of(message.id) == "poison"


async def test_requests_whose_end_cannot_be_written_at_all_are_tried_again_with_pauses(
    database_url: str, jobs: JobMaker, log: Log
) -> None:
    await jobs.pool.execute(REFUSE % "applied,blocked,poison")
    for job in await jobs.many_failed(2):
        await queue(jobs, job, actor="refused")
    async with a_worker(database_url, worker_batch_size=2):
        await asyncio.sleep(1)  # what is counted is how often it is tried in a second

    assert await jobs.queued() == 2
    tried = [line for line in log.lines if line["event"] == "retry batch settled"]
    assert 1 <= len(tried) <= 11


# -- what another program asks for, of a job that this role sees and may not update


async def test_another_program_s_request_for_a_job_that_may_not_be_updated_is_queued_and_applied_once_it_may(
    users: Users, amqp_url: str, queues: Queues, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.deferrals.LONG_S", 0.0)
    async with JobMaker.on(users.admin) as jobs:
        await jobs.pool.execute(
            "ALTER TABLE control_plane.jobs ENABLE ROW LEVEL SECURITY;"
            "CREATE POLICY seen ON control_plane.jobs FOR SELECT USING (true)"
        )
        job, other = await jobs.many_failed(2)
        await queue(jobs, other)
        first, second, third = a_message_for(job), a_message_for(job), a_message_for(other)
        async with a_worker(users.worker, amqp_url):
            await queues.publish_all([first, second, third])
            await eventually(lambda: jobs.ledger_row(third.id))
            await eventually(queues.drained)
            await eventually(lambda: any(line["event"] == "retry requests deferred" for line in log.lines))
        states = {await jobs.outcome_of(message.id) for message in (first, second)}
        assert states == {None, "superseded"}  # at most one is queued for a job
        assert await jobs.outcome_of(third.id) == "superseded"
        assert await jobs.queued() == 2

        await jobs.pool.execute("CREATE POLICY updated ON control_plane.jobs FOR UPDATE USING (true)")
        async with a_worker(users.worker):
            await eventually(lambda: jobs.effects_of(job), within_s=20)
            await eventually(lambda: jobs.effects_of(other), within_s=20)


async def test_a_status_that_is_null_is_not_failed_to_a_worker(jobs: JobMaker, ledger: Ledger) -> None:
    job = await jobs.failed()
    await jobs.pool.execute("ALTER TABLE control_plane.jobs ALTER status DROP NOT NULL")
    await jobs.pool.execute("UPDATE control_plane.jobs SET status = NULL WHERE id = $1", job.id)
    message = a_message_for(job, any_version=True)

    settled = await ledger.settlement.apply([message])

    assert settled[message.id].outcome is Outcome.JOB_NOT_FAILED
    assert (await jobs.row(job))["status"] is None
