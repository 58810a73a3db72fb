"""Every statement of ours, prepared on the migrated schema: a column that is renamed breaks here first."""

from pathlib import Path

import asyncpg

from shared.sql import blocks

_FOLDER = Path(__file__).parents[2] / "shared" / "sql"


async def test_every_block_prepares_on_the_migrated_schema(database_url: str) -> None:
    files = sorted(_FOLDER.glob("*.sql"))
    assert files
    connection = await asyncpg.connect(database_url)
    try:
        broken = []
        for path in files:
            for name, statement in blocks(path.read_text("utf-8")).items():
                try:
                    await connection.prepare(statement)
                except asyncpg.PostgresError as error:
                    broken.append(f"{path.name}: {name}: {error}")
        assert not broken
    finally:
        await connection.close()
