"""The capacity model: how many requests a second so many processes do on so many cores, and what limits them.

Each program that takes part (api, worker, PostgreSQL, RabbitMQ, client) spends processor time on each request, and on
each batch of requests. A batch costs much the same whatever it holds, so

    cost of a request = own + of a batch * batches for one request

The two parts follow from two measurements of one api process and one worker, with many clients and with few: fewer
clients make smaller batches. More processes make smaller batches, too:

- Each of n api processes has an n-th of the clients, and what waits in one process is accepted, and published,
  together. So there are n times as many batches for one request.
- A worker settles together what was published together. More than a hundred requests are several messages, which go to
  different workers. While a worker waits for more to come, and settles, further batches come, and it settles them
  together: it makes no more batches a second than this cycle allows. So the batches depend on the rate, and the
  rate on the batches; the model repeats both until they agree.

The rate is the lowest of these limits:

    cores / the cost of a request to all         api processes / its cost to the api, which has one event loop in each
    workers / its cost to the worker             1 / its cost to RabbitMQ: a queue is one process of its own there
    1 / its cost to the client, where it is one process

One api process does not reach that: at times all who use it wait, for a commit or for the next requests. This share
of the time is measured with one process, too, as what the limits do not explain. Several processes wait independently,
so that all of them do so in a power of that share:

    rate = the lowest limit * (1 - share of waiting with one api process ** api processes)
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from math import ceil
from typing import Final

from shared.messages import MOST_REQUESTS

_ROUNDS: Final = 50


class Limit(StrEnum):
    """What a rate can be limited by."""

    CORES = "cores"
    API = "the api's event loops"
    WORKERS = "the workers' event loops"
    QUEUE = "the queue"
    CLIENT = "the client's event loop"


@dataclass(frozen=True, slots=True)
class Cost:
    """Milliseconds of processor time for one request, or for one batch, by the program that spends them."""

    api: float
    worker: float
    postgresql: float
    rabbitmq: float
    client: float

    @property
    def total(self) -> float:
        """What all of them spend."""
        return self.api + self.worker + self.postgresql + self.rabbitmq + self.client


@dataclass(frozen=True, slots=True)
class Batches:
    """Batches for one request, so 1 where each is alone.

    `accepted`: commits of the api that accept retries; of reads, queries. `published`: batches of the relay.
    `settled`: batches of the worker.
    """

    accepted: float
    published: float = 0.0
    settled: float = 0.0

    def of(self, program: str) -> float:
        """Those that cost this program something; it is named as its field of Cost."""
        match program:
            case "api":
                return self.accepted + self.published
            case "worker":
                return self.settled
            case "postgresql":
                return self.accepted + self.settled
            case "rabbitmq":
                return self.published + self.settled
            case _:
                return 0.0


@dataclass(frozen=True, slots=True)
class Observed:
    """One api process and one worker, loaded by so many clients, each of which waits for its answer."""

    clients: int
    cost: Cost
    batches: Batches
    cycle_s: float = 0.0
    """How long a worker waits for a batch that is not full, and settles it."""
    per_s: float = 0.0
    """The rate; 0 where it was not looked at."""
    cores: float = 0.0
    """Those that other programs left."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """A rate, what it is limited by, and what a request costs then."""

    per_s: float
    limit: Limit
    cost: Cost


@dataclass(frozen=True, slots=True)
class Model:
    """`own`: the cost of a request without its batch. `of_batch`: the cost of a batch.

    `waiting`: the share of the time in which all who use one api process wait.
    """

    own: Cost
    of_batch: Cost
    many: Observed
    waiting: float = 0.0

    @classmethod
    def fitted(cls, many: Observed, few: Observed) -> "Model":
        """The model that agrees with both measurements, of many clients and of few.

        Where more batches did not cost more, a batch costs nothing.
        """
        own, of_batch = {}, {}
        for each in fields(Cost):
            name = each.name
            more = few.batches.of(name) - many.batches.of(name)
            dearer = getattr(few.cost, name) - getattr(many.cost, name)
            cost = max(0.0, dearer / more) if more > 0 else 0.0
            of_batch[name] = cost = min(cost, getattr(many.cost, name) / many.batches.of(name)) if cost else 0.0
            own[name] = getattr(many.cost, name) - cost * many.batches.of(name)
        model = cls(Cost(**own), Cost(**of_batch), many)
        if not many.per_s:
            return model
        allowed = model.predicted(apis=1, workers=1, clients=many.clients, cores=many.cores).per_s
        return replace(model, waiting=max(0.0, 1 - many.per_s / allowed))

    def batches(self, *, apis: int, workers: int, clients: int, per_s: float) -> Batches:
        """Batches for one request with so many processes, at such a rate."""
        share = apis * self.many.clients / clients
        accepted, published = (
            min(1.0, each * share) for each in (self.many.batches.accepted, self.many.batches.published)
        )
        if not published:
            return Batches(accepted)
        settled = min(1.0, published * min(workers, ceil(1 / published / MOST_REQUESTS)))
        if self.many.cycle_s:
            settled = min(settled, workers / self.many.cycle_s / per_s)
        return Batches(accepted, published, settled)

    def cost(self, batches: Batches) -> Cost:
        """What one request costs."""
        return Cost(
            **{
                each.name: getattr(self.own, each.name) + getattr(self.of_batch, each.name) * batches.of(each.name)
                for each in fields(Cost)
            }
        )

    def limits(self, cost: Cost, *, apis: int, workers: int, cores: float) -> Mapping[Limit, float]:
        """Requests a second that each limit allows; those that do not apply are left out."""
        parts = {
            Limit.CORES: (cores, cost.total),
            Limit.API: (apis, cost.api),
            Limit.WORKERS: (workers, cost.worker),
            Limit.QUEUE: (1, cost.rabbitmq),
            Limit.CLIENT: (1, cost.client),
        }
        return {limit: count * 1_000 / ms for limit, (count, ms) in parts.items() if ms > 0}

    def predicted(self, *, apis: int, workers: int, clients: int, cores: float) -> Prediction:
        """The rate with so many processes, on so many cores."""

        def follow(per_s: float) -> Prediction:
            cost = self.cost(self.batches(apis=apis, workers=workers, clients=clients, per_s=per_s))
            limits = self.limits(cost, apis=apis, workers=workers, cores=cores)
            limit = min(limits, key=lambda each: limits[each])
            return Prediction(limits[limit] * (1 - self.waiting**apis), limit, cost)

        predicted = follow(1.0)
        for _ in range(_ROUNDS):
            predicted = follow(predicted.per_s)
        return predicted


def processes_needed(per_s: float, ms: float) -> int:
    """How many processes with one event loop each do so many requests a second, which cost one of them so much."""
    return max(1, ceil(per_s * ms / 1_000))
