"""A client that asks for retries at a steady rate, and asks again with the same key whenever it is in doubt."""

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import aiohttp

from tests.jobs import MadeJob
from tests.tokens import token

ANSWER_S = 10.0
IDLE_S = 0.25
"""Connections that have been idle for longer are not used again. An api that is told to stop closes those that it could
not tell in time; whoever sends on one just then gets no answer (RFC 9112, section 9.5)."""
PATIENCE_S = 120.0
REPEATED = 0.05
_DOUBTFUL = frozenset({0, 503})


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP exchange: when it began, how long it took, and the status; 0 where no answer came."""

    method: str
    at: float
    took_s: float
    status: int
    error: str = ""


@dataclass(slots=True)
class Load:
    """Asks for each job of `jobs` once, at `rate` a second, at whichever of `urls` comes first.

    A request that was not answered 202 is in doubt, and is repeated with its key; some that were are repeated as well.
    With `reads`, somebody reads jobs so many times a second. Whatever a client must never see is in `wrong`: another
    request for the same key, a status that nobody expects.
    """

    urls: Sequence[str]
    jobs: Sequence[MadeJob]
    rng: random.Random
    rate: float
    reads: float
    acked: dict[UUID, MadeJob] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lag_s: float = 0.0
    """How late this machine, busy with six programs and two servers, has let this process run."""
    _by_key: dict[str, UUID] = field(default_factory=dict)
    _client: aiohttp.ClientSession | None = None
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["Load"]:
        """Have a client, for asking by hand."""
        async with aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {token()}"},
            timeout=aiohttp.ClientTimeout(total=ANSWER_S),
            connector=aiohttp.TCPConnector(limit=64, keepalive_timeout=IDLE_S),
        ) as self._client:
            yield self

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator["Load"]:
        """Ask while the block runs; at its end ask for nothing new, and wait until nothing is in doubt."""
        async with self.opened(), asyncio.TaskGroup() as tasks:
            tasks.create_task(self._ask_all())
            tasks.create_task(self._watch_the_clock())
            if self.reads:
                tasks.create_task(self._read())
            yield self
            self._stopping.set()

    async def _ask_all(self) -> None:
        async with asyncio.TaskGroup() as asking:
            for job in self.jobs:
                if await self._stopped_within(1 / self.rate):
                    break
                asking.create_task(self._ask(job))

    async def _read(self) -> None:
        async with asyncio.TaskGroup() as reading:
            while not await self._stopped_within(1 / self.reads):
                reading.create_task(self.call("GET", f"/api/jobs/{self.rng.choice(self.jobs).id}"))

    async def _watch_the_clock(self) -> None:
        stopped = False
        while not stopped:
            before = time.monotonic()
            stopped = await self._stopped_within(0.05)
            self.lag_s = max(self.lag_s, time.monotonic() - before - 0.05)

    async def _stopped_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        return self._stopping.is_set()

    async def _ask(self, job: MadeJob) -> None:
        key = str(uuid.UUID(int=self.rng.getrandbits(128)))
        await self.post(job, key)
        if self.rng.random() < REPEATED:
            await self.post(job, key)

    async def post(self, job: MadeJob, key: str) -> None:
        """Ask for a retry, again and again with the same key until the answer leaves no doubt."""
        give_up_at = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up_at:
            status, body = await self.call("POST", f"/api/jobs/{job.id}/retry", key=key)
            if status == 202:
                request_id = UUID(body["data"]["id"])
                self.acked[request_id] = job
                if self._by_key.setdefault(key, request_id) != request_id:
                    self.wrong.append(f"a key stands for {request_id} and {self._by_key[key]}")
                return
            if status not in _DOUBTFUL:
                self.wrong.append(f"POST answered {status}: {body}")
                return
            await asyncio.sleep(self.rng.uniform(0.05, 0.5))
        self.wrong.append(f"no answer within {PATIENCE_S} s")

    async def call(self, method: str, path: str, *, key: str | None = None) -> tuple[int, Any]:
        """One exchange, recorded; status 0 where it came to nothing."""
        assert self._client is not None
        headers = {} if key is None else {"Idempotency-Key": key}
        began_at = time.monotonic()
        body: Any = None
        status, error = 0, ""
        try:
            async with self._client.request(method, self.rng.choice(self.urls) + path, headers=headers) as answer:
                body = await answer.json(content_type=None)
                status = answer.status
        except (aiohttp.ClientError, OSError, TimeoutError) as doubt:
            error = type(doubt).__name__
        self.calls.append(Call(method, began_at, time.monotonic() - began_at, status, error))
        if status >= 500 and status not in _DOUBTFUL:
            self.wrong.append(f"{method} answered {status}: {body}")
        return status, body

    def since(self, at: float) -> list[Call]:
        """The exchanges that began at that time, by time.monotonic(), or later."""
        return [call for call in self.calls if call.at >= at]
