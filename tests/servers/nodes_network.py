"""The network between the nodes of a RabbitMQ cluster on this machine, which a test may cut, without any right.

    node a ── asks ──▶ its own port mapper: where is node b? ── at the link a→b ──▶ node b

Erlang nodes find each other by a port mapper (epmd). Here each node has one of its own, which names for every other
node the port of a proxy. It runs in a thread, and not in a test's event loop: a cluster outlives that.

The protocol of the port mapper: https://www.erlang.org/doc/apps/erts/erl_dist_protocol.html
"""

import asyncio
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar

from tests.servers.processes import free_port
from tests.servers.proxy import Proxy

T = TypeVar("T")

_REGISTER: Final = 120
_FIND: Final = 122
_LIST: Final = 110
_REGISTERED: Final = 121
_FOUND: Final = 119
_NODE: Final = struct.Struct(">HBBHH")
"""Port, kind of node, protocol, the highest and the lowest version of it; the name and extra bytes follow."""
_HIDDEN_OR_NOT: Final = 77
_VERSIONS: Final = (6, 5)


class NodesNetwork:
    """Port mappers and links for the nodes of one cluster; each node is told the port of its mapper."""

    def __init__(self) -> None:
        self._ports: dict[str, int] = {}  # of each node, by its name before the @
        self._mappers: dict[str, int] = {}
        self._running: set[str] = set()
        self._links: dict[tuple[str, str], Proxy] = {}
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None

    def add(self, name: str, port: int) -> int:
        """Add a node, which takes connections of other nodes at `port`; returns the port of its port mapper."""
        self._ports[name] = port
        self._mappers[name] = free_port()
        return self._mappers[name]

    async def start(self) -> None:
        """Listen at all ports. Nothing happens if they do."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop.run_forever, name="network of nodes", daemon=True)
            self._thread.start()
            await self._apart(self._listen())

    async def cut_off(self, name: str) -> None:
        """Let nothing pass between this node and the others: nothing is refused, nothing is answered, nothing lost."""
        await self._apart(self._cut(name))

    async def heal(self) -> None:
        """Let everything pass again, also what was sent meanwhile."""
        if self._thread is not None:
            await self._apart(self._heal())

    async def close(self) -> None:
        """End all links and mappers."""
        if self._thread is None:
            return
        await self._apart(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join)
        self._loop.close()
        self._thread = None

    async def _apart(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def _listen(self) -> None:
        for name, port in self._mappers.items():
            for other, its_port in self._ports.items():
                if other != name:
                    link = self._links[name, other] = Proxy("127.0.0.1", its_port)
                    await link.__aenter__()

            async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str = name) -> None:
                await self._map(name, reader, writer)

            self._servers.append(await asyncio.start_server(served, "127.0.0.1", port))

    async def _cut(self, name: str) -> None:
        for ends, link in self._links.items():
            if name in ends:
                await link.stall()

    async def _heal(self) -> None:
        for link in self._links.values():
            await link.heal()

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for link in self._links.values():
            await link.__aexit__()
        remaining = asyncio.all_tasks() - {asyncio.current_task()}
        for task in remaining:
            task.cancel()
        if remaining:
            await asyncio.wait(remaining)

    async def _map(self, asker: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection of the node `asker`, or of a command on it."""
        try:
            (length,) = struct.unpack(">H", await reader.readexactly(2))
            request = await reader.readexactly(length)
            match request[0]:
                case 120:
                    await self._register(request, reader, writer)
                case 122:
                    writer.write(self._place_of(asker, request[1:].decode()))
                case 110:
                    lines = [f"name {name} at port {self._seen_by(asker, name)}\n" for name in self._running]
                    writer.write(struct.pack(">I", self._mappers[asker]) + "".join(lines).encode())
                case _:
                    pass
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _register(self, request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Register a node, or a command, for as long as it stays connected."""
        (length,) = struct.unpack_from(">H", request, 9)
        name = request[11 : 11 + length].decode()
        writer.write(struct.pack(">BBH", _REGISTERED, 0, 1))
        await writer.drain()
        if name in self._ports:
            self._running.add(name)
        try:
            while await reader.read(1024):
                pass
        finally:
            self._running.discard(name)

    def _seen_by(self, asker: str, name: str) -> int:
        return self._ports[name] if name == asker else self._links[asker, name].port

    def _place_of(self, asker: str, name: str) -> bytes:
        if name not in self._running:
            return bytes([_FOUND, 1])
        place = _NODE.pack(self._seen_by(asker, name), _HIDDEN_OR_NOT, 0, *_VERSIONS)
        named = name.encode()
        return bytes([_FOUND, 0]) + place + struct.pack(">H", len(named)) + named + struct.pack(">H", 0)
