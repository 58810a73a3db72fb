"""Queues dead letters again, as the requests that they were; and deletes them.

    take the letter → ledger: dead_lettered → queued, committed → publish, confirmed → ack

A request keeps its id and the job version that it was made for. Where its job has changed since, the worker does
not retry the job, and the request ends as `superseded`. A crash between two of the steps leaves one letter too many,
and loses none.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from shared import topology
from shared.messages import LedgerMessage
from shared.models import RetryState

if TYPE_CHECKING:
    from shared.dead_letters import DeadLetters, RequestStatus
    from shared.messages import RetryMessage
    from shared.models import RetryId
    from shared.outbox import Outbox
    from shared.settlement import Settlement
    from worker.dead_letters import DeadLetter, DeadQueue

AT_A_TIME: Final = 100
LEASE_S: Final = 30.0


class RedriveResult(StrEnum):
    """The result for one dead letter."""

    REDRIVEN = "redriven"
    UNREADABLE = "unreadable"
    """No worker can read it, now or later."""
    SETTLED = "settled"
    """Its request was settled in another way; the letter is a copy."""
    RETRY_QUEUED = "retry_queued"
    """Another request is queued for the job."""


async def redrive(
    queue: "DeadQueue",
    letters: "DeadLetters",
    outbox: "Outbox",
    maximum: int,
    *,
    looking_at: int,
    actor: str,
    dry_run: bool,
) -> AsyncIterator[RedriveResult]:
    """Redrive up to `maximum` of the oldest `looking_at` letters, in the name of `actor`; yield each letter's result.

    With `dry_run`, yield what the results would be. Letters that are not redriven are given back at the end. Raises
    BrokerUnavailable, DatabaseUnavailable.
    """
    seen: set[str] = set()

    async def redrive_batch(batch: "Sequence[DeadLetter]") -> list[RedriveResult]:
        ids = [request.id for letter in batch for request in letter.requests]
        statuses = await letters.statuses(ids) if ids else {}
        expected = [(each, _result_for(each, statuses, seen)) for each in batch]
        return [
            result
            if dry_run or result is not RedriveResult.REDRIVEN
            else await _redrive_one(letter, statuses, queue, letters, outbox, actor=actor)
            for letter, result in expected
        ]

    redriven = 0
    batch: list[DeadLetter] = []
    async for letter in queue.letters(looking_at):
        batch.append(letter)
        if len(batch) < min(AT_A_TIME, maximum - redriven):
            continue
        for result in await redrive_batch(batch):
            redriven += result is RedriveResult.REDRIVEN
            yield result
        batch = []
        if redriven >= maximum:
            break
    for result in await redrive_batch(batch):
        yield result
    await queue.give_back()


async def _redrive_one(
    letter: "DeadLetter",
    statuses: "Mapping[RetryId, RequestStatus]",
    queue: "DeadQueue",
    letters: "DeadLetters",
    outbox: "Outbox",
    *,
    actor: str,
) -> RedriveResult:
    known = {request.id: statuses[request.id] for request in letter.requests if request.id in statuses}
    dead = [each for each, status in known.items() if status.state is RetryState.DEAD_LETTERED]
    leases = list((await letters.redrive(dead, actor=actor, lease_s=LEASE_S)).values()) if dead else []
    if dead and not leases and len(dead) == len(letter.requests):
        return RedriveResult.RETRY_QUEUED  # it was queued a moment ago
    is_bulk = any(status.bulk for status in known.values())
    await queue.publish(letter, topology.KEY_BULK if is_bulk else topology.KEY_RETRY)
    await outbox.mark_published(leases)
    await queue.ack(letter)
    return RedriveResult.REDRIVEN


def _result_for(letter: "DeadLetter", statuses: "Mapping[RetryId, RequestStatus]", seen: set[str]) -> RedriveResult:
    """What is to become of a letter; adds its id to `seen`. One of several requests is redriven for any one of them."""
    if not letter.requests:
        return RedriveResult.UNREADABLE
    is_copy = letter.id in seen
    seen.add(letter.id)
    if is_copy:
        return RedriveResult.SETTLED
    results = {_result_for_one(request, statuses.get(request.id)) for request in letter.requests}
    first = (RedriveResult.REDRIVEN, RedriveResult.RETRY_QUEUED, RedriveResult.SETTLED)
    return next(result for result in first if result in results)


def _result_for_one(request: "RetryMessage", status: "RequestStatus | None") -> RedriveResult:
    match status:
        case (RetryState.DEAD_LETTERED, _, True):
            return RedriveResult.RETRY_QUEUED
        case None if isinstance(request, LedgerMessage):
            return RedriveResult.SETTLED  # so long ago that its row was pruned
        case None | (RetryState.DEAD_LETTERED | RetryState.QUEUED, _, _):
            return RedriveResult.REDRIVEN  # one that the ledger does not know is another program's: as it came, then
        case _:
            return RedriveResult.SETTLED


async def purge(queue: "DeadQueue", letters: "DeadLetters", settlement: "Settlement") -> int:
    """Remove the letters that wait now, and give up their requests in the ledger first. Returns how many."""
    purged = 0
    batch: list[DeadLetter] = []
    async for letter in queue.letters(await queue.count()):
        batch.append(letter)
        if len(batch) == AT_A_TIME:
            purged += await _purge_batch(batch, queue, letters, settlement)
            batch = []
    return purged + await _purge_batch(batch, queue, letters, settlement)


async def _purge_batch(
    batch: "Sequence[DeadLetter]", queue: "DeadQueue", letters: "DeadLetters", settlement: "Settlement"
) -> int:
    ids = [request.id for letter in batch for request in letter.requests]
    if ids:
        if still_queued := await letters.overdue_among(ids, 0):
            await settlement.dead_letter(still_queued, have_letters=True)
        # A worker may not have marked the others yet: another message of theirs is to be no letter, either.
        await settlement.mark_letters(await settlement.dead_among(ids))
    for letter in batch:
        await queue.ack(letter)
    return len(batch)
