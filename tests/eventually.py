"""Waiting for what happens elsewhere, by looking again and again until a deadline, instead of sleeping."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")


@overload
async def eventually(
    look: Callable[[], Awaitable[T | None]], *, within_s: float = ..., every_s: float = ..., what: str | None = ...
) -> T: ...


@overload
async def eventually(
    look: Callable[[], T | None], *, within_s: float = ..., every_s: float = ..., what: str | None = ...
) -> T: ...


async def eventually(
    look: Callable[[], object], *, within_s: float = 30, every_s: float = 0.02, what: str | None = None
) -> object:
    """Return the first true result of `look`, a function or a coroutine function.

    An AssertionError raised by `look` counts as "not yet", so it may assert rather than return. Anything else that it
    raises goes through. After `within_s` seconds: AssertionError, saying what was last seen. A look that hangs is
    cut off.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    seen: object = "nothing: the first look did not return"
    cause: AssertionError | None = None
    looks = 0
    try:
        async with asyncio.timeout_at(deadline):
            while True:
                looks += 1
                try:
                    result = look()
                    if inspect.isawaitable(result):
                        result = await result
                except AssertionError as error:
                    seen, cause = error, error
                else:
                    if result:
                        return result
                    seen, cause = result, None
                await asyncio.sleep(every_s)
    except TimeoutError:
        if loop.time() < deadline:
            raise  # the look's own timeout, not ours
    wanted = what or getattr(look, "__qualname__", repr(look))
    raise AssertionError(f"{wanted}: not within {within_s} s ({looks} looks); last seen: {seen!r}") from cause
