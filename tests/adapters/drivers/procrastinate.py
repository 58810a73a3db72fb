"""Procrastinate."""

import procrastinate

from tests.adapters.drivers.jobs import QUEUE, AskedJob, run_job


def _app(url: str, mode: str = "") -> procrastinate.App:
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))

    @app.task(name="charge", queue=QUEUE)
    async def charge(do: str) -> None:
        await run_job(do, mode)

    return app


async def install(url: str, jobs: list[AskedJob]) -> list[str]:
    ids = []
    async with (app := _app(url)).open_async():
        await app.schema_manager.apply_schema_async()
        for job in jobs:
            delay = {"seconds": job["delay_s"]} if job.get("delay_s") else None
            ids.append(str(await app.configure_task("charge", schedule_in=delay).defer_async(do=job["do"])))
    return ids


async def work(url: str, mode: str) -> None:
    async with (app := _app(url, mode)).open_async():
        print("up", flush=True)  # noqa: T201 - the test waits for it
        await app.run_worker_async(queues=[QUEUE], concurrency=10, fetch_job_polling_interval=30)


async def prune(url: str) -> None:
    async with (app := _app(url)).open_async():
        await app.job_manager.delete_old_jobs(
            nb_hours=1, include_failed=True, include_cancelled=True, include_aborted=True
        )
