"""The retry request on the wire: JSON, UTF-8, one object, versioned.

    {"v": 1, "request_id": "<uuid>", "job_id": "<uuid>", "project_id": "p1", "job_version": "<version>" | null,
     "run_at": null | "<RFC 3339>", "extra_attempts": 0, "actor": "…", "reason": null | "…",
     "requested_at": "<RFC 3339>"}

`job_version` is the version of the failed job that the requester saw, opaque. The worker applies the request to that
version only, so a message that is redelivered after a later failure has no effect.

The decoder checks the fields that it knows and ignores all others: a new optional field needs no new version.
"""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import msgspec

from shared.errors import UnreadableMessage
from shared.models import RetryId

if TYPE_CHECKING:
    from shared.database import Row

VERSION = 1
MAX_BYTES = 64 * 1024
CONTENT_TYPE = "application/json"
UNKNOWN_ACTOR = "unknown"

_Text = Annotated[str, msgspec.Meta(max_length=500, pattern=r"^[^\x00]*$")]  # PostgreSQL's text cannot hold a NUL
_Time = Annotated[datetime, msgspec.Meta(tz=True)]


class RetryMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A retry request, as published to the queue."""

    v: int
    request_id: UUID
    job_id: UUID
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


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(RetryMessage)
_ledger_decoder = msgspec.json.Decoder(LedgerMessage)


def encoded(message: RetryMessage) -> bytes:
    """The message's body."""
    return _encoder.encode(message)


def decoded(body: bytes, *, from_ledger: bool = False) -> RetryMessage:
    """The message in `body`; a LedgerMessage where its headers say that the relay published it.

    Raises UnreadableMessage with a reason that holds nothing of the body.
    """
    if len(body) > MAX_BYTES:
        raise UnreadableMessage(f"over {MAX_BYTES} bytes")
    try:
        message = (_ledger_decoder if from_ledger else _decoder).decode(body)
    except msgspec.ValidationError as error:
        raise UnreadableMessage(_without_values(str(error))) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableMessage("not JSON") from error
    if message.v != VERSION:
        raise UnreadableMessage("unknown version")
    return message


def message_of(row: "Row") -> RetryMessage:
    """The message of a request: of a row of the ledger with the columns that a message has."""
    return RetryMessage(
        v=VERSION,
        request_id=row["id"],
        job_id=row["job_id"],
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
    known = field if field in RetryMessage.__struct_fields__ else ""
    return f"{words} (at {known})" if known else words
