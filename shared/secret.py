"""A secret that may change while the program runs: what its file holds now, or held when it was last good."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

Url: TypeAlias = "str | Callable[[], str]"
"""A server's URL, or what answers it for each new connection."""


def current(url: Url) -> str:
    """The URL as it is now."""
    return url if isinstance(url, str) else url()


class FileSecret:
    """The content of a file, read again at each call.

    A file that is away, half-written or holds what `check` objects to (ValueError) counts as not changed.
    """

    def __init__(self, path: Path, value: str, check: Callable[[str], object]) -> None:
        self._path = path
        self._good = self._seen = value
        self._check = check

    def __call__(self) -> str:
        """The value, stripped of what surrounds it."""
        try:
            found = self._path.read_text("utf-8").strip()
            if found != self._seen:
                self._seen = found
                self._check(found)
                self._good = found
        except (OSError, ValueError):
            pass
        return self._good
