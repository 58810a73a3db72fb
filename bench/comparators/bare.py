"""aiohttp on uvloop that answers constant bytes, as many as Redrive answers with: the ceiling for aiohttp programs.

It looks at no header, knows no database, and counts nothing. BENCH_BODY is the file with the bytes.
"""

import os
from pathlib import Path

from aiohttp import web

from bench.comparators.serving import serve


def main() -> None:
    body = Path(os.environ["BENCH_BODY"]).read_bytes()

    async def get_job(_request: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    app = web.Application()
    app.router.add_get("/api/jobs/{id}", get_job)
    serve(app)


if __name__ == "__main__":
    main()
