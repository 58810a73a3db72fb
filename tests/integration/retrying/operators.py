"""What operators do, as tests say it."""

from typing import Any, Final

from tests.api_server import Api, Reply
from tests.jobs import JobMaker, MadeJob
from tests.ledger import Ledger
from tests.tokens import token

BULK_SCOPES: Final = "jobs:read jobs:retry jobs:retry:bulk jobs:retry:extend"
RETRY_FIELDS: Final = {
    "id", "job_id", "batch_id", "state", "outcome", "actor", "cancelled_by", "redriven_by", "redriven_at", "reason",
    "delay_seconds", "extra_attempts", "requested_at", "processed_at", "attempts_before", "max_attempts_before",
    "started_at_before", "completed_at_before", "error_before", "error_before_truncated", "done", "links",
}  # fmt: skip


def path_of(job: MadeJob) -> str:
    return f"/api/jobs/{job.id}/retry"


def operator(project: str = "p1", *, sub: str = "alice", scope: str = BULK_SCOPES) -> str:
    """A token that may do everything with one project's jobs."""
    return token(project_id=project, sub=sub, scope=scope)


async def bulk(
    api: Api,
    order: object,
    *,
    project: str = "p1",
    query: str = "",
    headers: dict[str, str] | None = None,
    sub: str = "alice",
    scope: str = BULK_SCOPES,
) -> Reply:
    """Ask for many retries at once."""
    bearer = operator(project, sub=sub, scope=scope)
    return await api.post(f"/api/jobs/retry{query}", order, token=bearer, headers=headers)


async def done_with(api: Api, accepted: Reply, *, bearer: str | None = None) -> Any:  # noqa: ANN401 - JSON
    """What became of an accepted request."""
    return (await api.get(accepted.headers["Location"], token=bearer)).data


async def retries_of(api: Api, job: MadeJob) -> list[Any]:
    """The job's audit trail, newest first."""
    found: list[Any] = (await api.get(f"/api/jobs/{job.id}/retries")).data
    return found


async def settle(ledger: Ledger) -> None:
    """Settle all that is queued, as workers do: one test's requests stand in line behind those of the one before."""
    while await ledger.settlement.apply_queued(1000):
        pass


async def rows_for(jobs: JobMaker, *made: MadeJob) -> int:
    """How many requests the ledger holds for these jobs."""
    ids = [job.id for job in made]
    return int(await jobs.pool.fetchval("SELECT count(*) FROM redrive.retry_requests WHERE job_id = ANY ($1)", ids))
