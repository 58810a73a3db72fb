"""Secrets that may change while the program runs: read from their files again, the last good value where that fails."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

Url: TypeAlias = "str | Callable[[], str]"
"""A server's URL, or a function that returns it for each new connection."""


def current(url: Url) -> str:
    """The URL as it is now."""
    return url if isinstance(url, str) else url()


class FileSecret:
    """A function that reads a file at each call.

    Returns the last good value while the file is missing, half-written, or has a value for which `check` raises
    ValueError.
    """

    def __init__(self, path: Path, value: str, check: Callable[[str], object]) -> None:
        self._path = path
        self._good = self._seen = value
        self._check = check

    def __call__(self) -> str:
        """The value, without surrounding white space."""
        try:
            found = self._path.read_text("utf-8").strip()
            if found != self._seen:
                self._seen = found
                self._check(found)
                self._good = found
        except (OSError, ValueError):
            pass
        return self._good
