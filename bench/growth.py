"""Growth: what a request costs as the table and the number of clients grow.

All rows are of one project, which is the worst case: nothing but the index on `(project_id, created_at DESC, id DESC)`
stands between a list and the whole table. Pages have ten rows, so that the smallest table has a thousandth one.
"""

from typing import Final

import msgspec

from bench import jobs
from bench.client import ask, request
from bench.load import Aim
from bench.part import Stage
from bench.programs import Program, bearer, redrive_api
from bench.results import Call, Growth
from tests.servers.processes import ServerFailed

GET_ONE: Final = "one job"
FIRST_PAGE: Final = "first page"
DEEP_PAGE: Final = "deep page"
STATS: Final = "stats"
LIST_CONNECTIONS: Final = 10
_IDS: Final = 1_000


async def measure(stage: Stage) -> Growth:
    """The figures. Raises ServerFailed, WrkFailed."""
    plan = stage.plan.growth
    calls: list[Call] = []
    table_bytes: dict[str, int] = {}
    for rows in plan.rows:
        async with stage.postgres.database() as database_url:
            async with jobs.connected(database_url) as connection:
                await jobs.fill(connection, rows)
                ids = await jobs.some_ids(connection, _IDS, rows=rows)
                size = "SELECT pg_total_relation_size('control_plane.jobs')"
                table_bytes[str(rows)] = int(await connection.fetchval(size))
            async with redrive_api(stage.folder, database_url) as redrive:
                first = f"/api/jobs?limit={plan.page_rows}"
                asked = {
                    GET_ONE: [f"/api/jobs/{job_id}" for job_id in ids],
                    FIRST_PAGE: [first],
                    DEEP_PAGE: [f"{first}&cursor={await _cursor(redrive, first, before_page=plan.deep_page)}"],
                    STATS: ["/api/jobs/stats"],
                }
                for call, paths in asked.items():
                    aim = Aim(redrive.port, paths, bearer())
                    await stage.loader.load(aim, connections=4, seconds=stage.plan.warm_s)
                    for connections in plan.connections if call == GET_ONE else (LIST_CONNECTIONS,):
                        load = await stage.loader.load(aim, connections=connections, seconds=plan.seconds)
                        calls.append(Call(rows, call, connections, load))
        stage.say(f"growth: {rows} rows")
    return Growth(calls, table_bytes)


async def _cursor(redrive: Program, first: str, *, before_page: int) -> str:
    """The cursor of a page, got as a client gets it: by turning all pages before it."""
    path = first
    for _ in range(before_page - 1):
        answer = await ask(redrive.port, request("GET", path, bearer()))
        cursor = msgspec.json.decode(answer.body).get("next_cursor") if answer.status == 200 else None
        if cursor is None:
            raise ServerFailed(f"the list has no page {before_page} (status {answer.status})")
        path = f"{first}&cursor={cursor}"
    return path.partition("cursor=")[2]
