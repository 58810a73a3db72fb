"""`redrive`, without the looks at the database that go on beside requests: so what a request sends can be counted."""

import asyncio

import shared.relation
from cli.main import main
from shared.gauges import DatabaseGauges


async def _never_look(_gauges: DatabaseGauges, *_databases: object, stop: asyncio.Event) -> None:
    await stop.wait()


if __name__ == "__main__":
    shared.relation.LOOK_EVERY_S = 3_600  # type: ignore[misc] # Final for the program
    DatabaseGauges.run = _never_look  # type: ignore[assignment, method-assign]
    main()
