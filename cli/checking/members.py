"""How many members of each queue are online: what AMQP does not say, and RabbitMQ's management API does.

A quorum queue takes and gives messages while more than half of its members are online. What may not be looked at is a
line that says so, and no failure.
"""

from collections.abc import AsyncIterator
from typing import Final

import aiohttp
import msgspec
from yarl import URL

from cli.checking.findings import Finding, Verdict
from shared.topology import RETRIES, RETRIES_BULK, RETRIES_DEAD
from shared.urls import amqp_urls, proxy_for

WITHIN_S: Final = 5.0
MAX_BYTES: Final = 1024 * 1024
_QUEUES: Final = (RETRIES, RETRIES_BULK, RETRIES_DEAD)
_NOT_LOOKED_AT: Final = "broker: not looked at: how many members of each queue are online"


class _Queue(msgspec.Struct):
    members: list[str]
    online: list[str]


class _NotSaid(Exception):
    """The management API did not say it, and why."""


async def member_findings(management_url: str | None, amqp_url: str) -> AsyncIterator[Finding]:
    """Look at the members of each queue in the virtual host of `amqp_url`, as its user unless the other URL has one."""
    nodes = amqp_urls(amqp_url)
    if management_url is None:
        if len(nodes) > 1:  # of one node there is nothing more to be told: it has answered
            yield Finding(Verdict.NOTE, f"{_NOT_LOOKED_AT} (REDRIVE_AMQP_MANAGEMENT_URL is not set)")
        return
    broker, base = URL(nodes[0]), URL(management_url)
    login = base if base.user else broker
    vhost = broker.raw_path.removeprefix("/") or "%2F"
    headers = {"Authorization": aiohttp.encode_basic_auth(login.user or "guest", login.password or "guest")}
    timeout = aiohttp.ClientTimeout(total=WITHIN_S)
    async with aiohttp.ClientSession(timeout=timeout, headers=headers, proxy=proxy_for(management_url)) as session:
        for name in _QUEUES:
            path = f"{base.raw_path.rstrip('/')}/api/queues/{vhost}/{name}"
            try:
                queue = await _queue(session, URL(f"{base.with_user(None).origin()}{path}", encoded=True))
            except _NotSaid as error:
                yield Finding(Verdict.NOTE, f"{_NOT_LOOKED_AT}: {error}")
                return
            yield _finding_of(name, queue, nodes=len(nodes))


async def _queue(session: aiohttp.ClientSession, url: URL) -> _Queue:
    try:
        async with session.get(url, allow_redirects=False) as answer:
            if answer.status != 200:
                raise _NotSaid(f"REDRIVE_AMQP_MANAGEMENT_URL answers {answer.status}{_meaning(answer.status)}")
            return msgspec.json.decode(await answer.content.read(MAX_BYTES), type=_Queue)
    except msgspec.MsgspecError:
        raise _NotSaid("REDRIVE_AMQP_MANAGEMENT_URL does not say it of a quorum queue") from None
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        raise _NotSaid(f"REDRIVE_AMQP_MANAGEMENT_URL does not answer ({type(error).__name__})") from None


def _meaning(status: int) -> str:
    match status:
        case 401:
            return ": this user may not ask it; type: rabbitmqctl set_user_tags USER monitoring"
        case 404:
            return ": it knows no such queue, or is no management API"
        case _:
            return ""


def _finding_of(name: str, queue: _Queue, *, nodes: int) -> Finding:
    members, online = len(queue.members), len(queue.online)
    text = f"broker: {name}: {online} of {members} members online"
    if 2 * online <= members:
        return Finding(Verdict.FAILED, f"{text}, too few: it takes and gives no message until more are back")
    if online < members:
        away = ", ".join(sorted(set(queue.members) - set(queue.online)))
        return Finding(Verdict.WARNING, f"{text}; away: {away}")
    if members < min(nodes, 3):
        return Finding(
            Verdict.WARNING, f"{text}, though the URLs name {nodes} nodes; type: rabbitmq-queues grow NODE all"
        )
    return Finding(Verdict.OK, text)
