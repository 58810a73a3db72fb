"""Which hosts of a URL are tried for a connection, and which of them is taken."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from shared.connections import IN_VAIN_S, MOST_IN_VAIN, Connector, Opened, _Found, _Refused
from shared.errors import DatabaseUnavailable
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


async def test_the_last_good_host_is_enough_where_the_role_may_not_write_on_the_primary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hosts = Hosts(monkeypatch, one=STANDBY, two=READS)

    assert (await hosts.opened()).host.name == "two"
    assert hosts.tried == ["one", "two"]
    assert (await hosts.opened()).host.name == "two"
    assert hosts.tried == ["two"]


async def test_a_primary_that_no_longer_takes_writes_is_left_for_one_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = Hosts(monkeypatch, one=WRITES, two=STANDBY)
    await hosts.opened()
    hosts.ranks |= {"one": READS, "two": WRITES}

    assert (await hosts.opened()).host.name == "two"
    assert hosts.tried == ["one", "two"]


@pytest.mark.parametrize(
    ("more", "ranks", "tried"),
    [
        ("", {"one": STANDBY, "two": STANDBY}, ["one", "two"]),
        ("?target_session_attrs=prefer-standby", {"one": 1, "two": 1}, ["one", "two"]),
        ("?target_session_attrs=prefer-standby", {"one": 1, "two": 0}, ["two"]),
        ("?target_session_attrs=any", {"one": 0, "two": 0}, ["one"]),
    ],
    ids=["reader", "no standby", "a standby", "any"],
)
async def test_the_last_good_host_is_enough_unless_it_is_the_least_wanted_of_several_kinds(
    monkeypatch: pytest.MonkeyPatch, more: str, ranks: dict[str, int], tried: list[str]
) -> None:
    hosts = Hosts(monkeypatch, more=more, **ranks)
    await hosts.opened()
    await hosts.opened()

    assert hosts.tried == tried


async def test_while_no_server_is_found_few_attempts_begin_and_a_new_url_is_tried_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[str] = []
    full = False

    async def find_none(
        _: Connector, url: PostgresUrl, _host: Host, _wanted: Sequence[Access], _more: object, *, within_s: float
    ) -> _Refused:
        assert within_s > 0
        tried.append(url.user or "")
        return _Refused("is read-only", full=full)

    async def tell(connector: Connector) -> None:
        connector.changed()
        with pytest.raises(DatabaseUnavailable, match="one:5432: is read-only"):
            await connector.opened()

    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("shared.connections.time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(Connector, "_try", find_none)
    url = ["postgresql://a@one/x"]
    connector = Connector(lambda: url[0], wanted=(Access.READ_WRITE,), timeout_s=2, settings={})

    for _ in range(20):
        await tell(connector)
    assert tried == ["a"] * MOST_IN_VAIN
    clock.now += IN_VAIN_S
    for _ in range(20):
        await tell(connector)
    assert tried == ["a"] * (MOST_IN_VAIN * 2)
    url[0] = "postgresql://b@one/x"
    await tell(connector)
    assert tried[-1] == "b"

    full = True  # its other connections go on, and a pool must come to those
    clock.now += IN_VAIN_S
    tried.clear()
    connector.changed()
    for _ in range(20):
        await tell(connector)
    assert len(tried) == 20
