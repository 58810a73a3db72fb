"""How the aiohttp programs here serve: on uvloop, without an access log, as Redrive does."""

import os

import uvloop
from aiohttp import web


def serve(app: web.Application) -> None:
    """Serve on BENCH_PORT until the process is killed."""
    web.run_app(
        app,
        host="127.0.0.1",
        port=int(os.environ["BENCH_PORT"]),
        access_log=None,
        backlog=1024,
        print=None,
        loop=uvloop.new_event_loop(),
    )
