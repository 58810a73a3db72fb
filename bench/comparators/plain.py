"""A plain aiohttp handler: PyJWT, and a query per request through asyncpg's pool."""

from collections.abc import AsyncIterator

import jwt
from aiohttp import web

from bench.comparators.rows import Rows, project_of
from bench.comparators.serving import serve


def main() -> None:
    rows = Rows()

    async def opened(_app: web.Application) -> AsyncIterator[None]:
        async with rows.opened():
            yield

    async def get_job(request: web.Request) -> web.Response:
        try:
            project_id = project_of(request.headers.get("Authorization", ""))
            body = await rows.find_job(request.match_info["id"], project_id)
        except jwt.PyJWTError:
            raise web.HTTPUnauthorized from None
        except ValueError:
            raise web.HTTPBadRequest from None
        if body is None:
            raise web.HTTPNotFound
        return web.Response(body=body, content_type="application/json")

    app = web.Application()
    app.cleanup_ctx.append(opened)
    app.router.add_get("/api/jobs/{id}", get_job)
    serve(app)


if __name__ == "__main__":
    main()
