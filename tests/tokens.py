"""Bearer tokens for tests: good ones, and those that are forged by hand."""

import hashlib
import hmac
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Mapping

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

SECRET = "a secret of the tests, longer than 32 bytes"
LEEWAY_S = 10
"""For how long a token is accepted after its `exp`, unless the settings say otherwise."""
RUNS_OUT_S = 5
"""For how long a token is accepted that runs out in use: a busy machine takes seconds to its first use. Tests wait so
long."""


def claims(**changed: object) -> dict[str, object]:
    """Good claims, with some changed; Ellipsis takes one away."""
    good = {"project_id": "p1", "sub": "alice", "exp": int(time.time()) + 3600}
    return {name: value for name, value in {**good, **changed}.items() if value is not ...}


Signer = str | rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def token(
    *, key: Signer = SECRET, alg: str = "HS256", header: Mapping[str, object] | None = None, **changed: object
) -> str:
    """A token as PyJWT makes it."""
    return jwt.encode(claims(**changed), key, algorithm=alg, headers=None if header is None else dict(header))


def segment(part: bytes) -> str:
    return urlsafe_b64encode(part).rstrip(b"=").decode()


def forged(header: object, body: object, *, key: str = SECRET) -> str:
    """A token whose parts are whatever they are given as, bytes or JSON, with a true HS256 signature over them."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, body)]
    signed = f"{segment(parts[0])}.{segment(parts[1])}"
    return f"{signed}.{segment(hmac.digest(key.encode(), signed.encode(), hashlib.sha256))}"
