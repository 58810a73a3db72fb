"""What OpenTelemetry and its HTTP client log, as lines of our own: once a minute each, without addresses or a stack.

While a collector is away they log each attempt, with the whole exception in the line: addresses, sometimes with a key
in them, and stacks that tell an operator nothing. A line of ours is the library's sentence with a plain reason in the
exception's place, and without the words that look like an address.
"""

import logging
import os
import re
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

import structlog

log = structlog.stdlib.get_logger(__name__)

PAUSE_S: Final = 60.0
_MOST_CHARACTERS: Final = 300
_MOST_CAUSES: Final = 20
_ADDRESS: Final = re.compile(
    r"://|@|::|\w:\d|\w:\w+:"  # a URL, what stands before its host, an IPv6 address, host:port
    r"|(?<![\w/])/\w"  # a path, as of a URL
    r"|\w\.[A-Za-z][\w-]|\d\.\d+\.\d"  # a host's name with dots, an IPv4 address
    r"|\b(?:host|port|url)="  # as urllib3 writes where it connects to
)
"""Found in a word that may tell where the collector is, or what opens it."""


class OtelLog(logging.Handler):
    """Logs a line of the library as a warning, with its words as `reason`.

    What the same place in the library's code logs within the next minute is left out; `left_out` of the line after that
    says how often it was.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._quiet_until: dict[tuple[str, int], float] = {}
        self._left_out: Counter[tuple[str, int]] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Log a line, unless one of the same place was logged within the last minute.

        It raises nothing: the caller is the thread that sends, or a request whose span has ended. What cannot be told
        is logged without its words.
        """
        place, now = (record.pathname, record.lineno), self._clock()
        if now < self._quiet_until.get(place, now):
            self._left_out[place] += 1
            return
        self._quiet_until[place] = now + PAUSE_S
        try:
            reason = _reason_in(record)
        except Exception:  # noqa: BLE001 - any argument may fail to be made text
            reason = f"a line without words, of line {record.lineno} of {record.module}"
        with suppress(Exception):  # where logging itself fails, no log can say so
            log.warning("opentelemetry reported trouble", reason=reason, left_out=self._left_out.pop(place, 0))


def _reason_in(record: logging.LogRecord) -> str:
    text = str(record.msg)
    if isinstance(record.args, Mapping):  # what logging makes of a single argument that is one
        text %= {name: _told(each) for name, each in record.args.items()}
    elif record.args:
        text %= tuple(_told(each) for each in record.args)
    if record.exc_info and (error := record.exc_info[1]) is not None:
        text = f"{text} ({_words(error)})"
    return " ".join("…" if _ADDRESS.search(word) else word for word in text.split())[:_MOST_CHARACTERS]


def _told(argument: object) -> object:
    return _words(argument) if isinstance(argument, BaseException) else argument


def _words(error: BaseException) -> str:
    """Why it failed, by the exception that began it."""
    for _ in range(_MOST_CAUSES):  # two exceptions can be each other's cause
        error = error.__cause__ or error.__context__ or error
    match error:
        case socket.gaierror():
            words = "its host name cannot be resolved"
        case ssl.SSLCertVerificationError():
            words = f"its certificate is not trusted: {error.verify_message}"
        case TimeoutError():
            words = "no answer in time"
        case OSError() if error.errno is not None and error.errno > 0:
            words = os.strerror(error.errno).lower()
        case _:
            words = type(error).__name__
    return words
