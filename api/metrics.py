"""The api's metrics. All labels come from closed sets: routes as declared, served methods, statuses."""

import time
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple

from prometheus_client import Counter, Gauge
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from shared.gauges import DatabaseGauges

if TYPE_CHECKING:
    from aiohttp import web
    from prometheus_client import CollectorRegistry

    from api.keys import KeySet
    from api.watch import Waiters

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 60.0)
_BOUNDS: Final = (*map(str, _SECONDS), "+Inf")


class _Series(NamedTuple):
    """The labels of a request."""

    method: str
    route: str
    status: str


class _Tally:
    """The answers of one series, by how long they took, and the last one of each bucket that was traced."""

    __slots__ = ("buckets", "exemplars", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * len(_BOUNDS)
        self.exemplars: dict[int, Exemplar] = {}
        self.seconds = 0.0

    def cumulated(self) -> Iterator[tuple[str, float] | tuple[str, float, Exemplar]]:
        """The buckets as prometheus_client wants them."""
        for bucket, (bound, answers) in enumerate(zip(_BOUNDS, accumulate(self.buckets), strict=True)):
            exemplar = self.exemplars.get(bucket)
            yield (bound, answers) if exemplar is None else (bound, answers, exemplar)


class _Requests(Collector):
    """Counts answers in plain lists, and makes metrics of them when they are collected.

    The library's counters take a lock each, and would cost more than the rest of the door. One event loop needs none.
    """

    def __init__(self) -> None:
        self.tallies: dict[_Series, _Tally] = {}

    def collect(self) -> Iterator[Metric]:
        """The two families, as prometheus_client wants them."""
        total = CounterMetricFamily("redrive_http_requests", "Requests answered.", labels=_Series._fields)
        took = HistogramMetricFamily(
            "redrive_http_request_seconds", "Time from a request's headers to its answer.", labels=_Series._fields
        )
        for series, tally in list(self.tallies.items()):
            total.add_metric(series, sum(tally.buckets))
            took.add_metric(series, list(tally.cumulated()), tally.seconds)
        yield total
        yield took


class Metrics:
    """The api's metrics, registered once."""

    def __init__(self, registry: "CollectorRegistry") -> None:
        self._requests = _Requests()
        registry.register(self._requests)
        self.published = Counter(
            "redrive_relay_published_total", "Retry requests that RabbitMQ has confirmed.", registry=registry
        )
        self.published_batches = Counter(
            "redrive_relay_batches_total", "Batches in which the relay has published retry requests.", registry=registry
        )
        self.publish_failures = Counter(
            "redrive_relay_failures_total", "Relay sessions that ended in a failure.", registry=registry
        )
        self.relay_connected = Gauge(
            "redrive_relay_connected", "Whether the relay has a working channel (0 or 1).", registry=registry
        )
        self._waiting = Gauge("redrive_waiters", "Clients held until something changes.", registry=registry)
        self._jwks_age = Gauge(
            "redrive_jwks_age_seconds",
            "Time since the issuer's keys were last fetched, or since the start while there are none.",
            registry=registry,
        )
        self.database = DatabaseGauges(registry)
        self._known: dict[tuple[object, str, int], _Tally] = {}

    def watch(self, waiters: "Waiters") -> None:
        """Show how many clients wait for a change."""
        self._waiting.set_function(lambda: waiters.count)

    def watch_keys(self, keys: "KeySet") -> None:
        """Show how old the issuer's keys are."""
        self._jwks_age.set_function(lambda: keys.age_s)

    def count_answer(self, request: "web.Request", status: int, seconds: float, *, trace_id: str | None = None) -> None:
        """Count one answer; it is the exemplar of its bucket where it was traced."""
        resource = request.match_info.route.resource
        tally = self._known.get((resource, request.method, status))
        if tally is None:
            tally = self._tally_of(request, status)
        bucket = bisect_left(_SECONDS, seconds)
        tally.buckets[bucket] += 1
        tally.seconds += seconds
        if trace_id is not None:
            tally.exemplars[bucket] = Exemplar({"trace_id": trace_id}, seconds, time.time())

    def _tally_of(self, request: "web.Request", status: int) -> _Tally:
        resource = request.match_info.route.resource
        if resource is None:  # not served: a client can invent any number of paths and methods
            return self._requests.tallies.setdefault(_Series("any", "none", str(status)), _Tally())
        tally = self._requests.tallies.setdefault(_Series(request.method, resource.canonical, str(status)), _Tally())
        self._known[resource, request.method, status] = tally
        return tally
