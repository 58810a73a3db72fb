"""The findings of a check: one line each, folded on a terminal."""

import shutil
import textwrap
from enum import StrEnum
from typing import Final, NamedTuple

INDENT: Final = 9
"""Where the text of a finding begins; the lines that follow are as far in."""


class Verdict(StrEnum):
    """The result of one check."""

    OK = "ok"
    NOTE = "note"
    """Worth knowing; or something that could not be checked."""
    WARNING = "warning"
    FAILED = "failed"


class Finding(NamedTuple):
    """One line of the report; `of_settings`: an environment variable is wrong."""

    verdict: Verdict
    text: str
    of_settings: bool = False


def wrapped(text: str, *, is_terminal: bool) -> str:
    """The text of a finding, folded to the terminal's width; in one line where it goes to a pipe."""
    if not is_terminal:
        return text
    width = max(40, shutil.get_terminal_size().columns - INDENT)
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return f"\n{' ' * INDENT}".join(lines)
