"""What reading costs on a large table, as that system has it, and with the index that its page names for the owner.

`make adapters` measures it on 100,000 rows, and prints the figures; `make test` runs it on few.
"""

import math
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Final

import pytest

from tests.adapters.drivers.jobs import ERROR
from tests.adapters.rig import Rig
from tests.api_server import Api, Reply
from tests.tokens import token

pytestmark = pytest.mark.timeout(300)

ROWS: Final = int(os.environ.get("REDRIVE_ADAPTERS_ROWS", "1000"))
OPERATOR: Final = token(scope="jobs:read jobs:retry jobs:retry:bulk")
BOUND_MS: Final = 250
"""A page, or a filter, where an index has its order."""


async def median_ms(call: Callable[[], Awaitable[Reply]], *, times: int = 5) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        answer = await call()
        taken.append((time.perf_counter() - began) * 1000 if answer.status == 200 else math.inf)
        assert answer.status in {200, 503}, answer.body  # the database had no answer within REDRIVE_DB_TIMEOUT
    return statistics.median(taken)


async def measured(rig: Rig, api: Api) -> dict[str, float]:
    words = ERROR.split()[0] if rig.system.adapter != "procrastinate" else None
    chosen = {"filter": {"error_contains": words} if words else {"type": "charge"}, "reason": "x", "max": 10_000}
    return {
        "one job": await median_ms(lambda: api.get(f"/api/jobs/{rig.failed[3]}"), times=20),
        "a page": await median_ms(lambda: api.get("/api/jobs")),
        "a page of failed": await median_ms(lambda: api.get("/api/jobs?status=failed")),
        "a filter": await median_ms(lambda: api.post("/api/jobs/retry", chosen, token=OPERATOR)),
    }


async def test_what_reading_costs_on_a_large_table(
    rig: Rig, api: Api, record_property: Callable[[str, object], None]
) -> None:
    await rig.fill(ROWS)
    figures = {"as it is": await measured(rig, api)}
    if rig.system.index is not None:
        await rig.pool.execute(f"CREATE INDEX ON {rig.system.table} ({rig.system.index})")
        await rig.pool.execute("ANALYZE")
        figures["with the index"] = await measured(rig, api)

    for name, taken in figures.items():
        told = ", ".join(f"{what} {ms:.1f} ms" for what, ms in taken.items())
        record_property("tally", f"{rig.system.name}, {ROWS} rows, {name}: {told}")
    if rig.system.index is not None:
        assert figures["with the index"]["a page"] < BOUND_MS
    assert figures["as it is"]["one job"] < BOUND_MS
