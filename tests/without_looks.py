"""No looks at the database beside requests: so what a request sends can be counted."""

import asyncio

import pytest

from shared.gauges import DatabaseGauges


async def _never_look(_gauges: DatabaseGauges, *_databases: object, stop: asyncio.Event) -> None:
    await stop.wait()


def stop_looks(patch: pytest.MonkeyPatch) -> None:
    """Have the programs that start in this process set no gauge of their database."""
    patch.setattr(DatabaseGauges, "run", _never_look)
