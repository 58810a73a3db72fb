"""Redriving: what was given up gets its second chance, through the same door as everything else.

    take the letter → ledger: dead_lettered → queued, committed → publish, confirmed → ack

The request keeps its id and the job version that it was made for: a job that has moved on meanwhile is not touched, and
the request ends as `superseded`. Between any two of the steps a crash leaves a letter too many, never one too few.
"""

from collections.abc import AsyncIterator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from shared import topology
from shared.messages import LedgerMessage
from shared.models import RetryState

if TYPE_CHECKING:
    from shared.dead_letters import DeadLetters, Standing
    from shared.models import RetryId
    from shared.outbox import Lease, Outbox
    from shared.settlement import Settlement
    from worker.dead_queue import DeadQueue, Letter

AT_A_TIME: Final = 100
LEASE_S: Final = 30.0


class Fate(StrEnum):
    """What becomes of a dead letter that is to be redriven."""

    REDRIVEN = "redriven"
    UNREADABLE = "unreadable"
    """Nobody can read it, now or later."""
    SETTLED = "settled"
    """Its request came to an end by another way; this is a copy."""
    RETRY_QUEUED = "retry_queued"
    """Another request is queued for the job."""


class Judged(NamedTuple):
    """A letter, and what becomes of it."""

    letter: "Letter"
    fate: Fate


class Redriving:
    """Redrives letters from the queue in the name of `actor`; with `dry_run`, only says what would become of them."""

    def __init__(
        self, queue: "DeadQueue", letters: "DeadLetters", outbox: "Outbox", *, actor: str, dry_run: bool
    ) -> None:
        self._queue = queue
        self._letters = letters
        self._outbox = outbox
        self._actor = actor
        self._dry_run = dry_run

    async def redrive(self, maximum: int, *, looking_at: int) -> AsyncIterator[Judged]:
        """Redrive up to `maximum` of the oldest `looking_at` letters; yield every letter that was looked at.

        Those that are not redriven are given back at the end. Raises BrokerUnavailable, DatabaseUnavailable.
        """
        redriven = 0
        batch: list[Letter] = []
        seen: set[str] = set()
        async for letter in self._queue.letters(looking_at):
            batch.append(letter)
            if len(batch) < min(AT_A_TIME, maximum - redriven):
                continue
            for judged in await self._judged(batch, seen):
                redriven += judged.fate is Fate.REDRIVEN
                yield judged
            batch = []
            if redriven >= maximum:
                break
        for judged in await self._judged(batch, seen):
            yield judged
        await self._queue.give_back()

    async def _judged(self, batch: "Sequence[Letter]", seen: set[str]) -> "list[Judged]":
        ids = [letter.message.id for letter in batch if letter.message is not None]
        if not ids:
            return [Judged(letter, Fate.UNREADABLE) for letter in batch]
        standings = await self._letters.standings(ids)
        judged = [Judged(letter, _fate_of(letter, standings, seen)) for letter in batch]
        if self._dry_run:
            return judged
        return [each if each.fate is not Fate.REDRIVEN else await self._redriven(each, standings) for each in judged]

    async def _redriven(self, judged: "Judged", standings: "dict[RetryId, Standing]") -> Judged:
        letter = judged.letter
        assert letter.message is not None  # noqa: S101 - it was judged by it
        standing = standings.get(letter.message.id)
        leases: Sequence[Lease] = ()
        if standing is not None and standing.state is RetryState.DEAD_LETTERED:
            revived = await self._letters.redrive([letter.message.id], actor=self._actor, lease_s=LEASE_S)
            leases = list(revived.values())
            if not leases:
                return Judged(letter, Fate.RETRY_QUEUED)  # since we looked
        await self._queue.publish(letter, topology.KEY_BULK if standing and standing.bulk else topology.KEY_RETRY)
        await self._outbox.mark_published(leases)
        await self._queue.ack(letter)
        return judged


def _fate_of(letter: "Letter", standings: "dict[RetryId, Standing]", seen: set[str]) -> Fate:
    if letter.message is None:
        return Fate.UNREADABLE
    is_copy = letter.id in seen
    seen.add(letter.id)
    match standings.get(letter.message.id):
        case _ if is_copy:
            return Fate.SETTLED
        case (RetryState.DEAD_LETTERED, _, True):
            return Fate.RETRY_QUEUED
        case None if isinstance(letter.message, LedgerMessage):
            return Fate.SETTLED  # so long ago that the ledger has forgotten it
        case None | (RetryState.DEAD_LETTERED | RetryState.QUEUED, _, _):
            return Fate.REDRIVEN  # one that the ledger does not know is another program's: as it came, then
        case _:
            return Fate.SETTLED


async def purge(queue: "DeadQueue", letters: "DeadLetters", settlement: "Settlement") -> int:
    """Throw away the letters that wait now; answers how many. Their requests are given up in the ledger first."""
    purged = 0
    batch: list[Letter] = []
    async for letter in queue.letters(await queue.count()):
        batch.append(letter)
        if len(batch) == AT_A_TIME:
            purged += await _purged(batch, queue, letters, settlement)
            batch = []
    return purged + await _purged(batch, queue, letters, settlement)


async def _purged(
    batch: "Sequence[Letter]", queue: "DeadQueue", letters: "DeadLetters", settlement: "Settlement"
) -> int:
    ids = [letter.message.id for letter in batch if letter.message is not None]
    if ids and (still_queued := await letters.overdue_among(ids, 0)):
        await settlement.dead_letter(still_queued)
    for letter in batch:
        await queue.ack(letter)
    return len(batch)
