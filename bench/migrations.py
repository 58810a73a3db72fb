"""How long each migration takes and what it locks, on tables that are full: for CHANGELOG.md, before a release.

    .venv/bin/python -m bench.migrations [--from VERSION] [--rows 1000000]

VERSION is the last migration of the release before: the migrations up to it are applied to an empty database. Then the
tables are filled, and each of the others is run and measured. Without it, all of them are, beside a jobs table that was
there first. A transaction holds its locks from when it takes them to its end: the time is the longest for which one can
be held.
"""

import argparse
import asyncio
import re
import time
from typing import TYPE_CHECKING, Final

from bench import jobs
from bench.servers import postgres_server
from shared.migrations import folder, names, sql_of, version_of

if TYPE_CHECKING:
    from bench.jobs import Connection

_OUTSIDE: Final = re.compile(r"^-- migrate:up.* transaction:false", re.MULTILINE)
_LEDGER: Final = """
INSERT INTO redrive.retry_requests (id, project_id, job_id, state, outcome, actor, requested_at, processed_at)
SELECT
    gen_random_uuid(), 'bench', gen_random_uuid(),
    CASE WHEN i % 100 = 0 THEN 'queued' ELSE 'applied' END, CASE WHEN i % 100 > 0 THEN 'applied' END, 'bench',
    now() - i * interval '1 second', CASE WHEN i % 100 > 0 THEN now() END
FROM generate_series(1, $1::int) AS i
"""
# From the weakest to the strongest; the last three keep readers or writers out.
_MODES: Final = (
    "AccessShareLock", "RowShareLock", "RowExclusiveLock", "ShareUpdateExclusiveLock", "ShareLock",
    "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock",
)  # fmt: skip
_LOCKS: Final = """
SELECT relation::regclass::text AS relation, mode FROM pg_locks
WHERE pid = pg_backend_pid() AND locktype = 'relation'
    AND relation IN (to_regclass('control_plane.jobs'), to_regclass('redrive.retry_requests'))
"""


async def _run(connection: "Connection", name: str) -> tuple[float, dict[str, str]]:
    """Run one migration; answer how long it took, in ms, and its strongest lock on each of the two tables."""
    sql = sql_of(name)
    if _OUTSIDE.search((folder() / name).read_text("utf-8")):
        began = time.perf_counter()
        for statement in sql.split(";\n"):
            if statement.strip():
                await connection.execute(statement)
        return (time.perf_counter() - began) * 1000, {}
    async with connection.transaction():
        began = time.perf_counter()
        await connection.execute(sql)
        elapsed_ms = (time.perf_counter() - began) * 1000
        locks: dict[str, str] = {}
        for relation, mode in await connection.fetch(_LOCKS):
            locks[relation] = max(locks.get(relation, mode), mode, key=_MODES.index)
    return elapsed_ms, locks


async def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="since", default="", metavar="VERSION")
    parser.add_argument("--rows", type=int, default=1_000_000)
    given = parser.parse_args()
    async with (
        postgres_server() as server,
        server.postgres.database(migrated=False) as url,
        jobs.connected(url) as connection,
    ):
        await connection.execute(sql_of(names()[0]))  # the jobs table; run again, it leaves that alone
        before = [name for name in names() if version_of(name) <= given.since]
        for name in before:
            await _run(connection, name)
        await jobs.fill(connection, given.rows)
        if before:
            await connection.execute(_LEDGER, given.rows)
            await connection.execute("VACUUM ANALYZE redrive.retry_requests")
        print("| migration | ms | strongest lock on `control_plane.jobs` | on `redrive.retry_requests` |")
        print("|---|--:|---|---|")
        for name in names()[len(before) :]:
            elapsed_ms, locks = await _run(connection, name)
            on = [locks.get(table, "–") for table in ("control_plane.jobs", "redrive.retry_requests")]  # noqa: RUF001
            print(f"| `{name}` | {elapsed_ms:.0f} | {on[0]} | {on[1]} |")


if __name__ == "__main__":
    asyncio.run(main())
