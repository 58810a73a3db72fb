"""Background services: what runs beside the answers, as long as the api does. The first that fails ends the program."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine

from aiohttp import web

Service = Callable[[asyncio.Event], Coroutine[None, None, None]]
"""Works until its event is set, and then returns soon (shared/backoff.py)."""


class Background:
    """Runs services, and notes the first failure; the program is to end with it, and to be started again."""

    def __init__(self) -> None:
        self.failed = asyncio.Event()
        self.failure: BaseException | None = None

    def context(self, service: Service, *, grace_s: float = 0.0) -> Callable[[web.Application], AsyncIterator[None]]:
        """A cleanup context: starts `service` with the application; stops it, and cancels it after `grace_s`."""

        async def running(_app: web.Application) -> AsyncIterator[None]:
            stop = asyncio.Event()
            task = asyncio.create_task(service(stop))
            task.add_done_callback(self._note)
            yield
            stop.set()
            await asyncio.wait([task], timeout=grace_s)
            task.cancel()
            await asyncio.wait([task])

        return running

    def _note(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (failure := task.exception()) is not None and self.failure is None:
            self.failure = failure
            self.failed.set()
