"""The settings of both programs, and of `redrive check`: from the environment, read once, checked whole, frozen.

Every variable begins with `REDRIVE_`. A secret can also come from a file, which the same variable with `_FILE` at its
end names; servers' URLs are read from it again for each new connection. An empty variable counts as unset. One error
names every problem, and shows no value. Settings without effect are in `notes`. OpenTelemetry's own variables are
checked where there are to be traces (shared/otel_settings.py).
"""

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin

from pydantic import Field, PrivateAttr, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared import otel_settings
from shared.errors import SettingsError
from shared.models import FINAL_STATUSES
from shared.postgres_url import postgres_url
from shared.secret import FileSecret, Url, reason_of
from shared.setting_types import (
    MIN_SECRET_BYTES,
    AmqpUrl,
    Claim,
    FinalStatuses,
    Host,
    HttpUrl,
    Limit,
    Networks,
    OptionalLimit,
    OptionalShare,
    Origins,
    Port,
    PostgresUrl,
    PublicKey,
    SecretHttpUrl,
    SharedSecret,
    UuidVersions,
)
from shared.sql import JobIdType
from shared.urls import check_amqp_url, check_postgres_url

PREFIX = "REDRIVE_"

_SERVICE_LINK = re.compile(r"(?:tcp|udp|sctp)://", re.ASCII)  # https://kubernetes.io/docs/concepts/services-networking
_LINKABLE = ("port", "ops_port")

_UNREAD = "unread" * MIN_SECRET_BYTES
_URLS: Mapping[str, Callable[[str], None]] = {
    "database_url": check_postgres_url,
    "database_read_url": check_postgres_url,
    "amqp_url": check_amqp_url,
}
_SECRETS = frozenset(
    {"database_url", "database_read_url", "amqp_url", "amqp_management_url", "jwt_secret", "jwt_public_key"}
)


class Environment(BaseSettings):
    """What is read from the environment, whichever fields it has."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,
        validate_default=False,
    )

    _files: Mapping[str, FileSecret] = PrivateAttr(default_factory=dict)
    _notes: tuple[str, ...] = PrivateAttr(default=())

    @property
    def notes(self) -> tuple[str, ...]:
        """A line for each setting that has no effect, for the log at the start."""
        return self._notes

    def url(self, field: str) -> Url:
        """The URL in a field; where it comes from a file, a function that reads it for each new connection."""
        if (file := self._files.get(field)) is not None:
            return file
        secret = getattr(self, field)
        assert isinstance(secret, SecretStr)  # noqa: S101 - the caller asks for what is set
        return secret.get_secret_value()

    @field_validator("*", mode="before")
    @classmethod
    def _is_utf8(cls, value: object) -> object:
        """Refuse bytes that are not UTF-8: the environment has them as surrogates, and no program takes these."""
        if isinstance(value, str):
            value.encode()  # `_problem` has the words for its error
        return value

    @field_validator(*_LINKABLE, mode="before", check_fields=False)
    @classmethod
    def _no_service_link(cls, value: object, info: ValidationInfo) -> object:
        """Replace a service link, which Kubernetes sets in every pod beside a Service `redrive`, by the default."""
        if isinstance(value, str) and _SERVICE_LINK.match(value) and info.field_name is not None:
            return cls.model_fields[info.field_name].default
        return value


class Settings(Environment):
    """The settings of both programs."""

    database_url: PostgresUrl
    database_pooled: bool = False
    amqp_url: AmqpUrl | None = None
    job_id: JobIdType = "uuid"
    host: Host = "127.0.0.1"
    ops_port: Port
    db_pool_size: Annotated[int, Field(ge=1, le=100)] = 4
    db_timeout: Annotated[float, Field(gt=0, le=2.5)] = 2.0
    shutdown_grace: Annotated[float, Field(gt=0, le=3600)] = 10.0
    tracing: OptionalShare = None
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["json", "console"] = "json"


class ApiSettings(Settings):
    """The settings of `redrive api`."""

    ops_port: Port = 9090
    database_read_url: PostgresUrl | None = None
    port: Port = 8080
    keepalive_timeout: Annotated[float, Field(gt=0, le=3600)] = 75.0
    jwt_secret: SharedSecret | None = None
    jwt_public_key: PublicKey | None = None
    jwks_url: Annotated[HttpUrl | None, Field(validate_default=True)] = None
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    jwt_project_claim: Claim = "project_id"
    jwt_leeway: Annotated[int, Field(ge=0, le=120)] = 10
    require_scopes: bool = False
    read_only: bool = False
    limit_ip: OptionalLimit = Limit(1200, 60)
    limit_read: OptionalLimit = Limit(600, 60)
    limit_retry: OptionalLimit = Limit(60, 60)
    limit_bulk: OptionalLimit = Limit(6, 60)
    trusted_proxies: Networks = ()
    cors_origins: Origins = ()
    console: Literal["on", "off"] = "off"
    job_id_versions: UuidVersions = frozenset({4})
    final_statuses: FinalStatuses = FINAL_STATUSES
    max_waiters: Annotated[int, Field(ge=0)] = 20_000
    max_wait: Annotated[int, Field(ge=0, le=60)] = 55
    watch_interval: Annotated[float, Field(ge=0.05, le=60)] = 0.5

    @field_validator("jwks_url")
    @classmethod
    def _one_kind_of_key(cls, jwks_url: str | None, info: ValidationInfo) -> str | None:
        """Require exactly one key. Validates the last of the three fields, so that it runs beside all other checks."""
        if not {"jwt_secret", "jwt_public_key"} <= info.data.keys():
            return jwks_url  # one of them is wrong, and has its own problem
        given = [key for key in (info.data["jwt_secret"], info.data["jwt_public_key"], jwks_url) if key is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of {_KEYS} must be set, as the key to check tokens with")
        return jwks_url


class WorkerSettings(Settings):
    """The settings of `redrive worker`."""

    ops_port: Port = 9091
    worker_batch_size: Annotated[int, Field(ge=1, le=1_000)] = 200
    worker_batch_wait: Annotated[float, Field(ge=0, le=60)] = 0.02


class CheckSettings(Environment):
    """What `redrive check` reads besides the settings of the programs: a wrong value stops neither of these."""

    amqp_management_url: SecretHttpUrl | None = None
    """RabbitMQ's management API."""


_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,12}(?:\.[0-9]{0,12})?|\.[0-9]{1,12}|inf|nan)", re.ASCII)
_MAY_BE_SECRET = re.compile(r"://|-----|[\r\n]|\A(?![/.]).{32}")
"""A URL, a PEM, or text as long as an HS256 secret, where a path is expected."""
_KEYS = "REDRIVE_JWT_SECRET, REDRIVE_JWT_PUBLIC_KEY and REDRIVE_JWKS_URL"
S = TypeVar("S", bound=Environment)


def read(kind: type[S], **known: object) -> S:
    """The settings of one kind from the environment. What is in `known` is not read there, nor from a file.

    Raises SettingsError with every problem found.
    """
    secrets, unread = _secrets_from_files(kind, known)
    try:
        # A secret that could not be read counts as given: its absence would make other problems.
        settings = kind(**cast("dict[str, Any]", {**secrets, **dict.fromkeys(unread, _UNREAD), **known}))
    except ValidationError as error:
        problems = [
            words
            for problem in error.errors()
            if problem["loc"][0] not in unread
            for words in _problems(kind, dict(problem), from_files=secrets.keys())
        ]
        raise SettingsError(sorted([*problems, *unread.values()])) from None
    if unread:
        raise SettingsError(sorted(unread.values()))
    traced = isinstance(settings, Settings) and settings.tracing is not None
    otel = otel_settings.findings_in(os.environ) if traced else otel_settings.Findings()
    if otel.disabled:
        settings = settings.model_copy(update={"tracing": None})
    settings._files = {  # noqa: SLF001 - a part of reading them, which the caller cannot do
        field: FileSecret(Path(os.environ[f"{PREFIX}{field.upper()}_FILE"]), value, check)
        for field, value in secrets.items()
        if (check := _URLS.get(field)) is not None
    }
    notes = _notes(kind, settings, known, from_files=secrets.keys())
    settings._notes = (*notes, *otel.notes)  # noqa: SLF001 - likewise
    return settings


def _notes(
    kind: type[Environment], settings: Environment, known: Mapping[str, object], *, from_files: Collection[str]
) -> Iterator[str]:
    for field in _LINKABLE:
        variable = f"{PREFIX}{field.upper()}"
        if field in kind.model_fields and field not in known and _SERVICE_LINK.match(os.environ.get(variable, "")):
            yield f"{variable} is ignored: it is a service link of Kubernetes, not a port (enableServiceLinks: false)"
    if (
        isinstance(settings, ApiSettings)
        and settings.job_id == "bigint"
        and "job_id_versions" in settings.model_fields_set
    ):
        yield f"{PREFIX}JOB_ID_VERSIONS is ignored: it is for ids that are UUIDs, and {PREFIX}JOB_ID is bigint"
    for field in ("database_url", "database_read_url"):
        secret = getattr(settings, field, None)
        if isinstance(secret, SecretStr):
            for note in postgres_url(secret.get_secret_value()).ignored:
                yield f"{_origin(field, from_files)}: {note}"


def _secrets_from_files(kind: type[Environment], known: Collection[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The secrets in the files that `…_FILE` names, and the problems with these files; both by field.

    The files of `known` fields are not looked at.
    """
    found: dict[str, str] = {}
    problems: dict[str, str] = {}
    for field in (_SECRETS & kind.model_fields.keys()) - set(known):
        variable = f"{PREFIX}{field.upper()}"
        if not (path := os.environ.get(f"{variable}_FILE")):
            continue
        if os.environ.get(variable):
            problems[field] = f"{variable}: and {variable}_FILE are both set, keep one"
            continue
        try:
            text = Path(path).read_text("utf-8").strip()
        except (OSError, ValueError) as error:
            problems[field] = f"{variable}_FILE: {_unreadable(path, error)}"
            continue
        if text:
            found[field] = text
        else:
            problems[field] = f"{variable}_FILE: {path} is empty"
    return found, problems


def _unreadable(path: str, error: OSError | ValueError) -> str:
    """Why the file of a secret cannot be read; without the path where that may be the secret itself, by mistake."""
    reason = reason_of(error)
    if _MAY_BE_SECRET.search(path):
        return f"cannot be read: {reason}; not shown, as it may be the secret itself (begin a path with / or ./)"
    return f"{path} cannot be read: {reason}"


def _origin(field: str, from_files: Collection[str]) -> str:
    """Where the value of a field is from: its variable, or the file that its variable names."""
    variable = f"{PREFIX}{field.upper()}"
    return f"{variable}_FILE (its content)" if field in from_files else variable


def _problems(kind: type[Environment], problem: Mapping[str, Any], *, from_files: Collection[str]) -> tuple[str, ...]:
    """The lines of one of pydantic's problems: several where a setting asks for what other variables forbid."""
    reason = problem.get("ctx", {}).get("error")
    if isinstance(reason, otel_settings.TracesUnfit):
        return reason.problems
    return (_problem(kind, problem, from_files=from_files),)


def _problem(kind: type[Environment], problem: Mapping[str, Any], *, from_files: Collection[str]) -> str:
    field = str(problem["loc"][0])
    variable = f"{PREFIX}{field.upper()}"
    if problem["type"] == "missing":
        also = f" (or {variable}_FILE)" if field in _SECRETS & kind.model_fields.keys() else ""
        return f"{variable}{also}: is required"
    variable = _origin(field, from_files)
    reason = problem.get("ctx", {}).get("error")
    if isinstance(reason, ValueError) and not isinstance(reason, UnicodeError):
        return f"{variable}: {reason}"
    return f"{variable}: must be {_allowed(kind, field)}{_was_read(problem['input'])}"


def _allowed(kind: type[Environment], field: str) -> str:
    """What a setting may be, in words, where its type says it; the others have checks with words of their own."""
    info = kind.model_fields[field]
    if info.annotation is int:
        return f"a whole number {_bounds(info.metadata)}"
    if info.annotation is float:
        return f"a number {_bounds(info.metadata)}"
    if info.annotation is bool:
        return "true or false"
    if get_origin(info.annotation) is Literal:
        *others, last = get_args(info.annotation)
        return f"{', '.join(others)} or {last}"
    return "text in UTF-8"


def _bounds(metadata: list[Any]) -> str:
    limits = {name: getattr(each, name) for each in metadata for name in ("ge", "gt", "le") if hasattr(each, name)}
    if "gt" in limits:
        return f"above {limits['gt']}, up to {limits['le']}"
    return f"from {limits['ge']} to {limits['le']}" if "le" in limits else f"from {limits['ge']} up"


def _was_read(value: object) -> str:
    """A number that was read: it is no secret. Other text may be one, in the wrong variable."""
    return f", not {value}" if isinstance(value, str) and _NUMBER.fullmatch(value) else ""


def variables(kind: type[Environment]) -> frozenset[str]:
    """Every environment variable that `kind` reads."""
    names = {f"{PREFIX}{name.upper()}" for name in kind.model_fields}
    return frozenset(names | {f"{PREFIX}{name.upper()}_FILE" for name in _SECRETS & kind.model_fields.keys()})
