"""Reading one resource, with `If-None-Match`, and with `Prefer: wait=N` (RFC 7240), the long-poll.

1. The value is read. A client that does not wait is answered at once.
2. A client that waits is answered when the value is news to it: another one than it names, or, where it names none, a
   value that is done. Else it is answered after N seconds, or when its token is no longer accepted or the api stops.
3. The answer is 304 where the client has the value already, else 200.

One Reader serves jobs, retries and batches: they differ in how they are read and in their view, and in nothing else.
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
    from api.watch import Watch

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
    """Something that is done at some time."""

    @property
    def done(self) -> bool: ...  # noqa: D102 - the class says it


K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Settleable)
V_contra = TypeVar("V_contra", contravariant=True)


class View(Protocol[V_contra]):
    """How a resource is shown. Two values have the same tag exactly when they have the same body."""

    def etag(self, value: V_contra, /) -> str:
        """The entity tag."""
        ...

    def retry_after(self, value: V_contra, now: datetime, /) -> int | None:
        """In how many seconds to look again; None when the value is done."""
        ...

    def body(self, value: V_contra, /) -> bytes:
        """The JSON."""
        ...


def wait_of(prefer: str | None) -> int | None:
    """The seconds of `wait=N`, 0 to 60; None where it is missing or cannot be met, which is no error (RFC 7240, 2).

    Where a preference comes more than once, the first counts. The list ends where it cannot be read.
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
    """Whether the client asks for a long-poll."""
    return wait_of(field_of(call.request.headers, _PREFER)) is not None


class _Rendered(Generic[V]):
    """A value as it was just read, ready to be sent. `body` stays None until it is needed: most clients have it."""

    __slots__ = ("body", "etag", "headers", "value")

    def __init__(self, value: V, etag: str, headers: Mapping[str, str]) -> None:
        self.value = value
        self.body: bytes | None = None
        self.etag = etag
        self.headers = headers


class Reader(Generic[K, V]):
    """Answers a GET of one resource.

    `get` reads the value, or raises. It may read a light one, which is cheap to keep while a client waits: `rest_of`
    then reads the whole value, which is rendered within the block; it returns None for a value that is whole already.
    `max_wait_s` bounds what a client may wait.
    """

    def __init__(
        self,
        *,
        get: Callable[[K], Awaitable[V]],
        watch: "Watch[K, V]",
        view: View[V],
        max_wait_s: int,
        rest_of: Callable[[K, V], AbstractAsyncContextManager[V] | None] | None = None,
    ) -> None:
        self._get = get
        self._watch = watch
        self._view = view
        self._rest_of = rest_of
        self._max_wait_s = max_wait_s
        self._last: _Rendered[V] | None = None

    async def answer(self, call: "Call", key: K) -> Answer:
        """200, or 304 where the client has the value already; later, where it asks for a long-poll.

        The rest of a value is not read for a client that has the value. Raises what `get` raises.
        """
        asked = call.request.headers
        known = condition_of(asked)
        wait_s = wait_of(field_of(asked, _PREFER))
        if wait_s is None:
            value, waited_s = await self._get(key), None
        else:
            value, waited_s = await self._read_patiently(call, key, known, min(wait_s, self._max_wait_s))
        rendered = self._render(value)
        # After a wait, it may have been rendered a minute ago: Retry-After is to be computed now.
        headers = rendered.headers if waited_s is None else self._headers_of(value, rendered.etag, waited_s)
        if matches(known, rendered.etag):
            return Answer(None, status=304, headers=headers)
        if self._rest_of is not None and (rest := self._rest_of(key, value)) is not None:
            async with rest as whole:  # not remembered: it may be large
                return self._answer_with_whole(whole, known, waited_s)
        if rendered.body is None:
            rendered.body = self._view.body(value)
        return Answer(rendered.body, headers=headers)

    async def _read_patiently(self, call: "Call", key: K, known: str | None, wait_s: int) -> tuple[V, int | None]:
        """The value once it is news to the client or `wait_s` is over, and the wait that it was granted."""
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        value = await self._get(key)
        if self._watch.full:  # too many waiters: ignore Prefer, and send no Preference-Applied
            return value, None
        read_s = loop.time() - began_at
        # No longer than the token is accepted, in whole seconds, as the answer says.
        wait_s = min(wait_s, max(0, int(call.principal.accepted_until - time.time())))
        return await self._wait_for_news(call, key, value, known, wait_s, read_s=read_s), wait_s

    async def _wait_for_news(
        self, call: "Call", key: K, value: V, known: str | None, wait_s: int, *, read_s: float
    ) -> V:
        """The value once it is news to the client, else the one after `wait_s`.

        `read_s` is how long reading it took: reading and reading again share one deadline, which the wait does not
        count against. Raises DatabaseUnavailable.
        """

        def is_news(value: V) -> bool:
            return value.done if known is None else not matches(known, self._render(value).etag)

        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        if is_news(value) or self._watch.closed or loop.time() >= until:
            return value
        request = call.request
        with self._watch.place():  # there is one: nothing was awaited since `full` was false
            seen = await self._watch.wait_for_change(
                key, value, until=until, enough=is_news, alive=lambda: request.transport is not None
            )
        if seen is None or seen is value:  # gone, or changed since the last look
            async with in_time(spent_s=read_s):
                return await self._get(key)
        return seen

    def _answer_with_whole(self, whole: V, known: str | None, waited_s: int | None) -> Answer:
        """The answer with the rest of a value. The client may have that: it may have changed since its first look."""
        etag = self._view.etag(whole)
        headers = self._headers_of(whole, etag, waited_s)
        if matches(known, etag):
            return Answer(None, status=304, headers=headers)
        return Answer(self._view.body(whole), headers=headers)

    def _render(self, value: V) -> "_Rendered[V]":
        """The value rendered, once for all clients that are answered from one look.

        They are answered one after the other, so it is enough to remember the last one.
        """
        rendered = self._last
        if rendered is None or rendered.value is not value:
            etag = self._view.etag(value)
            rendered = self._last = _Rendered(value, etag, self._headers_of(value, etag))
        return rendered

    def _headers_of(self, value: V, etag: str, waited_s: int | None = None) -> dict[str, str]:
        headers: dict[str, str] = {hdrs.ETAG: etag}
        if (retry_after_s := self._view.retry_after(value, datetime.now(UTC))) is not None:
            headers[hdrs.RETRY_AFTER] = str(retry_after_s)
        if waited_s is not None:
            headers["Preference-Applied"] = f"wait={waited_s}"
        return headers
