"""The keys that verify tokens: one secret, one public key, or a set that is fetched (JWKS).

The key decides which algorithms are allowed, never the token: so a public key cannot be used as a secret (RFC 8725,
3.1).
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import jwt
import structlog

from api.jwks import KeysNotFetched, fetch_once
from shared.backoff import Backoff, wait_for_any
from shared.errors import SettingsError
from shared.public_keys import PublicKey, public_key_of

if TYPE_CHECKING:
    from shared.settings import ApiSettings

log = structlog.stdlib.get_logger(__name__)

JWKS_REFETCH_S = 30
JWKS_REFRESH_S = 300
JWKS_RETRY_S = 1
"""The first pause after a failed fetch; each one is twice the one before, up to 30 s."""
JWKS_FIRST_RETRY_S = 5
"""The longest pause while there are no keys, so that every request is refused."""


class Secret(NamedTuple):
    """A secret that signs and verifies."""

    key: bytes
    algorithms: tuple[str, ...] = ("HS256",)


Key = Secret | PublicKey


class Keys(Protocol):
    """Finds the keys that may have signed a token."""

    generation: int
    """Grows when keys change: tokens that were verified with the old keys must be verified again."""

    @property
    def ready(self) -> bool:
        """Whether there are keys; without keys no token can be judged."""
        ...

    def find(self, kid: str | None) -> Sequence[Key]:
        """The keys for a token that names `kid`: none, one, or several with the same id."""
        ...


class OneKey:
    """A secret or a public key from the settings. A token's `kid` does not matter."""

    generation = 0
    ready = True

    def __init__(self, key: Key) -> None:
        self._keys = (key,)

    def find(self, kid: str | None) -> Sequence[Key]:  # noqa: ARG002 - the Protocol's parameter
        """The key."""
        return self._keys


class KeySet:
    """The keys of a JWKS document, fetched in the background. When a fetch fails, the last ones stay in use.

    A token with an unknown `kid` is refused at once, and starts a fetch, once in 30 s at most: so forged tokens cannot
    make us call the issuer often, and a client with a new key is accepted when it tries again.
    """

    def __init__(self, url: str) -> None:
        self.generation = 0
        self._url = url
        self._keys: Mapping[str | None, Sequence[Key]] = {}
        self._wanted = asyncio.Event()
        self._fetched_at = -float(JWKS_REFETCH_S)
        self._good_at = time.monotonic()

    @property
    def ready(self) -> bool:
        """Whether keys have ever been fetched."""
        return bool(self._keys)

    @property
    def age_s(self) -> float:
        """How long ago keys were fetched; without keys, how long they have been missing."""
        return time.monotonic() - self._good_at

    def find(self, kid: str | None) -> Sequence[Key]:
        """The keys with that id; for None the keys without one, or all keys if they share one id."""
        keys = self._keys.get(kid, ())
        if not keys and time.monotonic() - self._fetched_at >= JWKS_REFETCH_S:
            self._wanted.set()
        return keys

    async def run(self, *, stop: asyncio.Event) -> None:
        """Fetch now, when a token names an unknown key, and every five minutes, or sooner after a failure."""
        backoff = Backoff(first_s=JWKS_RETRY_S, longest_s=JWKS_REFETCH_S, jittered=False)
        while not stop.is_set():
            self._fetched_at = time.monotonic()
            self._wanted.clear()
            try:
                found = await fetch_once(self._url)
            except Exception as error:  # of any kind: otherwise no key would ever be fetched again
                # Only a failure that is not the issuer's is logged with its traceback.
                expected = isinstance(error, KeysNotFetched)
                log.warning(
                    "jwks fetch failed",
                    reason=str(error) if expected else type(error).__name__,
                    keys_kept=len(self._keys),
                    exc_info=not expected,
                )
                await backoff.pause(stop, self._wanted, longest_s=None if self._keys else JWKS_FIRST_RETRY_S)
            else:
                self._good_at = time.monotonic()
                if found.by_id != self._keys:
                    self._keys = found.by_id
                    self.generation += 1
                    log.info("jwks fetched", usable=found.usable, unusable=found.unusable)
                backoff.reset()
                await wait_for_any(stop, self._wanted, timeout_s=JWKS_REFRESH_S)


def keys_of(settings: "ApiSettings") -> "OneKey | KeySet":
    """The keys that the settings name. Raises SettingsError for settings that name none."""
    if settings.jwt_secret is not None:
        return OneKey(Secret(settings.jwt_secret.get_secret_value().encode()))
    if settings.jwt_public_key is not None:
        return OneKey(public_key_of(settings.jwt_public_key.get_secret_value()))
    if settings.jwks_url is not None:
        return KeySet(settings.jwks_url)
    raise SettingsError(
        ["REDRIVE_JWT_SECRET, REDRIVE_JWT_PUBLIC_KEY or REDRIVE_JWKS_URL: one is required, to check tokens with"]
    )


def signed(secret: str, *, claims: Mapping[str, object]) -> str:
    """A token, signed with HS256: for `redrive token`. In production an identity provider signs tokens."""
    return jwt.encode(dict(claims), secret, algorithm="HS256")
