"""The api in this process, behind its real HTTP server, and a client that sees all that it answers."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from prometheus_client import CollectorRegistry
from yarl import URL

from api.app import Api as Parts
from api.app import create_app
from api.server import Runner
from shared.settings import ApiSettings, read
from tests.tokens import SECRET, token

NO_TOKEN: Final = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @classmethod
    def parsed(cls, raw: bytes) -> "Reply":
        """What came over a socket: one answer."""
        head, _, body = raw.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = CIMultiDict([(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)])
        return cls(int(first.split()[1]), CIMultiDictProxy(headers), body)

    @property
    def json(self) -> Any:  # noqa: ANN401 - whatever the answer holds
        return json.loads(self.body)

    @property
    def data(self) -> Any:  # noqa: ANN401 - likewise
        return self.json["data"]

    @property
    def code(self) -> str:
        return str(self.json["code"])

    @property
    def without_date(self) -> tuple[int, dict[str, str], bytes]:
        """All of it that does not depend on the clock."""
        return self.status, {name: value for name, value in self.headers.items() if name != "Date"}, self.body


class Api:
    """An api that runs, as a client sees it. Requests carry a good token of project p1 unless they are given one."""

    def __init__(self, parts: Parts, registry: CollectorRegistry, port: int, session: aiohttp.ClientSession) -> None:
        self.parts = parts
        self.port = port
        self._registry = registry
        self._session = session

    async def call(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        json: object = ...,
        body: bytes | None = None,
    ) -> Reply:
        """One request, its path sent as it is."""
        given = CIMultiDict(headers or {})
        if token != NO_TOKEN:
            given["Authorization"] = f"Bearer {token or _TOKEN}"
        if json is not ...:
            body = _encoded(json)
        if body is not None:
            given.setdefault("Content-Type", "application/json")
        url = URL(f"http://127.0.0.1:{self.port}{path}", encoded=True)
        async with self._session.request(method, url, headers=given, data=body, allow_redirects=False) as answer:
            return Reply(answer.status, answer.headers, await answer.read())

    async def get(self, path: str, *, token: str | None = None, headers: Mapping[str, str] | None = None) -> Reply:
        return await self.call("GET", path, token=token, headers=headers)

    async def post(
        self,
        path: str,
        json: object = ...,
        *,
        body: bytes | None = None,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        return await self.call("POST", path, token=token, headers=headers, json=json, body=body)

    async def raw(self, *pieces: bytes) -> bytes:
        """All that comes back over a socket until the server closes it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            async with asyncio.timeout(10):
                return await reader.read()
        finally:
            writer.close()

    def counted(self, name: str, **labels: str) -> float:
        """A metric's value now."""
        return self._registry.get_sample_value(name, labels) or 0.0


_TOKEN: Final = token(exp=4_000_000_000)


def _encoded(value: object) -> bytes:
    return json.dumps(value).encode()


@asynccontextmanager
async def serving(database_url: str, **known: object) -> AsyncIterator[Api]:
    """Serve on a free port until the block ends; without limits unless `known` sets some."""
    given = {
        "database_url": database_url, "jwt_secret": SECRET,
        "limit_ip": None, "limit_read": None, "limit_retry": None, "limit_bulk": None, **known,
    }  # fmt: skip
    registry = CollectorRegistry()
    settings = read(ApiSettings, **given)
    parts = create_app(settings, registry)
    runner = Runner(
        parts.app, parts.door, keepalive_timeout_s=settings.keepalive_timeout, shutdown_timeout_s=1, lingering_s=0.2
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        connector = aiohttp.TCPConnector(limit=200)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=20)) as session:
            yield Api(parts, registry, runner.addresses[0][1], session)
    finally:
        await runner.cleanup()
