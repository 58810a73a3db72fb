"""The whole of Redrive on servers that may be broken, and the count of what came of it.

    client ─▶ two apis ─▶ proxy ─▶ PostgreSQL ◀─ proxy ◀─ four workers
                 └──────▶ proxy ─▶ RabbitMQ ◀─── proxy ◀───────┘

Api and worker have users of their own on both servers, with the rights that a deployment gives them.

A test opens a `trial`, breaks what it likes while loads flow, and leaves. Then everything heals by itself or not at
all: servers are up again, processes that were killed are restarted as a supervisor would, and nothing else is touched.
When all that was accepted is settled, effects are counted.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self
from urllib.parse import urlsplit
from uuid import UUID

import aio_pika
import asyncpg

from shared import topology
from shared.models import JobId, ProjectId
from tests.acceptance.chaos.forkserver import Forkserver
from tests.acceptance.chaos.load import KEY_OF_TWO, Load
from tests.acceptance.chaos.processes import End, Member
from tests.acceptance.chaos.tally import SCALE, Tally
from tests.eventually import eventually
from tests.jobs import JobMaker, MadeJob
from tests.logins import Logins, broker_users
from tests.queues import Queues
from tests.servers.postgres import PostgresPair, PrivatePostgres
from tests.servers.processes import free_port
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import KILLABLE_AFTER_S, PrivateRabbitmq, RabbitmqCluster
from tests.tokens import SECRET

WORKERS = 4
APIS = 2
BYSTANDERS = 20
RATE = 40.0 if SCALE == 1 else 25.0  # at length three loads flow at once, and two processors are enough for them
FAIL_AGAIN_EVERY_S = 0.5
SETTLED_WITHIN_S = 90.0
WELL_WITHIN_S = 60.0
STARTED_WITHIN_S = 240.0  # the program is loaded for the first time, perhaps by several stands at once
_PAUSE = """
SELECT max(gap)::float8 FROM (
    SELECT extract(epoch FROM at - lag(at) OVER (ORDER BY at)) AS gap
    FROM (SELECT at FROM public.test_effects WHERE at > $1 UNION ALL VALUES ($1), (now())) AS times
) AS gaps
"""
_LOST_CONNECTION = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.OperatorInterventionError, OSError)


@dataclass(slots=True)
class Rig:
    """Servers, programs and jobs."""

    postgres: PrivatePostgres
    rabbitmq: PrivateRabbitmq
    database: Proxy
    broker: Proxy
    amqp_url: str
    jobs: JobMaker
    apis: list[Member] = field(default_factory=list)
    workers: list[Member] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    tell: Callable[[Tally], None] = print
    _forkserver: Forkserver | None = None
    _effects: int | None = None
    _declared_at: float = 0.0

    @classmethod
    @asynccontextmanager
    async def built(cls, postgres: PrivatePostgres, rabbitmq: PrivateRabbitmq) -> AsyncIterator[Self]:
        """Start all of it, on a database and a virtual host of its own.

        To a cluster there is no proxy, and a pair has its own: the programs know each of the servers.
        """
        await asyncio.gather(postgres.recover(), rabbitmq.recover())
        async with AsyncExitStack() as stack:
            stack.push_async_callback(rabbitmq.recover)
            stack.push_async_callback(postgres.recover)
            database_url = await stack.enter_async_context(postgres.postgres.database())
            amqp_url = await stack.enter_async_context(rabbitmq.rabbitmq.vhost())
            logins = await stack.enter_async_context(Logins.on(database_url))
            users = await logins.made(database_url)
            broker_logins = await stack.enter_async_context(broker_users(rabbitmq.rabbitmq, amqp_url))
            jobs = await stack.enter_async_context(JobMaker.on(database_url))
            database = await stack.enter_async_context(Proxy.to(database_url))
            broker = await stack.enter_async_context(Proxy.to(amqp_url))
            rig = cls(postgres, rabbitmq, database, broker, amqp_url, jobs)
            database_of = postgres.urls_of if isinstance(postgres, PostgresPair) else database.url_of
            url_of = rabbitmq.urls_of if isinstance(rabbitmq, RabbitmqCluster) else broker.url_of
            forkserver = rig._forkserver = await stack.enter_async_context(Forkserver.opened())
            of_api = {
                "DATABASE_URL": database_of(users.api), "AMQP_URL": url_of(broker_logins.api),
                "JWT_SECRET": SECRET, "LIMIT_IP": "off", "LIMIT_READ": "off", "LIMIT_RETRY": "off", "LIMIT_BULK": "off",
            }  # fmt: skip
            of_worker = {
                "DATABASE_URL": database_of(users.worker), "AMQP_URL": url_of(broker_logins.worker),
                "WORKER_BATCH_SIZE": "20",  # more batches, and more gaps between them to be hit in
            }  # fmt: skip
            for _ in range(APIS):
                port = free_port()
                rig.urls.append(f"http://127.0.0.1:{port}")
                rig.apis.append(
                    await stack.enter_async_context(Member.supervised(forkserver, "api", {**of_api, "PORT": str(port)}))
                )
            for _ in range(WORKERS):
                rig.workers.append(await stack.enter_async_context(Member.supervised(forkserver, "worker", of_worker)))
            await rig.all_well(within_s=STARTED_WITHIN_S)
            rig._declared_at = time.monotonic()
            yield rig
            await postgres.recover()  # what follows drops the database and the virtual host
            await rabbitmq.recover()

    @property
    def members(self) -> list[Member]:
        return [*self.apis, *self.workers]

    def another(self, command: str, settings: dict[str, str]) -> AbstractAsyncContextManager[Member]:
        """Run one more program while the block runs. It is not among the members, which trials heal and wait for."""
        assert self._forkserver is not None
        return Member.supervised(self._forkserver, command, settings)

    @asynccontextmanager
    async def workers_of_the_ledger(self, count: int) -> AsyncIterator[list[Member]]:
        """More workers while the block runs, which take requests from the ledger, as if there were no broker."""
        settings = {name: value for name, value in self.workers[0].settings.items() if name != "AMQP_URL"}
        async with AsyncExitStack() as stack:
            more = [await stack.enter_async_context(self.another("worker", settings)) for _ in range(count)]
            self.workers += more
            try:
                yield more
            finally:
                for member in more:
                    self.workers.remove(member)

    async def heal(self) -> None:
        """End every fault."""
        for member in self.members:
            member.go_on()
            member.well_again()
        await self.database.heal()
        await self.broker.heal()
        await asyncio.gather(self.postgres.recover(), self.rabbitmq.recover())

    async def all_well(self, *, within_s: float = WELL_WITHIN_S) -> None:
        """Wait until every program says that it can work: apis with a broker, workers with their consumers."""

        async def well() -> bool:
            for member in self.members:
                assert await member.ready(), f"{member.command} is not ready: {member.log[-1000:]}"
                assert not member.failing
            for api in self.apis:
                assert api.program is not None
                assert (await api.program.health())[1]["status"] == "ok"
            return True

        await eventually(well, within_s=within_s, every_s=0.1)

    @asynccontextmanager
    async def trial(
        self, promise: str, *, seed: int | None = None, parks: bool = False, loses: bool = False
    ) -> AsyncIterator["Trial"]:
        """Break things for a while; then demand that nothing was lost, doubled, made up or, unless it `parks`, refused.

        One that `loses` takes away what a client was told of, and counts it; then a key may name a second request, too.
        Whatever was put back fails again meanwhile, so that a second effect of a request is possible, and is counted.
        Whatever it ends with, what was counted and the seed are told, and, where it fails, what the programs said last.
        """
        for member in self.members:
            member.revive()
        await self.heal()
        await self.all_well()
        if self._effects is not None:
            now = len(await self.rows("SELECT FROM public.test_effects"))
            assert now == self._effects, "something was applied after the last trial had ended"
        await self._forget()
        tally = Tally.of(promise, seed=seed)
        trial = Trial(self, tally, tally.rng, await self.jobs.many_failed(BYSTANDERS), loses=loses)
        if loses:
            tally.notes["may_lose"] = True
        trial.begin()
        failing_again = asyncio.create_task(trial.fail_again())
        with self.reporting(tally, self.members):
            try:
                yield trial
                await trial.settle()
            finally:
                failing_again.cancel()
                await asyncio.wait([failing_again])
        assert not trial.wrong, trial.wrong[:10]
        assert tally.faultless or (loses and not tally.doubled and not tally.unexpected), str(tally)
        assert parks or not tally.parked, str(tally)

    @contextmanager
    def reporting(self, tally: Tally, members: Sequence[Member]) -> Iterator[None]:
        """End the tally with the block, and tell it; where the block fails, with the reason and the last log lines."""
        try:
            yield
        except BaseException as failure:
            tally.notes["failed"] = str(failure)[:500] or type(failure).__name__
            for number, member in enumerate(members):
                print(f"-- {member.command} {number}, last words\n{member.log[-2000:]}")  # noqa: T201 - a failed test shows it
            raise
        finally:
            tally.end()
            print(tally)  # noqa: T201 - likewise
            self.tell(tally)

    async def _forget(self) -> None:
        """Begin with no effects, and with nothing in line that a trial before has left there by failing."""

        async def idle() -> bool:
            return not await self.rows("SELECT FROM redrive.retry_requests WHERE state = 'queued'")

        await eventually(idle, within_s=SETTLED_WITHIN_S, every_s=0.1)
        await self.jobs.pool.execute("TRUNCATE public.test_effects")
        self._effects = None

    async def rows(self, sql: str, *args: object) -> list[asyncpg.Record]:
        """Ask the database itself, not by way of the proxy, as soon as it answers."""

        async def look() -> list[list[asyncpg.Record]]:
            try:
                return [await self.jobs.pool.fetch(sql, *args)]
            except _LOST_CONNECTION as lost:
                raise AssertionError("the database is away") from lost

        return (await eventually(look, within_s=30))[0]

    async def now(self) -> datetime:
        """The database's time."""
        ((now,),) = await self.rows("SELECT clock_timestamp()")
        assert isinstance(now, datetime)
        return now

    async def longest_pause(self, since: datetime) -> float:
        """The longest time in which no job was put back, from then until now, in s."""
        ((pause_s,),) = await self.rows(_PAUSE, since)
        return float(pause_s)

    @asynccontextmanager
    async def queues(self) -> AsyncIterator[Queues]:
        """The queues as they are: nothing is declared, so that nothing is mended."""
        connection = await aio_pika.connect(self.amqp_url, timeout=10)
        async with connection:
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            yield Queues(connection, await channel.get_exchange(topology.EXCHANGE, ensure=False))

    async def rebind(self) -> None:
        """Bind the queue that a test has unbound, as an operator of RabbitMQ would: the programs may not."""
        async with self.queues() as queues:
            await queues.bind(topology.RETRIES, topology.KEY_RETRY)

    @asynccontextmanager
    async def forbidden(self) -> AsyncIterator[None]:
        """Take the programs' rights on the virtual host away while the block runs."""
        broker = self.rabbitmq.rabbitmq
        rights = await broker.manage("GET", f"/api/vhosts/{urlsplit(self.amqp_url).path[1:]}/permissions")
        assert isinstance(rights, list)
        of_programs = [each for each in rights if each["user"].endswith(("-api", "-worker"))]
        assert len(of_programs) == 2
        for each in of_programs:
            await broker.manage("DELETE", f"/api/permissions/{each['vhost']}/{each['user']}")
        try:
            yield
        finally:
            for each in of_programs:
                granted = {name: each[name] for name in ("configure", "write", "read")}
                await broker.manage("PUT", f"/api/permissions/{each['vhost']}/{each['user']}", granted)

    async def kill_broker(self) -> None:
        """Kill RabbitMQ, once it may be killed."""
        await asyncio.sleep(max(0.0, self._declared_at + KILLABLE_AFTER_S - time.monotonic()))
        await self.rabbitmq.kill()


@dataclass(slots=True)
class Trial:
    """One test's loads, random choices and counts."""

    rig: Rig
    tally: Tally
    rng: random.Random
    bystanders: Sequence[MadeJob]
    loses: bool = False
    published: dict[UUID, MadeJob] = field(default_factory=dict)
    """What the test itself has published, as another program would."""
    wrong: list[str] = field(default_factory=list)
    _loads: list[Load] = field(default_factory=list)
    _ended_before: dict[Member, int] = field(default_factory=dict)

    def begin(self) -> None:
        """Leave out of the count how processes have ended until now."""
        self._ended_before = {member: len(member.ends) for member in self.rig.members}

    def ends(self, members: Sequence[Member] | None = None) -> list[End]:
        """How processes have ended in this trial."""
        chosen = self.rig.members if members is None else members
        return [end for member in chosen for end in member.ends[self._ended_before[member] :]]

    def failed_at(self) -> Counter[str]:
        """How many processes have died at each failpoint, by their own last words."""
        return Counter(end.failpoint for end in self.ends() if end.failpoint is not None)

    async def fail_again(self) -> None:
        """Let jobs that were put back fail again, twice a second, until cancelled."""
        while True:
            with suppress(TimeoutError, *_LOST_CONNECTION):
                await self.rig.jobs.fail_all_again()
            await asyncio.sleep(FAIL_AGAIN_EVERY_S)

    async def load(self, *, count: int, rate: float = RATE, reads: float = 0.0, patient: bool = False) -> Load:
        """A load on jobs of its own; `count` is how many it asks for at most."""
        jobs = await self.rig.jobs.many_failed(count)
        return self._added(Load(self.rig.urls, jobs, self._random(), rate, reads, patient=patient))

    async def finite_load(self, *, count: int, rate: float) -> Load:
        """A load of single retries that a test needs to be asked for in full."""
        jobs = await self.rig.jobs.many_failed(count)
        return self._added(Load(self.rig.urls, jobs, self._random(), rate, reads=0.0, bulk=0.0, finite=True))

    def _added(self, load: Load) -> Load:
        self._loads.append(load)
        return load

    def _random(self) -> random.Random:
        return random.Random(self.rng.random())

    def broken(self, times: int = 1) -> None:
        """Count a fault that has happened. Processes that died by SIGKILL are counted without being told."""
        self.tally.kills += times

    def _count_deaths(self) -> None:
        """Count the processes that have died by SIGKILL, at failpoints or not: before healing kills some as well."""
        self.tally.kills += sum(end.killed for end in self.ends())
        if points := self.failed_at():
            self.tally.notes["at_failpoints"] = dict(sorted(points.items()))

    async def pause(self, shortest_s: float, longest_s: float) -> None:
        """Let the load flow for a random while."""
        await asyncio.sleep(self.rng.uniform(shortest_s, longest_s))

    @property
    def acked(self) -> Mapping[UUID, MadeJob]:
        acked = dict(self.published)
        for load in self._loads:
            acked |= load.acked
        return acked

    async def unsettled(self) -> int:
        """How many accepted requests the ledger has not settled, or, unless they may be lost, does not know yet."""
        (row,) = await self.rig.rows(
            """
            SELECT count(*) FILTER (WHERE coalesce(single.state, of_batch.state, $2) = 'queued')
            FROM unnest($1::uuid[]) AS acked (id)
            LEFT JOIN redrive.retry_requests AS single ON single.id = acked.id
            LEFT JOIN redrive.retry_requests AS of_batch ON of_batch.batch_id = acked.id
            """,
            list(self.acked),
            "lost" if self.loses else "queued",
        )
        return int(row[0])

    async def unknown(self, load: Load) -> list[UUID]:
        """Which of the requests and batches that were accepted are not in the ledger."""
        rows = await self.rig.rows(
            """
            SELECT id FROM unnest($1::uuid[]) AS acked (id)
            WHERE NOT EXISTS (SELECT FROM redrive.retry_requests AS r WHERE acked.id IN (r.id, r.batch_id))
            """,
            list(load.acked),
        )
        return [row["id"] for row in rows]

    async def settle(self) -> None:
        """End all faults, wait until everything is well and settled, and count."""
        self._count_deaths()
        healed_at = time.monotonic()
        await self.rig.heal()

        async def settled() -> bool:
            if unsettled := await self.unsettled():
                raise AssertionError(f"{unsettled} of {len(self.acked)} accepted requests are not settled")
            async with self.rig.queues() as queues:
                return await queues.drained()

        try:
            await eventually(settled, within_s=SETTLED_WITHIN_S, every_s=0.1)
            await self.rig.all_well()
        finally:
            self.tally.notes["healed_after_s"] = round(time.monotonic() - healed_at, 1)
            await self._count()
        self.rig._effects = self.tally.effects

    async def _count(self) -> None:
        acked = self.acked
        rows = await self.rig.rows(
            """
            SELECT coalesce(batch_id, id) AS id, project_id, job_id, state FROM redrive.retry_requests
            WHERE job_id = ANY ($1::uuid[])
            """,
            [job.id for load in self._loads for job in load.jobs] + [job.id for job in self.published.values()],
        )
        happened_to = await self.rig.rows("SELECT project_id, job_id FROM public.test_effects")
        effects = Counter(_key(row) for row in happened_to)
        asked = Counter((job.project_id, job.id) for job in acked.values())
        parked = Counter(_key(row) for row in rows if row["id"] in acked and row["state"] not in {"applied", "queued"})
        self.wrong += [f"written down, and no client was told: {dict(row)}" for row in rows if row["id"] not in acked]
        self.tally.count(asked, effects, parked)
        for load in self._loads:
            self.wrong += [each for each in load.wrong if not (self.loses and each.startswith(KEY_OF_TWO))]
        for member in self.rig.members:
            self.wrong += member.deaths


def _key(row: asyncpg.Record) -> tuple[ProjectId, JobId]:
    return ProjectId(row["project_id"]), JobId(str(row["job_id"]))
