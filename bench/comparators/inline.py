"""A plain aiohttp handler for retries: look at the job, write the request down, publish it and wait for the confirm.

All of it inside the request, as it is written without a thought of the broker being away. The same ledger, the
same queues, the same durability as Redrive's.
"""

import os
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

import aio_pika
import jwt
import msgspec
from aiohttp import web

from bench.comparators.rows import Rows, project_of
from bench.comparators.serving import serve
from shared import topology

if TYPE_CHECKING:
    from aio_pika.abc import AbstractExchange

_LOOK: Final = """
SELECT status, coalesce(attempts, 0) < coalesce(max_attempts, 3) AS attempts_left, redrive.job_version(
    type, status, attempts, max_attempts, last_error, scheduled_at, started_at, completed_at, created_at
) AS version
FROM control_plane.jobs
WHERE id = $1 AND project_id = $2
"""
_INSERT: Final = """
INSERT INTO redrive.retry_requests (id, project_id, job_id, job_version, actor) VALUES ($1, $2, $3, $4, 'bench')
"""


class Retries:
    """The handler, and what it needs."""

    def __init__(self) -> None:
        self._rows = Rows()
        self._exchange: AbstractExchange

    async def opened(self, _app: web.Application) -> AsyncIterator[None]:
        """Connect to both servers."""
        connection = await aio_pika.connect(os.environ["BENCH_AMQP_URL"])
        async with self._rows.opened(), connection:
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            self._exchange = await topology.declare(channel)
            yield

    async def post_retry(self, request: web.Request) -> web.Response:
        """Accept a retry."""
        try:
            project_id = project_of(request.headers.get("Authorization", ""))
            job_id = uuid.UUID(request.match_info["id"])
        except jwt.PyJWTError:
            raise web.HTTPUnauthorized from None
        except ValueError:
            raise web.HTTPBadRequest from None
        job = await self._rows.pool.fetchrow(_LOOK, job_id, project_id)
        if job is None:
            raise web.HTTPNotFound
        if job["status"] != "failed" or not job["attempts_left"]:
            raise web.HTTPConflict
        retry_id = uuid.uuid4()
        await self._rows.pool.execute(_INSERT, retry_id, project_id, job_id, job["version"])
        body = msgspec.json.encode({"v": 1, "request_id": retry_id, "job_id": job_id, "project_id": project_id})
        message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await self._exchange.publish(message, topology.KEY_RETRY, mandatory=True)
        return web.Response(
            body=msgspec.json.encode({"data": {"id": retry_id, "job_id": job_id}}),
            status=202,
            content_type="application/json",
        )


async def get_ready(_request: web.Request) -> web.Response:
    return web.Response()


def main() -> None:
    retries = Retries()
    app = web.Application()
    app.cleanup_ctx.append(retries.opened)
    app.router.add_post("/api/jobs/{id}/retry", retries.post_retry)
    app.router.add_get("/ready", get_ready)
    serve(app)


if __name__ == "__main__":
    main()
