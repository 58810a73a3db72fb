"""The key that cursors are signed with: a row of the database, so that all processes of a deployment have the same."""

from typing import TYPE_CHECKING, Final

from shared.errors import DatabaseUnfit
from shared.sql import statements

if TYPE_CHECKING:
    from shared.database import Database

_SQL: Final = statements("database")


async def cursor_key(database: "Database") -> bytes:
    """The key; it never changes. Raises DatabaseUnavailable."""
    rows = await database.fetch(_SQL["cursor_key"])
    if not rows:
        raise DatabaseUnfit("redrive.cursor_key is empty: `redrive check api` names the INSERT that fills it")
    return bytes(rows[0]["key"])
