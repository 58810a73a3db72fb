"""Checks of servers' URLs, read as the clients read them: by yarl for aio-pika and aiohttp, by our own for PostgreSQL.

For a URL that a client cannot read it raises an error that quotes parts of it, even of a password with a `/` or `#` in
it. These checks run before the program starts, and their errors quote nothing of the URL. `proxy_for` is for those who
ask one.
"""

import os
import re
from typing import Final
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from yarl import URL

from shared.postgres_url import ENCODED, check_files, postgres_url

_AMQP: Final = f"must be a URL such as amqp://user:password@host:5672/vhost, {ENCODED}"
_SEVERAL: Final = (
    "must be whole URLs where there are several, amqp://user:password@one/vhost,amqp://user:password@two/vhost, with a "
    "comma, semicolon or blank in a name as %2C, %3B or %20"
)
_HTTP: Final = "must be a URL that begins with https:// or http://, and names a host"

AMQP_PARAMETERS: Final = frozenset(
    {"cafile", "cacertfile", "capath", "cadata", "certfile", "keyfile", "verify", "no_verify_ssl"}
    | {"heartbeat", "timeout", "name", "happy_eyeballs_delay", "interleave"}
)
"""The parameters of a broker's URL: aiormq's and aio-pika's, and RabbitMQ's names for two of them."""
_AMQP_FILES: Final = frozenset({"cafile", "cacertfile", "capath", "certfile", "keyfile"})
_NUMBER: Final = re.compile(r"\d{1,4}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d\d|655[0-2]\d|6553[0-4]", re.ASCII)
_SECONDS: Final = (_NUMBER, "a whole number of seconds from 0 to 65534")
# The clients take a wrong value for none, and any other `no_verify_ssl` than 0 for 1.
_AMQP_VALUES: Final = {
    "heartbeat": _SECONDS,
    "timeout": _SECONDS,
    "interleave": (re.compile(r"\d{1,4}", re.ASCII), "a whole number from 0 to 9999"),
    "happy_eyeballs_delay": (re.compile(r"\d{1,4}(?:\.\d{1,9})?", re.ASCII), "a number of seconds, such as 0.25"),
    "verify": (re.compile("verify_peer|verify_none"), "verify_peer or verify_none"),
    "no_verify_ssl": (re.compile("[01]"), "0 or 1"),
}
_NEXT_URL: Final = re.compile(r",\s*(?=amqps?://)", re.IGNORECASE)
_APART: Final = re.compile(r"[,;\s]")
_ANOTHER_URL: Final = re.compile(r"amqps?://|[\t\r\n]", re.IGNORECASE)  # the clients leave out tabs and ends of lines
_PARAMETER_NAME: Final = re.compile(r"[a-z_]{1,32}", re.ASCII)


def check_postgres_url(url: str) -> None:
    """Raise ValueError for what asyncpg cannot connect to, or would connect to in another way than the URL says."""
    check_files(postgres_url(url))


def amqp_urls(text: str) -> list[str]:
    """The URLs of the nodes of a cluster, which stand one after the other, separated by commas; one is the rule."""
    return [url.strip() for url in _NEXT_URL.split(text)]


def check_amqp_url(text: str) -> None:
    """Raise ValueError for what aio-pika cannot connect to, and for parameters that it would ignore.

    Several URLs must lead to one virtual host, as one user with one password: they are nodes of one cluster.
    """
    urls = amqp_urls(text)
    for number, url in enumerate(urls, start=1):
        try:
            _check_node(url)
        except ValueError as error:
            if len(urls) == 1:
                raise
            raise ValueError(f"in URL {number} of {len(urls)}: {error}") from None
    nodes = [URL(url) for url in urls]
    if len({_vhost_of(node) for node in nodes}) > 1:
        raise ValueError("the URLs must name one virtual host: they are nodes of one cluster")
    if len({(node.user, node.password) for node in nodes}) > 1:
        raise ValueError("the URLs must have one user and one password: they are nodes of one cluster")


def _vhost_of(node: URL) -> str:
    return node.raw_path.removeprefix("/") or "%2F"


def _check_node(url: str) -> None:
    parts = _parts(url, "amqp", "amqps", otherwise=_AMQP)
    if _APART.search(parts.netloc.rpartition("@")[2] + parts.path) or _ANOTHER_URL.search(url, len(parts.scheme)):
        # What is meant is several nodes, and a client would take it for a host or a virtual host of that name.
        raise ValueError(_SEVERAL)
    if not _names_a_host(url, "amqp", "amqps"):
        raise ValueError(_AMQP)
    query = URL(url).query
    for name, value in query.items():
        if name not in AMQP_PARAMETERS:
            raise ValueError(_unknown_parameter(name))
        if name in _AMQP_FILES and not os.access(value, os.R_OK):
            raise ValueError(f"{name}= names a file that cannot be read: {value}")
        if (rule := _AMQP_VALUES.get(name)) is not None and not rule[0].fullmatch(value):
            raise ValueError(f"{name}= must be {rule[1]}")
    if {"cafile", "cacertfile"} <= query.keys():
        raise ValueError("cafile= and cacertfile= are one parameter: keep one")


def _unknown_parameter(name: str) -> str:
    known = f"the known ones are {', '.join(sorted(AMQP_PARAMETERS))}"
    if not _PARAMETER_NAME.fullmatch(name):
        return f"has a parameter that is not known; {known}"  # it may be a piece of a password with a `?` in it
    return f"has the parameter {name}=, which is not known; {known}"


def check_http_url(url: str) -> None:
    """Raise ValueError for what aiohttp cannot fetch."""
    if not _names_a_host(url, "http", "https"):
        raise ValueError(_HTTP)


def _parts(url: str, *schemes: str, otherwise: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(otherwise) from None
    if parts.scheme not in schemes:
        raise ValueError(f"must be a URL that begins with {' or '.join(f'{name}://' for name in schemes)}")
    # Both clients accept these where the part of the password before a `#` or `/` reads as a port.
    if "#" in url or (parts.netloc and "@" not in parts.netloc and "@" in parts.path):
        raise ValueError(otherwise)
    return parts


def _names_a_host(url: str, *schemes: str) -> bool:
    try:
        read = URL(url)
    except ValueError:
        return False
    return read.scheme in schemes and bool(read.host)


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for an HTTP URL; None where the URL's host is asked directly.

    For sessions of aiohttp in place of `trust_env`, which also sends what ~/.netrc has for the host or the proxy, and
    raises ValueError where a request has an `Authorization` already.
    """
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    return None if proxy is None or proxy_bypass(parts.hostname or "") else proxy
