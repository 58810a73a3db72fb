"""What OpenTelemetry and its HTTP client log, as lines of our own: once a minute each, without a URL or a stack.

While a collector is away they log each attempt, with the whole exception in the line: addresses, sometimes with a key
in them, and stacks that tell an operator nothing. A line of ours is the library's sentence with a plain reason in the
exception's place.
"""

import logging
import os
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

import structlog

log = structlog.stdlib.get_logger(__name__)

PAUSE_S: Final = 60.0
_MOST_CHARACTERS: Final = 300


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
        """Log a line, unless one of the same place was logged within the last minute."""
        place, now = (record.pathname, record.lineno), self._clock()
        if now < self._quiet_until.get(place, now):
            self._left_out[place] += 1
            return
        self._quiet_until[place] = now + PAUSE_S
        log.warning("opentelemetry reported trouble", reason=_reason_in(record), left_out=self._left_out.pop(place, 0))


def _reason_in(record: logging.LogRecord) -> str:
    text = str(record.msg)
    if isinstance(record.args, tuple):
        text %= tuple(_words(each) if isinstance(each, BaseException) else each for each in record.args)
    if record.exc_info and (error := record.exc_info[1]) is not None:
        text = f"{text} ({_words(error)})"
    return text[:_MOST_CHARACTERS]


def _words(error: BaseException) -> str:
    """Why it failed, by the exception that began it."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
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
