"""Rows of `control_plane.jobs` for measurements, made by the server itself."""

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import asyncpg

from bench.programs import PROJECT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    Connection = asyncpg.Connection[asyncpg.Record]

# One in twenty has failed, a few are on their way; as in a system that works.
_MIXED: Final = """
INSERT INTO control_plane.jobs (
    id, project_id, type, payload, status, attempts, max_attempts, last_error,
    scheduled_at, started_at, completed_at, created_at
)
SELECT
    gen_random_uuid(), $2, (ARRAY['email', 'render', 'export', 'sync'])[1 + i % 4], '{"width": 1280}',
    CASE
        WHEN i % 100 < 90 THEN 'completed' WHEN i % 100 < 95 THEN 'failed' WHEN i % 100 < 98 THEN 'pending'
        ELSE 'running'
    END,
    1 + i % 3, 3, CASE WHEN i % 100 BETWEEN 90 AND 94 THEN 'TimeoutError: the renderer did not answer within 30 s' END,
    made_at, made_at + interval '1 second', CASE WHEN i % 100 < 95 THEN made_at + interval '9 seconds' END, made_at
FROM (SELECT i, now() - i * interval '1 second' AS made_at FROM generate_series(1, $1::int) AS i) AS numbered
"""
_OF_ONE_KIND: Final = """
INSERT INTO control_plane.jobs (
    id, project_id, type, status, attempts, last_error, started_at, completed_at, created_at
)
SELECT
    gen_random_uuid(), $2, $3, $4::text, 1,
    CASE WHEN $4::text = 'failed' THEN 'TimeoutError: the renderer did not answer within 30 s' END,
    now(), CASE WHEN $4::text = 'failed' THEN now() END, now()
FROM generate_series(1, $1::int)
RETURNING id::text
"""
# What programs really write: numbers, ids, addresses and quoted values, which grouping takes out; some over many lines.
_VARIED: Final = """
UPDATE control_plane.jobs AS j
SET last_error = (ARRAY[
    'TimeoutError: the renderer did not answer within ' || n % 90 || ' s (request ' || j.id || ')',
    'UniqueViolation: duplicate key value violates unique constraint "orders_pkey" DETAIL: Key (id)=(' || n || ')',
    'HTTPError: 503 Server Error: Service Unavailable for url: https://api.example.com/v1/orders/' || n || '?page=2',
    E'Traceback (most recent call last):\\n  File "/app/worker.py", line ' || n % 400
        || E', in run\\n    await send(mail)\\n'
        || 'ConnectionResetError: [Errno 104] Connection reset by peer ''smtp' || n % 5 || '.example.com''',
    'KeyError: ''customer_' || n || '''',
    'segmentation fault at 0x7f3a9c' || lpad(to_hex(n), 6, '0') || ' in libvips.so.42, build 9f8e7d6c5b4a',
    repeat('x', 2000) || ' ' || n
])[1 + n % 7]
FROM (
    SELECT id, row_number() OVER () AS n
    FROM (
        SELECT id FROM control_plane.jobs
        WHERE project_id = $2 AND status = 'failed' ORDER BY created_at DESC LIMIT $1::int
    ) AS newest
) AS numbered
WHERE j.id = numbered.id
"""
_BUILD: Final = """
ALTER TABLE control_plane.jobs ADD CONSTRAINT jobs_pkey PRIMARY KEY (id);
CREATE INDEX jobs_pending_idx ON control_plane.jobs (scheduled_at) WHERE status = 'pending';
CREATE INDEX jobs_project_created_idx ON control_plane.jobs (project_id, created_at DESC, id DESC);
"""
_STRIP: Final = """
ALTER TABLE control_plane.jobs DROP CONSTRAINT jobs_pkey;
DROP INDEX control_plane.jobs_pending_idx, control_plane.jobs_project_created_idx;
"""


@asynccontextmanager
async def connected(database_url: str) -> "AsyncIterator[Connection]":
    """A connection of the bench's own; statements may take their time."""
    connection = await asyncpg.connect(database_url, timeout=10, command_timeout=1_800)
    try:
        yield connection
    finally:
        connection.terminate()


async def fill(connection: "Connection", rows: int) -> None:
    """Put so many jobs of one project into an empty table, one a second into the past, with the contract's indexes."""
    await connection.execute(_STRIP)  # built afterwards, which is how ten million rows are loaded within minutes
    await connection.execute(_MIXED, rows, PROJECT)
    await connection.execute("SET maintenance_work_mem = '512MB'")
    await connection.execute(_BUILD)
    await settle(connection)


async def vary_errors(connection: "Connection", count: int) -> None:
    """Give the newest failed jobs errors of seven kinds, no two of them alike."""
    await connection.execute(_VARIED, count, PROJECT)
    await settle(connection)


async def index_statuses(connection: "Connection") -> None:
    """Build the second index that is recommended, the one for counts and lists of one status."""
    await connection.execute("CREATE INDEX by_status ON control_plane.jobs (project_id, status, created_at, id)")
    await settle(connection)


async def unindex_statuses(connection: "Connection") -> None:
    """Drop it again."""
    await connection.execute("DROP INDEX control_plane.by_status")


async def make(connection: "Connection", count: int, *, status: str, kind: str = "render") -> list[str]:
    """So many more jobs that differ in nothing but their ids, which are the answer."""
    return [row["id"] for row in await connection.fetch(_OF_ONE_KIND, count, PROJECT, kind, status)]


async def clear(connection: "Connection") -> None:
    """Take all jobs and all requests away."""
    await connection.execute("TRUNCATE control_plane.jobs, redrive.retry_requests, redrive.retry_batches")


async def settle(connection: "Connection") -> None:
    """Leave the server nothing to clean up, and tell its planner what is there."""
    await connection.execute("VACUUM (ANALYZE)")
    await connection.execute("CHECKPOINT")


async def some_ids(connection: "Connection", count: int, *, rows: int) -> list[str]:
    """About `count` ids from all over a table of `rows`."""
    share = min(100.0, 150.0 * count / rows)
    found = await connection.fetch(
        f"SELECT id::text FROM control_plane.jobs TABLESAMPLE BERNOULLI ({share}) REPEATABLE (1) ORDER BY id LIMIT $1",
        count,
    )
    return [row["id"] for row in found]


async def all_settled(connection: "Connection") -> bool:
    """Whether no request is queued."""
    return not await connection.fetchval("SELECT EXISTS (SELECT FROM redrive.retry_requests WHERE state = 'queued')")
