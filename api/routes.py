"""All routes: each path with the access that it requires, and its handler."""

from typing import TYPE_CHECKING, Final, NamedTuple

from api.about import AboutResource
from api.auth import Scope
from api.batch_view import BatchView
from api.batches import BatchResource
from api.console_files import add_console, add_element
from api.door import Access, Cost
from api.events import EventResource
from api.job_streams import JobStreamResource
from api.job_view import JobView
from api.jobs import FAILED_FILTERS, JobResource, permit_job, permit_jobs
from api.long_poll import Reader
from api.overview import OverviewResource
from api.retries import RetryResource
from api.retry_view import RetryView
from api.watch import Watch
from shared.batches import Batch, Batches, BatchKey
from shared.jobs import Jobs
from shared.models import Job, JobKey, Retry
from shared.overview import Overview
from shared.retries import Retries, RetryKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import web

    from api.door import Door
    from api.pages import Cursors
    from api.watch import Waiters
    from shared.job_ids import JobIds

_ID: Final = r"{id:(?!(?:stats|types|series|events|retry)\Z)[^/]+}"
"""An id as the last segment of a path. The listed words are no ids, so another method on them is 405, not 404."""

READ: Final = Access(Cost.READ, Scope.READ)
RETRY: Final = Access(Cost.RETRY, Scope.RETRY, writes=True)
COUNT: Final = READ._replace(units=5)
"""Counting reads more rows than a page does."""
NARROWED: Final = READ._replace(narrowed=True)
"""Also for a token that is narrowed to some jobs."""
BULK: Final = Access(Cost.BULK, Scope.RETRY_BULK, writes=True)


class Stores(NamedTuple):
    """What the resources read and write.

    `readable_jobs` and `overview` may read a replica. Decisions and waiting use `jobs`, on the primary: a replica that
    lags would show a waiter the failure from before a retry.
    """

    jobs: Jobs
    readable_jobs: Jobs
    retries: Retries
    batches: Batches
    overview: Overview
    ledger_overview: Overview


class Watches(NamedTuple):
    """The watches: what clients can wait for."""

    jobs: Watch[JobKey, Job]
    retries: Watch[RetryKey, Retry]
    batches: Watch[BatchKey, Batch]

    @classmethod
    def over(cls, stores: Stores, *, interval_s: float, waiters: "Waiters") -> "Watches":
        """Make the watches; their waiters are counted together."""
        jobs, retries, batches = stores.jobs, stores.retries, stores.batches
        return cls(
            Watch(changed=jobs.changed, load=jobs.find_many, interval_s=interval_s, waiters=waiters),
            Watch(changed=retries.changed, load=retries.find_many, interval_s=interval_s, waiters=waiters),
            Watch(changed=batches.changed, load=batches.find_many, interval_s=interval_s, waiters=waiters),
        )

    def close(self) -> None:
        """Answer all waiters now, and end the streams."""
        self.jobs.close()
        self.retries.close()
        self.batches.close()


def add_routes(
    router: "web.UrlDispatcher",
    door: "Door",
    stores: Stores,
    watches: Watches,
    *,
    ids: "JobIds",
    cursors: "Cursors",
    max_wait_s: int,
    read_only: bool,
    console: bool,
    poke: "Callable[[], None]",
    poke_bulk: "Callable[[], None]",
) -> None:
    """Add all routes, behind the door. `poke` and `poke_bulk` wake the relay when there is something to publish."""
    fresh = _job_reader(stores.jobs, watches, max_wait_s)
    reader = fresh if stores.readable_jobs is stores.jobs else _job_reader(stores.readable_jobs, watches, max_wait_s)
    job = JobResource(stores.readable_jobs, ids, reader, cursors, fresh=fresh)
    overview = OverviewResource(stores.overview, stores.ledger_overview)
    about = AboutResource(ids, read_only=read_only)
    event = EventResource(stores.jobs, ids, watches.jobs)
    stream = JobStreamResource(stores.jobs, ids, watches.jobs)
    retry = RetryResource(
        retries=stores.retries,
        jobs=stores.jobs,
        ids=ids,
        reader=_retry_reader(stores, watches, max_wait_s),
        cursors=cursors,
        poke=poke,
        poke_bulk=poke_bulk,
    )
    batch = BatchResource(
        batches=stores.batches,
        ids=ids,
        reader=_batch_reader(stores, watches, max_wait_s),
        cursors=cursors,
        poke=poke_bulk,
    )

    one_job, some_jobs = NARROWED._replace(permit=permit_job), NARROWED._replace(permit=permit_jobs)
    job_filters = ("status", "type", "created_after", "created_before", *FAILED_FILTERS)
    retry_filters = ("state", "job_id", "batch_id", "actor")
    for method, path, access, handler in (
        # First: routes are matched in order, and this is the hot one.
        ("GET", f"/api/jobs/{_ID}", one_job.taking("include", "fresh"), job.get_job),
        ("GET", "/api/jobs", some_jobs.taking("ids", *job_filters, "limit", "cursor"), job.get_jobs),
        ("GET", "/api/jobs/stats", COUNT.taking("type"), overview.get_stats),
        ("GET", "/api/jobs/types", COUNT, overview.get_types),
        ("GET", "/api/jobs/series", COUNT.taking("from", "to", "by", "type"), overview.get_series),
        ("GET", "/api/failures", COUNT.taking("type", "created_after", "created_before"), overview.get_failures),
        ("POST", "/api/jobs/retry", BULK.taking("dry_run"), batch.post_batch),
        ("GET", "/api/jobs/events", NARROWED.taking("ids"), stream.get_many_events),
        ("GET", "/api/jobs/{id:[^/]+}/events", NARROWED, event.get_events),
        ("GET", "/api/jobs/{id:[^/]+}/retries", READ.taking("limit", "cursor"), retry.get_job_retries),
        ("POST", "/api/jobs/{id:[^/]+}/retry", RETRY.taking("dry_run"), retry.post_retry),
        ("GET", "/api/retries", READ.taking(*retry_filters, "limit", "cursor"), retry.get_retries),
        ("GET", "/api/retries/stats", READ, overview.get_retry_stats),
        ("GET", f"/api/retries/{_ID}", READ, retry.get_retry),
        ("DELETE", f"/api/retries/{_ID}", RETRY, retry.delete_retry),
        ("POST", "/api/retries/{id:[^/]+}/redrive", RETRY, retry.post_redrive),
        ("GET", "/api/retry-batches", READ.taking("actor", "limit", "cursor"), batch.get_batches),
        ("GET", f"/api/retry-batches/{_ID}", READ, batch.get_batch),
        ("DELETE", f"/api/retry-batches/{_ID}", BULK, batch.delete_batch),
        ("GET", "/api/me", NARROWED._replace(scope=None), about.get_me),
    ):
        router.add_route(method, path, door.guarded(access, handler))
    router.add_route("GET", "/api/openapi.json", about.get_openapi)  # without a token: it is the same for all
    if console:
        add_console(router)
    elif door.origins.any:
        add_element(router)


def _job_reader(jobs: Jobs, watches: Watches, max_wait_s: int) -> Reader[JobKey, Job]:
    return Reader(
        get=jobs.get,
        watch=watches.jobs,
        view=JobView(),
        rest_of=jobs.rest_of,
        max_wait_s=max_wait_s,
    )


def _retry_reader(stores: Stores, watches: Watches, max_wait_s: int) -> Reader[RetryKey, Retry]:
    return Reader(
        get=stores.retries.get,
        watch=watches.retries,
        view=RetryView(),
        max_wait_s=max_wait_s,
    )


def _batch_reader(stores: Stores, watches: Watches, max_wait_s: int) -> Reader[BatchKey, Batch]:
    return Reader(
        get=stores.batches.get,
        watch=watches.batches,
        view=BatchView(),
        max_wait_s=max_wait_s,
    )
