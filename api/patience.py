"""Reading one resource, conditionally (`If-None-Match`) and patiently (`Prefer: wait=N`, RFC 7240).

One Reader for jobs, retries and batches: they differ in how they are read, tagged and rendered, and in nothing else.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from aiohttp import hdrs
from multidict import istr

from api.answers import Answer
from api.conditional import condition_of, field_of, matches
from shared.database import in_time

if TYPE_CHECKING:
    from api.door import Call
    from api.watch import StatusWatch

LONGEST_S: Final = 60
_PREFER: Final = istr("Prefer")
_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"  # noqa: S105 - RFC 9110's word for a word
_VALUE: Final = rf'(?:{_TOKEN}|"(?:[^"\\]|\\.)*+")'
_BLANK: Final = r"[ \t]*+"
_PREFERENCE: Final = re.compile(
    rf"[ \t,]*+({_TOKEN}){_BLANK}(?:={_BLANK}({_VALUE})?{_BLANK})?"
    rf"(?:;{_BLANK}(?:{_TOKEN}{_BLANK}(?:={_BLANK}{_VALUE}?{_BLANK})?)?)*+(?:,|\Z)"
)
"""One preference of a list, with its parameters (RFC 7240, 2): the name, and the value where there is one."""
_SECONDS: Final = re.compile(r'("?)0*(\d{1,2})\1', re.ASCII)


class Settleable(Protocol):
    """Something that is done one day."""

    @property
    def done(self) -> bool: ...  # noqa: D102 - the class says it


K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Settleable)


def wait_of(prefer: str | None) -> int | None:
    """The seconds of `wait=N`, 0 to 60; None where there is none that we take, which is no error (RFC 7240, 2).

    Where a preference is named more than once, the first counts. What cannot be read ends the list.
    """
    if prefer is None:
        return None
    at = 0
    while (preference := _PREFERENCE.match(prefer, at)) is not None:
        if preference[1].lower() == "wait":
            seconds = _SECONDS.fullmatch(preference[2] or "")
            return int(seconds[2]) if seconds is not None and int(seconds[2]) <= LONGEST_S else None
        at = preference.end()
    return None


def prefers_to_wait(call: "Call") -> bool:
    """Whether the client prefers to be answered later, with news."""
    return wait_of(field_of(call.request.headers, _PREFER)) is not None


class _Rendered(Generic[V]):
    """A value as it was just read, ready to be sent. `body` is None until somebody wants it: most have it already."""

    __slots__ = ("body", "etag", "headers", "value")

    def __init__(self, value: V, etag: str, headers: Mapping[str, str]) -> None:
        self.value = value
        self.body: bytes | None = None
        self.etag = etag
        self.headers = headers


class Reader(Generic[K, V]):
    """Answers a GET of one resource.

    `get` reads it, and raises where there is none; `etag_of` tells two states of it apart; `retry_after_of` says when
    to come back, given the time; `encoded` renders it. What `get` reads may be light, for holding: `rest_of` then reads
    the whole of it, which is rendered within the block; it answers None for what is whole. `max_wait_s` is how long an
    answer is held at the most.
    """

    def __init__(
        self,
        *,
        get: Callable[[K], Awaitable[V]],
        watch: "StatusWatch[K, V]",
        etag_of: Callable[[V], str],
        retry_after_of: Callable[[V, datetime], int | None],
        encoded: Callable[[V], bytes],
        max_wait_s: int,
        rest_of: Callable[[K, V], AbstractAsyncContextManager[V] | None] | None = None,
    ) -> None:
        self._get = get
        self._watch = watch
        self._etag_of = etag_of
        self._retry_after_of = retry_after_of
        self._encoded = encoded
        self._rest_of = rest_of
        self._max_wait_s = max_wait_s
        self._rendered: _Rendered[V] | None = None

    async def answer(self, call: "Call", key: K) -> Answer:
        """200, or 304 where the client has it already; held for a change where the client prefers so.

        What is held is light, and what the client has already is not read further.
        """
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        value = await self._get(key)
        read_s = loop.time() - began_at
        headers = call.request.headers
        known = condition_of(headers)
        wait_s = wait_of(field_of(headers, _PREFER))
        if wait_s is None or self._watch.full:  # a wish that cannot be granted; nobody is told that it was
            wait_s = None
            rendered = self._rendered_once(value)
            fields = rendered.headers
        else:
            wait_s = min(wait_s, self._max_wait_s)
            value = await self._held(call, key, value, known, wait_s, read_s=read_s)
            rendered = self._rendered_once(value)
            # It may have been read, and rendered, a minute ago: when to come back is to be thought over.
            fields = {**self._headers_of(value, rendered.etag), "Preference-Applied": f"wait={wait_s}"}
        if matches(known, rendered.etag):
            return Answer(None, status=304, headers=fields)
        if self._rest_of is not None and (rest := self._rest_of(key, value)) is not None:
            return await self._whole_answer(rest, known, wait_s)
        if rendered.body is None:
            rendered.body = self._encoded(value)
        return Answer(rendered.body, headers=fields)

    async def _whole_answer(
        self, rest: AbstractAsyncContextManager[V], known: str | None, wait_s: int | None
    ) -> Answer:
        """The answer with all of the value, as it is once it is read anew. Not remembered: it may be large."""
        async with rest as whole:
            etag = self._etag_of(whole)
            fields = self._headers_of(whole, etag)
            if wait_s is not None:
                fields["Preference-Applied"] = f"wait={wait_s}"
            if matches(known, etag):
                return Answer(None, status=304, headers=fields)
            return Answer(self._encoded(whole), headers=fields)

    def _rendered_once(self, value: V) -> "_Rendered[V]":
        """The value rendered: once for all who are answered from one look.

        They come one after the other, so remembering one is enough.
        """
        rendered = self._rendered
        if rendered is None or rendered.value is not value:
            etag = self._etag_of(value)
            rendered = self._rendered = _Rendered(value, etag, self._headers_of(value, etag))
        return rendered

    def _headers_of(self, value: V, etag: str) -> dict[str, str]:
        headers: dict[str, str] = {hdrs.ETAG: etag}
        if (retry_after_s := self._retry_after_of(value, datetime.now(UTC))) is not None:
            headers[hdrs.RETRY_AFTER] = str(retry_after_s)
        return headers

    async def _held(self, call: "Call", key: K, value: V, known: str | None, wait_s: int, *, read_s: float) -> V:
        """The value once it is news to the client, or done where the client has named none; else after `wait_s`.

        `read_s` is what reading it has taken. Raises DatabaseUnavailable, in time but for what it was held.
        """

        def enough(value: V) -> bool:
            return value.done if known is None else not matches(known, self._rendered_once(value).etag)

        loop = asyncio.get_running_loop()
        until = loop.time() + min(wait_s, call.principal.expires_at - time.time())
        if enough(value) or self._watch.closed or loop.time() >= until:
            return value  # as good as what could be read now
        request = call.request
        with self._watch.place():  # there is one: nobody has had a turn since it was looked for
            held = await self._watch.hold(
                key, value, until=until, enough=enough, alive=lambda: request.transport is not None
            )
        if held is None or held is value:  # gone, or perhaps changed just now
            async with in_time(spent_s=read_s):
                return await self._get(key)
        return held
