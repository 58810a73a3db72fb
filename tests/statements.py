"""Which statements the programs send, as `file.name` of `shared/sql`: for saying how many are needed for what."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared.database import Database, Row, Session
from shared.sql import statements

FILES = sorted((Path(__file__).parents[1] / "shared" / "sql").glob("*.sql"))
_BESIDE = ("gauges.", "migrations.")
NAMES = {statement: f"{file.stem}.{name}" for file in FILES for name, statement in statements(file.stem).items()}


@contextmanager
def statements_sent() -> Iterator[Counter[str]]:
    """Count what all databases in this process are sent until the block ends; a statement counts once it is sent.

    The looks that go on beside the requests (shared/gauges.py) are not counted.
    """
    sent: Counter[str] = Counter()

    def count(sql: str) -> None:
        if not (name := NAMES.get(sql, sql)).startswith(_BESIDE):
            sent[name] += 1

    fetch, fetch_within = Database.fetch, Session.fetch

    async def counted(self: Database, sql: str, *args: object) -> list[Row]:
        count(sql)
        return await fetch(self, sql, *args)

    async def counted_within(self: Session, sql: str, *args: object) -> list[Row]:
        count(sql)
        return await fetch_within(self, sql, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Database, "fetch", counted)
        patch.setattr(Session, "fetch", counted_within)
        yield sent
