"""What a worker cannot read, or the database refuses: put aside with the reason, and nothing else disturbed."""

import uuid
from datetime import datetime, timedelta, timezone
from functools import partial

import msgspec
import pytest

from shared import topology
from shared.messages import MAX_BYTES, RetryMessage
from shared.models import Outcome
from tests.eventually import eventually
from tests.jobs import JobMaker, MadeJob, a_message_for, a_retry_of
from tests.ledger import Ledger
from tests.logs import Log
from tests.queues import Letter, Queues
from tests.workers import a_worker

_KEPT = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", topology.LEDGER_HEADER: "1"}

# The owner of the jobs table has rules of their own, which show when an update is refused: in codes of their own
# making, or in some that also tell of a database that can settle nothing at all.
_OWNERS_RULE = """
CREATE FUNCTION control_plane.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.type = 'sealed' AND NEW.status = 'pending' THEN
        RAISE EXCEPTION 'sealed jobs stay as they are' USING ERRCODE = '{sqlstate}';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER refuse BEFORE UPDATE ON control_plane.jobs FOR EACH ROW EXECUTE FUNCTION control_plane.refuse();
"""

_OWNERS_VETO = """
CREATE FUNCTION control_plane.veto() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TRIGGER veto BEFORE UPDATE ON control_plane.jobs FOR EACH ROW WHEN (OLD.type = 'sealed')
    EXECUTE FUNCTION control_plane.veto();
"""


def _body(**fields: object) -> bytes:
    whole = {"v": 1, "request_id": str(uuid.uuid4()), "job_id": str(uuid.uuid4()), "project_id": "p1"}
    return msgspec.json.encode(whole | fields)


UNREADABLE = {
    "empty": (b"", "not JSON"),
    "not JSON": (b"{", "not JSON"),
    "not UTF-8": (b'{"v":1,"actor":"\xff\xfe"}', "not JSON"),
    "not an object": (b"[1]", "Expected `object`, got `array`"),
    "an unknown version": (_body(v=3), "unknown version"),
    "several requests without any": (b'{"v":2,"requests":[]}', "no requests"),
    "several requests that are none": (_body(v=2, requests=7), "Expected `array`, got `int`"),
    "nested without end": (b"[" * 60_000, "Expected `object`, got `array`"),
    "a number for an id": (_body(request_id=7), "Expected `uuid`, got `int` (at request_id)"),
    "a NUL in a text": (_body(reason="a\x00b"), None),
    "too many attempts": (_body(extra_attempts=11), None),
    "a project that is none": (_body(project_id="a b"), None),
    "too large": (b" " * (MAX_BYTES + 1), "over 65536 bytes"),
    "very large": (b"x" * 1_000_000, "over 65536 bytes"),
}


async def _dead(queues: Queues, count: int) -> list[Letter]:
    await eventually(lambda: _holds(queues, count))
    return await queues.take_dead()


async def _said(log: Log, event: str) -> bool:
    return any(line["event"] == event for line in log.lines)


async def _outcome_is(jobs: JobMaker, message: RetryMessage, outcome: str) -> bool:
    return await jobs.outcome_of(message.id) == outcome


async def _holds(queues: Queues, count: int) -> bool:
    return await queues.waiting(topology.RETRIES_DEAD) >= count


async def test_unreadable_messages_are_dead_lettered_as_they_came_with_the_reason(
    database_url: str, amqp_url: str, queues: Queues
) -> None:
    async with a_worker(database_url, amqp_url) as worker:
        for body, _ in UNREADABLE.values():
            await queues.publish(body, headers={**_KEPT, "x-else": "where"})
        letters = {letter.body: letter for letter in await _dead(queues, len(UNREADABLE))}
        await worker.sampled("redrive_messages_unreadable_total", len(UNREADABLE))
        await worker.sampled("redrive_sessions_total", 0, end="failed")

    assert len(letters) == len(UNREADABLE)
    for body, reason in UNREADABLE.values():
        assert letters[body].reason == reason or reason is None
        assert letters[body].headers.items() >= _KEPT.items()
        assert "x-else" not in letters[body].headers
    assert await queues.waiting() == 0


async def test_one_unreadable_message_in_a_hundred_disturbs_none_of_the_others(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues
) -> None:
    failed = await jobs.many_failed(300)
    for number, job in enumerate(failed):
        if number % 100 == 50:
            await queues.publish(b"poison %d" % number)
        await queues.publish(a_message_for(job))

    async with a_worker(database_url, amqp_url, worker_batch_size=40):
        letters = await _dead(queues, 3)
        await eventually(lambda: _all_put_back(jobs, failed))

    assert sorted(letter.body for letter in letters) == [b"poison 150", b"poison 250", b"poison 50"]
    assert {letter.reason for letter in letters} == {"not JSON"}
    assert await queues.waiting() == 0
    assert await queues.waiting(topology.RETRIES_DEAD) == 0


async def _all_put_back(jobs: JobMaker, failed: list[MadeJob]) -> bool:
    return await jobs.effects(failed) == [1] * len(failed)


async def test_what_cannot_be_dead_lettered_is_not_acknowledged(
    database_url: str, least_privileged_amqp_url: str, jobs: JobMaker, queues: Queues
) -> None:
    job = await jobs.failed()
    await queues.publish(a_message_for(job))
    await queues.publish(b"poison")
    async with a_worker(database_url, least_privileged_amqp_url, worker_batch_wait=0.5) as worker:
        await queues.unbind(topology.RETRIES_DEAD, topology.KEY_DEAD)
        await worker.sampled_at_least("redrive_sessions_total", 1, end="broker_unavailable")
        assert await jobs.effects_of(job) == 1  # the neighbour
        await queues.bind(topology.RETRIES_DEAD, topology.KEY_DEAD)
        letters = await _dead(queues, 1)

    assert [letter.body for letter in letters] == [b"poison"]
    assert await queues.waiting() == 0
    assert await jobs.effects_of(job) == 1


async def sealed(jobs: JobMaker, ledger: Ledger, sqlstate: str) -> RetryMessage:
    """An accepted request for a job whose update fails, of all jobs it alone, with this SQLSTATE."""
    await jobs.pool.execute(_OWNERS_RULE.replace("{sqlstate}", sqlstate))
    await ledger.retries.accept(a_retry_of(await jobs.failed(kind="sealed", attempts=2)))
    (publishable,) = await ledger.outbox.lease(1, lease_s=30, bulk=False)
    return publishable.message


# Data, integrity, external routines, `RAISE` without a code; a trigger's own class; a limit that the row meets.
OF_THE_JOB = ["22023", "23514", "38001", "39000", "P0001", "P0004", "JB001", "09000", "44000", "54000"]
OF_THE_SERVER = ["08006", "40001", "42501", "53100", "55000", "57014", "58030"]


@pytest.mark.parametrize("sqlstate", OF_THE_JOB)
async def test_a_job_that_its_owner_does_not_take_back_is_blocked_and_its_neighbours_are_applied(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues, *, ledger: Ledger, sqlstate: str
) -> None:
    refused = await sealed(jobs, ledger, sqlstate)
    theirs = a_message_for(await jobs.failed(kind="sealed", attempts=2))  # not in the ledger: written down as blocked
    failed = await jobs.many_failed(50)
    messages = [a_message_for(job) for job in failed]
    messages[20:20] = [refused, theirs]
    await queues.publish_all(messages)

    async with a_worker(database_url, amqp_url) as worker:
        await eventually(lambda: _all_put_back(jobs, failed))
        for message in (refused, theirs):
            await eventually(partial(_outcome_is, jobs, message, "blocked"))
        await worker.sampled("redrive_retries_settled_total", 2, outcome="blocked")

    for message in (refused, theirs):
        row = await jobs.ledger_row(message.id)
        assert row is not None
        assert (row["state"], row["attempts_before"], row["max_attempts_before"], row["error_before"]) == (
            "rejected", 2, 3, None,
        )  # fmt: skip
    assert await jobs.all_effects() == len(failed)
    assert await queues.waiting() == 0
    assert await _dead(queues, 0) == []


async def test_a_blocked_job_does_not_block_the_line_without_a_broker(
    database_url: str, jobs: JobMaker, ledger: Ledger
) -> None:
    refused = await sealed(jobs, ledger, "P0001")
    await jobs.pool.execute(
        "UPDATE redrive.retry_requests SET publish_lease_until = NULL WHERE id = $1", refused.id
    )  # to be taken without a broker, not published
    failed = await jobs.many_failed(30)
    for job in failed:
        await ledger.retries.accept(a_retry_of(job))

    async with a_worker(database_url):
        await eventually(lambda: _all_put_back(jobs, failed))
        assert await eventually(lambda: jobs.outcome_of(refused.id)) == "blocked"

    assert await jobs.queued() == 0


@pytest.mark.parametrize("sqlstate", OF_THE_SERVER)
async def test_what_the_server_refuses_for_a_reason_that_is_not_the_jobs_stays_queued_and_readiness_says_so(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues, *, ledger: Ledger, log: Log, sqlstate: str
) -> None:
    refused = await sealed(jobs, ledger, sqlstate)
    failed = await jobs.many_failed(10)
    await queues.publish_all([a_message_for(failed[0]), refused, *map(a_message_for, failed[1:])])

    async with a_worker(database_url, amqp_url) as worker:
        await eventually(lambda: _all_put_back(jobs, failed))
        await eventually(lambda: _said(log, "retry request deferred"))
        status, health = await worker.health()
        assert (status, health["status"], health["checks"]["settling"]) == (200, "degraded", "degraded")
        row = await jobs.ledger_row(refused.id)
        assert row is not None
        assert (row["state"], row["outcome"]) == ("queued", None)
        assert row["publish_lease_until"] is not None  # it comes again

        await jobs.pool.execute("DROP TRIGGER refuse ON control_plane.jobs")
        await queues.publish(refused)
        await eventually(lambda: jobs.outcome_of(refused.id))

    assert await jobs.outcome_of(refused.id) == "applied"
    assert await _dead(queues, 0) == []


@pytest.mark.parametrize("veto", ["RETURN NULL", "RETURN OLD"])
async def test_a_job_that_a_trigger_leaves_as_it_was_is_blocked_and_not_called_applied(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues, *, ledger: Ledger, veto: str
) -> None:
    await jobs.pool.execute(_OWNERS_VETO.replace("RETURN NULL", veto))
    failed = await jobs.many_failed(10)
    for job in [await jobs.failed(kind="sealed", last_error="it broke"), *failed]:
        await ledger.retries.accept(a_retry_of(job))
    vetoed, *others = await ledger.settlement.queued(20)
    await queues.publish_all([vetoed, *others])

    async with a_worker(database_url, amqp_url):
        await eventually(lambda: _all_put_back(jobs, failed))
        assert await eventually(lambda: jobs.outcome_of(vetoed.id)) == "blocked"

    row = await jobs.ledger_row(vetoed.id)
    assert row is not None
    assert (row["state"], row["error_before"]) == ("rejected", None)
    assert await _dead(queues, 0) == []


async def test_a_job_that_fails_anew_within_its_update_was_applied(jobs: JobMaker, ledger: Ledger) -> None:
    """A trigger that runs the job at once, and has it fail with another error: that is another failure."""
    fails_again = "NEW.status = 'failed'; NEW.last_error = 'again'; RETURN NEW"
    await jobs.pool.execute(_OWNERS_VETO.replace("RETURN NULL", fails_again))
    job = await jobs.failed(kind="sealed", last_error="it broke")
    retry = (await ledger.retries.accept(a_retry_of(job))).retry

    assert (await ledger.settlement.apply_queued(1))[retry.id].outcome is Outcome.APPLIED


async def test_a_time_before_the_calendar_begins_spoils_nothing(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues
) -> None:
    east = timezone(timedelta(hours=23, minutes=59))
    failed = [await jobs.failed(), await jobs.failed()]
    strange = msgspec.structs.replace(a_message_for(failed[0]), run_at=datetime(1, 1, 1, tzinfo=east))
    await queues.publish_all([strange, a_message_for(failed[1])])

    async with a_worker(database_url, amqp_url):
        await eventually(lambda: _all_put_back(jobs, failed))

    assert await queues.waiting() == 0


async def test_a_message_that_breaks_the_connection_is_parked_alone(
    database_url: str, amqp_url: str, jobs: JobMaker, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.sessions.LONGEST_PAUSE_S", 0.01)  # twenty deliveries, without the pauses between
    monkeypatch.setattr("worker.sessions.FIRST_PAUSE_S", 0.01)
    failed = await jobs.many_failed(120)
    for number, job in enumerate(failed):
        if number == 20:
            await queues.publish(b"poison", timestamp_s=2**63 - 1)  # a year that Python's calendar does not have
        await queues.publish(a_message_for(job))

    async with a_worker(database_url, amqp_url) as worker:
        await eventually(lambda: _all_put_back(jobs, failed), within_s=30)
        await eventually(lambda: _holds(queues, 1))
        await worker.sampled_at_least("redrive_sessions_total", 1, end="renewed")

    assert await queues.waiting() == 0
    assert await queues.waiting(topology.RETRIES_DEAD) == 1
