"""Tokens for a project, signed with the shared secret: for `redrive token` and what `redrive up` prints.

Where the API checks tokens with a public key, the issuer signs them with its private key; Redrive cannot.
"""

import os
import time
from collections.abc import Sequence

from api.auth import LATEST_EXP, MAX_JOBS, MAX_TOKEN_BYTES, PROJECT_ID, Authenticator, Scope
from api.keys import keys_of, signed
from api.problems import InvalidToken
from shared.claims import claim_path, claims_with
from shared.errors import SettingsError
from shared.settings import ApiSettings

ONE_PROJECT = (Scope.READ, Scope.PAYLOAD, Scope.RETRY, Scope.RETRY_BULK, Scope.RETRY_EXTEND)
"""Everything that can be done within a project."""


def check_project(project: str) -> None:
    """Raise ValueError for a project that the API would refuse."""
    if not PROJECT_ID.fullmatch(project):
        raise ValueError("a project is 1 to 100 letters, digits, _ and -")


def check_scope(scope: str | None) -> None:
    """Raise ValueError for scopes that mean nothing: the API would only refuse the token, later."""
    known = [str(each) for each in Scope]
    if unknown := [word for word in (scope or "").split() if word not in known]:
        raise ValueError(f"no such scope: {', '.join(unknown)}; there are {', '.join(known)}")


def check_ttl(ttl_s: int) -> None:
    """Raise ValueError for a token that ends after the last year that the API accepts."""
    if int(time.time()) + ttl_s > LATEST_EXP:
        raise ValueError("a token may be valid until the year 9999 at most")


def require_secret() -> None:
    """Raise SettingsError where no key is set at all: to sign a token, of the keys only the secret will do."""
    names = ("REDRIVE_JWT_SECRET", "REDRIVE_JWT_PUBLIC_KEY", "REDRIVE_JWKS_URL")
    if not any(os.environ.get(f"{name}{ending}") for name in names for ending in ("", "_FILE")):
        raise SettingsError(
            ["REDRIVE_JWT_SECRET (or REDRIVE_JWT_SECRET_FILE): is required, the secret that the API has"]
        )


def check_token(token: str, settings: ApiSettings, *, subject: str | None) -> None:
    """Raise ValueError for a token that the API would refuse, by its own check, or take for another subject's."""
    try:
        principal = Authenticator(settings, keys_of(settings)).authenticate([f"Bearer {token}"])
    except InvalidToken:
        raise ValueError(
            "the API would refuse this token: its subject must be 1 to 255 characters without control characters, "
            f"its jobs at most {MAX_JOBS} ids, and all of it at most {MAX_TOKEN_BYTES} bytes"
        ) from None
    if subject not in (None, principal.actor):
        raise ValueError(f"REDRIVE_JWT_PROJECT_CLAIM is {settings.jwt_project_claim}: the project is the subject")


def token_for(
    project: str,
    settings: ApiSettings,
    *,
    subject: str | None = None,
    scope: str | None = None,
    jobs: Sequence[str] = (),
    ttl_s: int,
) -> str:
    """A token that the API accepts under these settings. Raises SettingsError where they hold no secret.

    The project is where the settings look for it: where that is `sub`, the project is the subject.
    """
    if settings.jwt_secret is None:
        raise SettingsError(["REDRIVE_JWT_SECRET: is required to sign a token; a public key can only check one"])
    now = int(time.time())
    claims: dict[str, object] = {"iat": now, "exp": now + ttl_s}
    optional = {"sub": subject, "scope": scope, "iss": settings.jwt_issuer, "aud": settings.jwt_audience}
    claims |= {name: value for name, value in optional.items() if value is not None}
    if jobs:
        claims["jobs"] = list(jobs)
    claims |= claims_with(claim_path(settings.jwt_project_claim), project)
    return signed(settings.jwt_secret.get_secret_value(), claims=claims)
