"""Celery with one UPDATE per task: prefork, `acks_late`, psycopg, one connection per child, no result backend.

    python -m bench.comparators.celery_jobs             a worker with two children
    python -m bench.comparators.celery_jobs publish     a task for each job id on standard input

Celery's own advice for many short tasks is a high prefetch multiplier; at 100, each child has 100 tasks at hand.
"""

import os
import sys

import psycopg
from celery import Celery
from celery.signals import worker_process_init

_UPDATE = """
UPDATE control_plane.jobs
SET status = 'pending', last_error = NULL, started_at = NULL, completed_at = NULL, scheduled_at = now()
WHERE id = %s AND project_id = %s AND status = 'failed' AND coalesce(attempts, 0) < coalesce(max_attempts, 3)
"""
TASK = "put_back"


class Child:
    """What one child process holds, and does."""

    def __init__(self) -> None:
        self._connection: psycopg.Connection

    def connect(self, **_: object) -> None:
        """Called in the child, once it is there."""
        url = os.environ["BENCH_DATABASE_URL"]
        self._connection = psycopg.connect(url, autocommit=True, prepare_threshold=1)

    def put_back(self, job_id: str, project_id: str) -> None:
        """The task."""
        self._connection.execute(_UPDATE, (job_id, project_id))


def new_app() -> Celery:
    app = Celery("bench", broker=os.environ["BENCH_AMQP_URL"])
    app.conf.update(
        task_acks_late=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=100,
        broker_connection_retry_on_startup=True,
        broker_heartbeat=0,  # it is frozen while the backlog is made
    )
    return app


def publish() -> None:
    app = new_app()
    with app.producer_or_acquire() as producer:
        for line in sys.stdin:
            app.send_task(TASK, (line.strip(), "p1"), producer=producer)


def work() -> None:
    app = new_app()
    child = Child()
    worker_process_init.connect(child.connect, weak=False)
    app.task(child.put_back, name=TASK)
    app.worker_main(
        ["worker", "--pool=prefork", "--concurrency=2", "--loglevel=WARNING",
         "--without-gossip", "--without-mingle", "--without-heartbeat"]
    )  # fmt: skip


def main() -> None:
    if sys.argv[1:] == ["publish"]:
        publish()
    else:
        work()


if __name__ == "__main__":
    main()
