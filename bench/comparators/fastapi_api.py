"""FastAPI on uvicorn, with uvloop and httptools: PyJWT in a dependency, and a query per request through asyncpg's pool.

The answer goes out as bytes that msgspec made, past pydantic: what a developer does who has looked where the time goes.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import jwt
import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException, Response

from bench.comparators.rows import Rows, project_of


async def authorized_project(authorization: Annotated[str, Header()]) -> str:
    try:
        return project_of(authorization)
    except jwt.PyJWTError:
        raise HTTPException(401) from None


def new_app() -> FastAPI:
    rows = Rows()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with rows.opened():
            yield

    async def get_job(job_id: str, project_id: Annotated[str, Depends(authorized_project)]) -> Response:
        try:
            body = await rows.find_job(job_id, project_id)
        except ValueError:
            raise HTTPException(400) from None
        if body is None:
            raise HTTPException(404)
        return Response(body, media_type="application/json")

    app = FastAPI(lifespan=lifespan, openapi_url=None)
    app.add_api_route("/api/jobs/{job_id}", get_job)
    return app


def main() -> None:
    uvicorn.run(
        new_app(),
        host="127.0.0.1",
        port=int(os.environ["BENCH_PORT"]),
        loop="uvloop",
        http="httptools",
        backlog=1024,
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
