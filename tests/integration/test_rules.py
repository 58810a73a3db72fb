"""The retry rule stands once in SQL, as functions of our schema, and once in Python, for a job at hand: they agree."""

from datetime import UTC, datetime
from itertools import product
from uuid import uuid4

from shared.database import Database
from shared.models import Job, JobId, JobStatus, ProjectId, RetryBlock, Version
from shared.retries import blocked_by

ATTEMPTS = (None, 0, 1, 2, 3, 4)
EXTRA = (0, 1, 3)


async def test_python_and_sql_agree_on_when_a_job_has_no_attempts_left(database: Database) -> None:
    for attempts, max_attempts, extra in product(ATTEMPTS, ATTEMPTS, EXTRA):
        ((allowed, now_allowed, exhausted),) = await database.fetch(
            "SELECT redrive.attempts_allowed($1::int, $2::int, $3), redrive.attempts_allowed($1::int, $2::int, 0),"
            " redrive.is_exhausted($1::int, $2::int, $3)",
            attempts,
            max_attempts,
            extra,
        )
        job = Job(
            id=JobId(str(uuid4())),
            project_id=ProjectId("p1"),
            type="email",
            status=JobStatus.FAILED,
            attempts=attempts or 0,
            max_attempts=now_allowed,
            last_error=None,
            scheduled_at=None,
            started_at=None,
            completed_at=None,
            created_at=datetime.now(UTC),
            version=Version("1"),
        )
        expected = blocked_by(job, extra_attempts=extra) is RetryBlock.ATTEMPTS_EXHAUSTED

        assert exhausted is expected, (attempts, max_attempts, extra)
        assert now_allowed == (3 if max_attempts is None else max_attempts)
        assert exhausted or allowed > (attempts or 0)
