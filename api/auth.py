"""Who is asking: a bearer token, verified, becomes a Principal.

Every failure is the same InvalidToken: which part did not hold is nobody's business. PyJWT checks the signature and the
registered claims; their types are checked here, for it is lenient about them (an `exp` may be a numeric string there).

Tokens that were good are remembered by their digest, until they expire or the keys change.
"""

import re
import time
from collections import OrderedDict
from collections.abc import Sequence
from enum import StrEnum
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import jwt

from api.problems import AuthenticationRequired, InsufficientScope, InvalidToken
from shared.models import ProjectId

if TYPE_CHECKING:
    from api.keys import Keys
    from shared.settings import ApiSettings

MAX_TOKEN_BYTES: Final = 4096
MAX_ACTOR: Final = 255
MAX_REMEMBERED: Final = 10_000
LEEWAY_S: Final = 10
LATEST_EXP: Final = 253_402_300_799
"""The last second of the year 9999: nothing is valid for longer, and no calendar of ours goes further."""

PROJECT_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)
# A lone surrogate is no text to PostgreSQL.
_ACTOR: Final = re.compile(rf"[^\x00-\x1f\x7f\ud800-\udfff]{{1,{MAX_ACTOR}}}")
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)


# What PyJWT raises on purpose, and what odd tokens have made it raise besides.
_REFUSALS: Final = (
    jwt.PyJWTError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    RecursionError,
)


class Scope(StrEnum):
    """What a token may do."""

    READ = "jobs:read"
    PAYLOAD = "jobs:payload"
    RETRY = "jobs:retry"
    RETRY_BULK = "jobs:retry:bulk"
    RETRY_EXTEND = "jobs:retry:extend"
    ADMIN = "jobs:admin"


UNSCOPED: Final = frozenset({Scope.READ, Scope.PAYLOAD, Scope.RETRY, Scope.RETRY_EXTEND})
"""What a token that carries no scopes may do: read and retry single jobs."""


class Principal(NamedTuple):
    """Whoever holds the token. `expires_at` is `exp`, in seconds since the epoch."""

    project_id: ProjectId
    actor: str
    scopes: frozenset[str]
    expires_at: int

    def require(self, scope: Scope) -> None:
        """Raise InsufficientScope unless the token permits it."""
        if scope not in self.scopes:
            raise InsufficientScope


class Authenticator:
    """Verifies tokens, and remembers good ones."""

    def __init__(self, settings: "ApiSettings", keys: "Keys") -> None:
        self._keys = keys
        self._issuer = settings.jwt_issuer
        self._audience = settings.jwt_audience
        self._project_claim = settings.jwt_project_claim
        self._unscoped: frozenset[str] = frozenset() if settings.require_scopes else UNSCOPED
        self._known: OrderedDict[bytes, Principal] = OrderedDict()
        self._known_generation = keys.generation

    def authenticate(self, authorization: Sequence[str]) -> Principal:
        """The principal behind the request's `Authorization` headers.

        Raises AuthenticationRequired where there is none, InvalidToken for anything but one good bearer token.
        """
        if not authorization:
            raise AuthenticationRequired
        scheme, _, token = authorization[0].partition(" ")
        if len(authorization) > 1 or scheme.lower() != "bearer" or len(token) > MAX_TOKEN_BYTES:
            raise InvalidToken
        if self._known_generation != self._keys.generation:
            self._known.clear()
            self._known_generation = self._keys.generation
        digest = blake2b(token.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        principal = self._known.get(digest)
        if principal is None:
            principal = self._verified(token)
            self._remember(digest, principal)
        elif time.time() >= principal.expires_at + LEEWAY_S:
            del self._known[digest]
            raise InvalidToken
        return principal

    def _remember(self, digest: bytes, principal: Principal) -> None:
        if len(self._known) >= MAX_REMEMBERED:
            self._known.popitem(last=False)
        self._known[digest] = principal

    def _verified(self, token: str) -> Principal:
        if not _TOKEN.fullmatch(token):
            raise InvalidToken
        try:
            header = jwt.get_unverified_header(token)
            kid = header.get("kid")
            key = self._keys.find(kid if isinstance(kid, str) else None)
            if key is None or "crit" in header:
                raise InvalidToken
            claims = jwt.decode(
                token,
                key.key,
                algorithms=key.algorithms,
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY_S,
                options={
                    "require": ["exp"],
                    "verify_aud": self._audience is not None,
                    "enforce_minimum_key_length": True,
                },
            )
            return self._principal(claims)
        except _REFUSALS as error:
            raise InvalidToken from error

    def _principal(self, claims: dict[str, Any]) -> Principal:
        project_id, expires_at = claims[self._project_claim], claims["exp"]
        actor = claims.get("sub", f"project:{project_id}")
        if not (
            type(expires_at) is int
            and expires_at <= LATEST_EXP
            and isinstance(project_id, str)
            and PROJECT_ID.fullmatch(project_id)
            and isinstance(actor, str)
            and _ACTOR.fullmatch(actor)
        ):
            raise InvalidToken
        return Principal(ProjectId(project_id), actor, self._scopes(claims), expires_at)

    def _scopes(self, claims: dict[str, Any]) -> frozenset[str]:
        if "scope" not in claims and "scp" not in claims:
            return self._unscoped
        spaced, listed = claims.get("scope", ""), claims.get("scp", [])
        if not (isinstance(spaced, str) and isinstance(listed, list) and all(isinstance(one, str) for one in listed)):
            raise InvalidToken
        return frozenset([*spaced.split(), *listed])
