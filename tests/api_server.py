"""The api in this process, behind its real HTTP server, and a client that sees all that it answers."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import ClientTimeout, TCPConnector
from aiohttp.test_utils import TestClient, TestServer
from multidict import CIMultiDict, CIMultiDictProxy
from prometheus_client import CollectorRegistry
from pytest_aiohttp import AiohttpClient
from yarl import URL

from api.app import Api as Parts
from api.app import create_app
from api.server import Runner
from shared.settings import ApiSettings, read
from shared.tracing import Tracing
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

    def __init__(self, parts: Parts, registry: CollectorRegistry, client: TestClient[Any, Any]) -> None:
        self.parts = parts
        self.client = client
        self.registry = registry

    @property
    def port(self) -> int:
        assert self.client.port is not None
        return self.client.port

    async def close(self) -> None:
        """Stop serving now, not at the end of the test."""
        await self.client.close()

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
        url = URL(f"http://127.0.0.1:{self.port}{path}", encoded=True)  # the test client's own would be normalized
        async with self.client.session.request(method, url, headers=given, data=body, allow_redirects=False) as answer:
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
        return self.registry.get_sample_value(name, labels) or 0.0


_TOKEN: Final = token(exp=4_000_000_000)


def _encoded(value: object) -> bytes:
    return json.dumps(value).encode()


class _Server(TestServer):
    """A test server that has the api's own runner, which no argument of a fixture can name."""

    def __init__(self, parts: Parts, settings: ApiSettings) -> None:
        super().__init__(parts.app)
        self._door = parts.door
        self._keepalive_timeout_s = settings.keepalive_timeout

    async def _make_runner(self, **_options: object) -> Runner:
        keepalive_timeout_s = self._keepalive_timeout_s
        return Runner(
            self.app, self._door, keepalive_timeout_s=keepalive_timeout_s, shutdown_timeout_s=1, lingering_s=0.2
        )


Serve = Callable[..., Awaitable[Api]]
"""The fixture `serve`: `start_api` with the fixture's own client."""


async def start_api(
    client: AiohttpClient, database_url: str, *, traced_by: Tracing | None = None, **known: object
) -> Api:
    """Serve on a free port until the fixture `client` ends; without limits unless `known` sets some."""
    given = {
        "database_url": database_url, "jwt_secret": SECRET,
        "limit_ip": None, "limit_read": None, "limit_retry": None, "limit_bulk": None, **known,
    }  # fmt: skip
    registry = CollectorRegistry()
    settings = read(ApiSettings, **given)
    parts = create_app(settings, registry, traced_by)
    connector, timeout = TCPConnector(limit=200), ClientTimeout(total=20)
    return Api(parts, registry, await client(_Server(parts, settings), connector=connector, timeout=timeout))
