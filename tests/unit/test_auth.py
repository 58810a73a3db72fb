"""Tokens that let in, and the many that do not; every refusal is the same one."""

import hashlib
import hmac
import json
import socket
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

import api.auth
from api.auth import LEEWAY_S, MAX_REMEMBERED, Authenticator, Scope
from api.keys import Key, OneKey, keys_of
from api.problems import AuthenticationRequired, InsufficientScope, InvalidToken
from shared.errors import SettingsError
from shared.settings import ApiSettings, read
from tests.tokens import SECRET, claims, forged, segment, token

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
HS256 = {"alg": "HS256", "typ": "JWT"}

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

A_DAY_S = 86_400  # the tables below are made when tests are collected, and used minutes later


def pem(key: PrivateKey) -> str:
    public = key.public_key()
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def settings(**known: object) -> ApiSettings:
    return read(ApiSettings, **{"database_url": "postgresql://nowhere/x", **known})


def authenticator(**known: object) -> Authenticator:
    given = settings(**(known if known.keys() & {"jwt_public_key", "jwks_url"} else {"jwt_secret": SECRET, **known}))
    return Authenticator(given, keys_of(given))


class Verifications:
    """Counts the signatures that are looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._decode = jwt.decode
        monkeypatch.setattr(jwt, "decode", self._counted)

    def _counted(self, *args: Any, **kwargs: Any) -> object:  # noqa: ANN401 - PyJWT's own parameters
        self.count += 1
        return self._decode(*args, **kwargs)


@pytest.fixture
def verifications(monkeypatch: pytest.MonkeyPatch) -> Verifications:
    return Verifications(monkeypatch)


# -- those that are let in


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_good_token_lets_its_project_in(scheme: str) -> None:
    principal = authenticator().authenticate([f"{scheme} {token()}"])

    assert (principal.project_id, principal.actor) == ("p1", "alice")


@pytest.mark.parametrize(("key", "alg"), [(RSA_KEY, "RS256"), (EC_KEY, "ES256"), (ED_KEY, "EdDSA")])
def test_a_token_signed_with_the_private_key_of_the_public_one_is_good(key: PrivateKey, alg: str) -> None:
    door = authenticator(jwt_public_key=pem(key))

    assert door.authenticate([f"Bearer {token(key=key, alg=alg)}"]).project_id == "p1"


def test_without_a_subject_the_project_is_the_actor() -> None:
    assert authenticator().authenticate([f"Bearer {token(sub=...)}"]).actor == "project:p1"


def test_the_project_claim_may_have_another_name() -> None:
    door = authenticator(jwt_project_claim="tenant")

    assert door.authenticate([f"Bearer {token(tenant='t1', project_id=...)}"]).project_id == "t1"


@pytest.mark.parametrize("since", [-1, 9, 10])
def test_clocks_may_differ_by_the_leeway(since: int) -> None:
    now = int(time.time())

    door = authenticator()
    assert door.authenticate([f"Bearer {token(exp=now - LEEWAY_S // 2)}"])
    assert door.authenticate([f"Bearer {token(nbf=now + since, iat=now + since)}"])


@pytest.mark.parametrize(
    ("changed", "scopes"),
    [
        ({}, api.auth.UNSCOPED),
        ({"scope": ""}, frozenset()),
        ({"scope": "jobs:read  jobs:retry"}, {Scope.READ, Scope.RETRY}),
        ({"scp": ["jobs:read"]}, {Scope.READ}),
        ({"scp": []}, frozenset()),
        ({"scope": "jobs:read", "scp": ["jobs:admin"]}, {Scope.READ, Scope.ADMIN}),
        ({"scope": "JOBS:READ other"}, {"JOBS:READ", "other"}),
    ],
)
def test_scopes_are_the_token_s(changed: dict[str, Any], scopes: set[str]) -> None:
    assert authenticator().authenticate([f"Bearer {token(**changed)}"]).scopes == scopes


def test_a_token_without_scopes_may_do_nothing_where_scopes_are_required() -> None:
    principal = authenticator(require_scopes=True).authenticate([f"Bearer {token()}"])

    with pytest.raises(InsufficientScope):
        principal.require(Scope.READ)


@pytest.mark.parametrize("claim", [{"iss": "us"}, {"aud": "redrive"}, {"aud": ["other", "redrive"]}, {"aud": "x"}])
def test_issuer_and_audience_are_looked_at_only_when_configured(claim: dict[str, Any]) -> None:
    assert authenticator().authenticate([f"Bearer {token(**claim)}"])


def test_issuer_and_audience_that_are_configured_must_be_there() -> None:
    door = authenticator(jwt_issuer="us", jwt_audience="redrive")

    assert door.authenticate([f"Bearer {token(iss='us', aud=['redrive', 'more'])}"])
    for iss, aud in ((..., ...), ("us", ...), (..., "redrive"), ("them", "redrive"), ("us", "x")):
        with pytest.raises(InvalidToken):
            door.authenticate([f"Bearer {token(iss=iss, aud=aud)}"])


# -- those that are not


def test_no_header_at_all_is_another_matter_than_a_bad_one() -> None:
    with pytest.raises(AuthenticationRequired):
        authenticator().authenticate([])


def _spellings_of_none() -> list[str]:
    return ["none", "None", "NONE", "nOnE", "", "none ", "HS256,none", "null"]


def _bad_headers() -> dict[str, list[str]]:
    good = token()
    return {
        "empty": [""],
        "only the scheme": ["Bearer"],
        "scheme and a space": ["Bearer "],
        "no scheme": [good],
        "Basic": ["Basic cDE6cDE="],
        "Basic with a token": [f"Basic {good}"],
        "two words": ["Bearer a b"],
        "good and more": [f"Bearer {good} more"],
        "two spaces": [f"Bearer  {good}"],
        "tab": [f"Bearer\t{good}"],
        "trailing newline": [f"Bearer {good}\n"],
        "two headers": [f"Bearer {good}", f"Bearer {good}"],
        "good and empty": [f"Bearer {good}", ""],
        "two in one": [f"Bearer {good}, Bearer {good}"],
        "not a token": ["Bearer canary"],
        "two parts": ["Bearer " + good.rpartition(".")[0]],
        "four parts": [f"Bearer {good}.AAAA"],
        "empty signature": ["Bearer " + good.rpartition(".")[0] + "."],
        "five parts, as JWE": ["Bearer a.b.c.d.e"],
        "not ASCII": ["Bearer " + good[:-1] + "é"],
        "surrogates": ["Bearer \udcff.\udcff.\udcff"],
        "other digits": ["Bearer " + good[:-1] + "٤"],
        "over 4 KiB": [f"Bearer {token(pad='x' * 4096)}"],
        "10 MB": ["Bearer " + "a" * 10_000_000],
    }


def _bad_tokens() -> dict[str, str]:
    now = int(time.time())
    good = token()
    head, body, signature = good.split(".")
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    huge = b'{"project_id":"p1","exp":%s}' % (b"9" * 400)
    found = {
        "padded signature": good + "=",
        "padded header": f"{head}=.{body}.{signature}",
        "non-canonical last character": good[:-1] + last[last.index(good[-1]) + 1],
        "signature cut": good[:-2],
        "signature of another token": f"{token(sub='bob').rpartition('.')[0]}.{signature}",
        "other secret": token(key=SECRET[::-1]),
        "HS384": token(alg="HS384", key=SECRET * 2),
        "HS512": token(alg="HS512", key=SECRET * 2),
        "RS256 where a secret is expected": token(key=RSA_KEY, alg="RS256"),
        "alg missing": forged({"typ": "JWT"}, claims()),
        "alg null": forged({"alg": None}, claims()),
        "alg a number": forged({"alg": 256}, claims()),
        "alg a list": forged({"alg": ["HS256"]}, claims()),
        "alg an object": forged({"alg": {"HS256": 1}}, claims()),
        "crit unknown": forged(HS256 | {"crit": ["x-canary"], "x-canary": 1}, claims()),
        "crit known": forged(HS256 | {"crit": ["b64"], "b64": True}, claims()),
        "crit empty": forged(HS256 | {"crit": []}, claims()),
        "crit a string": forged(HS256 | {"crit": "b64"}, claims()),
        "b64 false": forged(HS256 | {"b64": False}, claims()),
        "kid an object": forged(HS256 | {"kid": {"a": 1}}, claims()),
        "kid a list": forged(HS256 | {"kid": ["a"]}, claims()),
        "kid a number": forged(HS256 | {"kid": 1}, claims()),
        "kid null": forged(HS256 | {"kid": None}, claims()),
        "kid a path, other secret": forged(HS256 | {"kid": "../../../../dev/null"}, claims(), key=""),
        "kid SQL, other secret": forged(HS256 | {"kid": "x' UNION SELECT 'a'--"}, claims(), key="a"),
        "header not JSON": forged(b"canary", claims()),
        "header a list": forged([HS256], claims()),
        "header a string": forged("HS256", claims()),
        "header null": forged(None, claims()),
        "header not UTF-8": forged(b'{"alg":"HS256","x":"\xff"}', claims()),
        "header nested deep": forged(b'{"alg":"HS256","x":' + b"[" * 1200, claims()),
        "payload nested deep": forged(HS256, b'{"x":' + b"[" * 2000),
        "payload closed and nested deep": forged(HS256, b'{"x":' + b"[" * 1400 + b"]" * 1400 + b"}"),
        "header nested 100,000 deep": forged(b'{"x":' + b"[" * 100_000, claims()),
        "payload nested 100,000 deep": forged(HS256, b"[" * 100_000),
        "payload not JSON": forged(HS256, b"canary"),
        "payload a list": forged(HS256, [claims()]),
        "payload a string": forged(HS256, "p1"),
        "payload null": forged(HS256, None),
        "payload not UTF-8": forged(HS256, b'{"project_id":"\xff","exp":9999999999}'),
        "exp missing": token(exp=...),
        "exp null": forged(HS256, claims(exp=None)),
        "exp past": token(exp=now - LEEWAY_S - 1),
        "exp zero": token(exp=0),
        "exp negative": token(exp=-1),
        "exp a string": forged(HS256, claims(exp=str(now + A_DAY_S))),
        "exp a word": forged(HS256, claims(exp="canary")),
        "exp a float": forged(HS256, claims(exp=now + A_DAY_S + 0.5)),
        "exp a whole float": forged(HS256, claims(exp=float(now + A_DAY_S))),
        "exp true": forged(HS256, claims(exp=True)),
        "exp a list": forged(HS256, claims(exp=[now + A_DAY_S])),
        "exp an object": forged(HS256, claims(exp={"at": now + A_DAY_S})),
        "exp huge": forged(HS256, huge),
        "exp too many digits": forged(HS256, b'{"project_id":"p1","exp":' + b"9" * 2900 + b"}"),
        "exp after the year 9999": forged(HS256, claims(exp=253_402_300_800)),
        "exp infinite": forged(HS256, b'{"project_id":"p1","exp":Infinity}'),
        "exp not a number": forged(HS256, b'{"project_id":"p1","exp":NaN}'),
        "exp with an exponent": forged(HS256, b'{"project_id":"p1","exp":1e30}'),
        "nbf to come": token(nbf=now + LEEWAY_S + A_DAY_S),
        "nbf a word": forged(HS256, claims(nbf="canary")),
        "nbf infinite": forged(HS256, b'{"project_id":"p1","exp":9999999999,"nbf":Infinity}'),
        "nbf a list": forged(HS256, claims(nbf=[1])),
        "iat to come": token(iat=now + LEEWAY_S + A_DAY_S),
        "iat a word": forged(HS256, claims(iat="canary")),
        "iat an object": forged(HS256, claims(iat={})),
        "project missing": token(project_id=...),
        "project null": forged(HS256, claims(project_id=None)),
        "project a list": token(project_id=["p1"]),
        "project an object": token(project_id={"id": "p1"}),
        "project a number": token(project_id=1),
        "project true": token(project_id=True),
        "project empty": token(project_id=""),
        "project over 100 characters": token(project_id="p" * 101),
        "project of 10 KB": token(project_id="p" * 10_000),
        "project with NUL": token(project_id="p1\x00"),
        "project with a newline": token(project_id="p1\n"),
        "project with a space": token(project_id="p 1"),
        "project SQL": token(project_id="p1'--"),
        "project of other digits": token(project_id="p\u0661"),
        "project a wildcard": token(project_id="%"),
        "subject empty": token(sub=""),
        "subject a number": forged(HS256, claims(sub=1)),
        "subject null": forged(HS256, claims(sub=None)),
        "subject a list": forged(HS256, claims(sub=["alice"])),
        "subject with NUL": token(sub="a\x00"),
        "subject with a newline": token(sub="a\nb"),
        "subject a lone surrogate": forged(HS256, b'{"project_id":"p1","exp":9999999999,"sub":"\\ud800"}'),
        "subject over 255 characters": token(sub="a" * 256),
        "scope a list": token(scope=["jobs:admin"]),
        "scope null": forged(HS256, claims(scope=None)),
        "scope an object": token(scope={"jobs:admin": 1}),
        "scp a string": token(scp="jobs:admin"),
        "scp a list of lists": token(scp=[["jobs:admin"]]),
        "scp null": forged(HS256, claims(scp=None)),
    }
    for name in _spellings_of_none():
        found[f"alg {name!r} unsigned"] = f"{segment(json.dumps({'alg': name}).encode())}.{body}."
        found[f"alg {name!r} with a signature"] = forged({"alg": name}, claims())
    return found


@pytest.mark.parametrize("headers", _bad_headers().values(), ids=_bad_headers().keys())
def test_a_header_that_is_not_one_bearer_token_is_refused(headers: list[str]) -> None:
    with pytest.raises(InvalidToken) as refusal:
        authenticator().authenticate(headers)

    assert not refusal.value.args


@pytest.mark.parametrize("bad", _bad_tokens().values(), ids=_bad_tokens().keys())
def test_a_token_that_does_not_hold_is_refused(bad: str) -> None:
    door = authenticator()

    with pytest.raises(InvalidToken) as refusal:
        door.authenticate([f"Bearer {bad}"])

    assert not refusal.value.args
    assert not door._known


@pytest.mark.parametrize("key", [RSA_KEY, EC_KEY, ED_KEY], ids=["RSA", "EC", "Ed25519"])
@pytest.mark.parametrize("ending", ["", "\n"])
def test_the_text_of_a_public_key_is_not_a_secret_to_sign_with(key: PrivateKey, ending: str) -> None:
    text = pem(key).strip() + ending
    signed = f"{segment(json.dumps(HS256).encode())}.{segment(json.dumps(claims()).encode())}"
    confused = f"{signed}.{segment(hmac.digest(text.encode(), signed.encode(), hashlib.sha256))}"

    with pytest.raises(InvalidToken):
        authenticator(jwt_public_key=pem(key)).authenticate([f"Bearer {confused}"])


@pytest.mark.parametrize(
    ("known", "signer", "alg"),
    [
        (RSA_KEY, RSA_KEY, "PS256"),
        (RSA_KEY, RSA_KEY, "RS512"),
        (EC_KEY, RSA_KEY, "RS256"),
        (RSA_KEY, EC_KEY, "ES256"),
        (EC_KEY, ED_KEY, "EdDSA"),
        (ED_KEY, EC_KEY, "ES256"),
    ],
    ids=["RSA as PS256", "RSA as RS512", "RS256 to P-256", "ES256 to RSA", "EdDSA to P-256", "ES256 to Ed25519"],
)
def test_a_key_is_good_for_its_one_algorithm_only(known: PrivateKey, signer: PrivateKey, alg: str) -> None:
    with pytest.raises(InvalidToken):
        authenticator(jwt_public_key=pem(known)).authenticate([f"Bearer {token(key=signer, alg=alg)}"])


@pytest.mark.parametrize("parameter", ["jku", "x5u"])
def test_a_key_s_address_in_the_token_is_not_followed(parameter: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/keys"

        with pytest.raises(InvalidToken):
            authenticator(jwt_public_key=pem(RSA_KEY)).authenticate(
                [f"Bearer {token(key=EC_KEY, alg='ES256', header={parameter: address})}"]
            )

        listening.settimeout(0)
        with pytest.raises(BlockingIOError):  # nobody has called
            listening.accept()


def test_a_key_in_the_token_itself_is_not_taken() -> None:
    own = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(EC_KEY.public_key()))

    with pytest.raises(InvalidToken):
        authenticator(jwt_public_key=pem(RSA_KEY)).authenticate(
            [f"Bearer {token(key=EC_KEY, alg='ES256', header={'jwk': own})}"]
        )


@given(st.data())
def test_no_change_to_a_good_token_makes_another_good_one(data: st.DataObject) -> None:
    good = token(exp=api.auth.LATEST_EXP)
    at = data.draw(st.integers(0, len(good) - 1))
    instead = data.draw(st.characters(exclude_characters=good[at]) | st.just(""))

    with pytest.raises(InvalidToken):
        authenticator().authenticate([f"Bearer {good[:at]}{instead}{good[at + 1 :]}"])


@given(st.text(max_size=200))
def test_no_text_at_all_gets_past_or_breaks_it(text: str) -> None:
    with pytest.raises(InvalidToken):
        authenticator().authenticate([text])


# -- remembering


def test_a_token_is_verified_once(verifications: Verifications) -> None:
    door, good = authenticator(), token()

    for _ in range(5):
        door.authenticate([f"Bearer {good}"])

    assert verifications.count == 1


def test_a_token_that_is_remembered_ends_when_it_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    now = int(time.time())
    door, good = authenticator(), token(exp=now + 60)
    door.authenticate([f"Bearer {good}"])

    monkeypatch.setattr(time, "time", lambda: float(now + 60 + LEEWAY_S))

    with pytest.raises(InvalidToken):
        door.authenticate([f"Bearer {good}"])
    assert not door._known


def test_what_is_remembered_ends_when_the_keys_change(verifications: Verifications) -> None:
    keys, good = OneKey(Key(SECRET.encode(), ["HS256"])), token()
    door = Authenticator(settings(jwt_secret=SECRET), keys)
    door.authenticate([f"Bearer {good}"])

    keys._key = Key(SECRET[::-1].encode(), ["HS256"])
    keys.generation += 1

    with pytest.raises(InvalidToken):
        door.authenticate([f"Bearer {good}"])
    assert verifications.count == 2


def test_what_is_remembered_is_bounded_and_holds_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.auth, "MAX_REMEMBERED", 3)
    door = authenticator()
    tokens = [token(sub=f"user {n}") for n in range(5)]

    for each in tokens:
        door.authenticate([f"Bearer {each}"])

    assert len(door._known) == 3 < MAX_REMEMBERED
    assert not any(each.encode() in digest for each in tokens for digest in door._known)


# -- keys from the settings


@pytest.mark.parametrize(
    "text",
    [
        "not a key",
        pem(RSA_KEY).replace("A", "B"),
        pem(ec.generate_private_key(ec.SECP384R1())),
        pem(rsa.generate_private_key(public_exponent=65537, key_size=1024)),
        EC_KEY.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
    ],
    ids=["text", "damaged", "P-384", "short RSA", "private"],
)
def test_a_public_key_that_cannot_be_used_is_an_error_of_the_settings(text: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        keys_of(settings(jwt_public_key=text))

    (problem,) = refusal.value.problems
    assert problem.startswith("REDRIVE_JWT_PUBLIC_KEY: must be an RSA")
