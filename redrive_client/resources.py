"""The API's resources on the wire: where they are, what is sent, and how answers are read."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Generic, NamedTuple, Protocol, TypeVar
from urllib.parse import quote
from uuid import UUID

import msgspec
from aiohttp import hdrs

from redrive_client.models import Batch, FailedFilter, Job, JobId, Retry, Skipped, UnreadableJob
from redrive_client.problems import UnexpectedAnswer
from redrive_client.transport import Answer


class Settleable(Protocol):
    """Something that is done one day."""

    @property
    def done(self) -> bool: ...  # noqa: D102 - the class says it


T = TypeVar("T")
S = TypeVar("S", bound=Settleable)


class Envelope(msgspec.Struct, Generic[T], frozen=True):
    """`{"data": …}`."""

    data: T


class Page(msgspec.Struct, Generic[T], frozen=True):
    """A part of a list, and the cursor of the part that follows. Jobs are raw, to be read by `listed_job`."""

    data: list[T]
    next_cursor: str | None


class Counted(msgspec.Struct, Generic[T], frozen=True):
    """`{"data": …, "as_of": …}`."""

    data: T
    as_of: datetime | None = None


class AcceptedBody(msgspec.Struct, frozen=True):
    """The answer to a retry."""

    data: Retry
    deduplicated: bool


class FoundBody(msgspec.Struct, frozen=True):
    """The answer to a list of ids; each job is read by `listed_job`."""

    data: list[msgspec.Raw]
    not_found: list[str]


class Id(msgspec.Struct, frozen=True):
    """What of an event of many jobs says which job it is about."""

    id: str


class Ids(msgspec.Struct, frozen=True):
    """The jobs that are not there, in an event of many jobs."""

    ids: tuple[str, ...]


class AcceptedBatchBody(msgspec.Struct, frozen=True):
    """The answer to a bulk retry."""

    batch_id: UUID
    accepted: int
    skipped: tuple[Skipped, ...]


class Resource(NamedTuple, Generic[S]):
    """Something that is read by itself, with its etag, and can be waited for."""

    path: str
    body: type[Envelope[S]]
    query: Mapping[str, str] = {}

    def read(self, answer: Answer) -> S:
        """What an answer of 200 holds."""
        value = decoded(answer.body, self.body).data
        return msgspec.structs.replace(value, etag=answer.headers.get(hdrs.ETAG))  # type: ignore[type-var] # all three are Structs


def job_at(job_id: JobId, *, fresh: bool = False) -> Resource[Job]:
    """One job; `fresh`: not as a replica has it, which may be behind."""
    query = {"fresh": "true"} if fresh else {}
    return Resource(f"/api/jobs/{quote(str(job_id), safe='')}", Envelope[Job], query)


def retry_at(retry_id: UUID | str) -> Resource[Retry]:
    """One retry."""
    return Resource(f"/api/retries/{quote(str(retry_id), safe='')}", Envelope[Retry])


def batch_at(batch_id: UUID | str) -> Resource[Batch]:
    """One bulk retry."""
    return Resource(f"/api/retry-batches/{quote(str(batch_id), safe='')}", Envelope[Batch])


def decoded(body: bytes, kind: type[T]) -> T:
    """The value in `body`. Raises UnexpectedAnswer."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UnexpectedAnswer("the answer is not what this client expects") from error


def listed_job(row: msgspec.Raw) -> Job | UnreadableJob:
    """A job in a list, or what stands for one that the server cannot show. Raises UnexpectedAnswer."""
    try:
        return msgspec.json.decode(row, type=Job)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return decoded(bytes(row), UnreadableJob)


def body_of(**fields: object) -> bytes:
    """A body without what is not said: 0 seconds and None are the server's defaults."""
    return msgspec.json.encode({name: value for name, value in fields.items() if value is not None and value != 0})


def chosen_in_body(chosen: Sequence[JobId] | FailedFilter) -> dict[str, object]:
    """The field of a bulk retry's body that says which jobs."""
    return {"filter": chosen} if isinstance(chosen, FailedFilter) else {"ids": [str(each) for each in chosen]}


def given(values: Mapping[str, str | None]) -> dict[str, str]:
    """What of a query or of headers is said."""
    return {name: str(value) for name, value in values.items() if value is not None}


def text_of(at: datetime | None) -> str | None:
    """A time as the API reads it: in UTC, or, where no datetime holds it there, with its own offset."""
    if at is None:
        return None
    try:
        return at.astimezone(UTC).isoformat()
    except OverflowError:
        return at.isoformat()
