"""Several api processes on one port: starts them, replaces one that dies, and stops them together.

The kernel distributes the connections (SO_REUSEPORT). Each process is `redrive api` again, with its ops port on a Unix
socket of its own. This process serves the ops port that the platform sees: it asks the others and merges their answers.

A process ends when its standard input ends. So none is left behind, also when this one is killed.
"""

import asyncio
import random
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import aiohttp
import msgspec
import structlog
from aiohttp import hdrs
from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

from shared.ops import Readiness, Status, serve_ops

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Iterable

    from shared.settings import ApiSettings

log = structlog.stdlib.get_logger(__name__)

LONGEST_PAUSE_S: Final = 5.0
HEALTHY_S: Final = 10.0
"""A process that lived so long was healthy: if it dies, the next one starts at once."""
ASK_S: Final = 2.5
KILL_AT: Final = 0.97
END_AT: Final = 0.99
"""Shares of the grace: after them a process that still runs is killed, and this one ends. Each ends by itself before
(SHARE_OF_GRACE), unless it hangs."""


class _Child:
    """One api process, and the next one when it dies."""

    def __init__(self, number: int, folder: Path, grace_s: float) -> None:
        self.number = number
        self._socket = folder / f"{number}.sock"
        self._grace_s = grace_s

    async def supervise(self, stop: asyncio.Event) -> None:
        """Run a process, and a new one after each that dies, until `stop` is set; then end it, and return."""
        pause_s = 0.0
        while not stop.is_set():
            loop = asyncio.get_running_loop()
            began_at = loop.time()
            process = await self._start()
            died = asyncio.create_task(process.wait())
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait([died, stopped], return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if stop.is_set():
                await self._terminate(process)
                return
            log.warning("api process died", process=self.number, status=process.returncode)
            pause_s = 0.0 if loop.time() - began_at >= HEALTHY_S else min(LONGEST_PAUSE_S, 2 * pause_s + 0.2)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s * random.uniform(0.5, 1.0)):  # noqa: S311 - spreading, not secrecy
                    await stop.wait()

    async def _start(self) -> "Process":
        self._socket.unlink(missing_ok=True)
        return await asyncio.create_subprocess_exec(
            # -P: the current folder may hold a redrive.py of its own, and -m would look there first.
            sys.executable, "-P", "-m", "redrive", "api", "--one-of-several", str(self._socket),
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for this process, which then ends the others in order
        )  # fmt: skip

    async def _terminate(self, process: "Process") -> None:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.terminate()
        try:
            async with asyncio.timeout(self._grace_s * KILL_AT):
                await process.wait()
        except TimeoutError:
            log.warning("api process killed", process=self.number)
            process.kill()
            await process.wait()

    async def ask(self, path: str, *, accept: str = "*/*") -> bytes | None:
        """What its ops port answers; None where it does not answer."""
        timeout = aiohttp.ClientTimeout(total=ASK_S)
        connector = aiohttp.UnixConnector(str(self._socket))
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.get(f"http://api{path}", headers={hdrs.ACCEPT: accept}) as response,
            ):
                return await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None


async def run_processes(settings: "ApiSettings", count: int, *, stop: asyncio.Event) -> None:
    """Run `count` api processes until `stop` is set, and return once all have ended, within KILL_AT of the grace.

    Raises OSError when the ops port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="redrive-") as folder:
        children = [_Child(number, Path(folder), settings.shutdown_grace) for number in range(count)]
        async with serve_ops(
            host=settings.host,
            port=settings.ops_port,
            ready=lambda: _readiness(children, stop),
            metrics=lambda: _metrics(children),
        ):
            log.info("api processes starting", processes=count, host=settings.host, port=settings.port)
            async with asyncio.TaskGroup() as tasks:
                for child in children:
                    tasks.create_task(child.supervise(stop))


async def until_orphaned(stop: asyncio.Event) -> None:
    """Set `stop` once standard input ends: the process that started this one is gone."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.read(1024):
        pass
    stop.set()


async def _readiness(children: Sequence[_Child], stop: asyncio.Event) -> Readiness:
    """The readiness of the readiest process: while one is being replaced, the others still answer."""
    answers = [
        msgspec.json.decode(answer, type=Readiness)
        for answer in await asyncio.gather(*(child.ask("/readyz") for child in children))
        if answer is not None
    ]
    if stop.is_set() or not answers:
        return Readiness(Status.UNAVAILABLE, {"process": Status.UNAVAILABLE})
    return min(answers, key=lambda answer: list(Status).index(answer.status))


async def _metrics(children: Sequence[_Child]) -> CollectorRegistry:
    """All processes' metrics, with the label `process` added. Asked for in OpenMetrics, as it has exemplars."""
    answers = await asyncio.gather(*(child.ask("/metrics", accept=CONTENT_TYPE_LATEST) for child in children))
    texts = [(child.number, answer) for child, answer in zip(children, answers, strict=True) if answer is not None]
    registry = CollectorRegistry()
    registry.register(_Merged(texts))
    return registry


class _Merged(Collector):
    def __init__(self, texts: "Sequence[tuple[int, bytes]]") -> None:
        self._texts = texts

    def collect(self) -> "Iterable[Metric]":
        """One family for each name, with the samples of all processes."""
        families: dict[str, Metric] = {}
        for number, text in self._texts:
            for family in text_string_to_metric_families(text.decode()):  # type: ignore[no-untyped-call]
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                merged.samples += [
                    sample._replace(labels={**sample.labels, "process": str(number)}) for sample in family.samples
                ]
        return families.values()
