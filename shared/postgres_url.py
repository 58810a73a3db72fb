"""PostgreSQL URLs, read as PostgreSQL's own programs read them.

    postgresql://user:password@one:5432,[::1]:5433/database?sslmode=require&target_session_attrs=read-write

Every parameter either works, or is ignored with a note, or is refused by its name; no value is shown. Neither `urllib`
nor asyncpg can read the URL: newer Pythons refuse a list of hosts with brackets in it, and asyncpg sends parameters
that it does not know to the server, which then refuses each connection.

Parameters that the URL does not have come from its service (`service=`, PGSERVICE), then from PGHOST and the other
variables.
"""

import os
import re
import ssl
import stat
from collections.abc import Callable, Mapping
from configparser import Error as ServiceFileError
from configparser import RawConfigParser
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import unquote

ENCODED: Final = "with special characters in user and password percent-encoded (/ as %2F, # as %23, @ as %40)"
UNREADABLE: Final = f"must be a URL such as postgresql://user:password@host:5432/database, {ENCODED}"

_SCHEME: Final = re.compile(r"postgres(?:ql)?://", re.ASCII | re.IGNORECASE)
_PORT: Final = re.compile(r"\d{1,5}", re.ASCII)
_HOST: Final = re.compile(r"(/.*)|(?:\[([^]]+)\]|([^][/@:]+))(?::(\d{1,5})?)?", re.ASCII)
_BARE_IPV6: Final = re.compile(r"[0-9a-fA-F]*:[0-9a-fA-F]*:[0-9a-fA-F:.]*(?:%\w+)?", re.ASCII)
_NUMBER: Final = re.compile(r"-?\d{1,9}", re.ASCII)
_DEFAULT_PORT: Final = 5432
_DEFAULT_HOSTS: Final = ("/run/postgresql", "/var/run/postgresql", "/tmp", "localhost")  # noqa: S108 - as asyncpg's
_SYSTEM: Final = "system"  # as a file of root certificates: those that the machine trusts


class Access(StrEnum):
    """What a server must be, to be connected to: PostgreSQL's `target_session_attrs`."""

    ANY = "any"
    READ_WRITE = "read-write"
    READ_ONLY = "read-only"
    PRIMARY = "primary"
    STANDBY = "standby"
    PREFER_STANDBY = "prefer-standby"


class Host(NamedTuple):
    """One server: a name or an address and its port, or the folder of its socket, which begins with `/`."""

    name: str
    port: int

    def __str__(self) -> str:
        if self.name.startswith("/"):
            return self.name
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


@dataclass(frozen=True, slots=True)
class PostgresUrl:
    """The parameters of a URL. None: not in the URL, its service or a variable, so that asyncpg uses its default."""

    hosts: tuple[Host, ...]
    """At least one, in the order in which to try them."""
    user: str | None
    password: str | None = field(repr=False)
    database: str | None
    passfile: str | None
    tls: Mapping[str, str] = field(repr=False)
    """The TLS parameters, such as `sslmode`, by PostgreSQL's names."""
    access: Access | None
    application_name: str | None
    options: str | None
    shuffled: bool
    """Whether to try the hosts in any order."""
    pooled: bool
    """Whether the URL names a pooler in transaction mode."""
    ignored: tuple[str, ...]
    """Parameters that have no effect here, each with the reason."""


_SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_TLS_VERSIONS: Final = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
_TLS: Final = frozenset(
    {"sslmode", "sslnegotiation", "sslcert", "sslkey", "sslpassword", "sslrootcert", "sslcrl"}
    | {"ssl_min_protocol_version", "ssl_max_protocol_version", "krbsrvname", "gsslib"}
)
_TAKEN: Final = _TLS | {
    "host", "port", "dbname", "user", "password", "passfile", "service", "servicefile", "application_name", "options",
    "target_session_attrs", "load_balance_hosts", "pgbouncer", "prepared_statements", "statement_cache_size",
    "prepared_statement_cache_size", "prepareThreshold",
}  # fmt: skip
_KEEPALIVE: Final = "each call is bounded by REDRIVE_DB_TIMEOUT"
_POOL: Final = "the pool's size is REDRIVE_DB_POOL_SIZE"
_IGNORED: Final[Mapping[str, str]] = {
    "connect_timeout": "each host has at most a second",
    "keepalives": _KEEPALIVE,
    "keepalives_idle": _KEEPALIVE,
    "keepalives_interval": _KEEPALIVE,
    "keepalives_count": _KEEPALIVE,
    "tcp_user_timeout": _KEEPALIVE,
    "socket_timeout": _KEEPALIVE,
    "connection_limit": _POOL,
    "pool_timeout": _POOL,
    "pool_size": _POOL,
    "max_connections": _POOL,
    "schema": "Redrive's statements name their schemas",
    "channel_binding": "",
    "gssencmode": "",
    "gssdelegation": "",
    "sslcompression": "",
    "sslsni": "",
    "sslcertmode": "",
    "client_encoding": "",
    "fallback_application_name": "",
    "uselibpqcompat": "",
    "replication": "",
}
_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "sslmode": _SSL_MODES,
    "sslnegotiation": ("postgres", "direct"),
    "ssl_min_protocol_version": _TLS_VERSIONS,
    "ssl_max_protocol_version": _TLS_VERSIONS,
    "gsslib": ("gssapi", "sspi"),
    "target_session_attrs": tuple(Access),
    "load_balance_hosts": ("disable", "random"),
    "channel_binding": ("prefer", "disable"),
    "gssencmode": ("prefer", "disable"),
    "gssdelegation": ("0",),
    "sslcompression": ("0",),
    "sslsni": ("1",),
    "sslcertmode": ("allow",),
    "client_encoding": ("auto", "utf8", "utf-8", "UTF8", "UTF-8"),
    "uselibpqcompat": ("true",),
    "replication": ("false", "off", "no", "0"),
    "pgbouncer": ("true", "false"),
    "prepared_statements": ("true", "false"),
}
_NUMBERS: Final = frozenset(
    {"connect_timeout", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"}
    | {"socket_timeout", "connection_limit", "pool_timeout", "pool_size", "max_connections"}
    | {"statement_cache_size", "prepared_statement_cache_size", "prepareThreshold"}
)
_NO_PREPARED_STATEMENTS: Final = frozenset(
    {("pgbouncer", "true"), ("prepared_statements", "false"), ("statement_cache_size", "0")}
    | {("prepared_statement_cache_size", "0"), ("prepareThreshold", "0")}
)
_INSTEAD: Final[Mapping[str, str]] = {
    "ssl": "write sslmode=require, or sslmode=verify-full to check the server's certificate",
    "sslaccept": "write sslmode=require, or sslmode=verify-full to check the server's certificate",
    "requiressl": "write sslmode=require",
    "hostaddr": "write the address as the host",
    "sslcrldir": "write sslcrl, with one file",
    "search_path": "write options=-csearch_path%3D…",
}


def postgres_url(text: str) -> PostgresUrl:
    """Read a URL. Raises ValueError, which names the wrong parameter and shows nothing else of the URL."""
    given, listed = _fields(text)
    said = {**_of_service(given), **given}
    ignored = _checked(said)
    ports = [_port_of(port) for port in said["port"].split(",")] if "port" in said else []
    if not listed:
        listed = _hosts_of(said.get("host") or os.environ.get("PGHOST") or ",".join(_DEFAULT_HOSTS))
    if not ports:
        ports = [_port_of(port) for port in (os.environ.get("PGPORT") or str(_DEFAULT_PORT)).split(",")]
    if len(ports) not in (1, len(listed)):
        raise ValueError("port: must be one, or as many as there are hosts")
    ports = ports * len(listed) if len(ports) == 1 else ports
    access = said.get("target_session_attrs") or os.environ.get("PGTARGETSESSIONATTRS")
    return PostgresUrl(
        hosts=tuple(Host(name, own or port) for (name, own), port in zip(listed, ports, strict=True)),
        user=said.get("user"),
        password=said.get("password"),
        database=said.get("dbname"),
        passfile=said.get("passfile"),
        tls=_tls_of(said),
        access=None if access is None else Access(access),
        application_name=said.get("application_name"),
        options=said.get("options"),
        shuffled=said.get("load_balance_hosts") == "random",
        pooled=not _NO_PREPARED_STATEMENTS.isdisjoint(said.items()),
        ignored=ignored,
    )


def check_files(url: PostgresUrl) -> None:
    """Raise ValueError, with the parameter's name, for a file of the URL that cannot be used."""
    _check_passfile(url.passfile)
    tls = url.tls
    mode = tls.get("sslmode") or os.environ.get("PGSSLMODE") or "prefer"
    if mode == "disable":
        return
    root = tls.get("sslrootcert") or os.environ.get("PGSSLROOTCERT")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if mode.startswith("verify") or mode == "require":
        if root and root != _SYSTEM:
            _load("sslrootcert", lambda: context.load_verify_locations(cafile=root))
        elif not root and mode == "verify-ca" and not _home("root.crt").exists():
            raise ValueError("sslrootcert: must name the certificate to check the server's with")
        if crl := tls.get("sslcrl"):
            _load("sslcrl", lambda: context.load_verify_locations(cafile=crl))
    if cert := tls.get("sslcert"):
        key, password = tls.get("sslkey"), tls.get("sslpassword", "")
        _load("sslcert or sslkey", lambda: context.load_cert_chain(cert, keyfile=key, password=lambda: password))
    elif key := tls.get("sslkey"):
        _load("sslkey", lambda: Path(key).read_bytes())


def tls_context(tls: Mapping[str, str]) -> ssl.SSLContext | None:
    """The context for `sslrootcert=system`, which asyncpg would read as a file's name; None for other values."""
    if tls.get("sslrootcert") != _SYSTEM:
        return None
    context = ssl.create_default_context()
    if cert := tls.get("sslcert"):
        context.load_cert_chain(cert, keyfile=tls.get("sslkey"), password=lambda: tls.get("sslpassword", ""))
    return context


def _fields(text: str) -> tuple[dict[str, str], list[tuple[str, int | None]]]:
    """All parameters by name, and the hosts of the authority, each with its port."""
    begin = _SCHEME.match(text)
    if begin is None:
        raise ValueError("must be a URL that begins with postgresql:// or postgres://")
    authority, path, query = _parts(text[begin.end() :])
    credentials, at, hosts = authority.rpartition("@") if authority.count("@") == 1 else ("", "", authority)
    if (not at and "@" in authority) or "[" in credentials or "]" in credentials:
        raise ValueError(UNREADABLE)
    user, _, password = credentials.partition(":")
    pairs = [("user", _decoded(user)), ("password", _decoded(password)), ("dbname", _decoded(path))]
    for part in query.split("&") if query else []:
        name, equals, value = part.partition("=")
        if not (name and equals):
            raise ValueError(UNREADABLE)
        name = _decoded(name)
        if name == "options":
            value = value.replace("+", " ")  # a plus has no other meaning there
        pairs.append(("dbname" if name == "database" else name, _decoded(value)))
    found: dict[str, str] = {}
    for name, value in pairs:
        if value and found.setdefault(name, value) != value:
            raise ValueError(f"{_shown(name)}: stands twice, with different values")
    listed = _hosts_of(hosts, decoded=_decoded) if hosts else []
    if listed and "host" in found:
        raise ValueError("host: stands twice")
    return found, listed


def _parts(text: str) -> tuple[str, str, str]:
    """Authority, path without its slash, and query."""
    # The part of a password before a `#` or `/` would be read as a host and its port.
    if "#" in text or any(character < " " for character in text):
        raise ValueError(UNREADABLE)
    before, _, query = text.partition("?")
    authority, _, path = before.partition("/")
    if authority and "@" not in authority and "@" in path:
        raise ValueError(UNREADABLE)
    return authority, path, query


def _decoded(text: str) -> str:
    try:
        decoded = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError(UNREADABLE) from None
    if "\x00" in decoded:
        raise ValueError(UNREADABLE)
    return decoded


def _hosts_of(text: str, *, decoded: Callable[[str], str] = str) -> list[tuple[str, int | None]]:
    """Hosts, separated by commas, each with its own port where it has one."""
    found: list[tuple[str, int | None]] = []
    for host in text.split(","):
        if _BARE_IPV6.fullmatch(host):
            found.append((host, None))
            continue
        match = _HOST.fullmatch(host)
        if match is None:
            raise ValueError(UNREADABLE)
        socket, address, name, port = match.groups()
        found.append((decoded(socket or address or name), _port_of(port) if port else None))
    return found


def _port_of(text: str) -> int:
    if not (_PORT.fullmatch(text) and 1 <= int(text) <= 65_535):
        raise ValueError(UNREADABLE)
    return int(text)


def _of_service(given: Mapping[str, str]) -> dict[str, str]:
    """The parameters of the service that the URL or PGSERVICE names; empty without a service."""
    name = given.get("service") or os.environ.get("PGSERVICE")
    if not name:
        return {}
    folder = os.environ.get("PGSYSCONFDIR")
    paths = [given.get("servicefile") or os.environ.get("PGSERVICEFILE") or str(_home(".pg_service.conf", folder=""))]
    paths += [f"{folder}/pg_service.conf"] if folder else []
    for path in paths:
        file = RawConfigParser(strict=False)
        file.optionxform = str  # type: ignore[assignment,method-assign] # keep the case of names
        try:
            file.read(path, encoding="utf-8")
        except (ServiceFileError, UnicodeDecodeError, OSError):
            raise ValueError("service: its file cannot be read") from None
        if file.has_section(name):
            return {"dbname" if key == "database" else key: value for key, value in file.items(name) if value}
    raise ValueError("service: no service has this name")


def _checked(said: Mapping[str, str]) -> tuple[str, ...]:
    """The parameters without effect, each with the reason. Raises ValueError for those that would not work."""
    notes: list[str] = []
    for name, value in said.items():
        if name in _INSTEAD:
            raise ValueError(f"{name}: is not supported; {_INSTEAD[name]}")
        if name not in _TAKEN and name not in _IGNORED:
            raise ValueError(f"{_shown(name)}: is not a parameter that works here; leave it out")
        if name in _CHOICES and value not in _CHOICES[name]:
            raise ValueError(f"{name}: must be {' or '.join(_CHOICES[name])}")
        if name in _NUMBERS and not _NUMBER.fullmatch(value):
            raise ValueError(f"{name}: must be a whole number")
        if name not in _TAKEN and (reason := _IGNORED[name]):
            notes.append(f"{name} is ignored: {reason}")
    return tuple(notes)


def _shown(name: str) -> str:
    """The name, where it can be a parameter's: otherwise it may be half a password."""
    return name if re.fullmatch(r"[A-Za-z_][\w.-]{0,39}", name, re.ASCII) else "a parameter"


def _tls_of(said: Mapping[str, str]) -> dict[str, str]:
    """The TLS parameters of `said`. `verify-full` without a root certificate uses those of the machine."""
    tls = {name: value for name, value in said.items() if name in _TLS}
    mode = tls.get("sslmode") or os.environ.get("PGSSLMODE")
    if mode == "verify-full" and not (os.environ.get("PGSSLROOTCERT") or _home("root.crt").exists()):
        tls.setdefault("sslrootcert", _SYSTEM)
    if tls.get("sslrootcert") == _SYSTEM and mode not in (None, "verify-full"):
        raise ValueError("sslmode: must be verify-full where sslrootcert is system")
    if tls.get("sslrootcert") == _SYSTEM:
        tls["sslmode"] = "verify-full"
    if tls.get("sslnegotiation") == "direct" and mode not in ("require", "verify-ca", "verify-full"):
        raise ValueError("sslnegotiation: direct needs sslmode=require, verify-ca or verify-full")
    _check_versions(tls)
    return tls


def _check_versions(tls: Mapping[str, str]) -> None:
    """Raise ValueError where no version of TLS is left. The lowest is TLSv1.2 where nothing says otherwise."""
    lowest = tls.get("ssl_min_protocol_version") or os.environ.get("PGSSLMINPROTOCOLVERSION") or "TLSv1.2"
    highest = tls.get("ssl_max_protocol_version") or os.environ.get("PGSSLMAXPROTOCOLVERSION") or "TLSv1.3"
    if {lowest, highest} <= set(_TLS_VERSIONS) and _TLS_VERSIONS.index(lowest) > _TLS_VERSIONS.index(highest):
        if "ssl_min_protocol_version" in tls:
            raise ValueError("ssl_min_protocol_version: must not be above ssl_max_protocol_version")
        raise ValueError("ssl_max_protocol_version: must not be below ssl_min_protocol_version (TLSv1.2, if not set)")


def _check_passfile(path: str | None) -> None:
    if path is None:
        return
    try:
        mode = Path(path).stat().st_mode
        Path(path).read_bytes()
    except OSError:
        raise ValueError("passfile: cannot be read") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ValueError("passfile: must be readable for its owner alone (chmod 600), or it is not used")


def _load(name: str, load: Callable[[], object]) -> None:
    try:
        load()
    except (OSError, ValueError):  # ssl.SSLError is an OSError; their texts name files
        raise ValueError(f"{name}: the file cannot be read, or does not hold what it should") from None


def _home(name: str, *, folder: str = ".postgresql") -> Path:
    try:
        return Path.home() / folder / name
    except (RuntimeError, KeyError):
        return Path("/nonexistent")
