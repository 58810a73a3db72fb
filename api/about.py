"""The API about itself: what the client's token permits, and the OpenAPI document."""

import asyncio
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING

import msgspec
import yaml

from api.answers import Answer
from api.problems import InvalidParameter

if TYPE_CHECKING:
    from aiohttp import web

    from api.door import Call


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


_encoder = msgspec.json.Encoder()


class AboutResource:
    """`/api/me` and `/api/openapi.json`. Neither reads a database."""

    def __init__(self, *, read_only: bool) -> None:
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
            jobs=None if principal.jobs is None else sorted(map(str, principal.jobs)),
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
            self._document = asyncio.create_task(asyncio.to_thread(_document))
        return Answer(await asyncio.shield(self._document))


def _document() -> bytes:
    text = (files("api") / "openapi.yaml").read_text("utf-8")
    return msgspec.json.encode(yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))  # noqa: S506 - both are safe
