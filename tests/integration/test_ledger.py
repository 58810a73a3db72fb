"""The ledger on a real PostgreSQL: what is accepted, who publishes it, and what becomes of it."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import asyncpg
import msgspec
import pytest

from shared import gauges
from shared.batches import COUNTED_AT_ONCE, AcceptedBatch, Batch, Batches, BatchKey, BatchRequest
from shared.database import Database
from shared.dead_letters import DeadLetters
from shared.errors import (
    AttemptsExhausted,
    DatabaseUnavailable,
    JobChanged,
    JobNotFailed,
    JobNotFound,
    RedriveError,
    RetryNotFound,
    StatementRefused,
)
from shared.failed import FailedFilter
from shared.idempotency import Claim, IdempotencyKey, IdempotencyKeys
from shared.job_ids import UuidIds
from shared.messages import RetryMessage
from shared.models import Job, JobId, JobKey, Outcome, ProjectId, RetryId, RetryState, Version
from shared.retries import Accepted, RetryKey, RetryRequest
from shared.seen import Seen
from tests.api_server import Serve
from tests.compose import ROOT
from tests.eventually import eventually
from tests.jobs import JobMaker, MadeJob, a_message_for, a_retry_of
from tests.kustomize import rendered
from tests.ledger import Ledger, Taken
from tests.statements import statements_sent

Making = Callable[[JobMaker], Awaitable[MadeJob]]


# -- accepting


async def test_an_accepted_request_waits_in_the_ledger(jobs: JobMaker, ledger: Ledger) -> None:
    job = await jobs.failed(attempts=2)

    accepted = await ledger.retries.accept(a_retry_of(job, actor="ann"))

    assert not accepted.deduplicated
    assert accepted.retry == await ledger.retries.get(RetryKey(accepted.retry.id, job.project_id))
    assert (accepted.retry.state, accepted.retry.outcome, accepted.retry.actor) == (RetryState.QUEUED, None, "ann")
    assert await ledger.retries.history(job.key, after=None, limit=10) == [accepted.retry]
    assert await jobs.status_of(job) == "failed"


async def test_a_second_request_while_one_is_queued_is_the_first(jobs: JobMaker, ledger: Ledger) -> None:
    job = await jobs.failed()
    first = await ledger.retries.accept(a_retry_of(job, actor="ann"))
    second = await ledger.retries.accept(a_retry_of(job, actor="bob"))
    assert (second.retry, second.deduplicated) == (first.retry, True)


@pytest.mark.parametrize("if_version", [False, True])
async def test_a_key_whose_request_is_applied_while_another_post_looks_still_gets_the_first_answer(
    jobs: JobMaker, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, *, if_version: bool
) -> None:
    job = await jobs.failed()
    key = IdempotencyKey(job.project_id, "k1", b"the same request")
    request = msgspec.structs.replace(
        a_retry_of(job), key=key, if_version=frozenset({job.version}) if if_version else None
    )
    first: list[Accepted] = []
    find = IdempotencyKeys.find

    async def find_too_early(keys: IdempotencyKeys, wanted: IdempotencyKey | None) -> Claim | None:
        found = await find(keys, wanted)
        monkeypatch.setattr(IdempotencyKeys, "find", find)
        first.append(await ledger.retries.accept(request))
        await ledger.settlement.apply([a_message_for(job, request_id=first[0].retry.id)])
        return found

    monkeypatch.setattr(IdempotencyKeys, "find", find_too_early)
    second = await ledger.retries.accept(request)

    assert (second.retry, second.replayed) == (first[0].retry, True)
    assert await jobs.effects_of(job) == 1


async def test_a_key_whose_batch_is_accepted_while_another_post_looks_gets_the_first_answer_and_no_refusal(
    jobs: JobMaker, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await jobs.many_failed(3)
    batches = Batches(database, UuidIds())
    request = BatchRequest(
        project_id=made[0].project_id,
        actor="tester",
        chosen=FailedFilter(),
        maximum=3,
        key=IdempotencyKey(made[0].project_id, "k1", b"the same request"),
    )
    first: list[AcceptedBatch] = []
    find = IdempotencyKeys.find

    async def find_too_early(keys: IdempotencyKeys, wanted: IdempotencyKey | None) -> Claim | None:
        found = await find(keys, wanted)
        monkeypatch.setattr(IdempotencyKeys, "find", find)
        first.append(await batches.accept(request))
        await jobs.failed()  # one more than the second may take
        return found

    monkeypatch.setattr(IdempotencyKeys, "find", find_too_early)
    second = await batches.accept(request)

    assert (second.id, second.accepted, second.replayed) == (first[0].id, 3, True)


async def test_only_batches_that_may_still_change_are_counted_again_a_few_at_a_time(
    jobs: JobMaker, ledger: Ledger, database: Database
) -> None:
    batches = Batches(database, UuidIds())
    keys = []
    for _ in range(COUNTED_AT_ONCE + 2):
        job = await jobs.failed()
        request = BatchRequest(project_id=job.project_id, actor="tester", chosen=(job.id,), maximum=1)
        keys.append(BatchKey((await batches.accept(request)).id, job.project_id))
    with statements_sent() as sent:
        seen = await batches.find_many(keys)
        assert (len(seen), sent) == (len(keys), {"batches.find_many": 2})
    with statements_sent() as sent:
        assert await batches.changed(as_seen(seen)) == []
        assert sent == {"batches.find_many": 2}

    assert len(await ledger.settlement.apply_queued(100)) == len(keys)
    assert sorted(await batches.changed(as_seen(seen))) == sorted(keys)
    settled = await batches.find_many(keys)
    with statements_sent() as sent:
        assert await batches.changed(as_seen(settled)) == []
        assert not sent


def as_seen(batches: Mapping[BatchKey, Batch]) -> dict[BatchKey, Seen[Batch]]:
    return {key: Seen(batch) for key, batch in batches.items()}


def keyed(job: MadeJob, key: str) -> RetryRequest:
    return msgspec.structs.replace(a_retry_of(job), key=IdempotencyKey(job.project_id, key, b"the same request"))


async def test_requests_at_once_take_a_few_statements_though_each_has_a_key(jobs: JobMaker, ledger: Ledger) -> None:
    """Where each took its own, a crowd that asks anew would keep a database that was away from coming back."""
    made = await jobs.many_failed(200)

    with statements_sent() as sent:
        accepted = await asyncio.gather(*(ledger.retries.accept(keyed(job, str(job.id))) for job in made))

    assert sent == {"idempotency.find": 1, "jobs.find": 1, "idempotency.claim": 1, "retries.accept": 1}
    assert {each.retry.job_id for each in accepted} == {job.id for job in made}


async def test_requests_at_once_for_one_job_take_a_few_statements_though_each_has_a_key(
    jobs: JobMaker, ledger: Ledger
) -> None:
    job = await jobs.failed()

    with statements_sent() as sent:
        accepted = await asyncio.gather(
            *(ledger.retries.accept(keyed(job, f"k{number // 2}")) for number in range(200))
        )

    assert sent.total() < 15, sent
    assert len({each.retry.id for each in accepted}) == 1
    assert [each.deduplicated for each in accepted].count(False) == 2  # the first request, and its key again
    assert [each.replayed for each in accepted].count(False) == 100  # each key is new once


async def test_of_one_key_with_two_requests_at_once_one_is_accepted_and_the_other_refused(
    jobs: JobMaker, ledger: Ledger
) -> None:
    first, second = await jobs.many_failed(2)
    other = IdempotencyKey(second.project_id, "k", b"another request")
    requests = [keyed(first, "k"), msgspec.structs.replace(a_retry_of(second), key=other)]

    answers = await asyncio.gather(*map(ledger.retries.accept, requests), return_exceptions=True)

    assert sorted(type(answer).__name__ for answer in answers) == ["Accepted", "IdempotencyKeyReused"]
    assert await jobs.queued() == 1


async def test_a_request_that_is_too_late_undoes_no_request_without_a_key(
    jobs: JobMaker, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    raced, *others = await jobs.many_failed(6)
    looked = ledger.retries._jobs.get
    looks: Counter[JobId] = Counter()

    async def look(key: JobKey) -> Job:
        job = await looked(key)
        looks[key.id] += 1
        if key.id == raced.id and looks[key.id] == 1:
            await jobs.pool.execute(
                "INSERT INTO redrive.retry_requests (id, project_id, job_id, actor) VALUES ($1, $2, $3, 'faster')",
                uuid4(), raced.project_id, raced.id,
            )  # fmt: skip
        return job

    monkeypatch.setattr(ledger.retries._jobs, "get", look)
    accepted = await asyncio.gather(
        ledger.retries.accept(keyed(raced, "k")), *(ledger.retries.accept(a_retry_of(job)) for job in others)
    )

    assert [each.deduplicated for each in accepted] == [True, *[False] * 5]
    assert looks[raced.id] == 2
    assert {looks[job.id] for job in others} == {1}  # what is undone is looked at again


@pytest.mark.parametrize("by", ["api", "command"])
async def test_a_redrive_that_the_database_refuses_is_not_taken_for_another_request_that_is_queued(
    jobs: JobMaker, ledger: Ledger, database: Database, by: str
) -> None:
    job = await jobs.failed()
    retry = (await ledger.retries.accept(a_retry_of(job))).retry
    await ledger.settlement.dead_letter([retry.id])
    await jobs.pool.execute("ALTER TABLE redrive.retry_requests ADD CHECK (redriven_by IS NULL)")

    redriven: Awaitable[object]
    if by == "api":
        redriven = ledger.retries.redrive(RetryKey(retry.id, job.project_id), actor="me")
    else:
        redriven = DeadLetters(database, UuidIds()).redrive([retry.id], actor="me", lease_s=1)

    with pytest.raises(StatementRefused, match="23514"):
        await redriven


async def test_requests_in_parallel_for_one_job_are_one_row(jobs: JobMaker, ledger: Ledger) -> None:
    job = await jobs.failed()
    answers = await asyncio.gather(*(ledger.retries.accept(a_retry_of(job)) for _ in range(100)))
    assert len({answer.retry.id for answer in answers}) == 1
    assert [answer.deduplicated for answer in answers].count(False) == 1
    assert await jobs.queued() == 1


async def test_a_job_can_be_retried_again_after_it_was_and_failed_anew(jobs: JobMaker, ledger: Ledger) -> None:
    job = await jobs.failed()
    first = (await ledger.retries.accept(a_retry_of(job))).retry
    await ledger.settlement.apply_queued(10)
    again = await jobs.fail_again(job)
    second = (await ledger.retries.accept(a_retry_of(again))).retry
    await ledger.settlement.apply_queued(10)
    assert first.id != second.id
    assert [retry.id for retry in await ledger.retries.history(job.key, after=None, limit=10)] == [second.id, first.id]
    assert await jobs.effects_of(job) == 2


@pytest.mark.parametrize(
    ("making", "refusal"),
    [
        (JobMaker.pending, JobNotFailed),
        (JobMaker.running, JobNotFailed),
        (JobMaker.completed, JobNotFailed),
        (lambda jobs: jobs.failed(attempts=3, max_attempts=3), AttemptsExhausted),
        (lambda jobs: jobs.failed(attempts=3, max_attempts=None), AttemptsExhausted),
    ],
)
async def test_a_job_that_cannot_be_retried_is_refused(
    jobs: JobMaker, ledger: Ledger, making: Making, refusal: type[RedriveError]
) -> None:
    with pytest.raises(refusal):
        await ledger.retries.accept(a_retry_of(await making(jobs)))
    assert await jobs.queued() == 0


async def test_an_exhausted_job_is_accepted_with_extra_attempts(jobs: JobMaker, ledger: Ledger) -> None:
    job = await jobs.failed(attempts=3, max_attempts=3)
    await ledger.retries.accept(a_retry_of(job, extra_attempts=2))
    await ledger.settlement.apply_queued(10)
    row = await jobs.row(job)
    assert (row["status"], row["attempts"], row["max_attempts"]) == ("pending", 3, 5)


async def test_a_foreign_job_and_an_unknown_one_are_not_there(jobs: JobMaker, ledger: Ledger) -> None:
    theirs = await jobs.failed(project_id="theirs")
    for job in (
        MadeJob(theirs.id, ProjectId("ours"), theirs.version),
        MadeJob(JobId(str(uuid4())), ProjectId("ours"), Version("1")),
    ):
        with pytest.raises(JobNotFound):
            await ledger.retries.accept(a_retry_of(job))


async def test_a_request_for_a_version_that_has_passed_is_refused(jobs: JobMaker, ledger: Ledger) -> None:
    job = await jobs.failed()
    await jobs.fail_again(job)
    with pytest.raises(JobChanged):
        await ledger.retries.accept(msgspec.structs.replace(a_retry_of(job), if_version=frozenset({job.version})))


async def test_a_foreign_retry_and_an_unknown_one_are_not_there(jobs: JobMaker, ledger: Ledger) -> None:
    theirs = await jobs.failed(project_id="theirs")
    retry = (await ledger.retries.accept(a_retry_of(theirs))).retry
    for retry_id in (retry.id, RetryId(uuid4())):
        with pytest.raises(RetryNotFound):
            await ledger.retries.get(RetryKey(retry_id, ProjectId("ours")))
    assert await ledger.retries.history(theirs.key._replace(project_id=ProjectId("ours")), after=None, limit=10) == []


# -- publishing


async def test_two_relays_get_different_rows(jobs: JobMaker, ledger: Ledger) -> None:
    for job in await jobs.many_failed(20):
        await ledger.retries.accept(a_retry_of(job))
    one, other = await asyncio.gather(
        ledger.outbox.lease(10, lease_s=30, bulk=False), ledger.outbox.lease(10, lease_s=30, bulk=False)
    )
    assert len(one) == len(other) == 10
    assert len({each.message.id for each in (*one, *other)}) == 20
    assert await ledger.outbox.lease(10, lease_s=30, bulk=False) == []


async def test_a_message_says_what_was_asked_for(jobs: JobMaker, ledger: Ledger) -> None:
    job = await jobs.failed()
    retry = (await ledger.retries.accept(a_retry_of(job, actor="ann", extra_attempts=1))).retry
    (publishable,) = await ledger.outbox.lease(10, lease_s=30, bulk=False)
    assert publishable.message == RetryMessage(
        request_id=retry.id,
        job_id=job.id,
        project_id=job.project_id,
        job_version=job.version,
        extra_attempts=1,
        actor="ann",
        requested_at=retry.requested_at,
    )


async def test_a_lease_behind_another_takes_what_follows_and_the_next_look_takes_the_rest(
    ledger: Ledger, jobs: JobMaker
) -> None:
    for job in await jobs.many_failed(3):
        await ledger.retries.accept(a_retry_of(job))
    (first,) = await ledger.outbox.lease(1, lease_s=30, bulk=False)
    await ledger.outbox.give_back([first.lease])

    behind = await ledger.outbox.lease(10, lease_s=30, bulk=False, after=first)
    rest = await ledger.outbox.lease(10, lease_s=30, bulk=False)

    assert len(behind) == 2
    assert all(row.message.id > first.message.id for row in behind)
    assert [row.message.id for row in rest] == [first.message.id]


async def test_a_lease_ends_and_can_be_given_back_and_a_published_row_stays_published(
    jobs: JobMaker, ledger: Ledger
) -> None:
    await ledger.retries.accept(a_retry_of(await jobs.failed()))
    (first,) = await ledger.outbox.lease(10, lease_s=-1, bulk=False)
    (second,) = await ledger.outbox.lease(10, lease_s=30, bulk=False)  # the lease is over: its holder may be dead
    await ledger.outbox.give_back([first.lease])  # too late: it is on another lease by now
    assert await ledger.outbox.lease(10, lease_s=30, bulk=False) == []
    await ledger.outbox.give_back([second.lease])
    (third,) = await ledger.outbox.lease(10, lease_s=-2, bulk=False)
    assert first.message == second.message == third.message
    await ledger.outbox.mark_published([first.lease])  # too late: it is on another lease by now
    (fourth,) = await ledger.outbox.lease(10, lease_s=30, bulk=False)
    await ledger.outbox.mark_published([fourth.lease])
    assert await ledger.outbox.lease(10, lease_s=30, bulk=False) == []
    await ledger.outbox.give_back([fourth.lease])
    assert await ledger.outbox.lease(10, lease_s=30, bulk=False) == []


async def test_a_relay_that_marks_does_not_wait_for_a_worker_that_settles(jobs: JobMaker, ledger: Ledger) -> None:
    for job in await jobs.many_failed(2):
        await ledger.retries.accept(a_retry_of(job))
    held, other = await ledger.outbox.lease(2, lease_s=30, bulk=False)
    async with jobs.pool.acquire() as worker, worker.transaction():
        await worker.execute("SELECT FROM redrive.retry_requests WHERE id = $1 FOR UPDATE", held.lease.id)
        async with asyncio.timeout(1):
            await ledger.outbox.mark_published([held.lease, other.lease])
    marked = "SELECT id FROM redrive.retry_requests WHERE published_at IS NOT NULL"
    assert [row["id"] for row in await jobs.pool.fetch(marked)] == [other.lease.id]


async def test_what_is_settled_is_not_published_any_more(jobs: JobMaker, ledger: Ledger) -> None:
    await ledger.retries.accept(a_retry_of(await jobs.failed()))
    await ledger.settlement.apply_queued(10)
    assert await ledger.outbox.lease(10, lease_s=30, bulk=False) == []


# -- settling


@pytest.mark.parametrize(
    ("making", "outcome"),
    [
        (JobMaker.failed, Outcome.APPLIED),
        (lambda jobs: jobs.failed(attempts=0), Outcome.APPLIED),
        (lambda jobs: jobs.failed(attempts=None, max_attempts=None), Outcome.APPLIED),
        (JobMaker.pending, Outcome.JOB_NOT_FAILED),
        (JobMaker.running, Outcome.JOB_NOT_FAILED),
        (JobMaker.completed, Outcome.JOB_NOT_FAILED),
        (lambda jobs: jobs.failed(attempts=3, max_attempts=3), Outcome.ATTEMPTS_EXHAUSTED),
    ],
)
async def test_a_request_is_settled_by_how_the_job_stands(
    jobs: JobMaker, ledger: Ledger, making: Making, outcome: Outcome
) -> None:
    job = await making(jobs)
    before = dict(await jobs.row(job))
    message = a_message_for(job)

    settled = await ledger.settlement.apply([message])

    assert {key: value.outcome for key, value in settled.items()} == {message.id: outcome}
    applied = outcome is Outcome.APPLIED
    assert await jobs.effects_of(job) == applied
    assert applied or dict(await jobs.row(job)) == before
    retry = await ledger.retries.get(RetryKey(message.id, job.project_id))
    assert retry.state is (RetryState.APPLIED if applied else RetryState.REJECTED)
    assert retry.attempts_before == (before["attempts"] or 0)
    assert retry.error_before == (before["last_error"] if applied else None)


async def test_a_redelivered_message_gets_its_first_outcome_and_has_no_second_effect(
    jobs: JobMaker, ledger: Ledger
) -> None:
    job = await jobs.failed()
    message = a_message_for(job)
    first = (await ledger.settlement.apply([message, message]))[message.id]
    await jobs.fail_again(job)
    second = (await ledger.settlement.apply([message]))[message.id]
    assert (first.outcome, second.outcome) == (Outcome.APPLIED, Outcome.APPLIED)
    assert first.waited_s is not None
    assert second.waited_s is None
    assert await jobs.effects_of(job) == 1


async def test_a_message_of_no_version_fits_any_and_one_of_an_old_version_none(jobs: JobMaker, ledger: Ledger) -> None:
    job = await jobs.failed()
    await jobs.fail_again(job)
    stale = a_message_for(job)
    unbound = msgspec.structs.replace(a_message_for(job), job_version=None)
    settled = await ledger.settlement.apply([stale, unbound])
    assert settled[stale.id].outcome is Outcome.SUPERSEDED
    assert settled[unbound.id].outcome is Outcome.APPLIED


async def test_of_several_requests_for_one_job_in_a_batch_one_is_applied(jobs: JobMaker, ledger: Ledger) -> None:
    job = await jobs.failed()
    messages = [a_message_for(job) for _ in range(5)]
    outcomes = [settled.outcome for settled in (await ledger.settlement.apply(messages)).values()]
    assert sorted(outcomes) == [Outcome.APPLIED] + [Outcome.SUPERSEDED] * 4
    assert await jobs.effects_of(job) == 1


async def test_for_a_known_request_the_ledgers_facts_win_over_the_messages(jobs: JobMaker, ledger: Ledger) -> None:
    job, other = await jobs.failed(), await jobs.failed(project_id="theirs")
    retry = (await ledger.retries.accept(a_retry_of(job))).retry
    lying = a_message_for(other, request_id=retry.id)
    assert (await ledger.settlement.apply([lying]))[retry.id].outcome is Outcome.APPLIED
    assert await jobs.effects([job, other]) == [1, 0]


async def test_unknown_requests_in_two_hands_at_once_have_one_effect_each(jobs: JobMaker, ledger: Ledger) -> None:
    failed = await jobs.many_failed(50)
    messages = [a_message_for(job) for job in failed]
    answers = await asyncio.gather(
        *(ledger.settlement.apply(order) for order in (messages, messages[::-1], messages, messages))
    )
    for settled in answers:
        assert {each.outcome for each in settled.values()} == {Outcome.APPLIED}
        assert settled.keys() == {message.id for message in messages}
    assert await jobs.effects(failed) == [1] * 50


async def test_a_delayed_retry_is_scheduled_for_later(jobs: JobMaker, ledger: Ledger) -> None:
    delayed, dated = await jobs.failed(), await jobs.failed()
    await ledger.retries.accept(a_retry_of(delayed, delay_seconds=3600))
    run_at = datetime.now(UTC) + timedelta(days=1)
    await ledger.settlement.apply([msgspec.structs.replace(a_message_for(dated), run_at=run_at)])
    await ledger.settlement.apply_queued(10)
    now = datetime.now(UTC)
    assert timedelta(minutes=59) < (await jobs.row(delayed))["scheduled_at"] - now <= timedelta(hours=1)
    assert (await jobs.row(dated))["scheduled_at"] == run_at


async def test_workers_without_a_broker_take_different_rows_oldest_first(jobs: JobMaker, ledger: Ledger) -> None:
    for job in await jobs.many_failed(30):
        await ledger.retries.accept(a_retry_of(job))
    oldest = {message.id for message in await ledger.settlement.queued(10)}
    assert (await ledger.settlement.apply_queued(10)).keys() == oldest
    one, other = await asyncio.gather(ledger.settlement.apply_queued(10), ledger.settlement.apply_queued(10))
    assert not one.keys() & other.keys()


async def test_the_backlog_tells_how_many_wait_and_for_how_long(jobs: JobMaker, ledger: Ledger) -> None:
    assert await gauges.backlog(ledger.database) == (0, 0.0)
    for job in await jobs.many_failed(3):
        await ledger.retries.accept(a_retry_of(job))
    requests, oldest_s = await gauges.backlog(ledger.database)
    assert requests == 3
    assert 0 < oldest_s < 60


async def test_an_api_shows_the_backlog_while_no_worker_runs(
    database_url: str, jobs: JobMaker, ledger: Ledger, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gauges, "EVERY_S", 0.05)
    api = await serve(database_url)
    for job in await jobs.many_failed(2):
        await ledger.retries.accept(a_retry_of(job))

    await eventually(lambda: api.counted("redrive_backlog_requests") == 2)
    assert api.counted("redrive_backlog_oldest_seconds") > 0


@pytest.fixture
def waiting(jobs: JobMaker) -> Callable[[], Awaitable[int]]:
    """What KEDA is told: the query of deploy/kubernetes, as the role of a scaler."""
    (scaled,) = (
        each
        for each in rendered(ROOT / "deploy/kubernetes/base", [ROOT / "deploy/kubernetes/components/keda"])
        if each["kind"] == "ScaledObject"
    )
    (trigger,) = scaled["spec"]["triggers"]

    async def ask() -> int:
        async with jobs.pool.acquire() as scaler, scaler.transaction():
            await scaler.execute("SET LOCAL ROLE redrive_scaler")
            found: int = await scaler.fetchval(trigger["metadata"]["query"])
            return found

    return ask


async def test_a_scaler_sees_a_request_in_each_state_in_which_a_worker_could_take_it(
    jobs: JobMaker, ledger: Ledger, waiting: Callable[[], Awaitable[int]]
) -> None:
    assert await waiting() == 0
    job = await jobs.failed()
    retry = (await ledger.retries.accept(a_retry_of(job))).retry
    assert await waiting() == 1  # accepted, not published
    (leased,) = await ledger.outbox.lease(1, lease_s=60, bulk=False)
    assert await waiting() == 0  # a relay publishes it
    await ledger.outbox.mark_published([leased.lease])
    assert await waiting() == 1  # in RabbitMQ, or in the hand of a worker
    # A request of an hour ago is deferred for a minute, and not for a second.
    await jobs.pool.execute("UPDATE redrive.retry_requests SET requested_at = now() - interval '1 h'")
    await ledger.settlement.defer(leased.message)
    assert await waiting() == 0  # its job is locked, or slow: no worker may take it yet
    await ledger.settlement.dead_letter([retry.id])
    assert await waiting() == 0
    await ledger.retries.redrive(RetryKey(retry.id, job.project_id), actor="tester")
    assert await waiting() == 1  # queued again
    await ledger.settlement.apply([leased.message])
    assert await waiting() == 0  # applied


async def test_a_scaler_sees_a_request_that_its_relay_took_as_it_was_accepted_once_it_is_marked(
    jobs: JobMaker, ledger: Ledger, waiting: Callable[[], Awaitable[int]]
) -> None:
    taken = Taken(lease_s=60)
    await Ledger(ledger.database, taken).retries.accept(a_retry_of(await jobs.failed()))
    assert await waiting() == 0  # its relay publishes it
    await ledger.outbox.mark_published([request.lease for request in taken.requests])
    assert await waiting() == 1
    await jobs.pool.execute(
        "UPDATE redrive.retry_requests SET published_at = NULL, publish_lease_until = now() - interval '1 s'"
    )
    assert await waiting() == 1  # its relay has died, and the lease is over


async def test_a_scaler_sees_no_request_that_is_cancelled_or_rejected(
    jobs: JobMaker, ledger: Ledger, waiting: Callable[[], Awaitable[int]]
) -> None:
    cancelled, rejected = await jobs.many_failed(2)
    retry = (await ledger.retries.accept(a_retry_of(cancelled))).retry
    await ledger.retries.accept(a_retry_of(rejected))
    assert await waiting() == 2
    await ledger.retries.cancel(RetryKey(retry.id, cancelled.project_id), actor="tester")
    assert await waiting() == 1
    await jobs.fail_again(rejected)
    await ledger.settlement.apply_queued(10)
    assert await waiting() == 0


async def test_a_scaler_reads_the_backlog_and_nothing_else(jobs: JobMaker) -> None:
    async with jobs.pool.acquire() as scaler, scaler.transaction():
        await scaler.execute("SET LOCAL ROLE redrive_scaler")
        assert await scaler.fetchval("SELECT waiting FROM redrive.backlog") == 0
        for forbidden in ("redrive.retry_requests", "redrive.retry_batches", "control_plane.jobs"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                async with scaler.transaction():
                    await scaler.execute(f"SELECT FROM {forbidden}")


# -- giving up


async def test_a_dead_lettered_request_is_done_and_the_job_is_free_for_another(jobs: JobMaker, ledger: Ledger) -> None:
    job = await jobs.failed()
    retry = (await ledger.retries.accept(a_retry_of(job))).retry
    settled = await ledger.settlement.dead_letter([retry.id])
    assert settled[retry.id].outcome is Outcome.POISON
    retry = await ledger.retries.get(RetryKey(retry.id, job.project_id))
    assert (retry.state, retry.outcome, retry.done) == (RetryState.DEAD_LETTERED, Outcome.POISON, True)
    assert not (await ledger.retries.accept(a_retry_of(job))).deduplicated


async def test_giving_up_changes_nothing_that_is_settled_or_unknown(jobs: JobMaker, ledger: Ledger) -> None:
    job = await jobs.failed()
    message = a_message_for(job)
    await ledger.settlement.apply([message])
    unknown = RetryId(uuid4())
    assert await ledger.settlement.dead_letter([message.id, unknown]) == {message.id: (Outcome.APPLIED, None)}


async def test_a_refused_row_undoes_its_whole_batch_and_says_so(jobs: JobMaker, ledger: Ledger) -> None:
    await jobs.pool.execute("ALTER TABLE control_plane.jobs ADD CHECK (type <> 'sealed' OR status = 'failed')")
    good, sealed = await jobs.failed(), await jobs.failed(kind="sealed")
    with pytest.raises(StatementRefused, match="23514"):
        await ledger.settlement.apply([a_message_for(good), a_message_for(sealed)])
    assert await jobs.effects([good, sealed]) == [0, 0]


async def test_a_locked_table_is_an_unavailable_database_in_time(jobs: JobMaker, ledger: Ledger) -> None:
    job = await jobs.failed()
    async with jobs.locked(), asyncio.timeout(30):
        with pytest.raises(DatabaseUnavailable):
            await ledger.settlement.apply([a_message_for(job)])
    assert await jobs.effects_of(job) == 0


async def test_what_a_broker_brought_has_been_published_whether_or_not_its_relay_came_to_say_so(
    jobs: JobMaker, ledger: Ledger
) -> None:
    brought, taken = await jobs.failed(), await jobs.failed()
    request = (await ledger.retries.accept(a_retry_of(brought))).retry
    await ledger.settlement.apply([a_message_for(brought, request_id=request.id)])
    await ledger.retries.accept(a_retry_of(taken))
    await ledger.settlement.apply_queued(10)

    rows = await jobs.pool.fetch("SELECT job_id::text, published_at IS NOT NULL FROM redrive.retry_requests")

    assert dict(map(tuple, rows)) == {brought.id: True, taken.id: False}
