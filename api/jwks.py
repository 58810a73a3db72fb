"""An issuer's keys: a JWKS document (RFC 7517), fetched and read.

    {"keys": [{"kty": "RSA", "kid": "a", "use": "sig", "alg": "RS256", "n": "…", "e": "AQAB"}, …]}

The document is read key by key. A key for another use, of an unknown kind, or broken is left out; the others are used.

Errors say what an operator can do. They may name a host, but never a path, a query, a user or a password of the URL.
"""

import asyncio
import json
import os
import re
import ssl
from collections import Counter
from collections.abc import Mapping
from typing import Final, NamedTuple

import aiohttp
import jwt

from shared.errors import RedriveError
from shared.public_keys import MIN_RSA_BITS, PublicKey, usable
from shared.urls import proxy_for

TIMEOUT_S: Final = 3
MAX_BYTES: Final = 256 * 1024
MAX_OF_ONE_ID: Final = 16
"""How many keys of one id are tried: it bounds how many signatures a forged token makes us verify."""

_WORD: Final = re.compile(r"[A-Za-z0-9_+.-]{1,24}", re.ASCII)


class KeysNotFetched(RedriveError):
    """The issuer's keys could not be fetched, or none of them can be used. `str()` says why."""

    code = "keys-not-fetched"


class IssuerKeys(NamedTuple):
    """The usable keys of a document by `kid`, one or more in all; under None those for tokens that name no `kid`.

    `unusable` is how many keys were left out, by the reason.
    """

    by_id: Mapping[str | None, tuple[PublicKey, ...]]
    usable: int
    unusable: Mapping[str, int]


async def fetch_once(url: str) -> IssuerKeys:
    """Fetch an issuer's keys, through the environment's proxy; for the api, and for `redrive check api`.

    `HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY` and `SSL_CERT_FILE` are honoured. No credentials are sent but those of the
    URLs themselves. Redirects are not followed, so that keys come only from where the settings say. It takes some 3 s
    at most.

    Raises KeysNotFetched, also where no key is usable; its text is the reason.
    """
    try:
        # Made for each fetch: the file of authorities may be replaced. In a thread: reading it takes time.
        tls = await asyncio.to_thread(ssl.create_default_context) if url.lower().startswith("https") else True
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            proxy=proxy_for(url),
        ) as session:
            document = await _document(session, url)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise KeysNotFetched(_reason_of(error)) from error
    return keys_in(document)


async def _document(session: aiohttp.ClientSession, url: str) -> bytes:
    async with session.get(url, allow_redirects=False) as response:
        if 300 <= response.status < 400:
            raise KeysNotFetched(
                f"the issuer answered {response.status}, a redirect, and redirects are not followed; "
                "set REDRIVE_JWKS_URL to the address that it leads to"
            )
        if response.status != 200:
            raise KeysNotFetched(f"the issuer answered {response.status}")
        document = b""
        async for chunk in response.content.iter_chunked(64 * 1024):
            document += chunk
            if len(document) > MAX_BYTES:
                raise KeysNotFetched(f"the issuer's answer is larger than {MAX_BYTES // 1024} KiB")
        return document


def _reason_of(error: Exception) -> str:
    match error:
        case TimeoutError():
            reason = f"no whole answer within {TIMEOUT_S} s"
        case aiohttp.ClientConnectorError() | aiohttp.ClientConnectorCertificateError():
            reason = _reason_of_connector(error)
        case aiohttp.ClientHttpProxyError():
            reason = f"the proxy answered {error.status}"
        case aiohttp.InvalidURL():
            reason = "the URL of the keys, or that of the proxy, cannot be read"
        case aiohttp.ClientPayloadError():
            reason = "the issuer's answer broke off, or is not compressed as it says"
        case aiohttp.ServerDisconnectedError() | OSError():
            reason = "the connection was lost before the answer"
        case _:
            reason = f"the issuer's answer cannot be read ({type(error).__name__})"
    return reason


def _reason_of_connector(error: aiohttp.ClientConnectorError | aiohttp.ClientConnectorCertificateError) -> str:
    server = f"{error.host}:{error.port}"
    match error:
        case aiohttp.ClientConnectorCertificateError():
            what = getattr(error.certificate_error, "verify_message", "")
            reason = f"the certificate of {server} is not trusted ({what}); SSL_CERT_FILE names a file of authorities"
        case aiohttp.ClientConnectorSSLError():
            reason = f"TLS with {server} failed ({getattr(error.os_error, 'reason', None)})"
        case aiohttp.ClientProxyConnectionError():
            reason = f"the proxy {server} cannot be reached ({_reason_of_os(error.os_error)})"
        case aiohttp.ClientConnectorDNSError():
            reason = f"the host name {error.host} cannot be resolved"
        case _:
            reason = f"{server} cannot be reached ({_reason_of_os(error.os_error)})"
    return reason


def _reason_of_os(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno is not None and error.errno > 0 else type(error).__name__


def keys_in(document: bytes) -> IssuerKeys:
    """The usable keys of a JWKS document. Raises KeysNotFetched for one that has none, and for any other document."""
    try:
        read = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise KeysNotFetched("the issuer's answer is not JSON") from error
    entries = read.get("keys") if isinstance(read, dict) else None
    if not isinstance(entries, list):
        if isinstance(read, dict) and "jwks_uri" in read:
            raise KeysNotFetched(
                "the issuer's answer is an OpenID configuration, not a JWKS; set REDRIVE_JWKS_URL to its jwks_uri"
            )
        raise KeysNotFetched("the issuer's answer is not a JWKS: it has no array `keys`")
    found: dict[str | None, list[PublicKey]] = {}
    unusable: Counter[str] = Counter()
    for entry in entries:
        try:
            kid, key = _key_of(entry)
        except _Unusable as reason:
            unusable[str(reason)] += 1
        else:
            of_one_id = found.setdefault(kid, [])
            if len(of_one_id) < MAX_OF_ONE_ID:
                of_one_id.append(key)
            else:
                unusable[f"more than {MAX_OF_ONE_ID} of one kid"] += 1
    if not found:
        seen = ", ".join(f"{count} {reason}" for reason, count in unusable.most_common(8)) or "none at all"
        raise KeysNotFetched(f"the issuer's answer has no usable key (it has {seen})")
    by_id = {kid: tuple(keys) for kid, keys in found.items()}
    count = sum(map(len, by_id.values()))
    if len(by_id) == 1:
        (by_id[None],) = by_id.values()
    return IssuerKeys(by_id, count, dict(unusable))


class _Unusable(Exception):
    """Not a key that can verify tokens; `str()` says why, without the issuer's own text."""


def _key_of(entry: object) -> tuple[str | None, PublicKey]:
    """The id and the key of one entry; a parameter that is null counts as absent. Raises _Unusable."""
    if not isinstance(entry, dict):
        raise _Unusable("not an object")
    kind, kid, use, operations, algorithm = (entry.get(name) for name in ("kty", "kid", "use", "key_ops", "alg"))
    if kind not in ("RSA", "EC", "OKP"):
        raise _Unusable(f"of kind {_word(kind)}")
    if not (kid is None or isinstance(kid, str)):
        raise _Unusable(f"{kind} whose kid is not a string")
    if not (use is None or use == "sig"):
        raise _Unusable(f"{kind} with use {_word(use)}")
    if operations is not None and not (isinstance(operations, list) and "verify" in operations):
        raise _Unusable(f"{kind} with key_ops without verify")
    key = _public_key_of(kind, entry)
    if algorithm is None:
        return kid, key
    narrowed = key.narrowed_to(algorithm)
    if narrowed is None:
        raise _Unusable(f"{kind} with alg {_word(algorithm)}")
    return kid, narrowed


def _public_key_of(kind: str, entry: dict[str, object]) -> PublicKey:
    try:
        match kind:
            case "RSA":
                made: object = jwt.algorithms.RSAAlgorithm.from_jwk(entry)
            case "EC":
                made = jwt.algorithms.ECAlgorithm.from_jwk(entry)
            case _:
                made = jwt.algorithms.OKPAlgorithm.from_jwk(entry)
    except Exception as error:  # a broken key can make PyJWT raise anything
        raise _Unusable(f"{kind} that cannot be read" + _curve_of(entry)) from error
    key = usable(made)
    if key is None:
        if "d" in entry:
            raise _Unusable(f"{kind} that is private")
        raise _Unusable(f"{kind} of less than {MIN_RSA_BITS} bits" if kind == "RSA" else kind + _curve_of(entry))
    return key


def _curve_of(entry: dict[str, object]) -> str:
    return f" with crv {_word(entry['crv'])}" if "crv" in entry else ""


def _word(value: object) -> str:
    """A word of the issuer's that is safe to log; 'unknown' for any other value."""
    return value if isinstance(value, str) and _WORD.fullmatch(value) else "unknown"
