"""The query and the token check that the programs written by hand share: one job of the token's own project."""

import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import asyncpg
import jwt
import msgspec

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]

_SELECT: Final = """
SELECT id, type, status, attempts, max_attempts, last_error, scheduled_at, started_at, completed_at, created_at
FROM control_plane.jobs
WHERE id = $1 AND project_id = $2
"""


def project_of(authorization: str) -> str:
    """The project of a bearer token, checked with PyJWT every time. Raises jwt.PyJWTError."""
    claims = jwt.decode(authorization.removeprefix("Bearer "), os.environ["BENCH_SECRET"], algorithms=["HS256"])
    return str(claims["project_id"])


class Rows:
    """asyncpg's pool with its own defaults: ten connections, statements prepared once. To be used within `opened`."""

    def __init__(self) -> None:
        self.pool: Pool

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Connect, and disconnect at the end."""
        async with asyncpg.create_pool(os.environ["BENCH_DATABASE_URL"]) as self.pool:
            yield

    async def find_job(self, job_id: str, project_id: str) -> bytes | None:
        """The job as JSON; None where there is none. Raises ValueError for what is no UUID."""
        row = await self.pool.fetchrow(_SELECT, uuid.UUID(job_id), project_id)
        return None if row is None else msgspec.json.encode({"data": dict(row)})
