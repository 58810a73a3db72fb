"""What a broker refuses is said in its own words, and what leads there in ours; declaring is no habit."""

import asyncio
import datetime
import ipaddress
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import aio_pika
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shared import topology
from shared.broker import connected
from shared.errors import BrokerUnavailable, TopologyMissing
from shared.topology import Topology, publishing_on
from tests.eventually import eventually
from tests.queues import Queues
from tests.servers.rabbitmq import Rabbitmq
from tests.workers import a_worker


async def words_at(url: str) -> str:
    """Why there is no connection; empty where there is one."""
    try:
        async with connected(url, name="test"):
            return ""
    except BrokerUnavailable as error:
        return str(error)


async def test_a_virtual_host_that_is_missing_is_named(amqp_url: str) -> None:
    assert await words_at(urlsplit(amqp_url)._replace(path="/nope").geturl()) == "NOT_ALLOWED - vhost nope not found"


async def test_a_login_that_is_refused_is_told_so_and_shows_no_password(amqp_url: str) -> None:
    parts = urlsplit(amqp_url)
    words = await words_at(parts._replace(netloc=f"{parts.username}:canary@{parts.hostname}:{parts.port}").geturl())

    assert words.startswith("ACCESS_REFUSED - Login was refused")
    assert "canary" not in words


async def test_a_virtual_host_without_room_for_a_connection_says_limit(amqp_url: str, rabbitmq: Rabbitmq) -> None:
    vhost = urlsplit(amqp_url).path[1:]
    await rabbitmq.manage("PUT", f"/api/vhost-limits/{vhost}/max-connections", {"value": 0})

    assert "connection limit (0) is reached" in await words_at(amqp_url)


async def test_tls_on_a_plain_port_and_http_on_it_are_told_apart_from_a_broker_that_is_away(
    amqp_url: str, rabbitmq: Rabbitmq
) -> None:
    assert "the port does not speak TLS" in await words_at(amqp_url.replace("amqp://", "amqps://"))
    assert rabbitmq.management_url is not None
    http = urlsplit(rabbitmq.management_url)
    other = await words_at(f"amqp://guest:guest@{http.hostname}:{http.port}/")
    assert re.search("a port that is not AMQP's|instead of speaking AMQP", other), other
    assert await words_at("amqp://127.0.0.1:1/") == "connection refused: nothing listens on this port"
    assert "cannot be resolved" in await words_at("amqp://nowhere.invalid/")


_SIGNS = x509.KeyUsage(
    key_cert_sign=True, crl_sign=True, digital_signature=False, content_commitment=False, key_encipherment=False,
    data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
)  # fmt: skip


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: str, issuer_key: ec.EllipticCurvePrivateKey
) -> bytes:
    now = datetime.datetime.now(datetime.UTC)
    is_ca = name == issuer
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in (name, issuer)]
    alternatives = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = (
        x509.CertificateBuilder(names[1], names[0], key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(alternatives, critical=False)
        # Python 3.13 and newer insist on these, as RFC 5280 does.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if is_ca:
        builder = builder.add_extension(_SIGNS, critical=True)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@asynccontextmanager
async def tls_before(port: int, folder: Path) -> AsyncIterator[int]:
    """A port that speaks TLS, with a certificate of a CA of its own in `folder`, in front of `port`."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "ca.pem").write_bytes(_certificate("a test's CA", ca_key, "a test's CA", ca_key))
    (folder / "leaf.pem").write_bytes(_certificate("broker", key, "a test's CA", ca_key) + key.private_bytes(*pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "leaf.pem")

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, behind_writer), pump(behind_reader, writer), return_exceptions=True)

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]


async def test_a_private_ca_is_taken_in_both_spellings_and_missed_in_words(
    amqp_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = urlsplit(amqp_url)
    async with tls_before(parts.port or 5672, tmp_path) as port:
        url = parts._replace(scheme="amqps", netloc=f"{parts.username}:{parts.password}@127.0.0.1:{port}").geturl()

        assert "certificate is not trusted: unable to get local issuer certificate" in await words_at(url)
        for query in ("cafile={}/ca.pem", "cacertfile={}/ca.pem&verify=verify_peer", "verify=verify_none"):
            assert await words_at(f"{url}?{query.format(tmp_path)}") == ""
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert await words_at(url) == ""


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each time that anything was declared."""
    times: list[str] = []
    declare = topology.declare

    async def counted(channel: aio_pika.abc.AbstractChannel) -> aio_pika.abc.AbstractExchange:
        times.append("declared")
        return await declare(channel)

    monkeypatch.setattr(topology, "declare", counted)
    return times


async def test_a_start_with_everything_in_place_declares_nothing(
    database_url: str, least_privileged_amqp_url: str, declared: list[str]
) -> None:
    declared.clear()
    async with a_worker(database_url, least_privileged_amqp_url) as worker:
        await worker.sampled("redrive_sessions_total", 0, end="broker_unavailable")
    async with connected(least_privileged_amqp_url, name="test") as connection:
        await Topology().needed_by(connection, partial(publishing_on, connection))

    assert declared == []


async def test_a_user_who_may_not_declare_is_refused_once(
    least_privileged_amqp_url: str, queues: Queues, declared: list[str]
) -> None:
    await queues.delete(topology.RETRIES)
    declared.clear()
    tries = Topology()

    async def consume(connection: aio_pika.abc.AbstractConnection) -> None:
        channel = await connection.channel()
        await (await channel.get_queue(topology.RETRIES, ensure=False)).get(fail=False)

    for _ in range(3):
        async with connected(least_privileged_amqp_url, name="test") as connection:
            with pytest.raises(TopologyMissing, match=r"no queue .*; and this user may not declare"):
                await tries.needed_by(connection, partial(consume, connection))

    assert declared == ["declared"]


async def test_what_is_missing_is_declared_where_the_user_may(
    database_url: str, amqp_url: str, queues: Queues, declared: list[str]
) -> None:
    await queues.delete(topology.RETRIES)
    await queues.delete(topology.RETRIES_BULK)
    declared.clear()
    async with a_worker(database_url, amqp_url):
        await eventually(lambda: queues.consumers(topology.RETRIES))
        await eventually(lambda: queues.consumers(topology.RETRIES_BULK))

    assert declared == ["declared"]  # by the session that first found one missing, for both
