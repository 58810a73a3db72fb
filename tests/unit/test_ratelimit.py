"""Limits on a clock of the test's own, and whose address is charged."""

import asyncio
from collections.abc import Iterator
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.problems import RateLimited
from api.ratelimit import Bucket, ClientAddresses, RateLimit
from shared.setting_types import Limit
from tests.clocks import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    ours = Clock()
    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "get_running_loop", lambda: ours)
        yield ours


def charge(limit: RateLimit, key: str) -> Bucket:
    bucket = limit.bucket_of(key)
    bucket.charge()
    return bucket


def passed(limit: RateLimit, key: str, times: int) -> int:
    """How many of so many requests at once get through."""
    through = 0
    for _ in range(times):
        try:
            charge(limit, key)
        except RateLimited:
            continue
        through += 1
    return through


@pytest.mark.usefixtures("clock")
def test_a_burst_of_the_whole_limit_passes_and_no_more() -> None:
    assert passed(RateLimit("ip", Limit(60, 60)), "a", 100) == 60


@pytest.mark.parametrize(("after_s", "more"), [(0.5, 0), (1, 1), (10, 10), (60, 60), (6000, 60)])
def test_what_has_leaked_is_free_again(clock: Clock, after_s: float, more: int) -> None:
    limit = RateLimit("ip", Limit(60, 60))
    passed(limit, "a", 60)

    clock.now += after_s

    assert passed(limit, "a", 100) == more


def test_a_refusal_costs_nothing(clock: Clock) -> None:
    limit = RateLimit("ip", Limit(60, 60))
    passed(limit, "a", 10_000)

    clock.now += 1

    assert passed(limit, "a", 1) == 1


@given(st.integers(1, 1000), st.integers(1, 600), st.integers(0, 30))
def test_who_comes_back_after_retry_after_gets_through(requests: int, seconds: int, early: int) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(asyncio, "get_running_loop", lambda: clock)
        limit = RateLimit("ip", Limit(requests, seconds))
        passed(limit, "a", requests - min(early, requests - 1))
        passed(limit, "a", requests)
        with pytest.raises(RateLimited) as refused:
            charge(limit, "a")

        assert refused.value.retry_after_s >= 1
        clock.now += refused.value.retry_after_s
        charge(limit, "a")


@pytest.mark.usefixtures("clock")
def test_keys_do_not_pay_for_each_other() -> None:
    limit = RateLimit("ip", Limit(2, 60))
    passed(limit, "a", 5)

    assert passed(limit, "b", 5) == 2


@pytest.mark.usefixtures("clock")
def test_the_headers_tell_the_policy_and_what_is_left() -> None:
    limit = RateLimit("read", Limit(600, 60))

    first = limit.ratelimit_header(charge(limit, "p1"))
    passed(limit, "p1", 599)
    with pytest.raises(RateLimited):
        charge(limit, "p1")

    assert limit.policy == '"read";q=600;w=60'
    assert first == '"read";r=599;t=1'
    assert limit.ratelimit_header(limit.bucket_of("p1")) == '"read";r=0;t=60'


@pytest.mark.usefixtures("clock")
def test_any_number_of_peers_find_bounded_memory_and_a_busy_bucket_stays() -> None:
    limit = RateLimit("ip", Limit(10, 60), max_keys=1000)
    passed(limit, "attacker", 10)

    for peer in range(200_000):
        limit.bucket_of(str(peer))

    assert len(limit._buckets) == 1000
    assert passed(limit, "attacker", 1) == 0


@pytest.mark.usefixtures("clock")
def test_newcomers_share_one_bucket_while_none_is_free() -> None:
    limit = RateLimit("ip", Limit(10, 60), max_keys=2)
    passed(limit, "a", 1)
    passed(limit, "b", 1)

    assert sum(passed(limit, f"new {n}", 1) for n in range(100)) == 10


def test_idle_buckets_make_room_oldest_first(clock: Clock) -> None:
    limit = RateLimit("ip", Limit(10, 60), max_keys=2)
    passed(limit, "a", 1)
    passed(limit, "b", 1)
    clock.now += 60
    passed(limit, "a", 1)

    passed(limit, "c", 1)

    assert set(limit._buckets) == {"a", "c"}


def addresses(*networks: str) -> ClientAddresses:
    return ClientAddresses([ip_network(network) for network in networks])


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),
        ("203.0.113.9", ["198.51.100.1, 10.0.0.1"], "203.0.113.9"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.2.3.4, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.2.3.4, 198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1", "10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["198.51.100.1, nonsense"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, nonsense, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["", " , "], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1:4711"], "198.51.100.1"),
        ("10.0.0.1", ["1.2.3.4:1, 198.51.100.1:4711, 10.0.0.2:80"], "198.51.100.1"),
        ("10.0.0.1", ["[2001:db8:1:2:3:4:5:6]:4711"], "2001:db8:1:2::"),
        ("10.0.0.1", ["[2001:db8:1:2:3:4:5:6], [fd00::7]:80"], "2001:db8:1:2::"),
        ("10.0.0.1", ["[::ffff:198.51.100.1]"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1:"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1:http"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1:471100"], "10.0.0.1"),
        ("10.0.0.1", ["host:80"], "10.0.0.1"),
        ("10.0.0.1", ["[198.51.100.1]:80"], "10.0.0.1"),
        ("10.0.0.1", ["[2001:db8::1"], "10.0.0.1"),
        ("10.0.0.1", ["[]:80"], "10.0.0.1"),
        ("::ffff:10.0.0.1", ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["2001:db8:1:2:3:4:5:6"], "2001:db8:1:2::"),
        ("10.0.0.1", ["2001:db8:1:2:3:4:5:6, fd00::7"], "2001:db8:1:2::"),
        ("10.0.0.1", ["1.2.3.4," * 1000 + "198.51.100.1"], "198.51.100.1"),
    ],
)
def test_forwarded_addresses_count_only_as_far_as_proxies_are_trusted(
    peer: str, forwarded: list[str], client: str
) -> None:
    assert addresses("10.0.0.0/8", "fd00::/8").key_of(peer, forwarded) == client


@pytest.mark.parametrize(
    ("peer", "key"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        (None, ""),
    ],
)
@pytest.mark.parametrize("trusted", [(), ("10.0.0.0/8",)], ids=["no proxies", "other proxies"])
def test_the_peer_is_charged_by_address_or_by_its_64_network(peer: str | None, key: str, trusted: tuple[str]) -> None:
    assert addresses(*trusted).key_of(peer, ["1.2.3.4"]) == key
