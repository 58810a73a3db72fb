import asyncio
from collections import Counter
from datetime import datetime

import pytest
import structlog

from api.counts import ENTRY_BYTES, MAX_KEPT_BYTES, Counts
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
    failing = counts._kept["key"].task
    fail.set()
    await asyncio.wait([failing])

    assert await counts.get("key", count) == b"counted"


async def test_however_many_are_asked_for_none_is_counted_anew_before_its_time() -> None:
    counts, counted = Counts(every_s=60), 0

    async def count(_as_of: datetime) -> bytes:
        nonlocal counted
        counted += 1
        return b"a count, of three hundred bytes".ljust(300)

    for _ in range(2):
        await asyncio.gather(*(counts.get(key, count) for key in range(5_000)))

    assert counted == 5_000


async def test_the_oldest_are_forgotten_where_all_together_are_too_large() -> None:
    counts, asked = Counts(every_s=60), Counter[int]()

    async def of(key: int) -> None:
        async def count(_as_of: datetime) -> bytes:
            asked[key] += 1
            return bytes(MAX_KEPT_BYTES // 4)

        await counts.get(key, count)

    for key in (1, 2, 3, 4, 3, 2, 1, 4):  # three of them fit
        await of(key)

    assert asked == {1: 2, 2: 1, 3: 1, 4: 1}
    assert counts._bytes == sum(kept.size for kept in counts._kept.values()) <= MAX_KEPT_BYTES
    assert len(counts._kept) == 3


async def test_what_is_too_old_is_forgotten_with_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, passed_s = asyncio.get_running_loop(), 0.0
    real_time = loop.time
    monkeypatch.setattr(loop, "time", lambda: real_time() + passed_s)
    counts = Counts(every_s=60)

    async def count(_as_of: datetime) -> bytes:
        return b"counted"

    await counts.get("old", count)
    passed_s = 61
    await counts.get("new", count)
    await asyncio.sleep(0)

    assert list(counts._kept) == ["new"]
    assert counts._bytes == ENTRY_BYTES + len(b"counted")


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
