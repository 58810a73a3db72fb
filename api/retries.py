"""The retry resources: requesting a retry, cancelling it, redriving it, and its outcome."""

from hashlib import blake2b
from typing import TYPE_CHECKING, Annotated, Final
from uuid import UUID

import msgspec
from aiohttp import hdrs
from multidict import istr

from api.answers import Answer, Enveloped
from api.auth import Scope
from api.bodies import body_of
from api.conditional import field_of
from api.ids import retry_id_of
from api.job_view import versions_of
from api.pages import fitting, flag_of, page_of, text_of
from api.problems import InvalidParameter
from api.retry_view import RetryView, path_of
from api.spans import create_span
from shared.bounds import MAX_ACTOR, MAX_DELAY_S, MAX_EXTRA_ATTEMPTS, MAX_REASON
from shared.database import in_time
from shared.errors import JobChanged
from shared.idempotency import IdempotencyKey
from shared.models import BatchId, JobKey, Position, Retry, RetryBlock, RetryState
from shared.retries import RetryFilter, RetryKey, RetryRequest, blocked_by

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from api.door import Call
    from api.long_poll import Reader
    from api.pages import Cursors, Page
    from shared.job_ids import JobIds
    from shared.jobs import Jobs
    from shared.retries import Retries

MAX_BODY_BYTES: Final = 4096
MAX_KEY_LENGTH: Final = 255
_KEY_HEADER: Final = istr("Idempotency-Key")

Reason = Annotated[str, msgspec.Meta(max_length=MAX_REASON, pattern=r"^[^\x00]*\Z")]
Delay = Annotated[int, msgspec.Meta(ge=0, le=MAX_DELAY_S)]
ExtraAttempts = Annotated[int, msgspec.Meta(ge=1, le=MAX_EXTRA_ATTEMPTS)]


class _RetryRequestBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a retry."""

    reason: Reason | None = None
    delay_seconds: Delay = 0
    extra_attempts: ExtraAttempts | None = None


class _Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A body without fields."""


class _Accepted(msgspec.Struct, frozen=True):
    data: msgspec.Raw
    deduplicated: bool


class _DryRun(msgspec.Struct, frozen=True):
    would_retry: bool
    blocked_by: RetryBlock | None


_encoder = msgspec.json.Encoder()
_view = RetryView()
_body_decoder = msgspec.json.Decoder(_RetryRequestBody)
_nothing_decoder = msgspec.json.Decoder(_Nothing)


def key_text_of(call: "Call") -> str | None:
    """The `Idempotency-Key`, checked together with the query parameters. Raises InvalidParameter."""
    given = call.request.headers.getall(_KEY_HEADER, ())
    if not given:
        return None
    key = given[0]
    if len(given) > 1 or not 1 <= len(key) <= MAX_KEY_LENGTH or not all("!" <= char <= "~" for char in key):
        raise InvalidParameter(_KEY_HEADER)
    return key


def idempotency_key_of(call: "Call", key: str | None, path: str, body: msgspec.Struct) -> IdempotencyKey | None:
    """`key`, bound to the request's content.

    `path` and `body` hold parsed ids, so that an id in another letter case makes the same request.
    """
    if key is None:
        return None
    condition = field_of(call.request.headers, hdrs.IF_MATCH)
    # A header may hold bytes that are no UTF-8; JSON cannot.
    seen = None if condition is None else condition.encode("utf-8", "surrogateescape")
    request = (path, seen, body)
    fingerprint = blake2b(_encoder.encode(request), digest_size=16).digest()
    return IdempotencyKey(call.project_id, key, fingerprint)


class RetryResource:
    """`/api/retries`, and the retries of one job. `poke` and `poke_bulk` wake the relay."""

    def __init__(
        self,
        *,
        retries: "Retries",
        jobs: "Jobs",
        ids: "JobIds",
        reader: "Reader[RetryKey, Retry]",
        cursors: "Cursors",
        poke: "Callable[[], None]",
        poke_bulk: "Callable[[], None]",
    ) -> None:
        self._retries = retries
        self._jobs = jobs
        self._ids = ids
        self._reader = reader
        self._cursors = cursors
        self._poke = poke
        self._poke_bulk = poke_bulk

    async def post_retry(self, call: "Call") -> Answer:
        """Accept a retry: 202 means the ledger holds the request, not that the job runs.

        Raises JobNotFound, JobNotFailed, AttemptsExhausted, JobChanged (If-Match), IdempotencyKeyReused, and what
        `body_of` raises.
        """
        dry_run = flag_of(call.parameters, "dry_run")
        key = key_text_of(call)
        job = JobKey(self._ids.parse(call.request.match_info["id"]), call.project_id)
        body = await body_of(call.request, _body_decoder, max_bytes=MAX_BODY_BYTES) or _RetryRequestBody()
        if body.extra_attempts is not None:
            call.principal.require(Scope.RETRY_EXTEND)
        request = RetryRequest(
            job=job,
            actor=call.principal.actor,
            reason=body.reason,
            delay_seconds=body.delay_seconds,
            extra_attempts=body.extra_attempts or 0,
            if_version=versions_of(field_of(call.request.headers, hdrs.IF_MATCH)),
            key=idempotency_key_of(call, key, f"/api/jobs/{job.id}/retry", body),
        )
        if dry_run:
            return await self._dry_run(request)
        with create_span(call) as traceparent:
            async with in_time():
                accepted = await self._retries.accept(msgspec.structs.replace(request, traceparent=traceparent))
        headers: dict[str, str] = {hdrs.LOCATION: path_of(accepted.retry.id)}
        if accepted.replayed:
            headers["Idempotent-Replayed"] = "true"
        return Answer(
            _encoder.encode(_Accepted(msgspec.Raw(_view.item(accepted.retry)), accepted.deduplicated)),
            status=202,
            headers=headers,
        )

    async def _dry_run(self, request: RetryRequest) -> Answer:
        """The answer to a dry run: nothing is written."""
        job = await self._jobs.get(request.job)
        if request.if_version is not None and job.version not in request.if_version:
            raise JobChanged
        block = blocked_by(job, extra_attempts=request.extra_attempts)
        return Answer(_encoder.encode(Enveloped(_DryRun(block is None, block))))

    async def get_retry(self, call: "Call") -> Answer:
        """One retry request, with its outcome. Raises RetryNotFound, also for one of another project."""
        return await self._reader.answer(call, _key_of(call))

    async def delete_retry(self, call: "Call") -> Answer:
        """Cancel a queued request. Raises RetryNotFound, RetryAlreadySettled."""
        async with in_time():
            retry = await self._retries.cancel(_key_of(call), actor=call.principal.actor)
        return Answer(_view.body(retry))

    async def post_redrive(self, call: "Call") -> Answer:
        """Queue a dead-lettered request again: 202, as for a retry.

        Raises RetryNotFound, RetryNotDeadLettered, RetryQueued, and what `body_of` raises.
        """
        key = _key_of(call)
        await body_of(call.request, _nothing_decoder, max_bytes=MAX_BODY_BYTES)
        async with in_time():
            retry = await self._retries.redrive(key, actor=call.principal.actor)
        (self._poke if retry.batch_id is None else self._poke_bulk)()
        return Answer(_view.body(retry), status=202)

    async def get_job_retries(self, call: "Call") -> Answer:
        """The job's audit trail, newest first.

        Raises InvalidParameter, InvalidJobId, InvalidCursor, JobNotFound, DatabaseUnavailable, in this order.
        """
        given = call.request.match_info["id"]
        page_of(call, path=f"/api/jobs/{given}/retries")  # parameters are refused before the id
        job = JobKey(self._ids.parse(given), call.project_id)
        page = page_of(call, path=f"/api/jobs/{job.id}/retries")  # an id in another letter case names the same list
        async with in_time():
            after = await page.after(self._cursors)
            retries = await self._retries.history(job, after=after, limit=page.limit + 1)
            if not retries:
                await self._jobs.get(job)  # an empty page is only for a job of this project
        return await self._page(page, retries)

    async def get_retries(self, call: "Call") -> Answer:
        """The project's audit trail, newest first, filtered. Raises InvalidParameter, InvalidCursor."""
        page = page_of(call, path="/api/retries")
        wanted = RetryFilter(
            state=_state_of(page.filters.get("state")),
            job_id=None if (job_id := page.filters.get("job_id")) is None else self._ids.parse(job_id),
            batch_id=_batch_id_of(page.filters.get("batch_id")),
            actor=text_of(page.filters, "actor", longest=MAX_ACTOR),
        )
        after = await page.after(self._cursors)
        retries = await self._retries.page(call.project_id, wanted, after=after, limit=page.limit + 1)
        return await self._page(page, retries)

    async def _page(self, page: "Page", retries: "Sequence[Retry]") -> Answer:
        shown = fitting(_view.item(retry) for retry in retries[: page.limit])
        last = retries[len(shown) - 1] if len(shown) < len(retries) else None
        end = None if last is None else Position(last.requested_at, last.id)
        return await page.answer(shown, end, self._cursors)


def _key_of(call: "Call") -> RetryKey:
    return RetryKey(retry_id_of(call.request.match_info["id"]), call.project_id)


def _state_of(text: str | None) -> RetryState | None:
    try:
        return None if text is None else RetryState(text)
    except ValueError as error:
        raise InvalidParameter("state") from error


def _batch_id_of(text: str | None) -> BatchId | None:
    try:
        return None if text is None else BatchId(msgspec.convert(text, UUID))
    except msgspec.ValidationError as error:
        raise InvalidParameter("batch_id") from error
