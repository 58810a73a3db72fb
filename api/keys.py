"""The keys that tokens are verified with: one secret, one public key, or a set that is fetched (JWKS).

Which algorithms are allowed follows from the kind of key, never from the token: a public key can not be taken for a
secret (RFC 8725, 3.1).
"""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import aiohttp
import jwt
import structlog

from shared.errors import SettingsError
from shared.public_keys import public_key_of, usable

if TYPE_CHECKING:
    from shared.settings import ApiSettings

log = structlog.stdlib.get_logger(__name__)

JWKS_TIMEOUT_S = 3
JWKS_MAX_BYTES = 256 * 1024
JWKS_REFETCH_S = 30
JWKS_REFRESH_S = 300
JWKS_RETRY_S = 1
"""The first pause after a fetch that failed; each further one doubles it, up to the 30 s."""

VerifyingKey = Any
"""Whatever PyJWT takes: bytes, one of cryptography's public keys."""


class Key:
    """A key, and the one set of algorithms that it may be used with."""

    def __init__(self, key: VerifyingKey, algorithms: Sequence[str]) -> None:
        self.key = key
        self.algorithms = list(algorithms)


class Keys(Protocol):
    """Where `auth` gets its keys from."""

    generation: int
    """Grows when a key that was good may no longer be: what was verified before is to be verified again."""

    def find(self, kid: str | None) -> Key | None:
        """The key for a token that names `kid`; None when there is none, or none yet."""
        ...


class OneKey:
    """A secret or a public key from the settings, whatever `kid` a token names."""

    generation = 0

    def __init__(self, key: Key) -> None:
        self._key = key

    def find(self, kid: str | None) -> Key | None:  # noqa: ARG002 - the Protocol's parameter
        """The key."""
        return self._key


class KeySet:
    """The keys of a JWKS document, fetched in the background; the last good ones are kept when a fetch fails.

    A token with an unknown `kid` is refused at once, and wakes a fetch, at most every 30 s: strangers cannot make us
    call out, and a client whose key is new is let in when it tries again.
    """

    def __init__(self, url: str) -> None:
        self.generation = 0
        self._url = url
        self._keys: Mapping[str | None, Key] = {}
        self._wanted = asyncio.Event()
        self._fetched_at = -float(JWKS_REFETCH_S)

    def find(self, kid: str | None) -> Key | None:
        """The key of that id."""
        key = self._keys.get(kid)
        if key is None and time.monotonic() - self._fetched_at >= JWKS_REFETCH_S:
            self._wanted.set()
        return key

    async def keep_fetching(self) -> None:
        """Fetch now, whenever asked, and every five minutes, or sooner after a failure; never returns."""
        retry_s = JWKS_RETRY_S
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=JWKS_TIMEOUT_S)) as session:
            while True:
                self._fetched_at = time.monotonic()
                self._wanted.clear()
                try:
                    found = _keys_in(await self._document(session))
                except Exception as error:  # whatever it is: nobody else would ever let a key in, or out
                    # An issuer that is away or makes no sense is no news of ours; anything else is, with its trace.
                    trace = not isinstance(error, (aiohttp.ClientError, TimeoutError, ValueError))
                    log.warning(
                        "jwks fetch failed", error=type(error).__name__, keys_kept=len(self._keys), exc_info=trace
                    )
                    pause_s, retry_s = retry_s, min(JWKS_REFETCH_S, retry_s * 2)
                else:
                    self._keys = found
                    self.generation += 1
                    pause_s, retry_s = JWKS_REFRESH_S, JWKS_RETRY_S
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._wanted.wait()

    async def _document(self, session: aiohttp.ClientSession) -> bytes:
        async with session.get(self._url, allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError("not 200")
            document = b""
            async for chunk in response.content.iter_chunked(64 * 1024):
                document += chunk
                if len(document) > JWKS_MAX_BYTES:
                    raise ValueError("too large")
            return document


def _keys_in(document: bytes) -> Mapping[str | None, Key]:
    """The usable keys of a JWKS document, by id; a sole key also serves tokens that name none.

    A key that is not for us, or broken, does not spoil its neighbours. Raises ValueError for any other document.
    """
    try:
        entries = json.loads(document)["keys"]
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("not a JWKS document") from error
    if not isinstance(entries, list):
        raise ValueError("not a JWKS document")  # noqa: TRY004 - of a document, not of an argument
    found: dict[str | None, Key] = {}
    for entry in entries:
        with suppress(Exception):  # PyJWT lets through whatever a broken part of a key makes its code raise
            kid, use, made = entry.get("kid"), entry.get("use", "sig"), jwt.PyJWK.from_dict(entry)
            key = usable(made.key)
            if key is not None and key.algorithm == made.algorithm_name and use == "sig" and _is_id(kid):
                found[kid] = Key(key.key, [key.algorithm])
    if len(found) == 1:
        found[None] = next(iter(found.values()))
    return found


def _is_id(kid: object) -> bool:
    return kid is None or isinstance(kid, str)


def keys_of(settings: "ApiSettings") -> "OneKey | KeySet":
    """The keys that the settings name. Raises SettingsError for settings that name none."""
    if settings.jwt_secret is not None:
        return OneKey(Key(settings.jwt_secret.get_secret_value().encode(), ["HS256"]))
    if settings.jwt_public_key is not None:
        key, algorithm = public_key_of(settings.jwt_public_key.get_secret_value())
        return OneKey(Key(key, [algorithm]))
    if settings.jwks_url is not None:
        return KeySet(settings.jwks_url)
    raise SettingsError(["REDRIVE_JWT_SECRET: a key is required"])


def signed(secret: str, *, claims: Mapping[str, object]) -> str:
    """A token of ours, HS256, for `redrive token` and tests; who runs Redrive for real signs elsewhere."""
    return jwt.encode(dict(claims), secret, algorithm="HS256")
