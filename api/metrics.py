"""What the api counts. Labels come from closed sets: routes as they are declared, methods we serve, statuses."""

from typing import TYPE_CHECKING, Final

from prometheus_client import Counter, Gauge, Histogram

if TYPE_CHECKING:
    from aiohttp import web
    from prometheus_client import CollectorRegistry

    from api.watch import Waiters

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 60.0)


class Metrics:
    """The api's metrics, registered once."""

    def __init__(self, registry: "CollectorRegistry") -> None:
        self._requests = Counter(
            "redrive_http_requests_total", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "redrive_http_request_seconds",
            "Time from a request's headers to its answer.",
            ["method", "route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.published = Counter(
            "redrive_relay_published_total", "Retry requests that RabbitMQ has confirmed.", registry=registry
        )
        self.publish_failures = Counter(
            "redrive_relay_failures_total", "Relay sessions that ended in a failure.", registry=registry
        )
        self.relay_connected = Gauge(
            "redrive_relay_connected", "Whether the relay has a working channel (0 or 1).", registry=registry
        )
        self._waiting = Gauge("redrive_waiters", "Clients held until something changes.", registry=registry)
        # Looking a child up by its labels costs more than counting: keep those that are in use.
        self._children: dict[tuple[str, object, int], tuple[Counter, Histogram]] = {}

    def watch(self, waiters: "Waiters") -> None:
        """Show how many clients wait for a change."""
        self._waiting.set_function(lambda: waiters.count)

    def answered(self, request: "web.Request", status: int, seconds: float) -> None:
        """Count one answer."""
        resource = request.match_info.route.resource
        key = (request.method, resource, status)
        children = self._children.get(key)
        if children is None:
            route = "none" if resource is None else resource.canonical
            method = request.method if resource is not None else "any"  # a client can make up methods without end
            children = (self._requests.labels(method, route, str(status)), self._seconds.labels(method, route))
            if resource is not None:
                self._children[key] = children
        children[0].inc()
        children[1].observe(seconds)
