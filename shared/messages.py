"""Retry requests on the wire: JSON, UTF-8, one object, versioned.

One request is a message of version 1:

    {"v": 1, "request_id": "<uuid>", "job_id": "<id>", "project_id": "p1", "job_version": "<version>" | null,
     "run_at": null | "<RFC 3339>", "extra_attempts": 0, "actor": "…", "reason": null | "…",
     "requested_at": "<RFC 3339>"}

Several requests, up to 100 and up to 60,000 bytes of them, are a message of version 2, each as above without `v`:

    {"v": 2, "requests": [{"request_id": "<uuid>", …}, …]}

`job_id` is the job's id as clients write it: a UUID, or, with REDRIVE_JOB_ID=bigint, decimal digits.

`job_version` is the version of the failed job that the requester saw, opaque. The worker applies the request to that
version only, so a message that is redelivered after a later failure has no effect.

The decoder checks the fields that it knows and ignores all others: a new optional field needs no new version. One
request of several that cannot be read spoils none of the others.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple, TypeVar, cast
from uuid import UUID

import msgspec

from shared.errors import InvalidJobId, UnreadableMessage
from shared.job_ids import is_uuid
from shared.models import JobId, RetryId

if TYPE_CHECKING:
    from shared.database import Row
    from shared.job_ids import JobIds

MAX_BYTES: Final = 64 * 1024
"""A longer message is not read."""
MOST_REQUESTS: Final = 100
MOST_PACKED_BYTES: Final = 60_000
CONTENT_TYPE = "application/json"
UNKNOWN_ACTOR = "unknown"
_ONE: Final = 1
_SEVERAL: Final = 2
_SEVERAL_START: Final = b'{"v":2,"requests":['
_SEVERAL_END: Final = b"]}"

T = TypeVar("T")

_Text = Annotated[str, msgspec.Meta(max_length=500, pattern=r"^[^\x00]*\Z")]  # PostgreSQL's text cannot hold a NUL
_Time = Annotated[datetime, msgspec.Meta(tz=True)]


class RetryMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A retry request, as published to the queue."""

    request_id: UUID
    job_id: JobId
    project_id: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,100}\Z")]
    job_version: Annotated[str, msgspec.Meta(pattern=r"^[!-~]{1,64}\Z")] | None = None
    run_at: _Time | None = None
    extra_attempts: Annotated[int, msgspec.Meta(ge=0, le=10)] = 0
    actor: _Text = UNKNOWN_ACTOR
    reason: _Text | None = None
    requested_at: _Time | None = None

    @property
    def id(self) -> RetryId:
        """The request's id in the ledger."""
        return RetryId(self.request_id)


class LedgerMessage(RetryMessage, frozen=True, kw_only=True):
    """A message that the relay published. Where the ledger does not have its request, that was settled and pruned."""


class UnreadableRequest(NamedTuple):
    """One request of several that cannot be read: its body as a message of its own, and the reason."""

    body: bytes
    reason: str


class Contents(NamedTuple):
    """What a message holds. `together`: it is of version 2, and may hold several requests."""

    requests: Sequence[RetryMessage]
    unreadable: Sequence[UnreadableRequest] = ()
    together: bool = False


class _Envelope(msgspec.Struct):
    v: int
    requests: msgspec.Raw = msgspec.Raw(b"[]")


_FIELDS: Final = frozenset({*RetryMessage.__struct_fields__, *_Envelope.__struct_fields__})
_encoder = msgspec.json.Encoder()
_envelope_decoder = msgspec.json.Decoder(_Envelope)
_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_decoder = msgspec.json.Decoder(RetryMessage)
_ledger_decoder = cast("msgspec.json.Decoder[RetryMessage]", msgspec.json.Decoder(LedgerMessage))


def encoded(message: RetryMessage) -> bytes:
    """The body of a message with this request alone."""
    return _as_message(_encoder.encode(message))


def packed(messages: Sequence[RetryMessage]) -> Iterator[tuple[bytes, int]]:
    """The bodies of as few messages as hold these requests in their order, and how many of them each holds."""
    pack: list[bytes] = []
    size = 0
    for message in messages:
        request = _encoder.encode(message)
        if pack and (len(pack) == MOST_REQUESTS or size + len(request) + 1 > MOST_PACKED_BYTES):
            yield _pack(pack)
            pack, size = [], 0
        if not pack:
            size = len(_SEVERAL_START) + len(_SEVERAL_END)
        pack.append(request)
        size += len(request) + 1  # and a comma
    if pack:
        yield _pack(pack)


def _pack(requests: Sequence[bytes]) -> tuple[bytes, int]:
    body = _as_message(requests[0]) if len(requests) == 1 else _SEVERAL_START + b",".join(requests) + _SEVERAL_END
    return body, len(requests)


def _as_message(request: bytes) -> bytes:
    return b'{"v":1,' + request[1:]


def decoded(body: bytes, ids: "JobIds", *, from_ledger: bool = False) -> Contents:
    """The requests in `body`; LedgerMessages where its headers say that the relay published it.

    Raises UnreadableMessage, with a reason that holds nothing of the body, where none of it can be read.
    """
    if len(body) > MAX_BYTES:
        raise UnreadableMessage(f"over {MAX_BYTES} bytes")
    envelope = _read(_envelope_decoder, body)
    if envelope.v == _ONE:
        return Contents([_request_of(body, ids, from_ledger=from_ledger)])
    if envelope.v == _SEVERAL:
        return _contents_of(_read(_list_decoder, envelope.requests), ids, from_ledger=from_ledger)
    raise UnreadableMessage("unknown version")


def _contents_of(requests: list[msgspec.Raw], ids: "JobIds", *, from_ledger: bool) -> Contents:
    if not requests:
        raise UnreadableMessage("no requests")
    readable: list[RetryMessage] = []
    unreadable = [
        UnreadableRequest(_alone(request), f"over {MOST_REQUESTS} requests in a message")
        for request in requests[MOST_REQUESTS:]
    ]
    for request in requests[:MOST_REQUESTS]:
        try:
            readable.append(_request_of(request, ids, from_ledger=from_ledger))
        except UnreadableMessage as error:
            unreadable.append(UnreadableRequest(_alone(request), str(error)))
    return Contents(readable, unreadable, together=True)


def _request_of(body: bytes | msgspec.Raw, ids: "JobIds", *, from_ledger: bool) -> RetryMessage:
    """One request, with the id of its job as `ids` has it."""
    message = _read(_ledger_decoder if from_ledger else _decoder, body)
    try:
        job_id = ids.parse(message.job_id)
    except InvalidJobId as error:
        if from_ledger and is_uuid(message.job_id):  # queued while the ids were UUIDs: it ends as job_not_found
            return message
        raise UnreadableMessage("Invalid id (at job_id)") from error
    return message if job_id == message.job_id else msgspec.structs.replace(message, job_id=job_id)


def _alone(request: msgspec.Raw) -> bytes:
    """A request of several as a message of version 1; as it is where it has no fields."""
    try:
        fields = _fields_decoder.decode(request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return bytes(request)
    fields.pop("v", None)
    return _encoder.encode({"v": _ONE, **fields})


def _read(decoder: "msgspec.json.Decoder[T]", body: bytes | msgspec.Raw) -> "T":
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise UnreadableMessage(_without_values(str(error))) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableMessage("not JSON") from error


def message_of(row: "Row", ids: "JobIds") -> RetryMessage:
    """The message of a request: of a row of the ledger with the columns that a message has."""
    return RetryMessage(
        request_id=row["id"],
        job_id=ids.shown(row["job_id"]),
        project_id=row["project_id"],
        job_version=row["job_version"],
        run_at=row["run_at"],
        extra_attempts=row["extra_attempts"],
        actor=row["actor"],
        reason=row["reason"],
        requested_at=row["requested_at"],
    )


def _without_values(reason: str) -> str:
    """The reason of msgspec, which names types and a path, without a path that ends in a key of the sender's."""
    words, _, path = reason.partition(" - at `")
    field = path.removeprefix("$.").removesuffix("`")
    known = field if field in _FIELDS else ""
    return f"{words} (at {known})" if known else words
