"""Long-polls: how often the database is read around a wait, and that all reads together are in time."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from api.auth import Principal
from api.door import Call
from api.long_poll import Reader, wait_of
from api.watch import Waiters, Watch
from shared.errors import DatabaseUnavailable
from shared.models import ProjectId
from shared.seen import Seen
from tests.lateness import lateness

IN_TIME_S = 3
WAIT_S = 20


class Pending(NamedTuple):
    """Something that nothing becomes of."""

    done: bool = False


class PendingView:
    """It always looks the same."""

    def etag(self, _value: Pending) -> str:
        return '"1"'

    def retry_after(self, _value: Pending, _now: datetime) -> int | None:
        return None

    def body(self, _value: Pending) -> bytes:
        return b"{}"


def watching(*, look: Callable[[], None] = lambda: None) -> Watch[str, Pending]:
    """A watch that never sees a change; `look` is called each time that it looks."""

    async def changed(_: Mapping[str, Seen[Pending]]) -> Sequence[str]:
        look()
        return ()

    async def load(_: Sequence[str]) -> Mapping[str, Pending]:
        raise AssertionError

    return Watch(changed=changed, load=load, interval_s=0, waiters=Waiters(1))


def reading(
    get: Callable[[str], Awaitable[Pending]], watch: Watch[str, Pending], *, max_wait_s: int = 60
) -> Reader[str, Pending]:
    return Reader(
        get=get,
        watch=watch,
        view=PendingView(),
        max_wait_s=max_wait_s,
    )


def asking(*, wait_s: int = 60, expires_in_s: int = 3600, leeway_s: int = 0, **headers: str) -> Call:
    request = make_mocked_request("GET", "/", headers={"Prefer": f"wait={wait_s}", **headers})
    exp = int(time.time()) + expires_in_s
    principal = Principal(ProjectId("p1"), "alice", frozenset(), exp, "p1", leeway_s=leeway_s)
    return Call(request, principal, principal.project_id, {})


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (None, None), ("", None), ("wait=0", 0), ("wait=10", 10), ("wait=60", 60), ("Wait=5", 5), ("wait=007", 7),
        ('wait="5"', 5), ("wait = 5", 5), ("wait=5;", 5), ('wait=7; foo="a, b"', 7), ("respond-async, wait=7", 7),
        ('return=minimal; foo="some parameter", wait=8', 8), ('foo="a, wait=5", wait=9', 9), (",, wait=3", 3),
        ("wait=5, wait=6", 5), ("wait=61, wait=6", None), ("wait=61", None), ("wait=99999", None), ("wait=-1", None),
        ("wait=1.5", None), ("wait=", None), ("wait", None), ('foo="a, wait=5"', None), ('foo="a, wait=5', None),
        ("wait=5 x", None), ("await=5", None), ("wait=\u0665", None), ("\udcff, wait=5", None),
    ],
)  # fmt: skip
def test_a_wait_is_the_first_of_that_name_in_seconds_from_0_to_60(prefer: str | None, seconds: int | None) -> None:
    assert wait_of(prefer) == seconds


@given(st.text(alphabet='wait=5;, "\\x', max_size=4096))
def test_reading_a_preference_takes_no_time(prefer: str) -> None:
    started_at = time.thread_time()  # a busy machine takes none of it
    wait_of(prefer)

    assert time.thread_time() - started_at < 0.1


@pytest.mark.parametrize(("asked", "held"), [(0, 0), (5, 5), (7, 7), (8, 7), (60, 7)])
async def test_an_answer_says_for_how_long_it_would_have_been_held(asked: int, held: int) -> None:
    async def get(_: str) -> Pending:
        return Pending(done=True)

    answer = await reading(get, watching(), max_wait_s=7).answer(asking(wait_s=asked), "job")

    assert answer.headers["Preference-Applied"] == f"wait={held}"


@pytest.mark.parametrize(
    ("expires_in_s", "leeway_s", "held"), [(3600, 0, {60}), (40, 0, {39, 40}), (-10, 40, {29, 30}), (-50, 40, {0})]
)
async def test_an_answer_is_held_no_longer_than_the_token_is_accepted(
    expires_in_s: int, leeway_s: int, held: set[int]
) -> None:
    async def get(_: str) -> Pending:
        return Pending(done=True)

    call = asking(expires_in_s=expires_in_s, leeway_s=leeway_s)
    answer = await reading(get, watching()).answer(call, "job")

    assert answer.headers["Preference-Applied"] in {f"wait={seconds}" for seconds in held}


@pytest.mark.parametrize(
    ("call", "closed"),
    [(asking(wait_s=0), False), (asking(expires_in_s=-5, leeway_s=4), False), (asking(), True)],
    ids=["no time to wait", "a token that has just ended", "about to stop"],
)
async def test_who_is_not_held_is_answered_from_one_look(call: Call, *, closed: bool) -> None:
    asked = 0

    async def get(_: str) -> Pending:
        nonlocal asked
        asked += 1
        return Pending()

    watch = watching()
    if closed:
        watch.close()
    answer = await reading(get, watch).answer(call, "job")

    assert (answer.status, asked) == (200, 1)


async def test_two_slow_looks_around_a_hold_are_in_time_together(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    passed_s, real_time = 0.0, loop.time
    monkeypatch.setattr(loop, "time", lambda: real_time() + passed_s)
    asked = 0

    async def get(_: str) -> Pending:
        nonlocal asked, passed_s
        asked += 1
        if asked == 2:
            await asyncio.Event().wait()
        passed_s += 2.7
        return Pending()

    def look() -> None:
        nonlocal passed_s
        passed_s = 2.7 + WAIT_S

    began_at = loop.time()
    async with lateness() as late:
        with pytest.raises(DatabaseUnavailable):
            await reading(get, watching(look=look)).answer(asking(wait_s=WAIT_S), "job")

    assert asked == 2
    assert loop.time() - began_at < WAIT_S + IN_TIME_S + late.seconds
