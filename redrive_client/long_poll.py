"""Long polling: the server answers when there is news, or after a while; then the client asks again.

    GET …  Prefer: wait=55                                      answered when done
    GET …  Prefer: wait=55  If-None-Match: "5f0c2d9e71b841a7"   answered when it changes

A server that does not wait (too many clients wait already, or it is about to stop) is asked again after `Retry-After`.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Final

from aiohttp import hdrs

from redrive_client import transport
from redrive_client.problems import WaitTimeout
from redrive_client.resources import Resource, S, given
from redrive_client.transport import FOREVER, Backoff, Request, Transport, retry_after_s

LONGEST_WAIT_S: Final = 55
"""The longest that the server waits, unless it was set to less: below the 60 s of proxies."""
_APPLIED: Final = re.compile(r"wait=(\d{1,3})", re.ASCII)
_MARGIN_S: Final = 0.25
_EARLY: Final = 0.9
_NO_HINT_S: Final = 1.0


async def wait_until_done(connection: Transport, resource: Resource[S], *, timeout_s: float) -> S:
    """The resource once it is done. Raises WaitTimeout, with what was seen last."""
    async for value in changes(connection, resource, timeout_s=timeout_s, each=False):
        if value.done:
            return value
    raise AssertionError("it ends with what is done")


async def changes(connection: Transport, resource: Resource[S], *, timeout_s: float, each: bool) -> AsyncIterator[S]:
    """Yield what is seen until it is done: with `each`, what is there now and every change, else only news of the end.

    A server that cannot be reached meanwhile is tried again until the time is up. Raises WaitTimeout.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    seen: S | None = None
    etag: str | None = None
    while True:
        asked_at = loop.time()
        wait_s = 0 if each and seen is None else _wait_s(deadline - asked_at)
        headers = given({"Prefer": f"wait={wait_s}" if wait_s else None, hdrs.IF_NONE_MATCH: etag})
        request = Request("GET", resource.path, resource.query, headers=headers, answer_s=wait_s + transport.ANSWER_S)
        try:
            async with asyncio.timeout_at(deadline):
                answer = await connection.answer(request, deadline=FOREVER, tries=FOREVER)
        except TimeoutError as error:
            raise WaitTimeout(seen) from error
        is_news = answer.status != HTTPStatus.NOT_MODIFIED
        if is_news:
            seen = resource.read(answer)
            yield seen
            if seen.done:
                return
        applied_s = _applied_s(answer.headers.get("Preference-Applied", ""))
        has_waited = bool(applied_s and loop.time() - asked_at >= min(wait_s, applied_s) * _EARLY)
        if not has_waited and wait_s and not (is_news and etag is not None):
            try:
                async with asyncio.timeout_at(deadline):
                    await transport.sleep(Backoff().pause_s(retry_after_s(answer.headers) or _NO_HINT_S))
            except TimeoutError as error:
                raise WaitTimeout(seen) from error
        etag = answer.headers.get(hdrs.ETAG)


def _applied_s(applied: str) -> int | None:
    """The seconds that the server says it waits: it may have been set to less than was asked for."""
    found = _APPLIED.fullmatch(applied)
    return None if found is None else int(found[1])


def _wait_s(remaining_s: float) -> int:
    """What to ask the server for: a little less than what is left, so that its answer still arrives."""
    return min(LONGEST_WAIT_S, max(1, int(remaining_s - _MARGIN_S)))
