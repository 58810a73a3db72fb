"""Redrive's api several times in one process: BENCH_APIS has a port for each, and its REDRIVE_TRACING."""

import asyncio
import os

import uvloop

from api.serving import run
from shared.settings import ApiSettings, read
from shared.telemetry import configure_logging


async def _run() -> None:
    limit = "1000000000/60"  # on, and never reached
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for each in os.environ["BENCH_APIS"].split():
            port, _, share = each.partition("=")
            settings = read(
                ApiSettings,
                database_url=os.environ["BENCH_DATABASE_URL"],
                jwt_secret=os.environ["BENCH_SECRET"],
                port=int(port),
                tracing=share,
                limit_ip=limit,
                limit_read=limit,
                limit_retry=limit,
                limit_bulk=limit,
            )
            tasks.create_task(run(settings, stop=stop, ops=False))


def main() -> None:
    configure_logging(level="INFO", json=True)
    uvloop.run(_run())


if __name__ == "__main__":
    main()
