"""From the 202 to the job that is put back: single retries at a steady rate, bulk ones, and both at once.

When a job is put back is told by a trigger of the bench's own, which notifies as the worker's transaction commits; its
cost is in the figures.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, NamedTuple, Self
from uuid import UUID

import msgspec

from bench import jobs
from bench.client import Answer, ask, drive_at, quantile, request, until_true
from bench.part import Stage
from bench.programs import Program, bearer, redrive_api, redrive_worker
from bench.results import Bulk, Figure, Waits
from tests.servers.processes import ServerFailed

if TYPE_CHECKING:
    from bench.jobs import Connection

_TELL: Final = """
CREATE FUNCTION public.bench_tell() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    PERFORM pg_notify('bench_put_back', NEW.id::text);
    RETURN NULL;
END
$$;
CREATE TRIGGER bench_tell AFTER UPDATE ON control_plane.jobs
    FOR EACH ROW WHEN (OLD.status = 'failed' AND NEW.status = 'pending' AND NEW.type = 'single')
    EXECUTE FUNCTION public.bench_tell();
"""
_SINGLE: Final = "single"
_BULK: Final = "bulk"
_WITHIN_S: Final = 60
_NONE_QUEUED: Final = """
SELECT NOT EXISTS (SELECT FROM redrive.retry_requests WHERE batch_id = $1 AND state = 'queued')
"""


class _BulkRound(NamedTuple):
    accepted_s: float
    applied_s: float


async def measure(stage: Stage) -> tuple[Waits, Bulk]:
    """The figures. Raises ServerFailed, TimeoutError."""
    plan = stage.plan.retrying
    async with Stack.running(stage) as stack:
        await stack.singles(await stack.made(plan.rate_per_s, kind=_SINGLE), per_s=plan.rate_per_s)  # to warm up
        ids = await stack.made(int(plan.rate_per_s * plan.rate_s), kind=_SINGLE)
        waits = await stack.singles(ids, per_s=plan.rate_per_s)
        stage.say("dispatching: single retries")

        alone: list[_BulkRound] = []
        for number in range(plan.rounds):
            await stack.made(plan.bulk, kind=_BULK)
            alone.append(await stack.bulk(plan.bulk))
            stage.say(f"dispatching: bulk, round {number + 1} of {plan.rounds}")

        singles = await stack.made(plan.singles_per_s * _WITHIN_S, kind=_SINGLE)
        await stack.made(plan.bulk, kind=_BULK, anew=False)
        async with asyncio.TaskGroup() as tasks:
            bulk = tasks.create_task(stack.bulk(plan.bulk))
            meanwhile = tasks.create_task(stack.singles(singles, per_s=plan.singles_per_s, stop=bulk.done))
    accepted_s, applied_s = (Figure.of(rounds) for rounds in zip(*alone, strict=True))
    return waits, Bulk(plan.bulk, accepted_s, applied_s, meanwhile.result())


class Stack:
    """Api, worker and broker, with a connection to look on."""

    def __init__(self, api: Program, database: "Connection") -> None:
        self.api = api
        self.database = database
        self._put_back: dict[str, float] = {}

    @classmethod
    @asynccontextmanager
    async def running(cls, stage: Stage) -> AsyncIterator[Self]:
        """All of it, on servers of its own."""
        assert stage.rabbitmq is not None
        async with AsyncExitStack() as opened:
            database_url = await opened.enter_async_context(stage.postgres.database())
            amqp_url = await opened.enter_async_context(stage.rabbitmq.vhost())
            database = await opened.enter_async_context(jobs.connected(database_url))
            await database.execute(_TELL)
            api = await opened.enter_async_context(redrive_api(stage.folder, database_url, amqp_url))
            await opened.enter_async_context(redrive_worker(stage.folder, database_url, amqp_url))
            stack = cls(api, database)
            listener = await opened.enter_async_context(jobs.connected(database_url))
            await listener.add_listener("bench_put_back", stack._told)
            yield stack

    def _told(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        self._put_back[str(payload)] = time.perf_counter()

    async def made(self, count: int, *, kind: str, anew: bool = True) -> list[str]:
        """So many failed jobs; in an empty table, unless they come to others."""
        if anew:
            await jobs.clear(self.database)
            self._put_back.clear()
        ids = await jobs.make(self.database, count, status="failed", kind=kind)
        await jobs.settle(self.database)
        return ids

    async def singles(self, ids: Sequence[str], *, per_s: float, stop: Callable[[], bool] = lambda: False) -> Waits:
        """Retry these jobs, one by one, at a steady rate, until there are no more or `stop` says so."""
        took_s: list[float] = []
        accepted: dict[str, float] = {}

        def heard(due_at: float, answer: Answer) -> None:
            if answer.status == 202:
                took_s.append(answer.at - due_at)
                accepted[msgspec.json.decode(answer.body)["data"]["job_id"]] = answer.at

        async def all_told() -> bool:
            return accepted.keys() <= self._put_back.keys()

        requests = [request("POST", f"/api/jobs/{job_id}/retry", bearer()) for job_id in ids]
        sent = await drive_at(self.api.port, requests, per_s=per_s, heard=heard, stop=stop)
        with suppress(TimeoutError):  # who was not told is counted below
            await until_true(all_told, every_s=0.02, within_s=_WITHIN_S)
        # What is put back before its 202 has been read has not waited.
        waited_s = [max(0.0, self._put_back[job] - at) for job, at in accepted.items() if job in self._put_back]
        return Waits(
            rate_per_s=per_s,
            retries=sent,
            not_accepted=sent - len(accepted),
            not_applied=len(accepted) - len(waited_s),
            accepted_p50_ms=quantile(took_s, 0.5) * 1_000,
            accepted_p99_ms=quantile(took_s, 0.99) * 1_000,
            applied_p50_ms=quantile(waited_s, 0.5) * 1_000,
            applied_p99_ms=quantile(waited_s, 0.99) * 1_000,
            applied_max_ms=quantile(waited_s, 1) * 1_000,
        )

    async def bulk(self, count: int) -> _BulkRound:
        """Retry all failed jobs of the bulk kind with one request. Raises ServerFailed, TimeoutError."""
        order = {"filter": {"type": _BULK}, "max": count, "reason": "bench"}
        wanted = request("POST", "/api/jobs/retry?dry_run=false", bearer(), msgspec.json.encode(order))
        began_at = time.perf_counter()
        answer = await ask(self.api.port, wanted)
        if answer.status != 202 or (accepted := msgspec.json.decode(answer.body)["data"])["accepted"] != count:
            raise ServerFailed(f"the bulk retry was answered {answer.status}: {answer.body[:200].decode()}")
        batch_id = UUID(accepted["batch_id"])

        async def all_settled() -> bool:
            return bool(await self.database.fetchval(_NONE_QUEUED, batch_id))

        await until_true(all_settled, every_s=0.02, within_s=_WITHIN_S)
        return _BulkRound(answer.at - began_at, time.perf_counter() - began_at)
