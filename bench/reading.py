"""Reading one job: Redrive with its whole door on, beside the ceiling, a plain handler and FastAPI.

All four run all the time, and are asked in turn: one round is every server in every way with every number of
connections. A way is `hot` (all ask for one job), `random` (for one of a thousand) or `304` (for the hot one,
with its current ETag; only Redrive knows that).
"""

from collections import defaultdict
from contextlib import AsyncExitStack
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from bench import jobs
from bench.client import ask, request
from bench.load import Aim
from bench.part import Stage
from bench.programs import Program, answers, bearer, comparator, redrive_api
from bench.results import Figure, Load, Loads, Queries, Read, Reading
from bench.servers import transactions_of
from tests.servers.processes import ServerFailed

REDRIVE: Final = "Redrive"
BARE: Final = "bare aiohttp"
PLAIN: Final = "plain aiohttp"
FASTAPI: Final = "FastAPI"
HOT: Final = "hot"
RANDOM: Final = "random"
NOT_MODIFIED: Final = "304"

_COMPARATORS: Final = {BARE: "bare", PLAIN: "plain", FASTAPI: "fastapi_api"}
_NAMES: Final = {BARE: "bare", PLAIN: "plain", FASTAPI: "fastapi"}
"""As `--without` calls them."""


class _Turn(NamedTuple):
    server: str
    way: str
    connections: int


class _Round(NamedTuple):
    load: Load
    server_cpu_us: float


async def measure(stage: Stage) -> Reading:
    """The figures. Raises ServerFailed, WrkFailed."""
    plan = stage.plan.reading
    async with AsyncExitStack() as stack:
        database_url = await stack.enter_async_context(stage.postgres.database())
        async with jobs.connected(database_url) as connection:
            ids = await jobs.make(connection, plan.jobs, status="running")
            await jobs.make(connection, plan.other_rows, status="running", kind="other")
            await jobs.settle(connection)
        paths = [f"/api/jobs/{job_id}" for job_id in ids]

        redrive = await stack.enter_async_context(redrive_api(stage.folder, database_url))
        sample = await ask(redrive.port, request("GET", paths[0], bearer()))
        if sample.status != 200 or (etag := sample.header("ETag")) is None:
            raise ServerFailed(f"Redrive answered {sample.status} to the first request")
        (stage.folder / "body").write_bytes(sample.body)
        env = {"BENCH_DATABASE_URL": database_url, "BENCH_BODY": str(stage.folder / "body")}
        servers = {REDRIVE: redrive}
        for server, module in _COMPARATORS.items():
            if stage.has(_NAMES[server]):
                servers[server] = await stack.enter_async_context(comparator(stage.folder, module, env))
        body_bytes = {}
        for server, program in servers.items():
            await answers(program, paths[0])
            body_bytes[server] = len((await ask(program.port, request("GET", paths[0], bearer()))).body)

        known = {"If-None-Match": etag}
        if (await ask(redrive.port, request("GET", paths[0], {**bearer(), **known}))).status != 304:
            raise ServerFailed("Redrive does not know its own ETag")

        def aim(turn: _Turn) -> Aim:
            conditional = known if turn.way == NOT_MODIFIED else {}
            shown = paths if turn.way == RANDOM else paths[:1]
            return Aim(servers[turn.server].port, shown, {**bearer(), **conditional})

        turns = [
            _Turn(server, way, connections)
            for connections in plan.connections
            for way in (HOT, RANDOM, NOT_MODIFIED)
            for server in servers
            if way != NOT_MODIFIED or server == REDRIVE
        ]
        for server in servers:  # caches, pools and branch predictors of all
            turn = _Turn(server, RANDOM, plan.connections[0])
            await stage.loader.load(aim(turn), connections=turn.connections, seconds=stage.plan.warm_s)
        rounds: defaultdict[_Turn, list[_Round]] = defaultdict(list)
        for number in range(plan.rounds):
            for turn in turns:
                rounds[turn].append(await _asked(stage, servers[turn.server], aim(turn), turn.connections))
            stage.say(f"reading: round {number + 1} of {plan.rounds}")
        queries = [
            await _counted(stage, aim(_Turn(server, RANDOM, plan.connections[-1])), server, database_url)
            for server in servers
            if server != BARE
        ]
    reads = [
        Read(
            server=turn.server,
            way=turn.way,
            connections=turn.connections,
            loads=Loads.of([each.load for each in of_turn]),
            server_cpu_us=Figure.of([each.server_cpu_us for each in of_turn]),
        )
        for turn, of_turn in rounds.items()
    ]
    return Reading(reads, queries, body_bytes)


async def _asked(stage: Stage, program: Program, aim: Aim, connections: int) -> _Round:
    before_s = program.cpu_s()
    load = await stage.loader.load(aim, connections=connections, seconds=stage.plan.reading.seconds)
    return _Round(load, (program.cpu_s() - before_s) * 1e6 / max(1, load.requests))


async def _counted(stage: Stage, aim: Aim, server: str, database_url: str) -> Queries:
    """The database's own count of transactions; none of these programs has more than one query in one."""
    database = urlsplit(database_url).path.removeprefix("/")
    connections = stage.plan.reading.connections[-1]
    before = await transactions_of(stage.postgres, database)
    load = await stage.loader.load(aim, connections=connections, seconds=stage.plan.reading.seconds)
    return Queries(server, connections, load.requests, await transactions_of(stage.postgres, database) - before)
