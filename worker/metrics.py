"""The worker's metrics. Labels come from closed sets: outcomes, and what ends a session."""

from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from prometheus_client import Counter, Gauge, Histogram

from shared.gauges import DatabaseGauges
from shared.models import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prometheus_client import CollectorRegistry

    from shared.models import RetryId
    from shared.settlement import Settled

_BATCH_SECONDS: Final = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_BATCH_MESSAGES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 5_000)
_WAIT_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 3_600.0)


class SessionEnd(StrEnum):
    """What ended a session, or kept it from beginning."""

    STOPPED = "stopped"
    RENEWED = "renewed"
    DATABASE_UNAVAILABLE = "database_unavailable"
    BROKER_UNAVAILABLE = "broker_unavailable"
    FAILED = "failed"


class Metrics:
    """The worker's metrics, registered once."""

    def __init__(self, registry: "CollectorRegistry") -> None:
        self._settled = Counter(
            "redrive_retries_settled_total", "Retry requests settled, by outcome.", ["outcome"], registry=registry
        )
        self._waits = Histogram(
            "redrive_retry_wait_seconds",
            "Time from a request to its settlement.",
            buckets=_WAIT_SECONDS,
            registry=registry,
        )
        self._sessions = Counter(
            "redrive_sessions_total",
            "Sessions with a source of requests, by what ended them.",
            ["end"],
            registry=registry,
        )
        for outcome in Outcome:
            self._settled.labels(outcome.value)  # 0 from the start: a rate needs a value before the first event
        for end in SessionEnd:
            self._sessions.labels(end.value)
        self.batches = Counter("redrive_batches_total", "Batches settled.", registry=registry)
        self.batch_seconds = Histogram(
            "redrive_batch_seconds", "Time to settle a batch.", buckets=_BATCH_SECONDS, registry=registry
        )
        self.batch_messages = Histogram(
            "redrive_batch_messages", "Requests in a batch.", buckets=_BATCH_MESSAGES, registry=registry
        )
        self.unreadable = Counter(
            "redrive_messages_unreadable_total", "Messages that could not be read, dead-lettered.", registry=registry
        )
        self.bypassed = Counter(
            "redrive_requests_bypassed_total",
            "Requests settled straight from the ledger, because RabbitMQ held them up.",
            registry=registry,
        )
        self.consumers = Gauge("redrive_consumers", "Live consumers on RabbitMQ.", registry=registry)
        self.database = DatabaseGauges(registry)

    def count_settled(
        self, requests: "Mapping[RetryId, Settled]", traced: "Mapping[RetryId, str]" = MappingProxyType({})
    ) -> None:
        """Count requests, except those that were settled before. `traced`: the trace of each that has one."""
        for request_id, (outcome, waited_s) in requests.items():
            if waited_s is not None:
                self._settled.labels(outcome.value).inc()
                trace_id = traced.get(request_id)
                exemplar = None if trace_id is None else {"trace_id": trace_id}
                self._waits.observe(max(0.0, waited_s), exemplar)  # another clock may be ahead of the database's

    def count_session(self, end: SessionEnd) -> None:
        """Count a session."""
        self._sessions.labels(end.value).inc()
