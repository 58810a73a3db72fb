"""The API about itself: what the client's token permits, and the OpenAPI document."""

import asyncio
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING, Final

import msgspec
import yaml

from api.answers import Answer
from api.problems import PROBLEMS, InvalidParameter
from shared.errors import InvalidJobNumber

if TYPE_CHECKING:
    from aiohttp import web

    from api.door import Call
    from shared.job_ids import JobIds


class _Me(msgspec.Struct, frozen=True):
    actor: str
    project_id: str
    scopes: tuple[str, ...] | None
    jobs: list[str] | None
    expires_at: datetime
    read_only: bool
    version: str


class _MeBody(msgspec.Struct, frozen=True):
    data: _Me


_EXAMPLE_NUMBER: Final = b"42"

_encoder = msgspec.json.Encoder()


class AboutResource:
    """`/api/me` and `/api/openapi.json`. Neither reads a database."""

    def __init__(self, ids: "JobIds", *, read_only: bool) -> None:
        self._ids = ids
        self._read_only = read_only
        self._version = version("redrive")
        self._document: asyncio.Task[bytes] | None = None

    async def get_me(self, call: "Call") -> Answer:
        """The token's claims, as they were read. `scopes` and `jobs` are null if the token has no such claims."""
        principal = call.principal
        me = _Me(
            actor=principal.actor,
            project_id=call.project_id,
            scopes=principal.claimed_scopes,
            jobs=None if principal.jobs is None else sorted(principal.jobs),
            expires_at=datetime.fromtimestamp(principal.expires_at, UTC),
            read_only=self._read_only,
            version=self._version,
        )
        return Answer(_encoder.encode(_MeBody(me)))

    async def get_openapi(self, request: "web.Request") -> Answer:
        """The OpenAPI document as JSON: made once, in a thread, because it takes a second."""
        if request.rel_url.raw_query_string:
            raise InvalidParameter(next(iter(request.query), ""))
        if self._document is None:
            self._document = asyncio.create_task(asyncio.to_thread(_document, self._ids))
        return Answer(await asyncio.shield(self._document))


def _document(ids: "JobIds") -> bytes:
    """The document for a deployment with such ids of jobs."""
    text = (files("api") / "openapi.yaml").read_text("utf-8")
    document = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe
    components = document["components"]
    schemas, examples = components["schemas"], components["examples"]
    schemas["JobId"]["pattern"] = ids.pattern
    if not ids.are_numbers:
        return msgspec.json.encode(document)
    for name in ("JobId", "ShownJobId"):
        del schemas[name]["format"]
    schemas["JobId"]["description"] = PROBLEMS[InvalidJobNumber].detail
    examples["invalid-job-id"]["value"]["detail"] = PROBLEMS[InvalidJobNumber].detail
    (example,) = schemas["JobId"]["examples"]
    return msgspec.json.encode(document).replace(example.encode(), _EXAMPLE_NUMBER)
