"""What a look at a deployment came to: one line each, for a person and for a pipe."""

import shutil
import textwrap
from enum import StrEnum
from typing import Final, NamedTuple

INDENT: Final = 9
"""Where the text of a finding begins; the lines that follow are as far in."""


class Verdict(StrEnum):
    """What a look at something came to."""

    OK = "ok"
    NOTE = "note"
    """Worth knowing; or something that may not be looked at."""
    WARNING = "warning"
    FAILED = "failed"


class Finding(NamedTuple):
    """One line of the report; `of_settings` where it is for the environment to be mended."""

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
