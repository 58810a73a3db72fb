"""Secrets that may change while the program runs: read from their files again, the last good value where that fails."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import structlog

log = structlog.stdlib.get_logger(__name__)

Url: TypeAlias = "str | Callable[[], str]"
"""A server's URL, or a function that returns it for each new connection."""


def current(url: Url) -> str:
    """The URL as it is now."""
    return url if isinstance(url, str) else url()


def reason_of(error: OSError | ValueError) -> str:
    """Why a file cannot be read, in the system's words."""
    strerror = error.strerror if isinstance(error, OSError) else None
    return "it is not text in UTF-8" if strerror is None else strerror.lower()


class FileSecret:
    """A function that reads a file at each call: once for each new connection.

    It reads in the event loop: 9 µs, where a connection takes milliseconds. A task for a thread would take longer, and
    Kubernetes and Docker mount secrets in memory, where no disk or network is waited for.

    Returns the last good value while the file is missing, half-written, or has a value for which `check` raises
    ValueError. Such a value is checked again at each call, as a file that it names may come later. Its refusal is
    logged once.
    """

    def __init__(self, path: Path, value: str, check: Callable[[str], object]) -> None:
        self._path = path
        self._good = value
        self._refused: str | None = None
        self._check = check

    def __call__(self) -> str:
        """The value, without surrounding white space."""
        try:
            found = self._path.read_text("utf-8").strip()
        except (OSError, ValueError):
            return self._good
        if found != self._good:
            try:
                self._check(found)
            except ValueError as error:
                self._log_once(found, error)
            else:
                self._good = found
        return self._good

    def _log_once(self, refused: str, error: ValueError) -> None:
        if refused != self._refused:
            self._refused = refused
            log.warning("secret refused", file=str(self._path), reason=str(error))
