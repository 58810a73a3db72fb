"""HTTP proxies that send the requests of all their clients along the same few connections.

What a server keeps of one request and takes for a part of the next then comes from another client. HAProxy does so with
`http-reuse always`; where it is not installed, a proxy of our own does the same, along one connection.
"""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from tests.eventually import eventually
from tests.servers.processes import free_port

_HAPROXY: Final = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin")
_CONFIGURATION: Final = """\
global
  maxconn 1000
defaults
  mode http
  http-reuse always
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend clients
  bind 127.0.0.1:{port}
  default_backend servers
backend servers
  server one 127.0.0.1:{upstream}
"""
_HEAD_BYTES: Final = 64 * 1024

Reusing = Callable[[int], AbstractAsyncContextManager[int]]
"""Starts a proxy to a port of 127.0.0.1; gives the proxy's own port."""


async def answers_over(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *pieces: bytes) -> list[bytes]:
    """What is answered to all pieces until the server ends the connection, one answer each."""
    answers: list[bytes] = []
    try:
        async with asyncio.timeout(10):
            with suppress(ConnectionError):  # the server may have ended it
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
            while not reader.at_eof():
                try:
                    answers.append(await message_of(reader))
                except (asyncio.IncompleteReadError, ConnectionError):
                    break
    finally:
        writer.close()
    return answers


async def message_of(reader: asyncio.StreamReader, *, bodiless: bool = False) -> bytes:
    """One HTTP message as it came, trailer fields included; `bodiless` is an answer to HEAD. Raises as `readuntil`."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    status = lines[0].split(b" ")[1] if lines[0].startswith(b"http/") else b""
    if bodiless or status in {b"100", b"204", b"304"}:
        return head
    fields = dict(line.split(b":", 1) for line in lines[1:] if b":" in line)
    if b"transfer-encoding" not in fields:
        return head + await reader.readexactly(int(fields.get(b"content-length", b"0")))
    chunks = [head]
    while True:
        chunks.append(size := await reader.readuntil(b"\r\n"))
        if length := int(size.split(b";")[0], 16):
            chunks.append(await reader.readexactly(length + 2))
            continue
        while (field := await reader.readuntil(b"\r\n")) != b"\r\n":
            chunks.append(field)
        return b"".join([*chunks, b"\r\n"])


class _Pool:
    """The one connection to the server; a new one once the server has said that it ends the old one."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._lock = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def exchange(self, request: bytes) -> bytes:
        async with self._lock:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=_HEAD_BYTES)
            reader, writer = self._streams
            writer.write(request)
            answer = await message_of(reader, bodiless=request.startswith(b"HEAD "))
            if b"\r\nconnection: close\r\n" in answer.partition(b"\r\n\r\n")[0].lower() + b"\r\n":
                self.close()
            return answer

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@asynccontextmanager
async def our_own(upstream: int) -> AsyncIterator[int]:
    """Pass whole requests on, one at a time, along one connection."""
    pool = _Pool(upstream)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                writer.write(await pool.exchange(await message_of(reader)))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=_HEAD_BYTES)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        pool.close()


@asynccontextmanager
async def haproxy(upstream: int) -> AsyncIterator[int]:
    """Run the HAProxy of this machine in front of the port."""
    assert _HAPROXY is not None
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        configuration = Path(folder) / "haproxy.cfg"
        configuration.write_text(_CONFIGURATION.format(port=port, upstream=upstream), "utf-8")
        process = await asyncio.create_subprocess_exec(_HAPROXY, "-db", "-q", "-f", str(configuration))

        async def answers() -> bool:
            assert process.returncode is None, "HAProxy did not start"
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return True
            return False

        try:
            await eventually(answers, within_s=10, every_s=0.05)
            yield port
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


REUSING: Final[Mapping[str, Reusing]] = {"our own": our_own, **({} if _HAPROXY is None else {"HAProxy": haproxy})}
"""Every such proxy that there is on this machine."""
