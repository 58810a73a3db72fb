"""A TCP proxy to put between a program and a server, for faults of the network that neither of them causes.

Only one fault of a kind is on at a time: each of `stall`, `black_hole` and `refuse` replaces the one before, and `heal`
ends it. `reset` is over at once.
"""

import asyncio
import socket
import struct
from contextlib import suppress
from enum import StrEnum
from functools import partial
from typing import Self
from urllib.parse import urlsplit

_CHUNK_BYTES = 64 * 1024


class _Fault(StrEnum):
    NONE = "none"
    STALL = "stall"
    BLACK_HOLE = "black hole"
    REFUSE = "refuse"


class Proxy:
    """Passes bytes between its own port on 127.0.0.1 and a server's; `async with Proxy(host, port) as proxy`."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._fault = _Fault.NONE
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._listener: socket.socket | None = None
        self._serving: asyncio.Task[None] | None = None
        self._links: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._damaged: set[asyncio.Task[None]] = set()
        self.port = 0
        self.connections_total = 0
        self.bytes_to_server = 0
        self.bytes_to_client = 0

    @classmethod
    def to(cls, url: str) -> "Proxy":
        """Return a proxy to the server that a URL names; see `url_of`."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        return cls(parts.hostname, parts.port)

    def url_of(self, url: str) -> str:
        """Return the same URL, by way of this proxy."""
        parts = urlsplit(url)
        login, at, _ = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{login}{at}127.0.0.1:{self.port}").geturl()

    def lead_to(self, url: str) -> None:
        """Lead new connections to another server; those that are open stay where they are."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._upstream = (parts.hostname, parts.port)

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._links)

    async def __aenter__(self) -> Self:
        self._listen(socket.socket())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop_serving()
        await self.reset()

    def _listen(self, listener: socket.socket) -> None:
        listener.settimeout(0)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(1024)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._serving = asyncio.create_task(self._serve(listener))

    async def _stop_serving(self) -> None:
        if self._serving:
            self._serving.cancel()
            await asyncio.wait([self._serving])
            self._serving = None
        if self._listener:
            self._listener.close()
            self._listener = None

    async def _serve(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listener)
            self.connections_total += 1
            link = asyncio.create_task(self._link(client))
            self._links[link] = []
            link.add_done_callback(partial(self._forget, client))

    def _forget(self, client: socket.socket, link: "asyncio.Task[None]") -> None:
        if not self._links.pop(link):
            client.close()  # cancelled before any call had taken it
        self._damaged.discard(link)

    async def _link(self, client: socket.socket) -> None:
        """Carry one connection until either side ends it or a fault does."""
        link = asyncio.current_task()
        assert link is not None
        reader, writer = await asyncio.open_connection(sock=client)
        writers = self._links[link]
        writers.append(writer)
        try:
            if self._fault is _Fault.BLACK_HOLE:
                self._damaged.add(link)
                await self._swallow(reader)
                return
            await self._flowing.wait()
            server_reader, server_writer = await asyncio.open_connection(*self._upstream)
            writers.append(server_writer)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(link, reader, server_writer, to_server=True))
                both.create_task(self._pump(link, server_reader, writer, to_server=False))
            for each in writers:
                each.close()
                await each.wait_closed()  # aborted right away, it would lose what the kernel has not taken yet
        except* OSError:
            pass  # one side is gone, and with it the connection
        finally:
            for each in writers:
                each.transport.abort()

    async def _pump(
        self, link: "asyncio.Task[None]", source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, to_server: bool
    ) -> None:
        while chunk := await source.read(_CHUNK_BYTES):
            await self._flowing.wait()
            if self._fault is _Fault.BLACK_HOLE:
                self._damaged.add(link)  # what follows would not fit what went before
                continue
            if link in self._damaged:
                break
            if to_server:
                self.bytes_to_server += len(chunk)
            else:
                self.bytes_to_client += len(chunk)
            sink.write(chunk)
            await sink.drain()
        await self._flowing.wait()
        if self._fault is _Fault.BLACK_HOLE:
            self._damaged.add(link)
        else:
            with suppress(OSError):
                sink.write_eof()

    async def _swallow(self, reader: asyncio.StreamReader) -> None:
        while await reader.read(_CHUNK_BYTES):
            pass

    async def _replace(self, fault: _Fault) -> None:
        was, self._fault = self._fault, fault
        if fault is _Fault.STALL:
            self._flowing.clear()
        else:
            self._flowing.set()
        if fault is _Fault.REFUSE:
            await self._stop_serving()
        elif was is _Fault.REFUSE:
            self._listen(socket.socket())

    async def stall(self) -> None:
        """Pass nothing on until healed: buffers fill, nothing is lost."""
        await self._replace(_Fault.STALL)

    async def black_hole(self) -> None:
        """Take every byte and connection and answer nothing. Connections that lost bytes are reset when healed."""
        await self._replace(_Fault.BLACK_HOLE)

    async def refuse(self) -> None:
        """Refuse new connections, as a server that is down; those that are open stay open."""
        await self._replace(_Fault.REFUSE)

    async def heal(self) -> None:
        """End the fault."""
        await self._replace(_Fault.NONE)
        await self._reset(list(self._damaged))

    async def reset(self) -> int:
        """Reset every open connection, on both sides; return how many there were."""
        links = list(self._links)
        await self._reset(links)
        return len(links)

    async def _reset(self, links: "list[asyncio.Task[None]]") -> None:
        for link in links:
            for writer in self._links.get(link, []):
                sock = writer.get_extra_info("socket")
                with suppress(OSError):  # closed already
                    # Closing with a linger time of zero is what makes the kernel send RST instead of FIN.
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            link.cancel()
        if links:
            await asyncio.wait(links)
