"""The console: what its counts cost on a large table, each counted anew, and how long its first list takes to be seen.

All rows are of one project, which is the worst case. An answer is counted once in COUNTED_EVERY_S, so between two
rounds that long goes by. Ten clients that ask together wait for one count; ten that each have a filter of their own
wait for ten, three at a time.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple
from urllib.parse import urlencode

import msgspec

from bench import jobs
from bench.client import Answer, NothingMeasured, ask, quantile, request
from bench.part import Stage
from bench.programs import Program, bearer, redrive_api
from bench.results import Console, Counted, Figure, FirstList
from tests.browser.chromium import chromium

STATS: Final = "stats"
TYPES: Final = "types"
SERIES: Final = "series"
FAILURES: Final = "failures"
TOGETHER: Final = 10
CHROMIUM: Final = "chromium"
_PATHS: Final = {
    STATS: "/api/jobs/stats",
    TYPES: "/api/jobs/types",
    SERIES: "/api/jobs/series",
    FAILURES: "/api/failures",
}
_CAPPED: Final = (b'"capped":true', b'"truncated":true')
_VARIED: Final = 20_000
_WATCH: Final = """
new MutationObserver((_, observer) => {
  if (document.querySelectorAll("table.rows tbody tr").length < ROWS) return;
  observer.disconnect();
  requestAnimationFrame(() => requestAnimationFrame(() => {
    const seenAt = performance.now();
    const sizes = performance.getEntries().map(each => each.transferSize ?? 0).filter(size => size > 0);
    console.info("SEEN", JSON.stringify([seenAt, sizes.length, sizes.reduce((sum, size) => sum + size, 0)]));
  }));
}).observe(document, {childList: true, subtree: true});
"""
_SEEN: Final = "the list is seen:"
_LIST: Final = 50


class _Seen(NamedTuple):
    """When the list is seen, after the address was opened, and what was transferred until then."""

    after_ms: float
    requests: int
    transferred_bytes: int


class _Turn(NamedTuple):
    call: str
    clients: int = 1
    own_filters: bool = False


_ALONE: Final = [_Turn(call) for call in _PATHS]
_TOGETHER: Final = [_Turn(call, TOGETHER) for call in _PATHS]
_APART: Final = [_Turn(FAILURES, TOGETHER, own_filters=True)]


async def measure(stage: Stage) -> Console:
    """The figures. Raises ServerFailed, NothingMeasured."""
    plan = stage.plan.console
    async with stage.postgres.database() as database_url, jobs.connected(database_url) as connection:
        await jobs.fill(connection, plan.rows)
        await jobs.vary_errors(connection, _VARIED)
        await jobs.index_statuses(connection)
        stage.say(f"console: {plan.rows} rows")
        async with redrive_api(stage.folder, database_url, REDRIVE_CONSOLE="on") as redrive:
            counted = await _counted(stage, redrive, indexes=2)
            first = await _first_list(redrive, plan.rounds) if stage.has(CHROMIUM) else None
            await jobs.unindex_statuses(connection)
            counted += await _counted(stage, redrive, indexes=1)
    return Console(plan.rows, counted, first)


async def _counted(stage: Stage, redrive: Program, *, indexes: int) -> list[Counted]:
    """Every count, asked by one client, by ten together, and failures by ten with filters of their own."""
    plan = stage.plan.console
    rounds: defaultdict[_Turn, list[list[Answer]]] = defaultdict(list)
    for turns in (_ALONE, _TOGETHER, _APART):
        for number in range(plan.rounds + 1):
            for turn in turns:
                answers = await _ask_together(redrive, _paths_of(turn, number))
                if number > 0:  # the first round is for caches
                    rounds[turn].append(answers)
            if turns is not _APART:
                await asyncio.sleep(plan.pause_s)
    stage.say(f"console: counted with {indexes} indexes")
    return [_figures(turn, indexes, of_turn) for turn, of_turn in rounds.items()]


def _figures(turn: _Turn, indexes: int, rounds: Sequence[Sequence[Answer]]) -> Counted:
    """Answers other than 200 count as refused, and in no latency. Raises NothingMeasured where a round has no other."""
    good = [[answer for answer in answers if answer.status == 200] for answers in rounds]
    if not all(good):
        raise NothingMeasured(f"no answer to {turn.call} in a round")
    return Counted(
        *(turn.call, indexes, turn.clients, turn.own_filters),
        slowest_ms=Figure.of([max(answer.at for answer in answers) * 1_000 for answers in good]),
        p99_ms=quantile([answer.at * 1_000 for answers in good for answer in answers], 0.99),
        capped=any(mark in answer.body for answers in good for answer in answers for mark in _CAPPED),
        refused=sum(map(len, rounds)) - sum(map(len, good)),
    )


def _paths_of(turn: _Turn, number: int) -> list[str]:
    """What the clients ask for. Filters of their own leave nothing out, and are another for each client and round."""
    path = _PATHS[turn.call]
    if not turn.own_filters:
        return [path] * turn.clients
    times = (datetime(1990, 1, 1, number, minute, tzinfo=UTC) for minute in range(turn.clients))
    return [f"{path}?{urlencode({'created_after': at.isoformat()})}" for at in times]


async def _ask_together(redrive: Program, paths: Sequence[str]) -> list[Answer]:
    """The answers; `at` is how long each took, in s."""

    async def one(path: str) -> Answer:
        began = time.perf_counter()
        answer = await ask(redrive.port, request("GET", path, bearer()))
        return answer._replace(at=answer.at - began)

    return await asyncio.gather(*map(one, paths))


async def _first_list(redrive: Program, rounds: int) -> FirstList:
    """From opening the address of the failed jobs until they are seen, each time in a window with nothing cached."""
    seen: list[_Seen] = []
    async with chromium() as browser:
        for _ in range(rounds + 1):
            context = await browser.new_context(viewport={"width": 1440, "height": 900}, extra_http_headers=bearer())
            page = await context.new_page()
            await page.add_init_script(_WATCH.replace("ROWS", str(_LIST)).replace("SEEN", _SEEN))
            # The page says itself when the list is seen: to ask it would be work for its thread meanwhile.
            async with page.expect_console_message(lambda message: message.text.startswith(_SEEN)) as said:
                await page.goto(f"http://127.0.0.1:{redrive.port}/console/#/jobs", wait_until="commit")
            seen.append(msgspec.json.decode((await said.value).text.removeprefix(_SEEN), type=_Seen))
            await context.close()
    del seen[0]  # the browser's own first window is slower
    return FirstList(_LIST, Figure.of([each.after_ms for each in seen]), seen[-1].requests, seen[-1].transferred_bytes)
