"""Checks that the ports of a program are free, before anything is started."""

import socket
from collections.abc import Iterable
from contextlib import ExitStack
from typing import NamedTuple

from cli.errors import CommandFailed


class Port(NamedTuple):
    """A port to listen on, and how a user chooses another one."""

    number: int
    purpose: str
    setting: str


def require_free(host: str, ports: Iterable[Port]) -> None:
    """Raise CommandFailed, naming the setting, for the first port that cannot be listened on.

    Another process may take the port after this check; then the program itself fails to listen, with a shorter message.
    """
    with ExitStack() as opened:  # all at once: two settings may name the same port
        for port in ports:
            if port.number != 0:  # 0: the system chooses a free one
                _listen(host, port, opened)


def _listen(host: str, port: Port, opened: ExitStack) -> None:
    try:
        addresses = socket.getaddrinfo(host, port.number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in addresses:
            probe = opened.enter_context(socket.socket(family, kind, protocol))
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as asyncio does: TIME_WAIT is no obstacle
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(address)
            probe.listen(1)  # two sockets that only bind may share a port
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CommandFailed(
            f"cannot listen on {host}:{port.number} ({port.purpose}): {reason}; choose another with {port.setting}"
        ) from error
