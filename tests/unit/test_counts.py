import asyncio
from datetime import datetime

import pytest
import structlog

from api.counts import Counts
from shared.errors import DatabaseUnavailable


async def test_a_count_that_fails_after_its_callers_have_left_is_not_kept() -> None:
    counts, fail, answers = Counts(every_s=60), asyncio.Event(), iter((False, True))

    async def count(_as_of: datetime) -> bytes:
        if next(answers):
            return b"counted"
        await fail.wait()
        raise DatabaseUnavailable

    caller = asyncio.create_task(counts.get("key", count))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    failing = counts._kept["key"][1]
    fail.set()
    await asyncio.wait([failing])

    assert await counts.get("key", count) == b"counted"


async def test_a_count_has_no_trace_of_the_call_that_began_it() -> None:
    async def count(_as_of: datetime) -> bytes:
        return str(structlog.contextvars.get_contextvars()).encode()

    with structlog.contextvars.bound_contextvars(trace_id="first"):
        assert await Counts(every_s=60).get("key", count) == b"{}"


async def test_each_caller_of_a_count_that_fails_gets_an_error_of_its_own() -> None:
    counts = Counts(every_s=60)

    async def count(_as_of: datetime) -> bytes:
        raise DatabaseUnavailable("too slow")

    errors = await asyncio.gather(*(counts.get("key", count) for _ in range(3)), return_exceptions=True)

    assert [str(error) for error in errors] == ["too slow"] * 3
    assert len({id(error) for error in errors}) == 3
