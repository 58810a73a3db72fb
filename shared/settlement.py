"""The worker's side of the ledger: settle queued requests, defer them, or give them up.

1. A request is a row of `redrive.retry_requests`. Only `queued` rows are settled, under their lock. A message that is
   delivered twice finds its row settled the second time, and changes nothing.
2. `apply` settles a batch in one transaction: it locks the rows, then their jobs, sets each job that may be retried to
   `pending`, and writes the outcome of each request.
3. A message of another program names a request that the ledger does not have. The request is adopted: inserted in the
   same transaction, then settled like the others.
4. A job that another transaction has locked is not waited for: its request is deferred. It stays queued until its
   `publish_lease_until` has passed; then the relay publishes it again, or, without a broker, `apply_queued` takes it.
5. The caller (worker/settling.py) finds the one request that fails a batch. `block` rejects it, where a constraint or a
   trigger of the jobs table refuses the change of its job. `defer` sets it aside, where the change takes too long.
6. `dead_letter` gives up requests whose message killed its worker too often, or that can be neither blocked nor
   deferred.
   A dead-lettered request is to have a letter in the dead-letter queue. Its letter is due until `mark_letters`, so
   that each message of it becomes one until one is there: after a crash in between, and from then on no more. Letters
   are marked for the time at which the request was dead-lettered, because it may have been redriven meanwhile, and
   dead-lettered again: then another letter is due.
7. `take_apart` has requests published again, each alone: they came in one message, and a worker may have failed with
   it.
8. `lease_held_up` takes requests from the ledger that the broker holds up, for `apply`.

The table at the top of shared/sql/settlement.sql has every change of a row, and the columns that it sets.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from shared.errors import StatementRefused
from shared.failpoints import Failpoint, reach
from shared.messages import LedgerMessage, RetryMessage, message_of
from shared.models import Outcome, RetryId

if TYPE_CHECKING:
    from shared.database import Database, Row, Session
    from shared.job_ids import JobIds


class Settled(NamedTuple):
    """The outcome of a request, and how long it waited; None where it was settled before."""

    outcome: Outcome
    waited_s: float | None


class Dead(NamedTuple):
    """A dead-lettered request: since when, and whether its letter is in the dead-letter queue, as far as is marked."""

    since: datetime
    has_letter: bool


class Settlement:
    """Settles requests. Every method may raise DatabaseUnavailable."""

    def __init__(self, database: "Database", ids: "JobIds") -> None:
        self._database = database
        self._ids = ids
        self._sql = ids.statements("settlement")

    async def apply(self, messages: Sequence[RetryMessage]) -> dict[RetryId, Settled]:
        """Settle the requests of these messages, in one transaction: `retry_job` for a batch.

        Every distinct request id has its outcome in the answer, except the deferred ones. A request that was settled
        before has its first outcome again, and no second effect. A request that the ledger does not know is
        adopted; one of a LedgerMessage was pruned, long after it was settled, and counts as superseded.

        Raises DatabaseUnavailable: try all of it again later. Raises StatementRefused: one of the requests is at fault;
        nothing was settled.
        """
        by_id = _by_id(messages)
        async with self._database.transaction() as session:
            adopted = await self._adopt(session, by_id.values())
            reach(Failpoint.IN_TRANSACTION)
            settled = await self._apply(session, list(by_id), adopted, published=True)
            if missing := by_id.keys() - settled.keys():
                known = await self._outcomes(session, list(missing))
                # Another worker committed these, and may have died before the standby had it. After our acknowledgement
                # their messages are gone.
                await session.secure()
                for each in missing:
                    if (outcome := known.get(each, Outcome.SUPERSEDED)) is not None:
                        settled[each] = Settled(outcome, None)
            reach(Failpoint.BEFORE_COMMIT)
        reach(Failpoint.AFTER_COMMIT)
        return settled

    async def take_apart(self, messages: Sequence[RetryMessage]) -> dict[RetryId, Settled | None]:
        """Have the relay publish these requests again, each alone, in one transaction.

        Answers the requests that were queued, or that the ledger did not know, with None where they are queued now. One
        that the ledger did not know is superseded where another is queued for its job. Those that were dead-lettered
        before are in the answer, too. Raises as `apply` does.
        """
        by_id = _by_id(messages)
        async with self._database.transaction() as session:
            adopted = await self._adopt(session, by_id.values())
            reach(Failpoint.IN_TRANSACTION)
            rows = await session.fetch(self._sql["take_apart"], list(by_id), adopted)
            dead: dict[RetryId, Settled] = {}
            if missing := by_id.keys() - {RetryId(row["id"]) for row in rows}:
                known = await self._outcomes(session, list(missing))
                await session.secure()  # as in `apply`
                poison = [each for each, outcome in known.items() if outcome is Outcome.POISON]
                dead = {each: Settled(Outcome.POISON, None) for each in poison}
            reach(Failpoint.BEFORE_COMMIT)
        reach(Failpoint.AFTER_COMMIT)
        queued = {RetryId(row["id"]): None for row in rows if row["outcome"] is None}
        return queued | _settled_of([row for row in rows if row["outcome"] is not None]) | dead

    async def apply_queued(self, limit: int, *, deferred: set[RetryId] | None = None) -> dict[RetryId, Settled]:
        """Settle up to `limit` queued requests straight from the ledger, oldest first: dispatch without a broker.

        Skips rows that another worker has locked. Deferred requests are missing in the answer, and are added to
        `deferred`. Raises as `apply` does.
        """
        async with self._database.transaction() as session:
            ids = await self._take(session, limit)
            if not ids:
                return {}
            reach(Failpoint.IN_TRANSACTION)
            settled = await self._apply(session, ids, [], published=False)
            reach(Failpoint.BEFORE_COMMIT)
        reach(Failpoint.AFTER_COMMIT)
        if deferred is not None and len(settled) < len(ids):
            deferred.update(each for each in ids if each not in settled)
        return settled

    async def probe(self) -> None:
        """Run the statements that settle, for no request: prove that the database lets them. Raises as `apply`."""
        async with self._database.transaction() as session:
            await self._apply(session, [], await self._adopt(session, [], probing=True), published=True)

    async def queued(self, limit: int) -> list[RetryMessage]:
        """Up to `limit` queued requests, oldest first, as messages; does not lock them."""
        return [message_of(row, self._ids) for row in await self._database.fetch(self._sql["queued"], limit)]

    async def lease_held_up(
        self, limit: int, *, bulk: bool, older_than_s: float, held_up_s: float, lease_s: float
    ) -> list[RetryMessage]:
        """Lease up to `limit` queued requests that the broker holds up, the oldest first, to settle them from here.

        They are older than `older_than_s`, and a relay had `held_up_s` for them since they were last published, leased
        or deferred. From now on they are published alone, and never leased here again. `bulk`: those of batches, or
        single ones.
        """
        ages = (timedelta(seconds=each) for each in (older_than_s, held_up_s, lease_s))
        rows = await self._database.fetch(self._sql["lease_held_up"], limit, bulk, *ages)
        return [message_of(row, self._ids) for row in sorted(rows, key=lambda row: row["id"])]

    async def defer(self, message: RetryMessage) -> None:
        """Set aside a request that takes the database too long: it stays queued, and comes again later.

        Inserts a request that `apply` would adopt; leaves a settled one alone. Raises StatementRefused where it cannot
        be inserted because another request for its job is queued.
        """
        await self._database.fetch(
            self._sql["defer"], *self._columns_of([message]), not isinstance(message, LedgerMessage)
        )

    async def block(self, message: RetryMessage) -> Settled:
        """Reject a request whose job the database does not let be retried; one settled before keeps its outcome.

        Inserts a request that `apply` would adopt, as rejected. Where what the job holds cannot be written down, the
        request is rejected without it. Raises StatementRefused where the request cannot be written down at all.
        """
        try:
            return await self._block(message, read_job=True)
        except StatementRefused:
            return await self._block(message, read_job=False)

    async def _block(self, message: RetryMessage, *, read_job: bool) -> Settled:
        async with self._database.transaction() as session:
            adopted = await self._adopt(session, [message])
            rows = await session.fetch(self._sql["block"], [message.id], adopted, read_job)
            if rows:
                return _settled_of(rows)[message.id]
            known = await self._outcomes(session, [message.id])
        return Settled(known.get(message.id) or Outcome.SUPERSEDED, None)

    async def dead_letter(self, ids: Sequence[RetryId], *, have_letters: bool = False) -> dict[RetryId, Settled]:
        """Give up these requests. `have_letters`: their letters are in the dead-letter queue already.

        One that was settled before keeps its first outcome; an id that the ledger does not know is missing.
        """
        async with self._database.transaction() as session:
            settled = _settled_of(await session.fetch(self._sql["dead_letter"], ids, have_letters))
            known = await self._outcomes(session, [each for each in ids if each not in settled])
            settled |= {each: Settled(outcome, None) for each, outcome in known.items() if outcome is not None}
        return settled

    async def dead_among(self, ids: Collection[RetryId]) -> dict[RetryId, Dead]:
        """Those of these requests that are dead-lettered."""
        rows = await self._database.fetch(self._sql["dead_among"], list(ids))
        return {RetryId(row["id"]): Dead(row["processed_at"], row["has_letter"]) for row in rows}

    async def mark_letters(self, dead: Mapping[RetryId, Dead]) -> None:
        """Mark these requests: their letters are in the dead-letter queue. `dead` is what `dead_among` has answered.

        One that is not dead-lettered any more, or was dead-lettered again since, is left alone. Raises StatementRefused
        where a trigger does not take the mark.
        """
        if due := {request_id: each.since for request_id, each in dead.items() if not each.has_letter}:
            await self._database.fetch(self._sql["mark_letters"], list(due), list(due.values()))

    async def traces(self, ids: Sequence[RetryId], *, most: int) -> dict[RetryId, str]:
        """The `traceparent` of each of these requests whose trace is sampled, of no more than `most`."""
        rows = await self._database.fetch(self._sql["traces"], ids, most)
        return {RetryId(row["id"]): row["traceparent"] for row in rows}

    async def is_under_row_security(self) -> bool:
        """Whether row-level security decides which jobs this role sees and updates."""
        ((active,),) = await self._database.fetch(self._sql["is_under_row_security"])
        return bool(active)

    async def _take(self, session: "Session", limit: int) -> list[RetryId]:
        """Lock queued requests; answers their ids."""
        return [RetryId(row["id"]) for row in await session.fetch(self._sql["take"], limit)]

    async def _adopt(
        self, session: "Session", messages: Iterable[RetryMessage], *, probing: bool = False
    ) -> list[RetryId]:
        """Insert the requests that another program published; answers the ids of those that the ledger did not know.

        A LedgerMessage was made of a row: no other row is inserted for it.
        """
        theirs = [message for message in messages if not isinstance(message, LedgerMessage)]
        if not theirs and not probing:
            return []  # as a rule: a round trip less for each batch
        rows = await session.fetch(self._sql["adopt"], *self._columns_of(theirs))
        return [RetryId(row["id"]) for row in rows]

    async def _apply(
        self, session: "Session", ids: Sequence[RetryId], adopted: Sequence[RetryId], *, published: bool
    ) -> dict[RetryId, Settled]:
        """Settle queued and adopted requests; deferred ones, and ones settled before, are missing in the answer."""
        rows = await session.fetch(self._sql["apply"], ids, adopted, published)
        settled = _settled_of(rows)
        if seen := {RetryId(row["id"]): row["job_version"] for row in rows if row["job_version"] is not None}:
            settled |= await self._block_unmoved(session, settled, seen)
        return settled

    async def _block_unmoved(
        self, session: "Session", applied: Mapping[RetryId, Settled], seen: Mapping[RetryId, str]
    ) -> dict[RetryId, Settled]:
        """Reject those of the applied requests whose job is failed still, at the version seen; answers these."""
        rows = await session.fetch(self._sql["block_unmoved"], list(seen), list(seen.values()))
        return {each: applied[each]._replace(outcome=Outcome.BLOCKED) for each in (RetryId(row["id"]) for row in rows)}

    async def _outcomes(self, session: "Session", ids: Sequence[RetryId]) -> dict[RetryId, Outcome | None]:
        """The outcomes of requests, None for a queued one; an id that the ledger does not know is missing."""
        rows = await session.fetch(self._sql["outcomes"], ids)
        return {RetryId(row["id"]): None if row["outcome"] is None else Outcome(row["outcome"]) for row in rows}

    def _columns_of(self, messages: Sequence[RetryMessage]) -> list[list[object]]:
        """The arguments of `adopt` and `defer`: an array for each column."""
        return [
            [message.request_id for message in messages],
            [message.project_id for message in messages],
            [self._ids.stored(message.job_id) for message in messages],
            [message.job_version for message in messages],
            [message.run_at for message in messages],
            [message.extra_attempts for message in messages],
            [message.actor for message in messages],
            [message.reason for message in messages],
            [message.requested_at for message in messages],
        ]


def _by_id(messages: Sequence[RetryMessage]) -> dict[RetryId, RetryMessage]:
    """The messages by their ids; of several with one id the first: a dict keeps the last that it is given."""
    return {message.id: message for message in reversed(messages)}


def _settled_of(rows: "Sequence[Row]") -> dict[RetryId, Settled]:
    return {RetryId(row["id"]): Settled(Outcome(row["outcome"]), row["waited_s"]) for row in rows}
