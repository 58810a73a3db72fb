"""Nothing of one request reaches another: P23. Clients of one proxy, some of them with fields behind their bodies."""

import asyncio
import itertools
import re
from contextlib import suppress
from random import Random
from typing import Final

import pytest

from tests.acceptance.chaos.attacks import GROUP, Attack, Record, attack, target
from tests.acceptance.chaos.tally import scaled
from tests.api_server import Reply
from tests.jobs import JobMaker, MadeJob
from tests.servers.reusing import REUSING, message_of
from tests.tokens import token
from tests.trailers import FIELDS, LEAKED, with_trailer

pytestmark = GROUP

FAR: Final = 4_000_000_000
NOWHERE: Final = "/api/jobs/6ba7b810-9dad-41d1-80b4-00c04fd430c8"
ALICE: Final = token(sub="alice", exp=FAR)
MALLORY: Final = token(sub="mallory", project_id="p9", exp=FAR)
_VARYING: Final = re.compile(rb"\r\n(?:Date|Connection): [^\r]*", re.IGNORECASE)


@pytest.fixture(autouse=True)
def _told() -> None:
    """Nothing here needs the rig."""


async def test_p23_nothing_of_one_request_reaches_another(database_url: str, record_property: Record) -> None:
    rounds = scaled(200, full=20_000)
    what = f"requests beside others with trailers, raw and through {' and '.join(REUSING)}: answered as if alone"
    async with JobMaker.on(database_url) as jobs, target(database_url, TRUSTED_PROXIES="127.0.0.1") as api:
        made, (done,) = await jobs.failed(), await jobs.make(1, status="completed")
        with attack("P23 nothing of one request reaches another", what, record_property, random=True) as attacked:
            for start in REUSING.values():
                async with start(api.port) as port:
                    await _attack(attacked, port, made, done, rounds // len(REUSING))
            await _pipeline(attacked, api.port, made, rounds // 10)
            stolen = "SELECT count(*) FROM redrive.retry_requests WHERE actor <> 'alice' OR idempotency_key IS NOT NULL"
            attacked.mind(await jobs.pool.fetchval(stolen) == 0, "a retry that no client asked for")


def _victims(made: MadeJob, done: MadeJob) -> list[bytes]:
    bearer = f"Authorization: Bearer {ALICE}\r\n"
    return [
        f"{line} HTTP/1.1\r\nHost: a\r\nX-Request-Id: the-same\r\n{fields}\r\n".encode()
        for line, fields in (
            (f"GET /api/jobs/{made.id}", bearer),
            (f"GET /api/jobs/{made.id}", ""),
            (f"POST /api/jobs/{made.id}/retry?dry_run=true", bearer),
            (f"GET /api/jobs/{done.id}/events", bearer),
            ("GET /api/jobs?limit=5", bearer),
        )
    ]


async def _exchange(port: int, request: bytes) -> bytes:
    """One request of a client of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        async with asyncio.timeout(10):
            return _VARYING.sub(b"", await message_of(reader))
    finally:
        writer.close()


def _attack_of(rng: Random) -> bytes:
    name, path = rng.choice(list(FIELDS)), rng.choice(["/retry?dry_run=true", "/retry", "/nothing", ""])
    body = rng.choice([b"{}", b"not json", b" " * 5000, b'{"reason":"x"}'])
    return with_trailer(
        f"{NOWHERE}{path}", name, bearer=rng.choice([MALLORY, "none"]), method=rng.choice(["POST", "PUT"]), body=body
    )


async def _attack(attacked: Attack, port: int, made: MadeJob, done: MadeJob, rounds: int) -> None:
    victims, rng = _victims(made, done), attacked.rng
    alone = [await _exchange(port, victim) for victim in victims]
    coming = itertools.cycle(zip(victims, alone, strict=True))

    async def converse(count: int) -> None:
        for victim, expected in itertools.islice(coming, count):
            await _exchange(port, _attack_of(rng))
            answer = await _exchange(port, victim)
            attacked.mind(answer == expected, answer)

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(converse(rounds // 4))


async def _pipeline(attacked: Attack, port: int, made: MadeJob, rounds: int) -> None:
    """What follows chunks on one connection is not answered, however it is cut."""
    rng, behind = attacked.rng, f"GET /api/jobs/{made.id} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    for _ in range(rounds):
        sent = _attack_of(rng) + behind
        at = rng.randrange(1, len(sent))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent[:at])
        await asyncio.sleep(0)
        writer.write(sent[at:])
        raw = bytearray()
        try:
            async with asyncio.timeout(10):
                # What comes after the end is answered with a reset, which says nothing of the answer before it.
                with suppress(ConnectionError):
                    while piece := await reader.read(65_536):
                        raw += piece
        except TimeoutError:
            attacked.mind(False, ("the connection stays open", bytes(raw)))  # noqa: FBT003 - it is wrong
            return
        finally:
            writer.close()
        reply = Reply.parsed(bytes(raw))
        attacked.mind(raw.count(b"HTTP/1.") == 1 and reply.headers.get("Connection") == "close", bytes(raw))
        attacked.mind(LEAKED.encode() not in raw, bytes(raw))
