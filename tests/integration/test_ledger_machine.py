"""The ledger under any order of events: Hypothesis looks for one that loses a request or lets it take effect twice.

The queue is a list here, and a crash is an exception at a failpoint, so that thousands of histories fit into seconds;
PostgreSQL and every statement are real. Effects are counted by the trigger, apart from the ledger.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, ClassVar, Final, Self, TypeVar

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from shared import retries
from shared.database import Database
from shared.dead_letters import DeadLetters
from shared.errors import JobNotFailed, RetryAlreadySettled
from shared.failpoints import Failpoint
from shared.idempotency import IdempotencyKey
from shared.job_ids import UuidIds
from shared.models import ProjectId, RetryId
from shared.pruning import prune
from shared.retries import RetryKey, RetryRequest
from tests.acceptance.chaos.tally import scaled
from tests.jobs import JobMaker, MadeJob
from tests.ledger import Ledger

if TYPE_CHECKING:
    from shared.messages import RetryMessage

T = TypeVar("T")
PROJECT: Final = ProjectId("p1")
JOBS: Final = 3
some_job = st.integers(0, JOBS - 1)
any_of_them = st.integers(0, 1_000_000)
before_commit = st.sampled_from([Failpoint.IN_TRANSACTION, Failpoint.BEFORE_COMMIT])


class _Crash(Exception):
    """The process is gone."""


@contextmanager
def crashing(point: Failpoint | None) -> Iterator[None]:
    """Let whatever reaches this point go no further."""

    def reach(reached: Failpoint) -> None:
        if reached is point:
            raise _Crash

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retries, "reach", reach)
        try:
            yield
        except _Crash:
            assert point is not None


class World:
    """A database, and a loop to talk to it in."""

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()

    def __enter__(self) -> Self:
        self.run(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._stack.aclose())
        self._runner.close()

    async def _open(self) -> None:
        self.jobs = await self._stack.enter_async_context(JobMaker.on(self._url))
        self.database = await self._stack.enter_async_context(
            Database(self._url, program="test", timeout_s=2, pool_size=2).opened()
        )

    def run(self, work: Awaitable[T]) -> T:
        async def wait() -> T:
            return await work

        return self._runner.run(wait())


class LedgerMachine(RuleBasedStateMachine):
    """Histories of three jobs; each begins with an empty database."""

    world: ClassVar[World]

    def __init__(self) -> None:
        super().__init__()
        self.world.run(
            self.world.jobs.pool.execute(
                "TRUNCATE redrive.retry_requests, redrive.idempotency_keys, control_plane.jobs, public.test_effects"
            )
        )
        self.jobs: list[MadeJob] = self.world.run(self.world.jobs.many_failed(JOBS))
        self.ledger = Ledger(self.world.database)
        self.letters = DeadLetters(self.world.database, UuidIds())
        self.queue: list[RetryMessage] = []
        self.acknowledged: list[RetryMessage] = []
        self.acked: set[RetryId] = set()
        self.keys: dict[str, tuple[int, RetryId | None]] = {}
        self.forgotten: Counter[str] = Counter()  # effects of requests that were pruned
        self.pruned: set[RetryId] = set()

    def rows(self, sql: str) -> list[asyncpg.Record]:
        return self.world.run(self.world.jobs.pool.fetch(sql))

    # -- the api

    def ask(self, number: int, key: str | None, *, dies: bool = False) -> RetryId | None:
        wanted = RetryRequest(
            job=self.jobs[number].key,
            actor="tester",
            key=None if key is None else IdempotencyKey(PROJECT, key, str(number).encode()),
        )
        told: RetryId | None = None
        with crashing(Failpoint.AFTER_INSERT if dies else None), suppress(JobNotFailed):
            told = self.world.run(self.ledger.retries.accept(wanted)).retry.id
            self.acked.add(told)
        return told

    @rule(number=some_job)
    def post(self, number: int) -> None:
        self.ask(number, None)

    @rule(number=some_job, dies=st.booleans())
    def post_with_a_new_key(self, number: int, dies: bool) -> None:  # noqa: FBT001 - drawn
        key = f"key-{len(self.keys)}"
        self.keys[key] = (number, self.ask(number, key, dies=dies))

    @precondition(lambda self: self.keys)
    @rule(which=any_of_them)
    def post_with_the_same_key(self, which: int) -> None:
        key = list(self.keys)[which % len(self.keys)]
        number, first = self.keys[key]
        again = self.ask(number, key)
        assert first in {None, again}  # None: no client was told, or the request was refused
        self.keys[key] = (number, again)

    @precondition(lambda self: self.acked)
    @rule(which=any_of_them)
    def cancel(self, which: int) -> None:
        retry_id = sorted(self.acked)[which % len(self.acked)]
        if retry_id not in self.pruned:
            with suppress(RetryAlreadySettled):
                self.world.run(self.ledger.retries.cancel(RetryKey(retry_id, PROJECT), actor="ann"))

    # -- the relay

    @rule(confirmed=st.booleans(), limit=st.integers(1, 3))
    def publish(self, confirmed: bool, limit: int) -> None:  # noqa: FBT001 - drawn
        rows = self.world.run(self.ledger.outbox.lease(limit, lease_s=0, bulk=False))
        self.queue += [row.message for row in rows]
        if confirmed:
            self.world.run(self.ledger.outbox.mark_published([row.lease for row in rows]))

    @rule()
    def publish_what_was_published_long_ago(self) -> None:
        self.world.run(self.ledger.outbox.republish_stale(10, age_s=0, bulk=False))

    @precondition(lambda self: self.queue)
    @rule()
    def lose_the_queue(self) -> None:
        self.queue.clear()
        self.world.run(self.ledger.outbox.republish_stale(10, age_s=0, bulk=False))

    # -- the worker

    @precondition(lambda self: self.queue)
    @rule(count=st.integers(1, 5), acks=st.booleans())
    def deliver(self, count: int, acks: bool) -> None:  # noqa: FBT001 - drawn
        """Settle a batch; without its ack, all of it will come again."""
        batch = self.queue[:count]
        self.world.run(self.ledger.settlement.apply(batch))
        if acks:
            del self.queue[:count]
            self.acknowledged += batch

    @precondition(lambda self: self.queue)
    @rule(count=st.integers(1, 5), point=before_commit)
    def deliver_and_die(self, count: int, point: Failpoint) -> None:
        with crashing(point):
            self.world.run(self.ledger.settlement.apply(self.queue[:count]))

    @precondition(lambda self: self.acknowledged)
    @rule(which=any_of_them)
    def deliver_a_copy(self, which: int) -> None:
        self.world.run(self.ledger.settlement.apply([self.acknowledged[which % len(self.acknowledged)]] * 2))

    @rule(limit=st.integers(1, 3), point=st.none() | before_commit)
    def settle_without_a_broker(self, limit: int, point: Failpoint | None) -> None:
        with crashing(point):
            self.world.run(self.ledger.settlement.apply_queued(limit))

    @precondition(lambda self: self.queue)
    @rule()
    def dead_letter(self) -> None:
        self.world.run(self.ledger.settlement.dead_letter([self.queue.pop(0).id]))

    # -- operators, and the owner of the jobs

    @rule()
    def redrive(self) -> None:
        dead = [each.message.id for each in self.world.run(self.letters.dead_lettered(10))]
        self.world.run(self.letters.redrive(dead, actor="operator", lease_s=0))

    @precondition(lambda self: not self.queue)
    @rule()
    def prune_after_a_day(self) -> None:
        """What is pruned must be forgotten by the queue, too: a message may not outlive its row."""
        rows = self.rows("SELECT id, job_id, state FROM redrive.retry_requests WHERE state <> 'queued'")
        self.rows("UPDATE redrive.retry_requests SET processed_at = processed_at - interval '25 hours'")
        self.rows("UPDATE redrive.idempotency_keys SET created_at = created_at - interval '25 hours'")
        self.world.run(prune(self.world.database, timedelta(hours=24), at_a_time=2))
        self.forgotten.update(str(row["job_id"]) for row in rows if row["state"] == "applied")
        self.pruned |= {row["id"] for row in rows}
        self.keys.clear()
        self.acknowledged.clear()

    @rule(number=some_job)
    def run_and_fail_again(self, number: int) -> None:
        job = self.jobs[number]
        if self.world.run(self.world.jobs.status_of(job)) == "pending":
            self.world.run(self.world.jobs.fail_again(job))

    # -- what must hold, always

    @invariant()
    def each_request_took_effect_once_at_most(self) -> None:
        rows = self.rows("SELECT job_id FROM redrive.retry_requests WHERE state = 'applied'")
        applied = self.forgotten + Counter(str(row["job_id"]) for row in rows)
        effects = self.world.run(self.world.jobs.effects(self.jobs))
        assert effects == [applied[job.id] for job in self.jobs]

    @invariant()
    def what_was_accepted_is_in_the_ledger(self) -> None:
        rows = self.rows("SELECT id FROM redrive.retry_requests")
        assert self.acked <= self.pruned | {row["id"] for row in rows}

    def teardown(self) -> None:
        """Whatever has happened, health settles everything."""
        if self.queue:
            self.world.run(self.ledger.settlement.apply(self.queue))
        self.world.run(self.ledger.outbox.republish_stale(100, age_s=0, bulk=False))
        if rows := self.world.run(self.ledger.outbox.lease(100, lease_s=0, bulk=False)):
            self.world.run(self.ledger.settlement.apply([row.message for row in rows]))
        assert self.world.run(self.world.jobs.queued()) == 0
        self.each_request_took_effect_once_at_most()


def test_no_order_of_events_loses_a_request_or_doubles_it(database_url: str) -> None:
    def explore() -> None:
        with World(database_url) as world:
            run_state_machine_as_test(
                type("Machine", (LedgerMachine,), {"world": world}),
                settings=settings(
                    max_examples=scaled(20, full=2_000),
                    stateful_step_count=25,
                    deadline=None,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )

    with ThreadPoolExecutor(1) as apart:  # a loop of its own, beside pytest's
        apart.submit(explore).result()
