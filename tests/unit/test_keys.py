"""Keys that are fetched: what is let in meanwhile, what a document may hold, and how often anybody is asked."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

import api.keys
from api.auth import Authenticator
from api.keys import JWKS_MAX_BYTES, JWKS_REFETCH_S, Key, KeySet, keys_of
from api.problems import InvalidToken
from shared.settings import ApiSettings, read
from tests.eventually import eventually
from tests.logs import Log
from tests.tokens import SECRET, token

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()

Jwk = dict[str, Any]


def jwk(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, **more: object) -> Jwk:
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
    """Somebody who publishes keys, and counts who asks."""

    def __init__(self) -> None:
        self.asked = 0
        self.document: object = {"keys": []}
        self.status = 200
        self.headers: dict[str, str] = {}
        self.url = ""

    async def answer_to(self, _request: web.Request) -> web.Response:
        self.asked += 1
        body = self.document if isinstance(self.document, bytes) else json.dumps(self.document).encode()
        return web.Response(body=body, status=self.status, headers=self.headers)


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    ours = Issuer()
    app = web.Application()
    app.router.add_get("/keys", ours.answer_to)
    async with TestServer(app) as server:
        ours.url = str(server.make_url("/keys"))
        yield ours


@pytest.fixture
async def keys(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KeySet]:
    """The issuer's keys, being fetched."""
    monkeypatch.setattr(api.keys, "JWKS_RETRY_S", 0.02)
    found = keys_of(read(ApiSettings, database_url="postgresql://nowhere/x", jwks_url=issuer.url))
    assert isinstance(found, KeySet)
    fetching = asyncio.create_task(found.keep_fetching())
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
    ("key", "alg"), [(RSA_KEY, "RS256"), (EC_KEY, "ES256"), (ED_KEY, "EdDSA")], ids=["RSA", "EC", "Ed25519"]
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


async def test_nobody_is_let_in_before_there_is_a_key(issuer: Issuer, keys: KeySet) -> None:
    issuer.status = 503
    await eventually(lambda: issuer.asked)

    assert not let_in(door(keys), token(key=EC_KEY, alg="ES256", header={"kid": "a"}))
    assert not let_in(door(keys), token())


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
        (b'{"keys":[]}' + b" " * JWKS_MAX_BYTES, 200, {}),
        (b'{"keys":[]}', 500, {}),
        (b'{"keys":[]}', 302, {"Location": "/elsewhere"}),
        (b'{"keys":[]}', 200, {"Content-Encoding": "gzip"}),
    ],
    ids=["text", "list", "null", "empty", "object", "string", "deep", "bytes", "too large", "500", "redirect", "gzip"],
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
    def mistaken(_: bytes) -> Mapping[str | None, Key]:
        raise ZeroDivisionError

    issuer.document = {"keys": [jwk(EC_KEY, kid="a")]}
    await eventually(lambda: keys.find("a"))
    issuer.document = {"keys": [jwk(EC_KEY, kid="b")]}
    with monkeypatch.context() as patched, Log(caplog).kept() as log:
        patched.setattr(api.keys, "_keys_in", mistaken)
        keys._fetched_at -= JWKS_REFETCH_S
        keys.find("unknown")
        await eventually(lambda: log.lines)
        assert keys.find("a")
    await eventually(lambda: keys.find("b"))

    first, *_ = log.lines
    assert (first["event"], first["error"], first["exc_info"]) == ("jwks fetch failed", "ZeroDivisionError", True)


def _odd_entries() -> dict[str, object]:
    secret = {"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "kid": "odd"}
    return {
        "a secret": secret,
        "a secret without its value": {"kty": "oct", "kid": "odd"},
        "a secret as RS256": secret | {"alg": "RS256"},
        "not an object": "odd",
        "null": None,
        "a list": ["kty", "RSA"],
        "no kty": {"kid": "odd"},
        "unknown kty": {"kty": "LWE", "kid": "odd"},
        "for encryption": jwk(RSA_KEY, kid="odd", use="enc"),
        "another algorithm": jwk(RSA_KEY, kid="odd", alg="PS256"),
        "no algorithm": jwk(RSA_KEY, kid="odd", alg="none"),
        "HS256": jwk(RSA_KEY, kid="odd", alg="HS256"),
        "algorithm a list": jwk(RSA_KEY, kid="odd", alg=["RS256"]),
        "kid a list": jwk(RSA_KEY, kid=["odd"]),
        "kid an object": jwk(RSA_KEY, kid={"a": 1}),
        "short RSA": jwk(rsa.generate_private_key(public_exponent=65537, key_size=1024), kid="odd"),
        "private": json.loads(jwt.algorithms.ECAlgorithm.to_jwk(EC_KEY)) | {"kid": "odd"},
        "P-384": jwk(ec.generate_private_key(ec.SECP384R1()), kid="odd"),
        "P-384 as ES256": jwk(ec.generate_private_key(ec.SECP384R1()), kid="odd", alg="ES256"),
        "modulus of another type": jwk(RSA_KEY, kid="odd", n=7),
        "modulus not base64": jwk(RSA_KEY, kid="odd", n="é"),
        "no modulus": {"kty": "RSA", "e": "AQAB", "kid": "odd"},
        "point not on the curve": jwk(EC_KEY, kid="odd", x=jwk(EC_KEY)["y"]),
        "point too short": jwk(EC_KEY, kid="odd", x="AA"),
    }


@pytest.mark.parametrize("odd", _odd_entries().values(), ids=_odd_entries().keys())
async def test_a_key_that_is_not_for_us_does_not_spoil_its_neighbours(
    issuer: Issuer, keys: KeySet, odd: object
) -> None:
    issuer.document = {"keys": [odd, jwk(ED_KEY, kid="good")]}

    await eventually(lambda: keys.find("good"))
    assert keys.find("odd") is None
    assert keys.find(None) is keys.find("good")
