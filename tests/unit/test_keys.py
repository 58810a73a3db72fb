"""Keys that are fetched: what is let in meanwhile, what a document may hold, and how often the issuer is asked."""

import asyncio
import gzip
import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import jwt
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import NameOID
from pytest_aiohttp import AiohttpRawServer

import api.jwks
import api.keys
from api.auth import Authenticator
from api.jwks import MAX_BYTES, MAX_OF_ONE_ID, IssuerKeys, KeysNotFetched, fetch_once, keys_in
from api.keys import JWKS_REFETCH_S, KeySet, keys_of
from api.problems import InvalidToken, KeysUnavailable
from shared.settings import ApiSettings, read
from tests.eventually import eventually
from tests.logs import Log
from tests.servers.processes import free_port
from tests.tokens import SECRET, token
from tests.unit import test_auth

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()

GOOD_DOCUMENT = json.dumps({"keys": [jwt.algorithms.ECAlgorithm.to_jwk(EC_KEY.public_key(), as_dict=True)]}).encode()

Jwk = dict[str, Any]


def jwk(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey,
    **more: object,
) -> Jwk:
    public = key.public_key()
    match public:
        case rsa.RSAPublicKey():
            made = jwt.algorithms.RSAAlgorithm.to_jwk(public, as_dict=True)
        case ec.EllipticCurvePublicKey():
            made = jwt.algorithms.ECAlgorithm.to_jwk(public, as_dict=True)
        case _:
            made = jwt.algorithms.OKPAlgorithm.to_jwk(public, as_dict=True)
    return {**made, **more}


class Issuer:
    """An issuer: publishes keys, and counts the requests for them."""

    def __init__(self) -> None:
        self.asked = 0
        self.document: object = {"keys": []}
        self.status = 200
        self.headers: dict[str, str] = {}
        self.url = ""

    async def answer_to(self, _request: web.BaseRequest) -> web.Response:
        self.asked += 1
        body = self.document if isinstance(self.document, bytes) else json.dumps(self.document).encode()
        return web.Response(body=body, status=self.status, headers=self.headers)


@pytest.fixture
async def issuer(aiohttp_raw_server: AiohttpRawServer) -> Issuer:
    ours = Issuer()
    ours.url = str((await aiohttp_raw_server(ours.answer_to)).make_url("/keys"))
    return ours


@pytest.fixture
async def keys(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KeySet]:
    """The issuer's keys, being fetched."""
    monkeypatch.setattr(api.keys, "JWKS_RETRY_S", 0.02)
    found = keys_of(read(ApiSettings, database_url="postgresql://nowhere/x", jwks_url=issuer.url))
    assert isinstance(found, KeySet)
    fetching = asyncio.create_task(found.run(stop=asyncio.Event()))
    yield found
    fetching.cancel()
    with suppress(asyncio.CancelledError):
        await fetching


def door(keys: KeySet) -> Authenticator:
    return Authenticator(read(ApiSettings, database_url="postgresql://nowhere/x", jwt_secret=SECRET), keys)


def let_in(at: Authenticator, signed: str) -> bool:
    try:
        at.authenticate([f"Bearer {signed}"])
    except InvalidToken:
        return False
    return True


@pytest.mark.parametrize(
    ("key", "alg"),
    [
        *((RSA_KEY, alg) for alg in test_auth.RSA_ALGORITHMS),
        (EC_KEY, "ES256"),
        (test_auth.P384_KEY, "ES384"),
        (test_auth.P521_KEY, "ES512"),
        (ED_KEY, "EdDSA"),
    ],
)
async def test_a_token_of_a_published_key_is_good(
    issuer: Issuer, keys: KeySet, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, alg: str
) -> None:
    issuer.document = {"keys": [jwk(key, kid="a"), jwk(ec.generate_private_key(ec.SECP256R1()), kid="b")]}
    await eventually(lambda: keys.find("a"))

    assert let_in(door(keys), token(key=key, alg=alg, header={"kid": "a"}))
    assert not let_in(door(keys), token(key=key, alg=alg, header={"kid": "b"}))
    assert not let_in(door(keys), token(key=key, alg=alg))


async def test_a_sole_key_also_serves_tokens_that_name_none(issuer: Issuer, keys: KeySet) -> None:
    issuer.document = {"keys": [jwk(EC_KEY, kid="a")]}
    await eventually(lambda: keys.find("a"))

    assert let_in(door(keys), token(key=EC_KEY, alg="ES256"))


async def test_before_there_is_a_key_a_token_is_neither_good_nor_bad(issuer: Issuer, keys: KeySet) -> None:
    issuer.status = 503
    await eventually(lambda: issuer.asked)
    assert not keys.ready

    for signed in (token(key=EC_KEY, alg="ES256", header={"kid": "a"}), token(), token(exp=1)):
        with pytest.raises(KeysUnavailable):
            door(keys).authenticate([f"Bearer {signed}"])
    for malformed in ("a.b.c", "no token", token(header={"crit": ["exp"]})):
        assert not let_in(door(keys), malformed)


async def test_an_issuer_that_is_down_at_the_start_is_asked_again_soon(issuer: Issuer, keys: KeySet) -> None:
    issuer.status = 503
    await eventually(lambda: issuer.asked >= 2)

    issuer.status, issuer.document = 200, {"keys": [jwk(EC_KEY, kid="a")]}

    await eventually(lambda: keys.find("a"))


async def test_rotation_lets_the_new_key_in_and_the_old_one_out(issuer: Issuer, keys: KeySet) -> None:
    new_key = ec.generate_private_key(ec.SECP256R1())
    old, new = (
        token(key=EC_KEY, alg="ES256", header={"kid": "old"}),
        token(key=new_key, alg="ES256", header={"kid": "new"}),
    )
    issuer.document = {"keys": [jwk(EC_KEY, kid="old")]}
    await eventually(lambda: keys.find("old"))
    ours = door(keys)
    assert let_in(ours, old)

    issuer.document = {"keys": [jwk(new_key, kid="new")]}
    keys._fetched_at -= JWKS_REFETCH_S

    assert not let_in(ours, new)  # refused at once; the fetch that this has woken lets it in the next time
    await eventually(lambda: let_in(ours, new))
    assert not let_in(ours, old)


async def test_unknown_key_ids_make_us_call_out_once_in_30_s_at_most(issuer: Issuer, keys: KeySet) -> None:
    issuer.document = {"keys": [jwk(EC_KEY, kid="a")]}
    await eventually(lambda: keys.find("a"))

    def asked_and_served(times: int) -> bool:
        return issuer.asked == times and not keys._wanted.is_set()

    for round_ in (1, 2):
        for n in range(1000):
            keys.find(f"stranger {n}")
        assert not keys._wanted.is_set()
        assert issuer.asked == round_
        keys._fetched_at -= JWKS_REFETCH_S
        keys.find("../../../etc/passwd")
        await eventually(partial(asked_and_served, round_ + 1))


@pytest.mark.parametrize(
    ("document", "status", "headers"),
    [
        (b"not json", 200, {}),
        (b"[]", 200, {}),
        (b"null", 200, {}),
        (b"{}", 200, {}),
        (b'{"keys":{"a":1}}', 200, {}),
        (b'{"keys":"a"}', 200, {}),
        (b"[" * 100_000, 200, {}),
        (b"\xff\xfe", 200, {}),
        (GOOD_DOCUMENT + b" " * MAX_BYTES, 200, {}),
        (gzip.compress(b" " * 100 * MAX_BYTES), 200, {"Content-Encoding": "gzip"}),
        (b'{"keys":[]}', 200, {}),
        (b'{"keys":[{"kty":"oct","k":"c2VjcmV0","kid":"a"}]}', 200, {}),
        (b'{"issuer":"https://a","jwks_uri":"https://a/jwks"}', 200, {}),
        (GOOD_DOCUMENT, 500, {}),
        (GOOD_DOCUMENT, 204, {}),
        (GOOD_DOCUMENT, 302, {"Location": "/keys"}),
        (GOOD_DOCUMENT, 200, {"Content-Encoding": "gzip"}),
    ],
    ids=[
        "text",
        "list",
        "null",
        "empty",
        "object",
        "string",
        "deep",
        "bytes",
        "too large",
        "too large unpacked",
        "no key",
        "no usable key",
        "configuration",
        "500",
        "204",
        "redirect",
        "not gzip",
    ],
)
async def test_the_last_good_keys_are_kept_when_a_fetch_fails(
    issuer: Issuer, keys: KeySet, document: bytes, status: int, headers: dict[str, str]
) -> None:
    issuer.document = {"keys": [jwk(EC_KEY, kid="a")]}
    await eventually(lambda: keys.find("a"))
    generation = keys.generation

    issuer.document, issuer.status, issuer.headers = document, status, headers
    keys._fetched_at -= JWKS_REFETCH_S
    keys.find("unknown")
    await eventually(lambda: issuer.asked >= 3)

    assert keys.find("a")
    assert keys.generation == generation
    issuer.document, issuer.status, issuer.headers = {"keys": [jwk(EC_KEY, kid="b")]}, 200, {}
    await eventually(lambda: keys.find("b"))


async def test_a_mistake_of_ours_ends_one_fetch_and_no_other(
    issuer: Issuer, keys: KeySet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def mistaken(*_: object) -> IssuerKeys:
        raise ZeroDivisionError

    issuer.document = {"keys": [jwk(EC_KEY, kid="a")]}
    await eventually(lambda: keys.find("a"))
    issuer.document = {"keys": [jwk(EC_KEY, kid="b")]}
    with monkeypatch.context() as patched, Log(caplog).recording() as log:
        patched.setattr(api.keys, "fetch_once", mistaken)
        keys._fetched_at -= JWKS_REFETCH_S
        keys.find("unknown")
        await eventually(lambda: log.lines)
        assert keys.find("a")
    await eventually(lambda: keys.find("b"))

    first, *_ = log.lines
    assert (first["event"], first["reason"], first["exc_info"]) == ("jwks fetch failed", "ZeroDivisionError", True)


def _odd_entries() -> dict[str, object]:
    secret = {"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "kid": "odd"}
    rsa_jwk, ec_jwk = jwk(RSA_KEY, kid="odd"), jwk(EC_KEY, kid="odd")
    return {
        "a secret": secret,
        "a secret without its value": {"kty": "oct", "kid": "odd"},
        "a secret as RS256": secret | {"alg": "RS256"},
        "a secret as HS256 for signatures": secret | {"alg": "HS256", "use": "sig"},
        "not an object": "odd",
        "null": None,
        "a number": 7,
        "a list": ["kty", "RSA"],
        "no kty": {"kid": "odd"},
        "kty a list": rsa_jwk | {"kty": ["RSA"]},
        "kty in lower case": rsa_jwk | {"kty": "rsa"},
        "unknown kty": {"kty": "LWE", "kid": "odd"},
        "ML-DSA": {"kty": "AKP", "kid": "odd", "alg": "ML-DSA-65", "pub": "AAAA", "use": "sig"},
        "for encryption": rsa_jwk | {"use": "enc"},
        "use of another word": rsa_jwk | {"use": "SIG"},
        "use empty": rsa_jwk | {"use": ""},
        "use a list": rsa_jwk | {"use": ["sig"]},
        "key_ops for encryption": rsa_jwk | {"key_ops": ["encrypt", "wrapKey"]},
        "key_ops to sign": rsa_jwk | {"use": "sig", "key_ops": ["sign"]},
        "key_ops empty": rsa_jwk | {"key_ops": []},
        "key_ops a string": rsa_jwk | {"key_ops": "verify"},
        "key_ops an object": rsa_jwk | {"key_ops": {"verify": True}},
        "RSA-OAEP": rsa_jwk | {"alg": "RSA-OAEP"},
        "no algorithm": rsa_jwk | {"alg": "none"},
        "algorithm empty": rsa_jwk | {"alg": ""},
        "HS256": rsa_jwk | {"alg": "HS256"},
        "ES256 for RSA": rsa_jwk | {"alg": "ES256"},
        "RS256 for EC": ec_jwk | {"alg": "RS256"},
        "algorithm of the future": rsa_jwk | {"alg": "RS1024"},
        "algorithm a list": rsa_jwk | {"alg": ["RS256"]},
        "algorithm an object": rsa_jwk | {"alg": {"RS256": 1}},
        "kid a list": rsa_jwk | {"kid": ["odd"]},
        "kid an object": rsa_jwk | {"kid": {"a": 1}},
        "kid a number": rsa_jwk | {"kid": 1},
        "short RSA": jwk(rsa.generate_private_key(public_exponent=65537, key_size=1024), kid="odd"),
        "private": json.loads(jwt.algorithms.ECAlgorithm.to_jwk(EC_KEY)) | {"kid": "odd"},
        "private RSA": json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(RSA_KEY)) | {"kid": "odd"},
        "secp256k1": jwk(ec.generate_private_key(ec.SECP256K1()), kid="odd"),
        "P-384 as ES256": jwk(ec.generate_private_key(ec.SECP384R1()), kid="odd", alg="ES256"),
        "P-384 called P-256": jwk(ec.generate_private_key(ec.SECP384R1()), kid="odd", crv="P-256"),
        "no curve": {name: value for name, value in ec_jwk.items() if name != "crv"},
        "curve a list": ec_jwk | {"crv": ["P-256"]},
        "Ed448": jwk(ed448.Ed448PrivateKey.generate(), kid="odd"),
        "X25519": {"kty": "OKP", "crv": "X25519", "kid": "odd", "x": "A" * 43},
        "modulus of another type": rsa_jwk | {"n": 7},
        "modulus not base64": rsa_jwk | {"n": "é"},
        "modulus empty": rsa_jwk | {"n": ""},
        "exponent empty": rsa_jwk | {"e": ""},
        "exponent one": rsa_jwk | {"e": "AQ"},
        "exponent even": rsa_jwk | {"e": "AQAA"},
        "exponent null": rsa_jwk | {"e": None},
        "no modulus": {"kty": "RSA", "e": "AQAB", "kid": "odd"},
        "only a certificate": {"kty": "RSA", "kid": "odd", "x5c": ["MIIC"]},
        "point not on the curve": ec_jwk | {"x": ec_jwk["y"]},
        "point too short": ec_jwk | {"x": "AA"},
        "point null": ec_jwk | {"y": None},
    }


@pytest.mark.parametrize("odd", _odd_entries().values(), ids=_odd_entries().keys())
async def test_a_key_that_is_not_for_us_does_not_spoil_its_neighbours(
    issuer: Issuer, keys: KeySet, odd: object
) -> None:
    issuer.document = {"keys": [odd, jwk(ED_KEY, kid="good")]}

    await eventually(lambda: keys.find("good"))
    assert not keys.find("odd")
    assert keys.find(None) is keys.find("good")


@pytest.mark.parametrize("odd", _odd_entries().values(), ids=_odd_entries().keys())
def test_a_document_without_a_usable_key_says_what_it_has(odd: object) -> None:
    with pytest.raises(KeysNotFetched, match=r"has no usable key \(it has 2 .+, 1 of kind new\)"):
        keys_in(json.dumps({"keys": [odd, odd, {"kty": "new"}]}).encode())


@pytest.mark.parametrize(
    ("made", "algorithms"),
    [
        (jwk(RSA_KEY), test_auth.RSA_ALGORITHMS),
        *((jwk(RSA_KEY, alg=alg), [alg]) for alg in test_auth.RSA_ALGORITHMS),
        (jwk(RSA_KEY, alg=None, use=None, key_ops=None, kid=None), test_auth.RSA_ALGORITHMS),
        (jwk(RSA_KEY, use="sig", key_ops=["sign", "verify"]), test_auth.RSA_ALGORITHMS),
        (jwk(RSA_KEY, x5c=["MIIC"], x5t="a", issuer="https://login.microsoftonline.com/x"), test_auth.RSA_ALGORITHMS),
        (jwk(EC_KEY), ["ES256"]),
        (jwk(EC_KEY, alg="ES256"), ["ES256"]),
        (jwk(ec.generate_private_key(ec.SECP384R1())), ["ES384"]),
        (jwk(ec.generate_private_key(ec.SECP521R1()), alg="ES512"), ["ES512"]),
        (jwk(ED_KEY), ["EdDSA"]),
        (jwk(ED_KEY, alg="EdDSA", use="sig"), ["EdDSA"]),
    ],
)
def test_the_algorithms_of_a_key_follow_from_its_kind_and_its_alg(made: Jwk, algorithms: list[str]) -> None:
    (key,) = keys_in(json.dumps({"keys": [made]}).encode()).by_id[None]

    assert list(key.algorithms) == algorithms


async def test_a_published_key_is_good_for_its_own_algorithm_alone(issuer: Issuer, keys: KeySet) -> None:
    issuer.document = {"keys": [jwk(RSA_KEY, kid="a", alg="PS512"), jwk(RSA_KEY, kid="b")]}
    await eventually(lambda: keys.find("a"))
    ours = door(keys)

    for alg in test_auth.RSA_ALGORITHMS:
        assert let_in(ours, token(key=RSA_KEY, alg=alg, header={"kid": "a"})) == (alg == "PS512")
        assert let_in(ours, token(key=RSA_KEY, alg=alg, header={"kid": "b"}))


async def test_keys_that_share_an_id_are_all_good(issuer: Issuer, keys: KeySet) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    issuer.document = {
        "keys": [
            *(jwk(RSA_KEY, kid="same", alg=alg) for alg in ("RS256", "RS384", "RS512")),
            jwk(other, kid="same", alg="RS256"),
            jwk(EC_KEY, kid="same"),
        ]
    }
    await eventually(lambda: keys.find("same"))
    ours = door(keys)

    good: list[tuple[test_auth.PrivateKey, str]] = [
        (RSA_KEY, "RS256"),
        (RSA_KEY, "RS384"),
        (RSA_KEY, "RS512"),
        (other, "RS256"),
        (EC_KEY, "ES256"),
    ]
    for key, alg in good:
        assert let_in(ours, token(key=key, alg=alg, header={"kid": "same"}))
        assert let_in(ours, token(key=key, alg=alg))
    stranger = ec.generate_private_key(ec.SECP256R1())
    bad: list[tuple[test_auth.PrivateKey, str]] = [(RSA_KEY, "PS256"), (other, "RS384"), (stranger, "ES256")]
    for key, alg in bad:
        assert not let_in(ours, token(key=key, alg=alg, header={"kid": "same"}))


async def test_keys_without_an_id_serve_tokens_that_name_none(issuer: Issuer, keys: KeySet) -> None:
    issuer.document = {"keys": [jwk(EC_KEY), jwk(ED_KEY), jwk(RSA_KEY, kid="a")]}
    await eventually(lambda: keys.find("a"))
    ours = door(keys)

    assert let_in(ours, token(key=EC_KEY, alg="ES256"))
    assert let_in(ours, token(key=ED_KEY, alg="EdDSA"))
    assert not let_in(ours, token(key=RSA_KEY, alg="RS256"))
    assert not let_in(ours, token(key=EC_KEY, alg="ES256", header={"kid": "a"}))


def test_a_forged_token_costs_a_bounded_number_of_signatures() -> None:
    made = keys_in(json.dumps({"keys": [jwk(EC_KEY, kid="a")] * 1000}).encode())

    assert (len(made.by_id["a"]), made.usable) == (MAX_OF_ONE_ID, MAX_OF_ONE_ID)
    assert made.unusable == {"more than 16 of one kid": 1000 - MAX_OF_ONE_ID}


async def test_an_unchanged_document_leaves_what_was_verified(issuer: Issuer, keys: KeySet) -> None:
    issuer.document = {"keys": [jwk(EC_KEY, kid="a"), jwk(RSA_KEY, kid="b")]}
    await eventually(lambda: keys.find("a"))
    generation = keys.generation
    keys._good_at -= 100
    assert keys.age_s > 100

    keys._fetched_at -= JWKS_REFETCH_S
    keys.find("unknown")
    await eventually(lambda: keys.age_s < 100)

    assert keys.generation == generation


async def test_a_compressed_answer_is_read(issuer: Issuer) -> None:
    issuer.document, issuer.headers = gzip.compress(GOOD_DOCUMENT), {"Content-Encoding": "gzip"}

    assert (await fetch_once(issuer.url)).usable == 1


# -- why keys cannot be had, in words


def _unfit_answers() -> dict[str, tuple[object, int, dict[str, str], str]]:
    kinds = [{"kty": "oct"}, {"kty": "AKP"}, jwk(RSA_KEY, use="enc"), jwk(RSA_KEY, alg="RSA-OAEP"), {"kty": "oct"}]
    seen = "2 of kind oct, 1 of kind AKP, 1 RSA with use enc, 1 RSA with alg RSA-OAEP"
    return {
        "no such page": (b"", 404, {}, "the issuer answered 404"),
        "redirect": (b"", 302, {"Location": "http://127.0.0.1:9/"}, "the issuer answered 302, a redirect, and"),
        "not JSON": (b"<html>", 200, {}, "the issuer's answer is not JSON"),
        "deep": (b"[" * 200_000, 200, {}, "the issuer's answer is not JSON"),
        "no keys": ({"a": 1}, 200, {}, "the issuer's answer is not a JWKS: it has no array `keys`"),
        "configuration": ({"jwks_uri": "https://a/"}, 200, {}, "the issuer's answer is an OpenID configuration, not"),
        "large": (b" " * (MAX_BYTES + 1), 200, {}, "the issuer's answer is larger than 256 KiB"),
        "empty": ({"keys": []}, 200, {}, "the issuer's answer has no usable key (it has none at all)"),
        "kinds": ({"keys": kinds}, 200, {}, f"the issuer's answer has no usable key (it has {seen})"),
        "not gzip": (b"plain", 200, {"Content-Encoding": "gzip"}, "the issuer's answer broke off, or is not"),
    }


@pytest.mark.parametrize(
    ("document", "status", "headers", "words"), _unfit_answers().values(), ids=_unfit_answers().keys()
)
async def test_an_answer_that_is_of_no_use_is_named(
    issuer: Issuer, document: object, status: int, headers: dict[str, str], words: str
) -> None:
    issuer.document, issuer.status, issuer.headers = document, status, headers

    with pytest.raises(KeysNotFetched) as failure:
        await fetch_once(issuer.url.replace("http://", "http://canary:canary@"))

    assert str(failure.value).startswith(words)
    assert "canary" not in str(failure.value)


async def test_a_server_that_cannot_be_reached_is_named() -> None:
    port = free_port()
    for url, words in (
        (f"http://u:canary@127.0.0.1:{port}/canary", f"127.0.0.1:{port} cannot be reached (Connection refused)"),
        ("https://u:canary@issuer.invalid/canary?canary", "the host name issuer.invalid cannot be resolved"),
    ):
        with pytest.raises(KeysNotFetched) as failure:
            await fetch_once(url)
        assert str(failure.value) == words


async def test_an_issuer_that_does_not_answer_in_time_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.jwks, "TIMEOUT_S", 0.05)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(KeysNotFetched, match=r"no whole answer within 0\.05 s"),
    ):
        await fetch_once(f"http://127.0.0.1:{silent.getsockname()[1]}/keys")


async def test_a_server_that_hangs_up_is_named() -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as rude:
        url = f"http://127.0.0.1:{rude.sockets[0].getsockname()[1]}/keys"
        with pytest.raises(KeysNotFetched, match="the connection was lost before the answer"):
            await fetch_once(url)


async def test_a_server_without_tls_is_named(issuer: Issuer) -> None:
    with pytest.raises(KeysNotFetched, match=r"TLS with 127\.0\.0\.1:\d+ failed \(.+\)"):
        await fetch_once(issuer.url.replace("http://", "https://"))


async def test_a_private_authority_is_trusted_once_the_environment_names_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, aiohttp_raw_server: AiohttpRawServer
) -> None:
    authority, context = _authority_and_server()
    (tmp_path / "ca.pem").write_bytes(authority)
    issuer = Issuer()
    issuer.document = GOOD_DOCUMENT
    url = str((await aiohttp_raw_server(issuer.answer_to, ssl=context)).make_url("/keys"))

    with pytest.raises(KeysNotFetched, match=r"certificate of 127\.0\.0\.1:\d+ is not trusted \(.+\); SSL_CERT_FILE"):
        await fetch_once(url)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    assert (await fetch_once(url)).usable == 1
    with pytest.raises(KeysNotFetched, match=r"is not trusted \(Hostname mismatch"):
        await fetch_once(url.replace("127.0.0.1", "localhost"))


_SIGNS = x509.KeyUsage(
    key_cert_sign=True, crl_sign=True, digital_signature=False, content_commitment=False, key_encipherment=False,
    data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
)  # fmt: skip


def _authority_and_server() -> tuple[bytes, ssl.SSLContext]:
    """A private authority's certificate in PEM, and what serves with one that it has signed for 127.0.0.1."""
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Redrive's tests")])
    now = datetime.now(UTC)

    def certificate(of: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType) -> bytes:
        subject = authority if of is authority_key else x509.Name([])
        builder = x509.CertificateBuilder(authority, subject, of.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        builder = builder.add_extension(extension, critical=True)
        # Python 3.13 and newer insist on these, as RFC 5280 does.
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(of.public_key()), critical=False)
        known_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
        builder = builder.add_extension(known_by, critical=False)
        if of is authority_key:
            builder = builder.add_extension(_SIGNS, critical=True)
        signed = builder.sign(authority_key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "server.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(
            private + certificate(key, x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]))
        )
        context.load_cert_chain(path)
    return certificate(authority_key, x509.BasicConstraints(ca=True, path_length=None)), context


async def test_what_is_wrong_with_the_issuer_is_in_the_log(
    issuer: Issuer, keys: KeySet, caplog: pytest.LogCaptureFixture
) -> None:
    issuer.document = {"keys": [{"kty": "oct", "k": "canary"}]}
    with Log(caplog).recording() as log:
        await eventually(lambda: log.lines)
        issuer.document = {"keys": [jwk(EC_KEY), {"kty": "oct", "k": "canary"}]}
        await eventually(lambda: keys.ready)

    first, *_, last = log.lines
    assert (first["event"], first["level"], first["keys_kept"]) == ("jwks fetch failed", "warning", 0)
    assert first["reason"] == "the issuer's answer has no usable key (it has 1 of kind oct)"
    assert (last["event"], last["usable"], last["unusable"]) == ("jwks fetched", 1, {"of kind oct": 1})
    assert "canary" not in str(log.lines)


# -- through the environment's proxy


class Proxy:
    """An HTTP proxy: it answers for servers that are not there, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []
        self.authorizations: list[str | None] = []
        self.port: int | None = None

    async def answer_to(self, request: web.BaseRequest) -> web.StreamResponse:
        self.authorizations.append(request.headers.get("Authorization"))
        self.asked.append((f"{request.method} {request.raw_path}", request.headers.get("Proxy-Authorization")))
        return web.Response(status=200 if request.method == "GET" else 407, body=GOOD_DOCUMENT)


@pytest.fixture
async def proxy(monkeypatch: pytest.MonkeyPatch, aiohttp_raw_server: AiohttpRawServer) -> Proxy:
    """A proxy that the environment names for http and https."""
    ours = Proxy()
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    server = await aiohttp_raw_server(ours.answer_to)
    ours.port = server.port
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://user:canary@127.0.0.1:{server.port}")
    return ours


async def test_keys_are_fetched_through_the_environment_s_proxy(proxy: Proxy) -> None:
    found = await fetch_once("http://idp.corp.invalid/jwks?a=b")

    assert found.usable == 1
    assert proxy.asked == [("GET http://idp.corp.invalid/jwks?a=b", "Basic dXNlcjpjYW5hcnk=")]


async def test_a_proxy_that_refuses_is_named(proxy: Proxy) -> None:
    with pytest.raises(KeysNotFetched, match=r"^the proxy answered 407$"):
        await fetch_once("https://idp.corp.invalid/jwks")

    assert [asked for asked, _ in proxy.asked] == ["CONNECT idp.corp.invalid:443"]


async def test_a_proxy_that_is_away_is_named(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("HTTP_PROXY", f"http://user:canary@127.0.0.1:{port}")

    with pytest.raises(
        KeysNotFetched, match=rf"^the proxy 127\.0\.0\.1:{port} cannot be reached \(Connection refused\)$"
    ):
        await fetch_once("http://idp.corp.invalid/jwks")
    assert not proxy.asked


async def test_a_host_that_the_environment_excepts_is_asked_itself(
    proxy: Proxy, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer.document = GOOD_DOCUMENT
    monkeypatch.setenv("NO_PROXY", "corp.invalid,127.0.0.1")

    assert (await fetch_once(issuer.url)).usable == 1
    assert (issuer.asked, proxy.asked) == (1, [])


NETRC: Final = "default login reader password netrc-canary"


@pytest.mark.parametrize("found_by", ["NETRC", "HOME"])
async def test_credentials_of_a_netrc_file_reach_neither_the_issuer_nor_the_proxy(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found_by: str, aiohttp_raw_server: AiohttpRawServer
) -> None:
    (tmp_path / ".netrc").write_text(NETRC)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv(found_by, str(tmp_path / ".netrc" if found_by == "NETRC" else tmp_path))
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
    seen: list[str | None] = []

    async def answer_to(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(request.headers.get("Authorization"))
        return web.Response(body=GOOD_DOCUMENT)

    await fetch_once("http://idp.corp.invalid/jwks")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    await fetch_once(str((await aiohttp_raw_server(answer_to)).make_url("/jwks")))

    assert proxy.asked == [("GET http://idp.corp.invalid/jwks", None)]
    assert proxy.authorizations == [None]
    assert seen == [None]
