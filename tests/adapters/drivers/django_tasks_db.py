"""django-tasks-db, with Django's own commands."""

import asyncio
import os
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import django
from django.conf import settings
from django.core.management import call_command
from django_tasks import task

from tests.adapters.drivers.jobs import QUEUE, AskedJob, run_job


def _set_up(url: str) -> None:
    parts = urlsplit(url)
    settings.configure(
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": parts.path[1:],
                "USER": parts.username,
                "PASSWORD": parts.password or "",
                "HOST": parts.hostname,
                "PORT": parts.port,
            }
        },
        INSTALLED_APPS=["django_tasks_db"],
        TASKS={"default": {"BACKEND": "django_tasks_db.DatabaseBackend", "QUEUES": [QUEUE]}},
        USE_TZ=True,
    )
    django.setup()


_set_up(os.environ["DATABASE_URL"])


@task(queue_name=QUEUE)
def charge(do: str) -> None:
    asyncio.run(run_job(do, os.environ["ADAPTER_MODE"]))


def install(_: str, jobs: list[AskedJob]) -> list[str]:
    call_command("migrate", verbosity=0)
    ids = []
    for job in jobs:
        delayed = job.get("delay_s")
        one = charge.using(run_after=datetime.now(UTC) + timedelta(seconds=delayed)) if delayed else charge
        ids.append(one.enqueue(job["do"]).id)
    return ids


def work(_: str, mode: str) -> None:
    os.environ["ADAPTER_MODE"] = mode
    print("up", flush=True)  # noqa: T201 - the test waits for it
    call_command("db_worker", queue_name=QUEUE, interval=0.1, startup_delay=False, verbosity=0)


def prune(_: str) -> None:
    call_command("prune_db_task_results", queue_name=QUEUE, min_age_days=1, verbosity=0)
