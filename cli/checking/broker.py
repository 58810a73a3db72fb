"""What `redrive check` checks on RabbitMQ: as much as the programs' rights allow; it leaves nothing behind.

It does what the programs do: it publishes (a message that no queue gets) and, for the worker, takes the first message
of each queue and gives it back. It declares where something is missing, or where the user is one of those who declare
first; nothing else compares the arguments of what is there. It declares nothing passively: RabbitMQ 4.3 refuses that to
a user without rights on the queue, which the api's user is.
"""

import shlex
from collections.abc import AsyncIterator, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from yarl import URL

from cli.checking.findings import Finding, Verdict
from shared.broker import connected
from shared.errors import BrokerUnavailable
from shared.job_ids import UuidIds
from shared.refusals import OTHER_ARGUMENTS
from shared.topology import KEY_BULK, KEY_DEAD, KEY_RETRY, RETRIES, RETRIES_BULK, RETRIES_DEAD, Topology, publishing_on
from shared.urls import amqp_urls

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection

_QUEUES: Final = ((RETRIES, KEY_RETRY), (RETRIES_BULK, KEY_BULK), (RETRIES_DEAD, KEY_DEAD))
_READ: Final = {"api": "^$", "worker": r"^redrive\.retries(\.bulk|\.dead)?$"}


async def broker_findings(url: str, programs: Collection[str]) -> AsyncIterator[Finding]:
    """Look at the broker for `programs`, of `api` and `worker`. What fails comes before what is well.

    Of several nodes, each that cannot be connected to is a warning, as long as there is one that can.
    """
    topology = Topology.of(url)
    away = [each async for each in _nodes_away(amqp_urls(url))]
    try:
        async with connected(url, name="redrive check") as connection:
            refusals = [each async for each in _refusals(connection, topology, programs)]
    except BrokerUnavailable as error:
        refusals = [str(error)]
        away = []
    for finding in away:
        yield finding
    for text in dict.fromkeys(refusals):
        yield Finding(Verdict.FAILED, f"broker: {_explained(text, url, programs)}")
    if refusals:
        return
    can = "publish to the exchange" if "worker" not in programs else "publish to the exchange and read the queues"
    yield Finding(Verdict.OK, f"broker: answers, and this user may {can}")
    if topology.has_declared:
        yield Finding(Verdict.OK, "broker: exchange, queues and bindings are as expected")
    else:
        yield Finding(
            Verdict.NOTE,
            "broker: not looked at, as this user may have no right to: the queues' arguments and bindings "
            "(`rabbitmqctl list_queues name arguments` and `list_bindings`, against deploy/rabbitmq/topology.json)",
        )


async def _nodes_away(urls: Sequence[str]) -> AsyncIterator[Finding]:
    if len(urls) == 1:
        return
    for url in urls:
        try:
            async with connected(url, name="redrive check"):
                pass
        except BrokerUnavailable as error:
            node = URL(url)
            yield Finding(Verdict.WARNING, f"broker: the node {node.host}:{node.port or '-'} cannot be used: {error}")


async def _refusals(
    connection: "AbstractConnection", topology: Topology, programs: Collection[str]
) -> AsyncIterator[str]:
    """What the broker refuses to the programs, in its words. Raises BrokerUnavailable for what ends all looking."""
    from worker.dead_letters import DeadQueue  # noqa: PLC0415 - the api's environment needs none of the worker

    async def publish() -> None:
        await publishing_on(connection)

    async def read(queue: str, key: str) -> None:
        looked_at = await DeadQueue.on(connection, None, UuidIds(), queue=queue, key=key)
        await looked_at.count()
        await looked_at.give_back()

    try:
        await topology.needed_by(connection, publish)
    except BrokerUnavailable as error:
        yield str(error)
        if connection.is_closed:
            return
    for queue, key in _QUEUES if "worker" in programs else ():
        try:
            await topology.needed_by(connection, partial(read, queue, key))
        except BrokerUnavailable as error:
            yield str(error)
            if connection.is_closed:
                return


def _explained(words: str, url: str, programs: Collection[str]) -> str:
    """The words, what they mean where they do not say it, and what to type."""
    target = URL(amqp_urls(url)[0])
    vhost = shlex.quote(target.path.removeprefix("/").replace("%2F", "/") or "/")
    user = shlex.quote(target.user or "guest")
    if OTHER_ARGUMENTS in words:
        return f"a queue or the exchange is there already, with other arguments: {words}"
    if words.startswith("ACCESS_REFUSED - access to"):
        read = _READ["worker" if "worker" in programs else "api"]
        return f"{words}; type: rabbitmqctl set_permissions -p {vhost} {user} '^$' '^redrive$' '{read}'"
    if "may not declare" in words:
        return f"{words}; import deploy/rabbitmq/topology.json: see docs/deploying.md"
    if "vhost" in words and "not found" in words:
        return f"the virtual host is missing: {words}; type: rabbitmqctl add_vhost {vhost}"
    return words
