"""A client that asks for retries at a steady rate, and asks again with the same key whenever it is in doubt."""

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import aiohttp

from tests.jobs import MadeJob
from tests.tokens import token

ANSWER_S = 10.0
IDLE_S = 0.1
"""Connections that have been idle for longer are not used again. An api that is told to stop closes those that it could
not tell within half a second; a client that sends on one just then gets no answer (RFC 9112, section 9.5)."""
PATIENCE_S = 120.0
REPEATED = 0.05
KEY_OF_TWO = "a key is of"
BULK = 0.1
SCOPES = "jobs:read jobs:retry jobs:retry:bulk"
_SOON_S = (0.05, 0.5)
_AS_TOLD_S = (1.0, 1.5)
_DOUBTFUL = frozenset({0, 503})


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP exchange: when it began, how long it took, and the status; 0 where no answer came.

    `reused`: whether it went over a connection that had carried another one before.
    """

    method: str
    at: float
    took_s: float
    status: int
    error: str = ""
    reused: bool = False


class _Connection:
    """What aiohttp's tracing tells of the connection that a request goes over."""

    reused = False

    @classmethod
    def trace(cls) -> aiohttp.TraceConfig:
        async def reused(_session: object, request: SimpleNamespace, _params: object) -> None:
            request.trace_request_ctx.reused = True

        config = aiohttp.TraceConfig()
        config.on_connection_reuseconn.append(reused)
        return config


@dataclass(slots=True)
class Load:
    """Asks for each job of `jobs` once, at `rate` a second, at whichever of `urls` comes first.

    A share of them, `bulk`, is asked for as a batch of one. A request that was not answered 202 is in doubt, and is
    repeated with its key; some that were are repeated as well. With `reads`, a client reads jobs, so many times a
    second. `acked` has what was accepted, by the id that the answer gave: a request's, or a batch's. Whatever a client
    must never see is in `wrong`: another request for the same key, an unexpected status. So is a load that has
    come to its end while it was still needed, unless that is the test (`finite`).

    It repeats a request soon; if it is `patient`, after about the second that a 503 asks for in Retry-After.
    """

    urls: Sequence[str]
    jobs: Sequence[MadeJob]
    rng: random.Random
    rate: float
    reads: float
    bulk: float = BULK
    finite: bool = False
    patient: bool = False
    acked: dict[UUID, MadeJob] = field(default_factory=dict)
    acked_at: dict[UUID, float] = field(default_factory=dict)
    """When each was first accepted, by time.monotonic()."""
    calls: list[Call] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lag_s: float = 0.0
    """How late this machine, busy with six programs and two servers, has let this process run."""
    _asked: int = 0
    _by_key: dict[str, UUID] = field(default_factory=dict)
    _client: aiohttp.ClientSession | None = None
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["Load"]:
        """Have a client, for asking by hand."""
        async with aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {token(scope=SCOPES)}"},
            timeout=aiohttp.ClientTimeout(total=ANSWER_S),
            # Without a limit: waiting for a connection of our own would count as waiting for an answer.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S),
            trace_configs=[_Connection.trace()],
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
            if self._asked == len(self.jobs) and not self.finite:
                self.wrong.append("there was nothing left to ask for before the test was over")
            self._stopping.set()

    async def _ask_all(self) -> None:
        async with asyncio.TaskGroup() as asking:
            for job in self.jobs:
                if await self._stopped_within(1 / self.rate):
                    break
                asking.create_task(self._ask(job))
                self._asked += 1

    async def _read(self) -> None:
        async with asyncio.TaskGroup() as reading:
            while not await self._stopped_within(1 / self.reads):
                reading.create_task(self._read_one(self.rng.choice(self.jobs)))

    async def _read_one(self, job: MadeJob) -> None:
        status, body = await self.call("GET", f"/api/jobs/{job.id}")
        if status not in {200, *_DOUBTFUL}:
            self.wrong.append(f"GET answered {status}: {body}")

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
        post = self.post_bulk if self.rng.random() < self.bulk else self.post
        await post(job, key)
        if self.rng.random() < REPEATED:
            await post(job, key)

    async def post(self, job: MadeJob, key: str) -> None:
        """Ask for a retry, again and again with the same key until the answer leaves no doubt."""
        if (answer := await self._accepted(f"/api/jobs/{job.id}/retry", key)) is not None:
            self._take_down(key, UUID(answer["id"]), job)

    async def post_bulk(self, job: MadeJob, key: str) -> None:
        """The same as a bulk retry of one job."""
        if (answer := await self._accepted("/api/jobs/retry", key, {"ids": [str(job.id)]})) is not None:
            self._take_down(key, UUID(answer["batch_id"]), job)
            if answer["accepted"] != 1:
                self.wrong.append(f"a bulk retry left its job out: {answer}")

    def _take_down(self, key: str, accepted_id: UUID, job: MadeJob) -> None:
        self.acked[accepted_id] = job
        self.acked_at.setdefault(accepted_id, time.monotonic())
        if self._by_key.setdefault(key, accepted_id) != accepted_id:
            self.wrong.append(f"{KEY_OF_TWO} {accepted_id} and {self._by_key[key]}")

    async def _accepted(self, path: str, key: str, asked: object = None) -> dict[str, Any] | None:
        """The data of the 202; None where something else was answered, or nothing."""
        give_up_at = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up_at:
            status, body = await self.call("POST", path, key=key, asked=asked)
            if status == 202:
                data: dict[str, Any] = body["data"]
                return data
            if status not in _DOUBTFUL:
                self.wrong.append(f"POST answered {status}: {body}")
                return None
            waits_s = _AS_TOLD_S if self.patient and status == 503 else _SOON_S
            await asyncio.sleep(self.rng.uniform(*waits_s))
        self.wrong.append(f"no answer within {PATIENCE_S} s")
        return None

    async def call(self, method: str, path: str, *, key: str | None = None, asked: object = None) -> tuple[int, Any]:
        """One exchange, recorded; status 0 where it came to nothing."""
        assert self._client is not None
        headers = {} if key is None else {"Idempotency-Key": key}
        began_at = time.monotonic()
        body: Any = None
        status, error, connection = 0, "", _Connection()
        try:
            url = self.rng.choice(self.urls) + path
            async with self._client.request(
                method, url, headers=headers, json=asked, trace_request_ctx=connection
            ) as answer:
                body = await answer.json(content_type=None)
                status = answer.status
        except (aiohttp.ClientError, OSError, TimeoutError) as doubt:
            error = type(doubt).__name__
        took_s = time.monotonic() - began_at
        self.calls.append(Call(method, began_at, took_s, status, error, connection.reused))
        return status, body

    def since(self, at: float) -> list[Call]:
        """The exchanges that began at that time, by time.monotonic(), or later."""
        return [call for call in self.calls if call.at >= at]
