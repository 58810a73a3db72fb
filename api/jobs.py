"""The job resources: one job, and lists of jobs."""

import re
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from api.answers import Answer
from api.auth import Scope
from api.job_view import JobView
from api.long_poll import prefers_to_wait
from api.pages import PageBody, fitting, flag_of, page_of, text_of, time_of
from api.problems import InsufficientScope, InvalidParameter
from shared.bounds import MAX_STATUS
from shared.errors import JobNotFound
from shared.failed import FailedFilter, RetriedFewerThan
from shared.jobs import JobFilter
from shared.models import JobId, JobKey, JobStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multidict import MultiMapping

    from api.auth import Principal
    from api.door import Call
    from api.long_poll import Reader
    from api.pages import Cursors
    from shared.job_ids import JobIds
    from shared.jobs import Jobs
    from shared.models import Job

MAX_IDS: Final = 100
FAILED_FILTERS: Final = ("error_contains", "fingerprint", "retryable", "retried_fewer_than")
"""Allowed with `status=failed` only."""
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{16}")
_TIMES_IN_SECONDS: Final = re.compile(r"([1-9][0-9]{0,2})/([1-9][0-9]{0,5})")


class _Page(PageBody, frozen=True):
    truncated: bool | msgspec.UnsetType = msgspec.UNSET


class _Found(msgspec.Struct, frozen=True):
    data: list[msgspec.Raw]
    not_found: list[JobId]


_encoder = msgspec.json.Encoder()
_view = JobView()


def ids_of(call: "Call", ids: "JobIds") -> "list[JobId]":
    """The jobs that the parameter `ids` names, MAX_IDS at most. Raises InvalidParameter, InvalidJobId."""
    texts = call.parameters.get("ids", "").split(",")
    if "ids" not in call.parameters or len(texts) > MAX_IDS:
        raise InvalidParameter("ids")
    return [ids.parse(text) for text in texts]


class JobResource:
    """`/api/jobs`."""

    def __init__(
        self,
        store: "Jobs",
        ids: "JobIds",
        reader: "Reader[JobKey, Job]",
        cursors: "Cursors",
        *,
        fresh: "Reader[JobKey, Job]",
    ) -> None:
        self._store = store
        self._ids = ids
        self._reader = reader
        self._fresh = fresh
        self._cursors = cursors

    async def get_job(self, call: "Call") -> Answer:
        """One job; read from the primary with `fresh`, and for a client that waits.

        Raises InvalidJobId before any query, and JobNotFound for unknown jobs and those of other projects alike.
        """
        with_payload, fresh = False, None
        if call.parameters:  # few reads have any
            with_payload, fresh = _includes_payload(call), flag_of(call.parameters, "fresh")
        job_id = self._ids.parse(call.request.match_info["id"])
        if not call.may_see(job_id):
            raise JobNotFound
        reader = self._reader
        if reader is not self._fresh and (fresh or prefers_to_wait(call)):
            reader = self._fresh
        return await reader.answer(call, JobKey(job_id, call.project_id, with_payload))

    async def get_jobs(self, call: "Call") -> Answer:
        """A page of the project's jobs, newest first; with `ids`, these jobs. Raises as `page_of` does.

        It ends early, with a cursor, where it would exceed the size of an answer.
        """
        if "ids" in call.parameters:
            return await self._get_these(call)
        page = page_of(call, path="/api/jobs")
        wanted = JobFilter(
            status=text_of(page.filters, "status", longest=MAX_STATUS),
            type=text_of(page.filters, "type"),
            created_after=time_of(page.filters, "created_after"),
            created_before=time_of(page.filters, "created_before"),
        )
        if named := [name for name in FAILED_FILTERS if name in page.filters]:
            if wanted.status != JobStatus.FAILED:
                raise InvalidParameter(named[0])
            chosen, retryable = _failed_filter_of(wanted, page.filters), flag_of(page.filters, "retryable")
            found = await self._store.page_of_failed(
                call.project_id,
                chosen,
                retryable=retryable,
                after=await page.after(self._cursors),
                limit=page.limit,
            )
        else:
            found = await self._store.page(
                call.project_id, wanted, after=await page.after(self._cursors), limit=page.limit
            )
        shown = fitting(_view.item(job) for job in found.jobs)
        end = found.positions[len(shown) - 1] if len(shown) < len(found.jobs) else found.end if found.more else None
        truncated = msgspec.UNSET if found.truncated is None else found.truncated
        return await page.answer(shown, end, self._cursors, body=partial(_Page, truncated=truncated))

    async def _get_these(self, call: "Call") -> Answer:
        """The jobs with these ids, in the order of the request. Raises InvalidParameter, InvalidJobId.

        A hundred jobs, as large as a list shows them, are a quarter of the size of an answer.
        """
        if others := [name for name in call.parameters if name != "ids"]:
            raise InvalidParameter(others[0])
        keys = [JobKey(job_id, call.project_id) for job_id in ids_of(call, self._ids)]
        visible = [key for key in dict.fromkeys(keys) if call.may_see(key.id)]
        found = await self._store.find_these(visible) if visible else {}
        return Answer(
            _encoder.encode(
                _Found(
                    [msgspec.Raw(_view.item(found[key])) for key in keys if key in found],
                    [key.id for key in keys if key not in found],
                )
            )
        )


def _failed_filter_of(wanted: JobFilter, parameters: "Mapping[str, str]") -> FailedFilter:
    """What a list of failed jobs is filtered by, as a bulk retry is. Raises InvalidParameter."""
    fingerprint = text_of(parameters, "fingerprint")
    if fingerprint is not None and not _FINGERPRINT.fullmatch(fingerprint):
        raise InvalidParameter("fingerprint")
    return FailedFilter(
        type=wanted.type,
        created_after=wanted.created_after,
        created_before=wanted.created_before,
        error_contains=text_of(parameters, "error_contains"),
        fingerprint=fingerprint,
        retried_fewer_than=_retried_fewer_than_of(parameters),
    )


def _retried_fewer_than_of(parameters: "Mapping[str, str]") -> RetriedFewerThan | None:
    """`TIMES/SECONDS`. Raises InvalidParameter."""
    if (text := parameters.get("retried_fewer_than")) is None:
        return None
    found = _TIMES_IN_SECONDS.fullmatch(text)
    try:
        if found is None:
            raise InvalidParameter("retried_fewer_than")
        return msgspec.convert({"times": int(found[1]), "within_seconds": int(found[2])}, RetriedFewerThan)
    except msgspec.ValidationError as error:
        raise InvalidParameter("retried_fewer_than") from error


def permit_job(principal: "Principal", query: "MultiMapping[str]") -> None:
    """Require the scope that `include=payload` needs; a narrowed token includes nothing."""
    include = query.getall("include", ())
    if "payload" in include:
        principal.require(Scope.PAYLOAD)
    if include and principal.jobs is not None:
        raise InsufficientScope


def permit_jobs(principal: "Principal", query: "MultiMapping[str]") -> None:
    """Require of a narrowed token that it names the jobs that it reads."""
    if principal.jobs is not None and "ids" not in query:
        raise InsufficientScope


def _includes_payload(call: "Call") -> bool:
    include = call.parameters.get("include")
    if include is None:
        return False
    if include != "payload":
        raise InvalidParameter("include")
    return True
