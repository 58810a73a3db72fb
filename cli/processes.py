"""Several api processes on one port: started, replaced when they die, and stopped together.

The kernel shares the connections out (SO_REUSEPORT). Each process is `redrive api` again, with its ops port on a Unix
socket of its own; the ops port that the platform sees is served here, and speaks for all of them.

A process ends when its standard input does, so none is left behind, whatever ends this one.
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
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

from shared.ops import Readiness, Status, serve_ops

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Iterable

    from shared.settings import ApiSettings

log = structlog.stdlib.get_logger(__name__)

LONGEST_PAUSE_S: Final = 5.0
HEALTHY_S: Final = 10.0
"""A process that lived so long was well: if it dies, the next follows at once."""
ASK_S: Final = 2.5


class _Child:
    """One api process, and the next one when it dies."""

    def __init__(self, number: int, folder: Path, grace_s: float) -> None:
        self.number = number
        self._socket = folder / f"{number}.sock"
        self._grace_s = grace_s

    async def keep(self, stop: asyncio.Event) -> None:
        """Keep a process going until `stop` is set; then end it, and return."""
        pause_s = 0.0
        while not stop.is_set():
            loop = asyncio.get_running_loop()
            began_at = loop.time()
            process = await self._started()
            died = asyncio.create_task(process.wait())
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait([died, stopped], return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if stop.is_set():
                await self._ended(process)
                return
            log.warning("api process died", process=self.number, status=process.returncode)
            pause_s = 0.0 if loop.time() - began_at >= HEALTHY_S else min(LONGEST_PAUSE_S, 2 * pause_s + 0.2)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s * random.uniform(0.5, 1.0)):  # noqa: S311 - spreading, not secrecy
                    await stop.wait()

    async def _started(self) -> "Process":
        self._socket.unlink(missing_ok=True)
        return await asyncio.create_subprocess_exec(
            # -P: the current folder may hold a redrive.py of its own, and -m would look there first.
            sys.executable, "-P", "-m", "redrive", "api", "--one-of-several", str(self._socket),
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is for us; what we make of it reaches the others
        )  # fmt: skip

    async def _ended(self, process: "Process") -> None:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.terminate()
        try:
            async with asyncio.timeout(self._grace_s + 2):
                await process.wait()
        except TimeoutError:
            log.warning("api process killed", process=self.number)
            process.kill()
            await process.wait()

    async def ask(self, path: str) -> bytes | None:
        """What its ops port answers; None while it does not."""
        timeout = aiohttp.ClientTimeout(total=ASK_S)
        connector = aiohttp.UnixConnector(str(self._socket))
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.get(f"http://api{path}") as response,
            ):
                return await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None


async def run_processes(settings: "ApiSettings", count: int, *, stop: asyncio.Event) -> None:
    """Run `count` api processes until `stop` is set, and return once all have ended.

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
                    tasks.create_task(child.keep(stop))


async def until_orphaned(stop: asyncio.Event) -> None:
    """Set `stop` once standard input ends: whoever started this process is gone."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.read(1024):
        pass
    stop.set()


async def _readiness(children: Sequence[_Child], stop: asyncio.Event) -> Readiness:
    """As ready as the readiest process: one that is being replaced is no reason to send nobody."""
    answers = [
        msgspec.json.decode(answer, type=Readiness)
        for answer in await asyncio.gather(*(child.ask("/readyz") for child in children))
        if answer is not None
    ]
    if stop.is_set() or not answers:
        return Readiness(Status.UNAVAILABLE, {"process": Status.UNAVAILABLE})
    return min(answers, key=lambda answer: list(Status).index(answer.status))


async def _metrics(children: Sequence[_Child]) -> bytes:
    """All processes' metrics, told apart by the label `process`."""
    answers = await asyncio.gather(*(child.ask("/metrics") for child in children))
    texts = [(child.number, answer) for child, answer in zip(children, answers, strict=True) if answer is not None]
    registry = CollectorRegistry()
    registry.register(_Merged(texts))
    return generate_latest(registry)


class _Merged(Collector):
    def __init__(self, texts: "Sequence[tuple[int, bytes]]") -> None:
        self._texts = texts

    def collect(self) -> "Iterable[Metric]":
        """One family for each name, with the samples of all processes."""
        families: dict[str, Metric] = {}
        for number, text in self._texts:
            for family in text_string_to_metric_families(text.decode()):
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                merged.samples += [
                    sample._replace(labels={**sample.labels, "process": str(number)}) for sample in family.samples
                ]
        return families.values()
