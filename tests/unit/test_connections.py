"""Which hosts of a URL are tried for a connection, and which of them is taken."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from shared.connections import Connector, Opened, _Found
from shared.postgres_url import Access, Host, PostgresUrl

if TYPE_CHECKING:
    from shared.connections import Connection

READER = (Access.READ_WRITE, Access.PRIMARY, Access.ANY)
"""What an api that only reads wants."""
WRITES, READS, STANDBY = 0, 1, 2
"""How far a server is from that: a primary that takes writes, one where the role may not write, a standby."""


class Hosts:
    """Servers `one` and `two` of these ranks, to be changed, and a Connector to them; `tried` are those of one call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, more: str = "", **ranks: int) -> None:
        self.ranks = ranks
        self.tried: list[str] = []
        self.connector = Connector(f"postgresql://one,two/x{more}", wanted=READER, timeout_s=2, settings={})

        async def find(
            _: Connector, _url: PostgresUrl, host: Host, wanted: Sequence[Access], _more: object, *, within_s: float
        ) -> _Found:
            assert within_s > 0
            assert self.ranks[host.name] < len(wanted)
            self.tried.append(host.name)
            connection = cast("Connection", SimpleNamespace(terminate=lambda: None))
            return _Found(connection, host, self.ranks[host.name])

        monkeypatch.setattr(Connector, "_try", find)

    async def opened(self) -> Opened:
        self.tried.clear()
        return await self.connector.opened()


@pytest.mark.parametrize("began", [READS, STANDBY])
async def test_what_came_back_is_known_from_the_connection_before_it(
    monkeypatch: pytest.MonkeyPatch, began: int
) -> None:
    hosts = Hosts(monkeypatch, one=STANDBY, two=began)
    first = await hosts.opened()
    hosts.ranks["two"] = WRITES
    second, third = await hosts.opened(), await hosts.opened()

    assert [opened.came_back for opened in (first, second, third)] == [False, began == STANDBY, False]
