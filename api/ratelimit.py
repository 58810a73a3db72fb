"""Rate limits: a request over its limit is refused at once, and never waits.

Each key (a client's address, a project) has a leaky bucket of its own. A window lets pass the burst and what leaks
meanwhile, so twice the rate at most. Limits are per process.

Memory is bounded by `max_keys` buckets. When there are as many, a new key replaces the one that was unused for longest,
if its bucket is empty; else all new keys share one bucket. So a flood of addresses can neither fill the memory, nor
empty a bucket that is in use.
"""

import math
import re
from collections import OrderedDict
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

from aiolimiter import AsyncLimiter

from api.problems import RateLimited

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Network, IPv6Network

    from shared.setting_types import Limit


_FIRST_64_BITS = (1 << 128) - (1 << 64)
"""The network of an IPv6 address. `IPv6Network` would double the time that a request's key takes."""

_WITH_PORT = re.compile(r"\[([0-9A-Fa-f.]*:[^\]]*)\](?::\d{1,5})?|([\d.]+):\d{1,5}", re.ASCII)


class Bucket(AsyncLimiter):
    """A leaky bucket that refuses instead of waiting.

    `_level` is private to aiolimiter. Its public `acquire` is a coroutine: to charge with it takes 5.0 µs instead of
    1.6, twice a request; and nothing public says how full a bucket is, as the headers must.
    """

    __slots__ = ()

    def charge(self, units: int = 1) -> None:
        """Take `units`. Raises RateLimited, and takes none, when there is no room. Atomic, as it never awaits."""
        if not self.has_capacity(units):
            raise RateLimited(self._next_in_s(units))
        self._level += units

    def state(self) -> str:
        """What there was at the last charge: room for `r` more requests, and all of it again in `t` seconds."""
        full_again_s = max(1, math.ceil(self._level * self.time_period / self.max_rate))
        return f"r={int(self.max_rate - self._level)};t={full_again_s}"

    def _next_in_s(self, units: int) -> int:
        """Whole seconds until there is room for `units`, at least 1."""
        return max(1, math.ceil((self._level + units - self.max_rate) * self.time_period / self.max_rate))

    @property
    def idle(self) -> bool:
        """Whether everything has leaked: then a new bucket is the same as this one."""
        return self.has_capacity(self.max_rate)


class RateLimit:
    """One limit, with a bucket for each key. `name` is the policy's name in the headers."""

    def __init__(self, name: str, limit: "Limit", *, max_keys: int = 50_000) -> None:
        self._name = name
        self._limit = limit
        self._max_keys = max_keys
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()
        self._shared = self._new_bucket()
        self.requests = limit.requests
        self.policy = f'"{name}";q={limit.requests};w={limit.seconds}'

    def _new_bucket(self) -> Bucket:
        return Bucket(self._limit.requests, self._limit.seconds)

    def bucket_of(self, key: str) -> Bucket:
        """The bucket to charge for `key`; it becomes the one that was used last."""
        bucket = self._buckets.get(key)
        if bucket is None:
            return self._add(key)
        self._buckets.move_to_end(key)
        return bucket

    def _add(self, key: str) -> Bucket:
        if len(self._buckets) >= self._max_keys:
            oldest = next(iter(self._buckets))
            if not self._buckets[oldest].idle:
                return self._shared
            del self._buckets[oldest]
        bucket = self._buckets[key] = self._new_bucket()
        return bucket

    def ratelimit_header(self, bucket: Bucket) -> str:
        """The `RateLimit` header's value after a charge."""
        return f'"{self._name}";{bucket.state()}'


class ClientAddresses:
    """A client's address: the TCP peer's, or, behind trusted proxies, the one that they name."""

    def __init__(self, trusted: "Sequence[IPv4Network | IPv6Network]") -> None:
        self._trusted = tuple(trusted)
        self.trusting = bool(self._trusted)
        """Whether any proxy is trusted."""

    def key_of(self, peer: str | None, forwarded: "Sequence[str]") -> str:
        """The key to charge: an IPv4 address, or an IPv6 /64.

        `forwarded` are the `X-Forwarded-For` headers; they count only where the peer is trusted. They are read from
        the right: the first address that is not trusted is the client's, and an entry that is no address ends the
        search. Ports are ignored.
        """
        if not self._trusted:
            return _network_of(peer) if peer and ":" in peer else peer or ""
        client = _address_of(peer or "")
        if client is None:
            return peer or ""
        if self._is_trusted(client):
            for hop in reversed([hop.strip() for header in forwarded for hop in header.split(",")]):
                address = _address_of(_without_port(hop))
                if address is None:
                    break
                client = address
                if not self._is_trusted(client):
                    break
        return _network_of(str(client))

    def _is_trusted(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._trusted)


def _without_port(hop: str) -> str:
    """A hop without its port and brackets, which some proxies write."""
    found = _WITH_PORT.fullmatch(hop)
    return hop if found is None else found[1] or found[2]


def _address_of(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _network_of(text: str) -> str:
    address = _address_of(text)
    if isinstance(address, IPv6Address):
        return str(IPv6Address(int(address) & _FIRST_64_BITS))
    return text if address is None else str(address)
