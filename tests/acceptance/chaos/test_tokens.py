"""Forged tokens: P17. From good tokens and all public keys, no other good token can be made."""

import json
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from functools import partial
from random import Random
from typing import Final
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from pytest_aiohttp import AiohttpRawServer

import api.keys
from tests.acceptance.chaos.attacks import GROUP, Attack, Record, ask_all, attack, target
from tests.acceptance.chaos.tally import scaled
from tests.api_server import Api, Reply, Serve
from tests.eventually import eventually
from tests.tokens import SECRET, claims, forged, segment, token
from tests.unit import test_auth
from tests.unit.test_keys import Issuer, jwk

pytestmark = GROUP

FAR: Final = 4_000_000_000
PATH: Final = f"/api/jobs/{uuid4()}"
ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
ODD: Final = [*ALPHABET, *"=+/.~!\"#$%&'()*,:;<>?@[]^`{|} "]
ALGORITHMS: Final = [
    "none", "None", "NONE", "", "HS256", "HS384", "HS512", "RS256", "ES256", "EdDSA", "PS256", "hs256",
    "RS384", "PS512", "ES384", "ES512", "ES521", "ES256K", "Ed25519",
]  # fmt: skip
CLAIMS: Final[list[tuple[str, object]]] = [
    ("project_id", "p2"), ("project_id", ["p1"]), ("project_id", None), ("sub", "root"), ("exp", FAR + 1),
    ("exp", str(FAR)), ("exp", 10**400), ("exp", FAR + 0.5), ("sub", 4711), ("sub", None), ("jti", 1),
    ("scope", "jobs:admin"), ("scp", "jobs:admin"), ("scp", ["jobs:admin"]), ("nbf", FAR), ("iat", FAR),
    ("aud", "another"), ("iss", "another"),
]  # fmt: skip
HEADERS: Final[list[tuple[str, object]]] = [
    ("kid", "../../dev/null"), ("kid", "' OR '1'='1"), ("kid", None), ("jku", "http://127.0.0.1:9/keys"),
    ("x5u", "http://127.0.0.1:9/x"), ("jwk", {"kty": "oct", "k": "AAAA"}), ("x5c", ["AAAA"]), ("crit", ["exp"]),
    ("b64", False), ("typ", "at+jwt"), ("cty", "JWT"), ("zip", "DEF"), ("alg", None), ("alg", ["HS256"]),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _told() -> None:
    """Nothing here needs the rig."""


class Forger:
    """Makes tokens out of good ones, without the key: to keep a good one as it is, is no forgery."""

    def __init__(self, rng: Random, good: list[str], guesses: list[str]) -> None:
        self._rng = rng
        self._good = good
        self._guesses = guesses

    def tokens(self, count: int) -> Iterator[str]:
        known = frozenset(self._good)
        while count:
            made = self._rng.choice([self.damaged, self.respelled, self.spliced, self.promoted, self.resigned])()
            if made not in known and made == made.strip():  # spaces around a header's value are no part of it
                yield made
                count -= 1

    def damaged(self) -> str:
        """A good one with some characters changed, left out, put in or doubled."""
        made = self._rng.choice(self._good)
        for _ in range(self._rng.choice([1, 1, 1, 2, 5])):
            at, odd = self._rng.randrange(len(made)), self._rng.choice(ODD if self._rng.random() < 0.5 else ALPHABET)
            before, one, behind = made[:at], made[at], made[at + 1 :]
            harms = (odd + behind, behind, odd + one + behind, one + one + behind, one.swapcase() + behind, "")
            made = before + self._rng.choice(harms) or "a"
        return made

    def respelled(self) -> str:
        """A good one, one part of which is written in another way that lenient decoders take for the same bytes."""
        parts = self._rng.choice(self._good).split(".")
        place = self._rng.randrange(3)
        part = parts[place]
        spare_bits = {2: 4, 3: 2}.get(len(part) % 4, 0)
        if spare_bits:
            last = ALPHABET.index(part[-1]) ^ self._rng.randrange(1, 1 << spare_bits)
            parts[place] = part[:-1] + ALPHABET[last]
        else:
            parts[place] = part + self._rng.choice("=~")
        return ".".join(parts)

    def spliced(self) -> str:
        """Parts of several, each of which is good where it belongs."""
        parts = [
            self._rng.choice(self._good).split(".")[self._rng.choice([place, place, place, 0])] for place in range(3)
        ]
        return ".".join(parts[: self._rng.choice([3, 3, 3, 3, 2])] + parts[: self._rng.choice([0, 0, 0, 0, 1])])

    def promoted(self) -> str:
        """A good one that says more, under the signature of what it said."""
        head, body, signature = self._rng.choice(self._good).split(".")
        if self._rng.random() < 0.5:
            body = _with(body, *self._rng.choice(CLAIMS))
        else:
            head = _with(head, *self._rng.choice([*HEADERS, ("alg", self._rng.choice(ALGORITHMS))]))
        return f"{head}.{body}.{self._rng.choice([signature, signature, '', 'AAAA'])}"

    def resigned(self) -> str:
        """A whole one that is signed with a guess: public keys as text, words, nothing."""
        header: dict[str, object] = {"alg": self._rng.choice(ALGORITHMS), "typ": "JWT"}
        if self._rng.random() < 0.5:
            header |= [self._rng.choice(HEADERS)]
        name, value = self._rng.choice(CLAIMS)
        body = claims(exp=FAR) | ({name: value} if self._rng.random() < 0.5 else {})
        return forged(header, body, key=self._rng.choice(self._guesses))


def _with(part: str, name: str, value: object) -> str:
    return segment(json.dumps(json.loads(urlsafe_b64decode(part + "==")) | {name: value}).encode())


def asking(bearer: str) -> tuple[str, bytes]:
    return bearer, f"GET {PATH} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {bearer}\r\n\r\n".encode()


async def refused(attacked: Attack, port: int, bearers: Iterator[str]) -> None:
    """Every one of them is refused in the same words."""

    def see(bearer: str, answer: bytes) -> None:
        reply = Reply.parsed(answer)
        attacked.mind(reply.status == 401 and reply.code == "invalid-token", (bearer, answer))

    await ask_all(port, map(asking, bearers), see)


async def test_p17_forged_tokens_never_pass(database_url: str, record_property: Record) -> None:
    good = [token(sub=f"user {n}", exp=FAR + n) for n in range(8)] + [
        token(project_id="p2", exp=FAR, scope="jobs:read")
    ]
    corpus = [bad for bad in test_auth._bad_tokens().values() if len(bad) < 8_150]
    what = "forged tokens, by damage, splicing, other claims, other algorithms and guessed keys: refused, one answer"
    async with target(database_url) as api:
        with attack("P17 forged tokens never pass", what, record_property, random=True) as attacked:
            # The key with something behind or before it, its hash's usual substitutes, and what is in many a manual.
            guesses = [SECRET[:-1], SECRET + "\n", SECRET.upper(), "", "secret", "a" * 32, "\x00" * 32, PATH]
            await refused(attacked, api.port, iter(corpus))
            await refused(attacked, api.port, Forger(attacked.rng, good, guesses).tokens(scaled(2_000, full=100_000)))
            await ask_all(api.port, map(asking, good), lambda _, answer: attacked.mind(b" 404 " in answer[:15], answer))
            attacked.mind(SECRET not in api.program.err, "the key is in the log")


KEYS: Final[list[tuple[str, test_auth.PrivateKey]]] = [
    ("ES256", ec.generate_private_key(ec.SECP256R1())), ("EdDSA", ed25519.Ed25519PrivateKey.generate()),
    ("RS256", rsa.generate_private_key(public_exponent=65537, key_size=2048)),
    ("ES384", ec.generate_private_key(ec.SECP384R1())), ("ES512", ec.generate_private_key(ec.SECP521R1())),
    ("PS384", rsa.generate_private_key(public_exponent=65537, key_size=2048)),
]  # fmt: skip


async def test_p17_forged_tokens_never_pass_while_keys_change_and_their_issuer_is_down(
    database_url: str,
    record_property: Record,
    monkeypatch: pytest.MonkeyPatch,
    aiohttp_raw_server: AiohttpRawServer,
    serve: Serve,
) -> None:
    """In this process, where the half minute between two fetches passes faster."""
    monkeypatch.setattr(api.keys, "JWKS_REFETCH_S", 0.05)
    monkeypatch.setattr(api.keys, "JWKS_RETRY_S", 0.02)
    monkeypatch.setattr(api.keys, "JWKS_FIRST_RETRY_S", 0.02)
    what = "forged tokens while keys are published, replaced and unreachable: only tokens of the last good keys pass"
    issuer = Issuer()
    issuer.url = str((await aiohttp_raw_server(issuer.answer_to)).make_url("/keys"))
    served = await serve(database_url, jwt_secret=None, jwks_url=issuer.url)
    with attack("P17 keys that change", what, record_property, random=True) as attacked:
        before: list[str] = []
        for number in range(scaled(len(KEYS), full=30)):
            alg, key = KEYS[number % len(KEYS)]
            kid, stranger = f"key {number}", _new_key(key)
            issuer.status, issuer.document = 200, {"keys": [jwk(key, kid=kid)]}
            now = [token(key=key, alg=alg, header={"kid": kid}, sub=f"user {n}", exp=FAR) for n in range(5)]
            await eventually(partial(_lets_in, served, now[0]), what="a new key lets in")
            guesses = [test_auth.pem(key), test_auth.pem(key).strip(), json.dumps(jwk(key)), "", "secret"]
            forger = Forger(attacked.rng, now, guesses)
            others = [token(key=stranger, alg=alg, header={"kid": id_}, exp=FAR) for id_ in (kid, "another", "")]
            count = scaled(150, full=500)

            await refused(attacked, served.port, iter([*before, *others, token(exp=FAR)]))
            await refused(attacked, served.port, forger.tokens(count))
            issuer.status, asked = number % 2 * 303 + 200, issuer.asked  # it is down, or has no key any more
            issuer.document = {"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": kid}]}
            await eventually(partial(_asks_again, served, issuer, asked, others[1]), what="the issuer is asked")
            await refused(attacked, served.port, iter([*before, *others, *forger.tokens(count)]))
            for bearer in now:
                attacked.mind(await _lets_in(served, bearer), "a good token was refused while the issuer was down")
            before = [*before[-20:], *now]


async def _asks_again(served: Api, issuer: Issuer, asked: int, unknown: str) -> bool:
    """Whether a token that names an unknown key has made the api ask for keys."""
    assert not await _lets_in(served, unknown)
    return issuer.asked > asked


async def _lets_in(served: Api, bearer: str) -> bool:
    return (await served.get(PATH, token=bearer)).status == 404


def _new_key(like: test_auth.PrivateKey) -> test_auth.PrivateKey:
    match like:
        case rsa.RSAPrivateKey():
            return rsa.generate_private_key(public_exponent=65537, key_size=2048)
        case ec.EllipticCurvePrivateKey():
            return ec.generate_private_key(like.curve)
        case _:
            return ed25519.Ed25519PrivateKey.generate()
