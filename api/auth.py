"""Authentication: a bearer token is verified, and becomes a Principal.

Every failure is the same InvalidToken, so that it does not tell which part of a token is wrong. PyJWT checks the
signature and the registered claims. Their types are checked here: PyJWT accepts some that are wrong (an `exp` that is a
numeric string), and refuses others that do not matter (a `jti` that is no string).

Good tokens are remembered by their digest, until they expire or the keys change.
"""

import math
import re
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import jwt

from api.problems import AuthenticationRequired, InsufficientScope, InvalidToken, KeysUnavailable
from shared.bounds import ACTOR
from shared.claims import claim_path, value_at
from shared.errors import InvalidJobId
from shared.job_ids import job_ids
from shared.models import JobId, ProjectId

if TYPE_CHECKING:
    from api.keys import Keys
    from shared.settings import ApiSettings

MAX_TOKEN_BYTES: Final = 8000
MAX_REMEMBERED: Final = 10_000
MAX_JOBS: Final = 20
"""How many jobs a token may be narrowed to."""
LATEST_EXP: Final = 253_402_300_799
"""The last second of the year 9999, after which a datetime cannot represent a time."""

PROJECT_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)
# A lone surrogate is no text to PostgreSQL, and no answer can show one.
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)


# What PyJWT raises by design, and what odd tokens have made it raise.
_REFUSALS: Final = (
    jwt.PyJWTError,
    ValueError,
    TypeError,
    LookupError,
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
    """What the token says of its holder.

    `expires_at` is `exp`, in seconds since the epoch. `charged_to` is the key of its limits: the project, or, for
    a token that is narrowed to some jobs, its holder alone. `claimed_scopes` are the scopes as the token has them,
    sorted; None for a token without any. `jobs` are the jobs that the token is narrowed to; None for all. `leeway_s` is
    for how long after `exp` the token is still accepted.
    """

    project_id: ProjectId
    actor: str
    scopes: frozenset[str]
    expires_at: int
    charged_to: str
    claimed_scopes: tuple[str, ...] | None = None
    jobs: frozenset[JobId] | None = None
    leeway_s: int = 0

    @property
    def accepted_until(self) -> int:
        """When the token is no longer accepted, in seconds since the epoch: what it was let in for ends then, too."""
        return self.expires_at + self.leeway_s

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
        self._project_path = claim_path(settings.jwt_project_claim)
        self._leeway_s = settings.jwt_leeway
        self._ids = job_ids(settings.job_id, settings.job_id_versions)
        self._unscoped: frozenset[str] = frozenset() if settings.require_scopes else UNSCOPED
        self._known: OrderedDict[bytes, Principal] = OrderedDict()
        self._known_generation = keys.generation

    def authenticate(self, authorization: Sequence[str]) -> Principal:
        """The principal that the request's `Authorization` headers name.

        Raises AuthenticationRequired without such a header, InvalidToken for anything but one good bearer token, and
        KeysUnavailable while there are no keys to verify one with.
        """
        if not authorization:
            raise AuthenticationRequired
        scheme, _, token = authorization[0].partition(" ")
        token = token.lstrip(" ")  # one space or more (RFC 9110, 11.4)
        if len(authorization) > 1 or scheme.lower() != "bearer" or len(token) > MAX_TOKEN_BYTES:
            raise InvalidToken
        if self._known_generation != self._keys.generation:
            self._known.clear()
            self._known_generation = self._keys.generation
        digest = blake2b(token.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        principal = self._known.get(digest)
        if principal is None:
            principal = self._verify(token)
            self._remember(digest, principal)
        elif time.time() >= principal.accepted_until:
            del self._known[digest]
            raise InvalidToken
        return principal

    def _remember(self, digest: bytes, principal: Principal) -> None:
        if len(self._known) >= MAX_REMEMBERED:
            self._known.popitem(last=False)
        self._known[digest] = principal

    def _verify(self, token: str) -> Principal:
        if not _TOKEN.fullmatch(token):
            raise InvalidToken
        try:
            header = jwt.get_unverified_header(token)
            if "crit" in header:
                raise InvalidToken
            if not self._keys.ready:
                raise KeysUnavailable
            return self._principal(self._claims_of(token, header))
        except _REFUSALS as error:
            raise InvalidToken from error

    def _claims_of(self, token: str, header: dict[str, Any]) -> dict[str, Any]:
        """The claims, if one of our keys has signed them. The header only chooses among the algorithms of a key."""
        kid, algorithm = header.get("kid"), header.get("alg")
        for key in self._keys.find(kid if isinstance(kid, str) else None):
            if algorithm in key.algorithms:
                with suppress(jwt.InvalidSignatureError):  # another key may have the same id
                    return jwt.decode(
                        token,
                        key.key,
                        algorithms=key.algorithms,
                        issuer=self._issuer,
                        audience=self._audience,
                        leeway=self._leeway_s,
                        options={
                            "require": ["exp"],
                            "verify_aud": self._audience is not None,
                            "verify_sub": False,
                            "verify_jti": False,
                            "enforce_minimum_key_length": True,
                        },
                    )
        raise InvalidToken

    def _principal(self, claims: dict[str, Any]) -> Principal:
        for name in ("nbf", "iat"):
            if name in claims:
                _seconds(claims[name])
        project_id, expires_at = value_at(self._project_path, claims), _seconds(claims["exp"])
        actor = _subject(claims.get("sub"))
        if actor is None:
            actor = f"project:{project_id}"
        if not (
            expires_at <= LATEST_EXP
            and isinstance(project_id, str)
            and PROJECT_ID.fullmatch(project_id)
            and ACTOR.fullmatch(actor)
        ):
            raise InvalidToken
        claimed = _scopes(claims)
        jobs = self._jobs(claims)
        return Principal(
            ProjectId(project_id),
            actor,
            self._unscoped if claimed is None else claimed,
            expires_at,
            project_id if jobs is None else f"{project_id} {actor}",  # no project has a space in it
            None if claimed is None else tuple(sorted(claimed)),
            jobs,
            self._leeway_s,
        )

    def _jobs(self, claims: dict[str, Any]) -> frozenset[JobId] | None:
        """The jobs that the claim `jobs` narrows the token to; None without the claim. Raises InvalidToken."""
        if "jobs" not in claims:
            return None
        named = claims["jobs"]
        if not (isinstance(named, list) and 1 <= len(named) <= MAX_JOBS and all(isinstance(one, str) for one in named)):
            raise InvalidToken
        try:
            return frozenset(self._ids.parse(one) for one in named)
        except InvalidJobId as error:
            raise InvalidToken from error


def _scopes(claims: dict[str, Any]) -> frozenset[str] | None:
    if "scope" not in claims and "scp" not in claims:
        return None
    words = frozenset([*_words(claims.get("scope", "")), *_words(claims.get("scp", ""))])
    if any(map(_SURROGATE.search, words)):
        raise InvalidToken
    return words


def _seconds(value: object) -> int:
    """A time of a token, in whole seconds since the epoch; a fraction is cut off. Raises InvalidToken."""
    if type(value) is int:  # not a bool
        return value
    if isinstance(value, float) and math.isfinite(value):
        return int(value)
    raise InvalidToken


def _subject(value: object) -> str | None:
    """`sub` as text; the decimal digits of an integer. Raises InvalidToken."""
    if value is None or isinstance(value, str):
        return value
    if type(value) is int:
        return str(value)
    raise InvalidToken


def _words(value: object) -> Sequence[str]:
    """The scopes of a claim: a text with spaces between them, or an array of texts. Raises InvalidToken."""
    if isinstance(value, str):
        return [word for word in value.split(" ") if word]  # the space alone (RFC 6749, 3.3)
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return value
    raise InvalidToken
