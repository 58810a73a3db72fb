"""The door under fire: P12 to P15, and P18. What is sent is hostile; what is broken is nothing."""

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv6Address, ip_network
from itertools import cycle, islice
from random import Random
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg
import jwt
import pytest
import pytest_asyncio

from api.problems import RateLimited
from api.ratelimit import ClientAddresses, RateLimit
from shared.setting_types import Limit
from tests.acceptance.chaos.attacks import (
    GROUP,
    Attack,
    Record,
    Target,
    ask_all,
    attack,
    request,
    resident_kib,
    target,
    unvarying,
)  # fmt: skip
from tests.acceptance.chaos.tally import scaled
from tests.api_server import Reply, Serve
from tests.clocks import Clock
from tests.eventually import eventually
from tests.hostile import BEARER, CANARY, HOSTILE_IDS, Damage, answers_to, corpus, faults_of
from tests.integration import test_deploy
from tests.jobs import JobMaker, MadeJob
from tests.logins import Users
from tests.servers.postgres import Postgres
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import Rabbitmq
from tests.tokens import SECRET, token
from tests.unit import test_auth

pytestmark = GROUP

behind_the_door = pytest.mark.asyncio(loop_scope="module")

FAR: Final = 4_000_000_000
PASSWORD: Final = "PaSsWoRd-of-the-api"
SCOPES: Final = "jobs:read jobs:payload jobs:retry jobs:retry:bulk jobs:retry:extend"
ID_RESOURCES: Final = [
    ("GET", ""), ("GET", "?include=payload"), ("GET", "/retries"), ("GET", "/events"), ("POST", "/retry"),
    ("POST", "/retry?dry_run=true"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _told() -> None:
    """Nothing here needs the rig."""


@dataclass(frozen=True, slots=True)
class Door:
    """An api with all that is behind it, and what passes on the way there.

    Its connection to the broker has no heartbeats, so that a message is the only reason to send the broker anything.
    """

    api: Target
    database_url: str
    jobs: JobMaker
    broker: Proxy

    async def rows(self) -> list[int]:
        """How many rows there are in each table of ours."""
        return [
            int(await self.jobs.pool.fetchval(f"SELECT count(*) FROM redrive.{table}"))
            for table in ("retry_requests", "retry_batches", "idempotency_keys")
        ]

    async def published(self) -> None:
        """Wait until the relay is connected and has nothing left to send."""

        async def quiet() -> bool:
            assert (await self.api.program.health())[1]["status"] == "ok"
            unpublished = "SELECT count(*) FROM redrive.retry_requests WHERE state = 'queued' AND published_at IS NULL"
            return bool(await self.jobs.pool.fetchval(unpublished) == 0)

        await eventually(quiet, within_s=30)


@asynccontextmanager
async def _login(database_url: str) -> AsyncIterator[str]:
    """The same database, for a user with the rights of the api, whose password must show nowhere."""
    name, parts = f"hostile_clients_{uuid.uuid4().hex[:8]}", urlsplit(database_url)
    admin = await asyncpg.connect(database_url, timeout=10)
    try:
        await admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}' IN ROLE redrive_api")
        try:
            yield parts._replace(netloc=f"{name}:{PASSWORD}@{parts.hostname}:{parts.port}").geturl()
        finally:
            await admin.execute(f"DROP ROLE {name}")
    finally:
        await admin.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(postgres: Postgres, rabbitmq: Rabbitmq) -> AsyncIterator[Door]:
    async with (
        postgres.database() as database_url,
        rabbitmq.vhost() as amqp_url,
        JobMaker.on(database_url) as jobs,
        Proxy.to(amqp_url) as broker,
        _login(database_url) as login,
        target(login, AMQP_URL=broker.url_of(amqp_url) + "?heartbeat=0", MAX_WAITERS="0") as api,
    ):
        found = Door(api, database_url, jobs, broker)
        await found.published()
        yield found


# -- P12


INTRUDERS: Final = ["p1", "Owner", "OWNER", "owner-", "owner_", "_wner", "owne", "o-w-n-e-r", "0wner", "null"]
"""Projects whose names come near the owner's, by case, by wildcards of SQL, or by what a comparison might cut off."""

FOREIGN: Final = [
    ("job", "GET", ""), ("job", "GET", "?include=payload"), ("job", "GET", "/retries?limit=5"),
    ("job", "GET", "/events"), ("job", "POST", "/retry"), ("job", "POST", "/retry?dry_run=true"),
    ("job", "GET", "?project_id=owner"), ("job", "POST", "/retry?project_id=owner"),
    ("retry", "GET", ""), ("retry", "DELETE", ""), ("batch", "GET", ""),
    ("retries of job", "GET", ""), ("retries of batch", "GET", ""),
]  # fmt: skip
PATHS: Final = {
    "job": "/api/jobs/", "retry": "/api/retries/", "batch": "/api/retry-batches/",
    "retries of job": "/api/retries?job_id=", "retries of batch": "/api/retries?batch_id=",
}  # fmt: skip

Resource = tuple[str, str, str]


@behind_the_door
async def test_p12_tenants_are_sealed(door: Door, record_property: Record) -> None:
    made = await door.jobs.many_failed(200, project_id="owner")
    known = await _requested(door, made[100:])  # the others have never been retried
    known |= {"job": [str(job.id) for job in made], "retries of batch": known["batch"]}
    known["retries of job"] = known["job"]
    await door.published()
    bearers = [token(project_id=name, exp=FAR, scope=scope) for name in INTRUDERS for scope in (..., SCOPES)]
    what = "reads and retries of another project's: the same bytes as of what does not exist, no row, no message"
    with attack("P12 tenants are sealed", what, record_property, random=True) as attacked:
        rng = attacked.rng
        versions, rows, sent = await _versions(door), await door.rows(), door.broker.bytes_to_server
        answers: dict[Resource, set[bytes]] = {resource: set() for resource in FOREIGN}

        def asked(resource: Resource, id_: str) -> tuple[Resource, bytes]:
            kind, method, rest = resource
            keyed = [f"Idempotency-Key: {rng.random()}"] if method == "POST" and rng.random() < 0.5 else []
            lines = ["If-None-Match: *"] if method == "GET" and rng.random() < 0.1 else keyed
            return resource, request(method, PATHS[kind] + id_ + rest, rng.choice(bearers), *lines)

        unknown = [asked(resource, str(uuid.UUID(int=rng.getrandbits(128), version=4))) for resource in FOREIGN * 20]
        await ask_all(door.api.port, unknown, lambda resource, answer: answers[resource].add(unvarying(answer)))
        assert {len(different) for different in answers.values()} == {1}
        expected = {resource: different.pop() for resource, different in answers.items()}
        for (kind, _, rest), answer in expected.items():
            empty = 200 if kind.startswith("retries of") else 404
            assert Reply.parsed(answer).status == (403 if "project_id" in rest else empty)

        tries = scaled(1_500, full=100_000)
        foreign = (
            asked(resource, rng.choice(known[resource[0]])) for resource in islice(cycle(FOREIGN), tries)
        )  # fmt: skip
        await ask_all(
            door.api.port,
            foreign,
            lambda resource, answer: attacked.mind(unvarying(answer) == expected[resource], (resource, answer)),
        )
        assert await _versions(door) == versions
        assert await door.rows() == rows
        assert await door.jobs.all_effects() == 0
        attacked.mind(door.broker.bytes_to_server == sent, "something was sent to the broker")


async def _requested(door: Door, jobs: list[MadeJob]) -> dict[str, list[str]]:
    """Ids of retries and of batches that the owner has asked for."""
    bearer = token(project_id="owner", exp=FAR, scope=SCOPES)
    found: dict[str, list[str]] = {"retry": [], "batch": []}
    singly = [("retry", request("POST", f"/api/jobs/{job.id}/retry", bearer)) for job in jobs[:50]]
    bulk = [
        ("batch", request("POST", "/api/jobs/retry", bearer, body=b'{"ids":["%b"]}' % str(job.id).encode()))
        for job in jobs[50:]
    ]

    def see(kind: str, answer: bytes) -> None:
        data = Reply.parsed(answer).data
        found[kind].append(data["id"] if kind == "retry" else data["batch_id"])

    await ask_all(door.api.port, singly + bulk, see)
    return found


async def _versions(door: Door) -> list[tuple[object, ...]]:
    """Every row of a job or of a retry, as it is."""
    jobs = await door.jobs.pool.fetch("SELECT id, xmin::text FROM control_plane.jobs ORDER BY id")
    retries = await door.jobs.pool.fetch("SELECT id, xmin::text FROM redrive.retry_requests ORDER BY id")
    return [tuple(row) for row in [*jobs, *retries]]


# -- P13


UNREADABLE_IDS: Final = [
    b"a" * 8_200,
    b"\xff",
    b"6ba7b810-9dad-41d1-80b4-00c04fd430c8\x00",
    b"\xd9\xa1" * 16,
    b"a b",
    b"%" * 8_200,
]


@behind_the_door
async def test_p13_hostile_ids_and_tokens_reach_no_server(
    door: Door, postgres: Postgres, record_property: Record
) -> None:
    """One api has no broker, so that it sends its database nothing but what a request makes it send: not one byte."""
    times = scaled(2, full=100)
    good, path = token(exp=FAR), f"/api/jobs/{uuid.uuid4()}"
    ids = [
        (id_, request(method, f"/api/jobs/{id_}{rest}", good)) for id_ in HOSTILE_IDS for method, rest in ID_RESOURCES
    ]
    headers = [
        *[f"Bearer {bad}" for bad in test_auth._bad_tokens().values() if len(bad) < 8_150],
        *[each for one in test_auth._bad_headers().values() if len(one) == 1 for each in one if len(each) < 8_150],
    ]
    tokens = [
        (header, _authorized_by(header, method, path + rest))
        for header in headers
        if header.isprintable() and header.isascii()
        for method, rest in (("GET", ""), ("POST", "/retry"))
    ]
    what = "ids and tokens: refused with not one byte to the database, nor to the broker"
    async with (
        postgres.database() as database_url,
        Proxy.to(database_url) as database,
        target(database.url_of(database_url), looks=False) as alone,
    ):
        with attack("P13 hostile ids and tokens reach no server", what, record_property) as attacked:
            await door.published()
            passed, sent = database.bytes_to_server, door.broker.bytes_to_server
            assert passed > 0
            assert sent > 0

            def refused_as(code: str) -> Callable[[str, bytes], None]:
                return lambda about, answer: attacked.mind(
                    Reply.parsed(answer).code == code and (len(about) < 10 or about[-30:].encode() not in answer),
                    (about[:100], answer),
                )

            for port in (alone.port, door.api.port):
                for _ in range(times):
                    await ask_all(port, ids, refused_as("invalid-job-id"))
                    await ask_all(port, tokens, refused_as("invalid-token"))
                    for id_ in UNREADABLE_IDS:
                        (answer,) = await answers_to(port, _raw(id_, good))
                        attacked.mind(Reply.parsed(answer).status == 400 and id_[-20:] not in answer, (id_[:9], answer))
            attacked.mind(database.bytes_to_server == passed, f"database: {database.bytes_to_server - passed} bytes")
            attacked.mind(door.broker.bytes_to_server == sent, f"broker: {door.broker.bytes_to_server - sent} bytes")

            (job,) = await door.jobs.many_failed(1)
            await ask_all(alone.port, [("", request("GET", path, good))], lambda *_: None)
            await ask_all(door.api.port, [("", request("POST", f"/api/jobs/{job.id}/retry", good))], lambda *_: None)
            await door.published()
            assert database.bytes_to_server > passed  # or the counting above would mean nothing
            assert door.broker.bytes_to_server > sent


def _authorized_by(header: str, method: str, path: str) -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: {header}\r\n\r\n".encode()


def _raw(id_: bytes, bearer: str) -> bytes:
    return b"GET /api/jobs/%b HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %b\r\n\r\n" % (id_, bearer.encode())


# -- P14


async def test_p14_limits_come_before_authentication(
    door: Door, record_property: Record, monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    """In this process, where it can be seen whether a signature is looked at."""
    verified: Counter[str] = Counter()
    decode = jwt.decode

    def counted(*args: Any, **kwargs: Any) -> object:  # noqa: ANN401 - PyJWT's parameters
        verified["signatures"] += 1
        return decode(*args, **kwargs)

    monkeypatch.setattr(jwt, "decode", counted)
    tries, room = scaled(1_000, full=20_000), 25
    path = f"/api/jobs/{uuid.uuid4()}"
    bad = (("", request("GET", path, token(key=f"{n:040}", sub=str(n), exp=FAR))) for n in range(tries + room))
    codes: Counter[str] = Counter()
    what = "bad tokens over the limit of their address: refused with no signature verified"
    with attack("P14 limits come before authentication", what, record_property) as attacked:
        api = await serve(door.database_url, limit_ip=f"{room}/86400")

        def see(_: str, answer: bytes) -> None:
            reply = Reply.parsed(answer)
            codes[reply.code] += 1
            if reply.status != 401:
                attacked.mind(reply.status == 429 and int(reply.headers["Retry-After"]) >= 1, answer)

        await ask_all(api.port, bad, see)
        assert codes == {"invalid-token": room, "rate-limited": tries}
        assert verified["signatures"] == room


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    ours = Clock()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: ours)
    return ours


def test_p14_limits_are_exact_within_their_formula(clock: Clock, record_property: Record) -> None:
    """Of any window the burst and what leaks meanwhile pass, and no more; who is refused would have been one more."""
    what = "requests at random times: in no window more than the burst and what leaks pass, none refused that fits"
    with attack("P14 limits are exact within their formula", what, record_property, random=True) as attacked:
        rng = attacked.rng
        for _ in range(scaled(20, full=1_000)):
            limit = Limit(rng.randint(1, 50), rng.randint(1, 60))
            _run_into(limit, clock, rng, attacked)


def _run_into(limit: Limit, clock: Clock, rng: Random, attacked: Attack) -> None:
    rate, bucket = limit.requests / limit.seconds, RateLimit("ip", limit).bucket_of("one client")
    passed, emptiest = 0, 0.0
    for _ in range(1_000):
        clock.now += rng.expovariate(1.5 * rate) if rng.random() < 0.9 else rng.random() * limit.seconds
        # What passed in the fullest window that ends now, beyond what leaks in it; windows begin with a request.
        emptiest = min(emptiest, passed - rate * clock.now) if passed else -rate * clock.now
        fits = passed + 1 - rate * clock.now - emptiest <= limit.requests + 1e-6
        certain = abs(passed + 1 - rate * clock.now - emptiest - limit.requests) > 1e-6
        try:
            bucket.charge()
        except RateLimited:
            attacked.mind(not fits or not certain, f"{limit}: refused, though it fits")
        else:
            passed += 1
            attacked.mind(fits or not certain, f"{limit}: passed, though it does not fit")


def test_p14_a_million_peers_find_bounded_memory(clock: Clock, record_property: Record) -> None:
    peers = scaled(70_000, full=1_000_000)
    direct, behind_a_proxy = ClientAddresses([]), ClientAddresses([ip_network("10.0.0.0/8")])
    limit = RateLimit("ip", Limit(2, 60))
    what = "peers, from direct connections and by way of a proxy: memory as of the first 50,000, no busy one forgiven"
    with attack("P14 a million peers find bounded memory", what, record_property, random=True) as attacked:
        assert attacked.seed
        limit.bucket_of("203.0.113.9").charge()
        limit.bucket_of("203.0.113.9").charge()
        full = 0
        for number in range(peers):
            clock.now += 1e-6
            if number % 10:
                key = direct.key_of(f"100.{number >> 16}.{number >> 8 & 255}.{number & 255}", ())
            else:
                key = behind_a_proxy.key_of("10.0.0.1", [str(IPv6Address((0x2001_0DB8 << 96) + (number << 64) + 1))])
            with suppress(RateLimited):  # once there is no more room, newcomers share a bucket
                limit.bucket_of(key).charge()
            if number == 60_000:
                full = resident_kib()
            attacked.tried += 1
        with pytest.raises(RateLimited):  # only now: a bucket that is looked at is not the one unused for longest
            limit.bucket_of("203.0.113.9").charge()
        grown_kib = resident_kib() - full
        attacked.mind(len(limit._buckets) <= 50_000, f"{len(limit._buckets)} buckets")
        attacked.mind(grown_kib < 10_000, f"{grown_kib} KiB more than at 60,000 peers")


# -- P15


PAYLOAD: Final = b"a payload of the owner alone"
ERROR: Final = b"an error of the owner alone"
AT_ONCE: Final = 128
MEMORY_KIB: Final = 40_000


@behind_the_door
async def test_p15_no_input_gives_a_5xx_and_nothing_inside_leaks(door: Door, record_property: Record) -> None:
    what = "damaged requests over raw sockets: answered in our words, no 5xx, no canary in an answer or the log"
    payload = json.dumps({"note": PAYLOAD.decode()})
    jobs = await door.jobs.make(12, status="failed", project_id="fuzz", payload=payload, last_error=ERROR.decode())
    good = await _good_requests(door, jobs)
    tries = scaled(1_200, full=100_000)
    with attack("P15 no input gives a 5xx, and nothing inside leaks", what, record_property, random=True) as attacked:
        unavailable: list[int] = []
        answered: Counter[int] = Counter()

        async def sent(number: int) -> bool:
            """Whether it is answered by other than that there is too much to do."""
            rng = Random(f"{attacked.seed} {number}")  # so that one can be sent again by itself
            damaged = Damage(rng, good).done_to(rng.choice(good))
            answers = await answers_to(door.api.port, damaged)
            faults = [fault for answer in answers for fault in [*faults_of(answer), *_leaks(answer, damaged)]]
            attacked.mind(not faults, (number, faults, damaged))
            seen = [Reply.parsed(answer).status for answer in answers]
            answered.update(seen)
            return 503 not in seen

        async def send(numbers: Iterator[int]) -> None:
            unavailable.extend([number for number in numbers if not await sent(number)])

        async def send_all(numbers: Iterator[int]) -> None:
            await asyncio.gather(*(send(numbers) for _ in range(AT_ONCE)))

        numbers = iter(range(tries))
        await send_all(islice(numbers, tries // 4))
        memory_kib = door.api.memory_kib
        await send_all(numbers)
        for number in unavailable:  # all at once they may have been too many for this machine; one is not
            await eventually(partial(sent, number), every_s=0.5)
        grown_kib = door.api.memory_kib - memory_kib
        attacked.mind(grown_kib < MEMORY_KIB, f"{grown_kib} KiB more than after the first quarter")
        assert sum(answered.values()) > tries / 2  # the rest were never whole requests
        metrics, log = await door.api.program.metrics(), door.api.program.log  # each line one whole object
        attacked.mind('status="500"' not in metrics, "a 500 was counted")
        for text in (metrics, door.api.program.err):
            for secret in (CANARY, PAYLOAD, ERROR, SECRET.encode(), PASSWORD.encode()):
                attacked.mind(secret.decode() not in text, f"{secret!r} got out")
        errors = [line for line in log if line["level"] in {"error", "critical"}]
        attacked.mind(not errors, f"errors were logged: {errors}")


async def _good_requests(door: Door, jobs: list[MadeJob]) -> list[bytes]:
    """Good requests of every kind, about jobs with something to hide."""
    bearer = BEARER.split()[-1].decode()
    found: list[str] = []

    def see(name: str, answer: bytes) -> None:
        found.append(Reply.parsed(answer).data[name])

    single = request("POST", f"/api/jobs/{jobs[0].id}/retry", bearer)
    bulk = request("POST", "/api/jobs/retry", bearer, body=b'{"ids":["%b"]}' % str(jobs[1].id).encode())
    await ask_all(door.api.port, [("id", single), ("batch_id", bulk)], see, connections=1)
    return corpus(str(jobs[2].id).encode(), *(each.encode() for each in found))


def _leaks(answer: bytes, asked: bytes) -> Iterator[str]:
    """What an answer tells that it should not."""
    good = answer.startswith((b"HTTP/1.1 2", b"HTTP/1.0 2"))
    if SECRET.encode() in answer or PASSWORD.encode() in answer:
        yield "a secret"
    if PAYLOAD in answer and not (good and b"include" in asked):
        yield "a payload that was not asked for"
    if ERROR in answer and not good:
        yield "a job's error in a problem"


# -- P18


logins = test_deploy.logins
users = test_deploy.users


async def test_p18_least_privilege_holds(users: Users, record_property: Record) -> None:
    what = "statements that are not the api's, or not the worker's, tried by each: denied"
    with attack("P18 least privilege holds", what, record_property) as attacked:
        for url, rights in ((users.api, test_deploy._API), (users.worker, test_deploy._WORKER)):
            assert await test_deploy.allowed(url, rights["may"]) == {}
            forbidden = [*test_deploy._NO_ROLE_MAY, *rights["may not"]]
            ran = await test_deploy.denied(url, forbidden)
            for statement in forbidden:
                attacked.mind(statement not in ran, (statement, ran.get(statement)))
