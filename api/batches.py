"""The bulk retry resources: many jobs of a project in one request, by their ids or by a filter."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final
from uuid import UUID

import msgspec
from aiohttp import hdrs

from api.answers import Answer, Enveloped
from api.auth import Scope
from api.batch_view import BatchView
from api.bodies import body_of
from api.ids import retry_id_of
from api.pages import flag_of, page_of, text_of
from api.problems import Fault, InvalidBody
from api.retries import Delay, ExtraAttempts, Reason, idempotency_key_of, key_text_of
from api.spans import create_span
from shared.batches import AcceptedBatch, Batch, BatchKey, BatchRequest, BulkDryRun, Skipped
from shared.bounds import MAX_ACTOR, MAX_BATCH, MAX_BULK_IDS, MAX_FILTER, MAX_SPREAD_S
from shared.database import in_time
from shared.errors import BatchNotFound, RetryNotFound
from shared.failed import FailedFilter, RetriedFewerThan
from shared.models import BatchId, Position

if TYPE_CHECKING:
    from collections.abc import Callable

    from api.door import Call
    from api.long_poll import Reader
    from api.pages import Cursors
    from shared.batches import Batches
    from shared.job_ids import JobIds
    from shared.models import JobId

MAX_BODY_BYTES: Final = 64 * 1024

_Time = Annotated[datetime, msgspec.Meta(tz=True)]
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_FILTER, pattern=r"^[^\x00]*\Z")]


class _Filter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: _Text | None = None
    created_after: _Time | None = None
    created_before: _Time | None = None
    error_contains: _Text | None = None
    fingerprint: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")] | None = None
    retried_fewer_than: RetriedFewerThan | None = None


class _BatchRequestBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a bulk retry: `ids`, or `filter` with `max` and `reason`."""

    ids: Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_BULK_IDS)] | None = None
    filter: _Filter | None = None
    max: Annotated[int, msgspec.Meta(ge=1, le=MAX_BATCH)] | None = None
    reason: Reason | None = None
    delay_seconds: Delay = 0
    extra_attempts: ExtraAttempts | None = None
    spread_seconds: Annotated[int, msgspec.Meta(ge=0, le=MAX_SPREAD_S)] = 0


class _DryRunBody(msgspec.Struct, frozen=True):
    matched: int
    retryable: int
    skipped: dict[str, int]
    sample: "list[JobId]"
    truncated: bool


class _AcceptedBody(msgspec.Struct, frozen=True):
    batch_id: UUID
    accepted: int
    skipped: list[Skipped]


_encoder = msgspec.json.Encoder()
_view = BatchView()
_body_decoder = msgspec.json.Decoder(_BatchRequestBody)


class BatchResource:
    """`/api/jobs/retry` and `/api/retry-batches`. `poke` wakes the relay."""

    def __init__(
        self,
        *,
        batches: "Batches",
        ids: "JobIds",
        reader: "Reader[BatchKey, Batch]",
        cursors: "Cursors",
        poke: "Callable[[], None]",
    ) -> None:
        self._batches = batches
        self._ids = ids
        self._reader = reader
        self._cursors = cursors
        self._poke = poke

    async def post_batch(self, call: "Call") -> Answer:
        """Retry many jobs, or, with `dry_run` (the default for a filter), say what that would do.

        Raises TooManyMatches, InvalidJobId, InvalidBody, IdempotencyKeyReused, and what `body_of` raises.
        """
        dry_run = flag_of(call.parameters, "dry_run")
        key = key_text_of(call)
        body = await body_of(call.request, _body_decoder, max_bytes=MAX_BODY_BYTES) or _BatchRequestBody()
        _check(body)
        if body.extra_attempts is not None:
            call.principal.require(Scope.RETRY_EXTEND)
        chosen = self._chosen(body)
        if not isinstance(chosen, FailedFilter):
            body = msgspec.structs.replace(body, ids=[str(job_id) for job_id in chosen])
        request = BatchRequest(
            project_id=call.project_id,
            actor=call.principal.actor,
            chosen=chosen,
            maximum=body.max or MAX_BATCH,
            reason=body.reason,
            delay_seconds=body.delay_seconds,
            extra_attempts=body.extra_attempts or 0,
            spread_seconds=body.spread_seconds,
            key=idempotency_key_of(call, key, call.request.path, body),
        )
        if dry_run or (dry_run is None and body.filter is not None):
            return _dry_run_answer(await self._batches.dry_run(request))
        with create_span(call) as traceparent:
            async with in_time():
                accepted = await self._batches.accept(msgspec.structs.replace(request, traceparent=traceparent))
        self._poke()
        return _accepted_answer(accepted)

    def _chosen(self, body: _BatchRequestBody) -> "tuple[JobId, ...] | FailedFilter":
        if body.filter is not None:
            return FailedFilter(*(getattr(body.filter, name) for name in body.filter.__struct_fields__))
        return tuple(self._ids.parse(text) for text in body.ids or ())

    async def get_batch(self, call: "Call") -> Answer:
        """One bulk retry, with its progress. Raises BatchNotFound, also for one of another project."""
        return await self._reader.answer(call, _key_of(call))

    async def get_batches(self, call: "Call") -> Answer:
        """The project's bulk retries, newest first, of one actor where `actor` names it. Raises InvalidParameter."""
        page = page_of(call, path="/api/retry-batches")
        actor = text_of(page.filters, "actor", longest=MAX_ACTOR)
        after = await page.after(self._cursors)
        batches, more = await self._batches.page(call.project_id, actor=actor, after=after, limit=page.limit)
        end = Position(batches[-1].requested_at, batches[-1].id) if more else None
        return await page.answer([msgspec.Raw(_view.item(batch)) for batch in batches], end, self._cursors)

    async def delete_batch(self, call: "Call") -> Answer:
        """Cancel what is still queued of a bulk retry. Raises BatchNotFound, also for one of another project."""
        async with in_time():
            batch = await self._batches.cancel(_key_of(call), actor=call.principal.actor)
        return Answer(_view.body(batch))


def _key_of(call: "Call") -> BatchKey:
    try:
        return BatchKey(BatchId(retry_id_of(call.request.match_info["id"])), call.project_id)
    except RetryNotFound as error:
        raise BatchNotFound from error


def _check(body: _BatchRequestBody) -> None:
    """Check what the shape of the body cannot express. Raises InvalidBody."""
    faults: list[Fault] = []
    if (body.ids is None) == (body.filter is None):
        faults.append(Fault("", "Exactly one of `ids` and `filter` is required."))
    if body.ids is not None and body.max is not None:
        faults.append(Fault("/max", "Only with `filter`."))
    if body.filter is not None:
        if body.max is None:
            faults.append(Fault("/max", "Required with `filter`."))
        if not body.reason:
            faults.append(Fault("/reason", "Required with `filter`."))
    if faults:
        raise InvalidBody(tuple(faults))


def _dry_run_answer(dry_run: BulkDryRun) -> Answer:
    skipped = {"attempts_exhausted": 0, "retry_queued": 0, **dry_run.skipped}
    body = _DryRunBody(dry_run.matched, dry_run.retryable, skipped, list(dry_run.sample), dry_run.truncated)
    return Answer(_encoder.encode(Enveloped(body)))


def _accepted_answer(accepted: AcceptedBatch) -> Answer:
    headers: dict[str, str] = {hdrs.LOCATION: f"/api/retry-batches/{accepted.id}"}
    if accepted.replayed:
        headers["Idempotent-Replayed"] = "true"
    body = _AcceptedBody(accepted.id, accepted.accepted, accepted.skipped)
    return Answer(_encoder.encode(Enveloped(body)), status=202, headers=headers)
