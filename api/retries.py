"""The retry resources: asking for a retry, and what became of it."""

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final
from uuid import UUID

import msgspec
from aiohttp import hdrs

from api.answers import Answer
from api.auth import Scope
from api.bodies import body_of
from api.conditional import etag_of_retry, matches, retry_after_of_retry, versions_of
from api.jobs import limit_of
from shared.errors import RetryNotFound
from shared.models import JobKey, Outcome, Retry, RetryId, RetryState
from shared.retries import RetryRequest
from shared.telemetry import traceparent_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from api.door import Call
    from api.jobs import JobIds
    from shared.jobs import JobStore
    from shared.retries import RetryLedger

MAX_BODY_BYTES: Final = 4096
_RETRY_ID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)


class _RetryOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a retry."""

    reason: Annotated[str, msgspec.Meta(max_length=500, pattern=r"^[^\x00]*$")] | None = None
    delay_seconds: Annotated[int, msgspec.Meta(ge=0, le=86_400)] = 0
    extra_attempts: Annotated[int, msgspec.Meta(ge=1, le=10)] | None = None


class _Links(msgspec.Struct, frozen=True):
    self: str
    job: str


class _RetryBody(msgspec.Struct, frozen=True):
    id: UUID
    job_id: UUID
    batch_id: UUID | None
    state: RetryState
    outcome: Outcome | None
    actor: str
    reason: str | None
    delay_seconds: int
    extra_attempts: int
    requested_at: datetime
    processed_at: datetime | None
    attempts_before: int | None
    error_before: str | None
    done: bool
    links: _Links


class _Envelope(msgspec.Struct, frozen=True):
    data: _RetryBody


class _Accepted(msgspec.Struct, frozen=True):
    data: _RetryBody
    deduplicated: bool


class _Page(msgspec.Struct, frozen=True):
    data: list[_RetryBody]
    next_cursor: str | None


_encoder = msgspec.json.Encoder()
_order_decoder = msgspec.json.Decoder(_RetryOrder)


def _path_of(retry_id: RetryId) -> str:
    return f"/api/retries/{retry_id}"


def _body_of(retry: Retry) -> _RetryBody:
    return _RetryBody(
        id=retry.id,
        job_id=retry.job_id,
        batch_id=retry.batch_id,
        state=retry.state,
        outcome=retry.outcome,
        actor=retry.actor,
        reason=retry.reason,
        delay_seconds=retry.delay_seconds,
        extra_attempts=retry.extra_attempts,
        requested_at=retry.requested_at,
        processed_at=retry.processed_at,
        attempts_before=retry.attempts_before,
        error_before=retry.error_before,
        done=retry.done,
        links=_Links(_path_of(retry.id), f"/api/jobs/{retry.job_id}"),
    )


class RetryResource:
    """`/api/retries`, and the retries of one job. `poke` tells the relay that there is something to publish."""

    def __init__(self, ledger: "RetryLedger", jobs: "JobStore", ids: "JobIds", poke: "Callable[[], None]") -> None:
        self._ledger = ledger
        self._jobs = jobs
        self._ids = ids
        self._poke = poke

    async def post_retry(self, call: "Call") -> Answer:
        """Accept a retry: 202 means the ledger holds the request, not that the job runs.

        Raises JobNotFound, JobNotFailed, AttemptsExhausted, JobChanged (If-Match), and what `body_of` raises.
        """
        job_id = self._ids.parse(call.request.match_info["id"])
        order = await body_of(call.request, _order_decoder, max_bytes=MAX_BODY_BYTES) or _RetryOrder()
        if order.extra_attempts is not None:
            call.principal.require(Scope.RETRY_EXTEND)
        accepted = await self._ledger.accept(
            RetryRequest(
                job=JobKey(job_id, call.project_id),
                actor=call.principal.actor,
                reason=order.reason,
                delay_seconds=order.delay_seconds,
                extra_attempts=order.extra_attempts or 0,
                if_version=versions_of(call.request.headers.get(hdrs.IF_MATCH)),
                traceparent=traceparent_of(call.request.headers.get("traceparent")),
            )
        )
        self._poke()
        return Answer(
            _encoder.encode(_Accepted(_body_of(accepted.retry), accepted.deduplicated)),
            status=202,
            headers={hdrs.LOCATION: _path_of(accepted.retry.id)},
        )

    async def get_retry(self, call: "Call") -> Answer:
        """What became of one request: 200, or 304. Raises RetryNotFound, for foreign ones too."""
        text = call.request.match_info["id"]
        if not _RETRY_ID.fullmatch(text):
            raise RetryNotFound  # no id of ours looks so, and no query is needed to know it
        retry = await self._ledger.get(RetryId(UUID(text)), call.project_id)
        etag = etag_of_retry(retry)
        headers: dict[str, str] = {hdrs.ETAG: etag}
        if (retry_after_s := retry_after_of_retry(retry, datetime.now(UTC))) is not None:
            headers[hdrs.RETRY_AFTER] = str(retry_after_s)
        if matches(call.request.headers.get(hdrs.IF_NONE_MATCH), etag):
            return Answer(None, status=304, headers=headers)
        return Answer(_encoder.encode(_Envelope(_body_of(retry))), headers=headers)

    async def get_job_retries(self, call: "Call") -> Answer:
        """The job's audit trail, newest first. Raises InvalidJobId, JobNotFound."""
        job = JobKey(self._ids.parse(call.request.match_info["id"]), call.project_id)
        limit = limit_of(call.parameters)
        retries = await self._ledger.history(job, limit=limit)
        if not retries:
            await self._jobs.get(job)  # no retries is an answer for a job of this project only
        return Answer(_encoder.encode(_Page([_body_of(retry) for retry in retries], None)))
