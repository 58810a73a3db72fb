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
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa, x25519
from hypothesis import given
from hypothesis import strategies as st

import api.auth
from api.auth import MAX_REMEMBERED, MAX_TOKEN_BYTES, Authenticator, Scope
from api.keys import OneKey, Secret, keys_of
from api.problems import AuthenticationRequired, InsufficientScope, InvalidToken
from shared.errors import SettingsError
from shared.settings import ApiSettings, read
from tests.tokens import LEEWAY_S, SECRET, claims, forged, segment, token

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
P384_KEY = ec.generate_private_key(ec.SECP384R1())
P521_KEY = ec.generate_private_key(ec.SECP521R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
HS256 = {"alg": "HS256", "typ": "JWT"}

RSA_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

A_DAY_S = 86_400  # the tables below are made when tests are collected, and used minutes later


def pem(key: PrivateKey | ed448.Ed448PrivateKey | x25519.X25519PrivateKey) -> str:
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


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER ", "Bearer  ", "bearer     "])
def test_a_good_token_lets_its_project_in(scheme: str) -> None:
    principal = authenticator().authenticate([f"{scheme}{token()}"])

    assert (principal.project_id, principal.actor) == ("p1", "alice")


@pytest.mark.parametrize(
    ("key", "alg"),
    [
        *((RSA_KEY, alg) for alg in RSA_ALGORITHMS),
        (EC_KEY, "ES256"),
        (P384_KEY, "ES384"),
        (P521_KEY, "ES512"),
        (ED_KEY, "EdDSA"),
    ],
)
def test_a_token_signed_with_the_private_key_of_the_public_one_is_good(key: PrivateKey, alg: str) -> None:
    door = authenticator(jwt_public_key=pem(key))

    assert door.authenticate([f"Bearer {token(key=key, alg=alg)}"]).project_id == "p1"


def test_without_a_subject_the_project_is_the_actor() -> None:
    assert authenticator().authenticate([f"Bearer {token(sub=...)}"]).actor == "project:p1"


@pytest.mark.parametrize(
    ("subject", "actor"),
    [
        ("auth0|5f7c8ec7c33c6c004bbafe82", "auth0|5f7c8ec7c33c6c004bbafe82"),
        (4711, "4711"),
        (0, "0"),
        (-3, "-3"),
        (2**64, "18446744073709551616"),
        (10**254, "1" + "0" * 254),
        (None, "project:p1"),
    ],
)
def test_the_actor_is_the_subject_as_text(subject: object, actor: str) -> None:
    assert authenticator().authenticate([f"Bearer {forged(HS256, claims(sub=subject))}"]).actor == actor


@pytest.mark.parametrize("jti", [4711, None, "", ["a"], {"a": 1}, 1.5])
def test_what_else_a_token_holds_is_not_looked_at(jti: object) -> None:
    made = forged(HS256, claims(jti=jti, typ=1, roles=["x"], groups=["/a/b"] * 100, realm_access={"roles": [None]}))

    assert authenticator().authenticate([f"Bearer {made}"])


@pytest.mark.parametrize("header", [{"typ": "at+jwt"}, {"typ": None}, {"cty": "JWT"}, {"x5t": "a"}, {"b64": True}])
def test_the_header_may_say_more_than_is_looked_at(header: dict[str, Any]) -> None:
    assert authenticator().authenticate([f"Bearer {forged(HS256 | header, claims())}"])


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("tenant", {"tenant": "t1"}),
        ("https://example.com/project_id", {"https://example.com/project_id": "t1"}),
        ("custom:project", {"custom:project": "t1"}),
        ("a.b.c", {"a.b.c": "t1", "a": {"b": {"c": "t2"}}}),
        ("sub", {"sub": "t1"}),
        ("~2", {"~2": "t1"}),
        ("/tenant", {"tenant": "t1"}),
        ("/app_metadata/project_id", {"app_metadata": {"project_id": "t1"}}),
        ("/a/b/c", {"a": {"b": {"c": "t1"}}, "/a/b/c": "t2"}),
        ("/a~1b/c~0d", {"a/b": {"c~d": "t1"}}),
        ("/~01", {"~1": "t1", "/": "t2"}),
        ("/https:~1~1example.com~1app/id", {"https://example.com/app": {"id": "t1"}}),
        ("/projects/0", {"projects": ["t1", "t2"]}),
        ("/projects/1/id", {"projects": [{"id": "t2"}, {"id": "t1"}]}),
        ("/projects/0", {"projects": {"0": "t1"}}),
        ("/", {"": "t1"}),
        ("/a//b", {"a": {"": {"b": "t1"}}}),
    ],
)
def test_the_project_is_where_the_setting_says(name: str, held: dict[str, Any]) -> None:
    door = authenticator(jwt_project_claim=name)

    assert door.authenticate([f"Bearer {forged(HS256, claims(project_id='t3') | held)}"]).project_id == "t1"


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("tenant", {}),
        ("app_metadata.project_id", {"app_metadata": {"project_id": "t1"}}),
        ("app_metadata/project_id", {"app_metadata": {"project_id": "t1"}}),
        ("/app_metadata/project_id", {}),
        ("/app_metadata/project_id", {"app_metadata": {}}),
        ("/app_metadata/project_id", {"app_metadata": None}),
        ("/app_metadata/project_id", {"app_metadata": "t1"}),
        ("/app_metadata/project_id", {"app_metadata": ["t1"]}),
        ("/app_metadata/project_id", {"app_metadata": {"project_id": 1}}),
        ("/app_metadata", {"app_metadata": {"project_id": "t1"}}),
        ("/projects/2", {"projects": ["t1", "t2"]}),
        ("/projects/-", {"projects": ["t1"]}),
        ("/projects/-1", {"projects": ["t1"]}),
        ("/projects/00", {"projects": ["t1"]}),
        ("/projects/\u0660", {"projects": ["t1"]}),
        ("/projects/99999999999999999999", {"projects": ["t1"]}),
        ("/projects", {"projects": ["t1"]}),
        ("/project_id/0", {}),
    ],
)
def test_a_token_without_a_project_there_is_refused(name: str, held: dict[str, Any]) -> None:
    with pytest.raises(InvalidToken):
        authenticator(jwt_project_claim=name).authenticate([f"Bearer {forged(HS256, claims() | held)}"])


@pytest.mark.parametrize("name", ["/a~2b", "/a~", "/~", "/a/~b"])
def test_a_pointer_that_is_none_is_an_error_of_the_settings(name: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        settings(jwt_secret=SECRET, jwt_project_claim=name)

    (problem,) = refusal.value.problems
    assert problem.startswith("REDRIVE_JWT_PROJECT_CLAIM: must be the name of a claim, or a JSON pointer")


@pytest.mark.parametrize(
    ("written", "expires_at"),
    [
        ("4000000000", 4_000_000_000),
        ("4000000000.75", 4_000_000_000),
        ("4e9", 4_000_000_000),
        ("253402300799.5", 253_402_300_799),
    ],
)
def test_a_fraction_of_a_second_is_cut(written: str, expires_at: int) -> None:
    made = forged(HS256, f'{{"project_id":"p1","exp":{written},"nbf":1.5,"iat":1700000000.25}}'.encode())

    assert authenticator().authenticate([f"Bearer {made}"]).expires_at == expires_at


@pytest.mark.parametrize("since", [-1, 9, 10])
def test_clocks_may_differ_by_the_leeway(since: int) -> None:
    now = int(time.time())

    door = authenticator()
    assert door.authenticate([f"Bearer {token(exp=now - LEEWAY_S // 2)}"])
    assert door.authenticate([f"Bearer {token(nbf=now + since, iat=now + since)}"])


@pytest.mark.parametrize("leeway", [0, 60, 120])
def test_the_leeway_is_a_setting(leeway: int) -> None:
    now = int(time.time())
    door = authenticator(jwt_leeway=leeway)

    assert door.authenticate([f"Bearer {token(exp=now - leeway + 9, nbf=now + leeway, iat=now + leeway)}"])
    for late in (token(exp=now - leeway - 1), token(nbf=now + leeway + 9), token(iat=now + leeway + 9)):
        with pytest.raises(InvalidToken):
            door.authenticate([f"Bearer {late}"])


def test_a_token_of_exactly_the_most_bytes_is_good() -> None:
    made = next(made for pad in range(5_700, 6_000) if len(made := token(pad="x" * pad)) >= MAX_TOKEN_BYTES - 1)
    longer = token(pad="x" * 6_000)

    assert MAX_TOKEN_BYTES - 1 <= len(made) <= MAX_TOKEN_BYTES < len(longer)
    assert authenticator().authenticate([f"Bearer {made}"])
    with pytest.raises(InvalidToken):
        authenticator().authenticate([f"Bearer {longer}"])


@pytest.mark.parametrize(
    ("changed", "scopes"),
    [
        ({}, api.auth.UNSCOPED),
        ({"scope": ""}, frozenset()),
        ({"scope": "jobs:read  jobs:retry"}, {Scope.READ, Scope.RETRY}),
        ({"scp": ["jobs:read"]}, {Scope.READ}),
        ({"scp": []}, frozenset()),
        ({"scp": "jobs:read jobs:retry"}, {Scope.READ, Scope.RETRY}),
        ({"scp": ""}, frozenset()),
        ({"scope": ["jobs:read", "jobs:retry"]}, {Scope.READ, Scope.RETRY}),
        ({"scope": []}, frozenset()),
        ({"scope": "jobs:read", "scp": ["jobs:admin"]}, {Scope.READ, Scope.ADMIN}),
        ({"scope": ["jobs:read"], "scp": "jobs:read jobs:retry"}, {Scope.READ, Scope.RETRY}),
        ({"roles": ["jobs:admin"]}, api.auth.UNSCOPED),
        ({"scope": "JOBS:READ other"}, {"JOBS:READ", "other"}),
        ({"scope": "jobs:read\u00a0jobs:admin"}, {"jobs:read\u00a0jobs:admin"}),
        ({"scp": " jobs:read\u2003jobs:admin jobs:retry "}, {"jobs:read\u2003jobs:admin", Scope.RETRY}),
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
        "only the scheme and spaces": ["Bearer   "],
        "two spaces and more": [f"Bearer  {good} more"],
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
        "over 8000 bytes": [f"Bearer {token(pad='x' * 5930)}"],
        "over 10 KB": [f"Bearer {token(pad='x' * 8000)}"],
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
        "header nested deep": forged(b'{"alg":"HS256","x":' + b"[" * 5600, claims()),
        "payload nested deep": forged(HS256, b'{"x":' + b"[" * 5800),
        "payload closed and nested deep": forged(HS256, b'{"x":' + b"[" * 2900 + b"]" * 2900 + b"}"),
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
        "exp past, with a fraction": forged(HS256, claims(exp=now - LEEWAY_S - 0.5)),
        "exp after the year 9999, with a fraction": forged(HS256, claims(exp=253_402_300_800.5)),
        "exp false": forged(HS256, claims(exp=False)),
        "exp beyond any float": forged(HS256, b'{"project_id":"p1","exp":1e400}'),
        "exp infinitely past": forged(HS256, b'{"project_id":"p1","exp":-Infinity}'),
        "exp true": forged(HS256, claims(exp=True)),
        "exp a list": forged(HS256, claims(exp=[now + A_DAY_S])),
        "exp an object": forged(HS256, claims(exp={"at": now + A_DAY_S})),
        "exp huge": forged(HS256, huge),
        "exp many digits": forged(HS256, b'{"project_id":"p1","exp":' + b"9" * 2900 + b"}"),
        "exp too many digits": forged(HS256, b'{"project_id":"p1","exp":' + b"9" * 5000 + b"}"),
        "exp after the year 9999": forged(HS256, claims(exp=253_402_300_800)),
        "exp infinite": forged(HS256, b'{"project_id":"p1","exp":Infinity}'),
        "exp not a number": forged(HS256, b'{"project_id":"p1","exp":NaN}'),
        "exp with an exponent": forged(HS256, b'{"project_id":"p1","exp":1e30}'),
        "nbf to come": token(nbf=now + LEEWAY_S + A_DAY_S),
        "nbf a word": forged(HS256, claims(nbf="canary")),
        "nbf infinite": forged(HS256, b'{"project_id":"p1","exp":9999999999,"nbf":Infinity}'),
        "nbf a list": forged(HS256, claims(nbf=[1])),
        "nbf a string": forged(HS256, claims(nbf=str(now))),
        "nbf true": forged(HS256, claims(nbf=True)),
        "nbf null": forged(HS256, claims(nbf=None)),
        "nbf beyond any float": forged(HS256, b'{"project_id":"p1","exp":9999999999,"nbf":1e400}'),
        "nbf not a number": forged(HS256, b'{"project_id":"p1","exp":9999999999,"nbf":NaN}'),
        "iat to come": token(iat=now + LEEWAY_S + A_DAY_S),
        "iat a word": forged(HS256, claims(iat="canary")),
        "iat an object": forged(HS256, claims(iat={})),
        "iat a string": forged(HS256, claims(iat=str(now))),
        "iat true": forged(HS256, claims(iat=True)),
        "iat null": forged(HS256, claims(iat=None)),
        "iat infinitely past": forged(HS256, b'{"project_id":"p1","exp":9999999999,"iat":-1e400}'),
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
        "subject a float": forged(HS256, claims(sub=4711.0)),
        "subject true": forged(HS256, claims(sub=True)),
        "subject an object": forged(HS256, claims(sub={"id": "alice"})),
        "subject of 256 digits": forged(HS256, claims(sub=10**255)),
        "subject of 3000 digits": forged(HS256, b'{"project_id":"p1","exp":9999999999,"sub":' + b"9" * 3000 + b"}"),
        "subject of 5000 digits": forged(HS256, b'{"project_id":"p1","exp":9999999999,"sub":' + b"9" * 5000 + b"}"),
        "subject a list": forged(HS256, claims(sub=["alice"])),
        "subject with NUL": token(sub="a\x00"),
        "subject with a newline": token(sub="a\nb"),
        "subject a lone surrogate": forged(HS256, b'{"project_id":"p1","exp":9999999999,"sub":"\\ud800"}'),
        "subject over 255 characters": token(sub="a" * 256),
        "scope a lone surrogate": forged(HS256, claims(scope="jobs:read \ud800")),
        "scp with a lone surrogate": forged(HS256, claims(scp=["jobs:read", "a\udfff"])),
        "scope a list with a number": token(scope=["jobs:admin", 1]),
        "scope a number": token(scope=1),
        "scope true": token(scope=True),
        "scope null": forged(HS256, claims(scope=None)),
        "scope an object": token(scope={"jobs:admin": 1}),
        "scp an object": token(scp={"jobs:admin": True}),
        "scope good, scp null": forged(HS256, claims(scope="jobs:read", scp=None)),
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
        (P384_KEY, EC_KEY, "ES256"),
        (P521_KEY, P384_KEY, "ES384"),
        (EC_KEY, P521_KEY, "ES512"),
        (EC_KEY, RSA_KEY, "RS256"),
        (ED_KEY, RSA_KEY, "PS512"),
        (RSA_KEY, EC_KEY, "ES256"),
        (EC_KEY, ED_KEY, "EdDSA"),
        (ED_KEY, EC_KEY, "ES256"),
    ],
    ids=[
        "ES256 to P-384",
        "ES384 to P-521",
        "ES512 to P-256",
        "RS256 to P-256",
        "PS512 to Ed25519",
        "ES256 to RSA",
        "EdDSA to P-256",
        "ES256 to Ed25519",
    ],
)
def test_a_key_is_good_for_its_own_algorithms_only(known: PrivateKey, signer: PrivateKey, alg: str) -> None:
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
        with pytest.raises(BlockingIOError):  # no call has come
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
    keys, good = OneKey(Secret(SECRET.encode())), token()
    door = Authenticator(settings(jwt_secret=SECRET), keys)
    door.authenticate([f"Bearer {good}"])

    keys._keys = (Secret(SECRET[::-1].encode()),)
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
        pem(ec.generate_private_key(ec.SECP256K1())),
        pem(ed448.Ed448PrivateKey.generate()),
        pem(x25519.X25519PrivateKey.generate()),
        pem(rsa.generate_private_key(public_exponent=65537, key_size=1024)),
        EC_KEY.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
    ],
    ids=["text", "damaged", "secp256k1", "Ed448", "X25519", "short RSA", "private"],
)
def test_a_public_key_that_cannot_be_used_is_an_error_of_the_settings(text: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        keys_of(settings(jwt_public_key=text))

    (problem,) = refusal.value.problems
    assert problem.startswith("REDRIVE_JWT_PUBLIC_KEY: must be an RSA")
