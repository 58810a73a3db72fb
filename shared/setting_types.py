"""What a setting may be: the types of the fields of shared/settings.py, each with its check.

A value that is refused raises ValueError with the words that follow the variable's name: "must be …".
"""

import math
import os
import re
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Final, NamedTuple, cast

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode

from shared.bounds import MAX_STATUS
from shared.claims import claim_path
from shared.models import JobStatus
from shared.otel_settings import TracesUnfit, findings_in
from shared.urls import check_amqp_url, check_http_url, check_postgres_url

MIN_SECRET_BYTES: Final = 32
_ORIGIN: Final = re.compile(r"https?://(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::\d{1,5})?", re.ASCII)
_OWN_PORT: Final = re.compile(r"\A(http://.*(?=:80\Z)|https://.*(?=:443\Z)):\d+\Z")
_LIMIT: Final = re.compile(r"0*([0-9]{1,10})/0*([0-9]{1,5})", re.ASCII)
_NEVER_FINAL: Final = frozenset({JobStatus.PENDING, JobStatus.RUNNING, JobStatus.FAILED})


class Limit(NamedTuple):
    """A number of requests in a number of seconds."""

    requests: int
    seconds: int


def _limit(value: object) -> object:
    if value == "off" or value is None:
        return None
    if (found := _LIMIT.fullmatch(str(value))) is not None:
        limit = Limit(int(found[1]), int(found[2]))
        if 1 <= limit.requests <= 1_000_000_000 and 1 <= limit.seconds <= 86_400:
            return limit
    raise ValueError("must be requests/seconds, such as 600/60, or off")


def _url(check: Callable[[str], None]) -> AfterValidator:
    def checked(value: SecretStr) -> SecretStr:
        check(value.get_secret_value())
        return value

    return AfterValidator(checked)


def _words(value: object) -> object:
    return tuple(word for word in value.replace(",", " ").split() if word) if isinstance(value, str) else value


def _networks(value: object) -> object:
    try:
        return tuple(ip_network(word) for word in _words(value))  # type: ignore[attr-defined]
    except ValueError:
        raise ValueError("must be addresses or networks, such as 10.0.0.0/8, separated by commas") from None


def _origins(value: object) -> object:
    """Origins as browsers write them: in lower case, and without the scheme's own port."""
    words = tuple(word.lower() for word in cast("tuple[str, ...]", _words(value)))
    for word in words:
        if not _ORIGIN.fullmatch(word):
            raise ValueError("must be origins, such as https://app.example.com, separated by commas")
    return tuple(_OWN_PORT.sub(r"\1", word) for word in words)


def _statuses(value: object) -> object:
    words = tuple(word.strip() for word in value.split(",")) if isinstance(value, str) else value
    if not isinstance(words, tuple | frozenset) or not all(1 <= len(word) <= MAX_STATUS for word in words):
        raise ValueError("must be statuses, such as cancelled,expired")
    if wrong := _NEVER_FINAL.intersection(words):
        raise ValueError(f"must be the owner's own words; {', '.join(sorted(wrong))} never stands for an end")
    return frozenset(words)


def _versions(value: object) -> object:
    words = _words(value)
    if words == ("any",):
        return None
    if not (isinstance(words, tuple) and words and all(word in {"1", "3", "4", "5", "6", "7", "8"} for word in words)):
        raise ValueError("must be UUID versions, such as 4,7, or any")
    return frozenset(int(word) for word in words)


def _host(host: str) -> str:
    try:
        host.encode("idna")  # as `socket.getaddrinfo` does
    except UnicodeError:
        raise ValueError("must be an address or a name of this machine, such as 127.0.0.1 or localhost") from None
    return host


def _http_url(url: str) -> str:
    check_http_url(url)
    return url


def _long_enough(secret: SecretStr) -> SecretStr:
    if len(secret.get_secret_value().encode()) < MIN_SECRET_BYTES:
        raise ValueError(f"must be at least {MIN_SECRET_BYTES} bytes")
    return secret


def _usable_key(pem: SecretStr) -> SecretStr:
    from shared.public_keys import public_key_of  # noqa: PLC0415 - takes long to load, and a worker has no such key

    public_key_of(pem.get_secret_value())
    return pem


def _claim(text: str) -> str:
    claim_path(text)
    return text


def _share(value: object) -> float | None:
    if value == "off" or value is None:
        return None
    try:
        share = float(str(value))
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise ValueError("must be a number from 0 to 1, or off")
    return share


def _traceable(share: float | None) -> float | None:
    if share is not None and (problems := findings_in(os.environ).problems):
        raise TracesUnfit(problems)
    return share


OptionalShare = Annotated[float | None, NoDecode, BeforeValidator(_share), AfterValidator(_traceable)]
OptionalLimit = Annotated[Limit | None, NoDecode, BeforeValidator(_limit)]
PostgresUrl = Annotated[SecretStr, _url(check_postgres_url)]
AmqpUrl = Annotated[SecretStr, _url(check_amqp_url)]
SecretHttpUrl = Annotated[SecretStr, _url(check_http_url)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
Host = Annotated[str, AfterValidator(_host)]
Port = Annotated[int, Field(ge=0, le=65_535)]
SharedSecret = Annotated[SecretStr, AfterValidator(_long_enough)]
PublicKey = Annotated[SecretStr, AfterValidator(_usable_key)]
Claim = Annotated[str, AfterValidator(_claim)]
Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_networks)]
Origins = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_origins)]
UuidVersions = Annotated[frozenset[int] | None, NoDecode, BeforeValidator(_versions)]
"""None for any."""
FinalStatuses = Annotated[frozenset[str], NoDecode, BeforeValidator(_statuses)]
