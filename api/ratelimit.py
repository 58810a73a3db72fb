"""Limits, decided at once: a request over its limit is refused, never made to wait.

Each key (a client's address, a project) has a leaky bucket of its own. Any window may pass up to the burst and what
leaks meanwhile, so up to twice the rate. Limits are per process.

Memory is bounded: at most `max_keys` buckets. When they run out, the one unused for longest goes, if it is empty;
while none is, newcomers share one bucket, so a flood of addresses can neither fill the memory nor buy anybody's
bucket back.
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

    from shared.settings import Limit


_FIRST_64_BITS = (1 << 128) - (1 << 64)
"""An IPv6 address's network. `IPv6Network` finds the same, and takes as long as all the rest of a request's key."""

_WITH_PORT = re.compile(r"\[([0-9A-Fa-f.]*:[^\]]*)\](?::\d{1,5})?|([\d.]+):\d{1,5}", re.ASCII)


class Bucket(AsyncLimiter):
    """A leaky bucket that answers instead of waiting."""

    __slots__ = ()

    def charge(self, units: int = 1) -> None:
        """Take so many. Raises RateLimited, with nothing taken, when there is no room. Never awaits, so atomic."""
        self._leak()
        level = self._level + units
        if level > self.max_rate:
            raise RateLimited(self._next_in_s(units))
        self._level = level

    @property
    def remaining(self) -> int:
        """How many may come at once, right now, as of the last charge."""
        return int(self.max_rate - self._level)

    @property
    def full_again_s(self) -> int:
        """Whole seconds until everything has leaked, at least 1."""
        return max(1, math.ceil(self._level / self._rate_per_sec))

    def _next_in_s(self, units: int) -> int:
        """Whole seconds until there is room for so many, at least 1."""
        return max(1, math.ceil((self._level + units - self.max_rate) / self._rate_per_sec))

    @property
    def idle(self) -> bool:
        """Whether everything has leaked, so that forgetting the bucket forgives nobody anything."""
        return self.has_capacity(self.max_rate)


class RateLimit:
    """One limit for many keys. `name` is its policy's, as the headers tell it."""

    def __init__(self, name: str, limit: "Limit", *, max_keys: int = 50_000) -> None:
        self._name = name
        self._limit = limit
        self._max_keys = max_keys
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()
        self._shared = self._bucket()
        self.requests = limit.requests
        self.policy = f'"{name}";q={limit.requests};w={limit.seconds}'

    def _bucket(self) -> Bucket:
        return Bucket(self._limit.requests, self._limit.seconds)

    def bucket_of(self, key: str) -> Bucket:
        """The bucket to charge for `key`, from now on the one used last."""
        bucket = self._buckets.get(key)
        if bucket is None:
            return self._admitted(key)
        self._buckets.move_to_end(key)
        return bucket

    def _admitted(self, key: str) -> Bucket:
        if len(self._buckets) >= self._max_keys:
            oldest = next(iter(self._buckets))
            if not self._buckets[oldest].idle:
                return self._shared
            del self._buckets[oldest]
        bucket = self._buckets[key] = self._bucket()
        return bucket

    def standing(self, bucket: Bucket) -> str:
        """The `RateLimit` header's value after a charge."""
        return f'"{self._name}";r={bucket.remaining};t={bucket.full_again_s}'


class ClientAddresses:
    """Who is asking: the TCP peer, or, behind proxies that are trusted, the client they name."""

    def __init__(self, trusted: "Sequence[IPv4Network | IPv6Network]") -> None:
        self._trusted = tuple(trusted)
        self.trusting = bool(self._trusted)
        """Whether there is any proxy whose word counts."""

    def key_of(self, peer: str | None, forwarded: "Sequence[str]") -> str:
        """The key to charge: an IPv4 address, or an IPv6 /64.

        `forwarded` are the `X-Forwarded-For` headers; they count only where the peer is trusted. They are walked from
        the right, and the first address that is not trusted is the client; what cannot be read ends the walk. Ports
        are passed over.
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
    """The address of a hop that comes with a port, or in brackets, as some proxies write it; else the hop as it is."""
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
