"""Words that the product does without: who acts is named, and a program is no person."""

import re
from pathlib import Path
from typing import Final

_TOP: Final = Path(__file__).parents[2]
_FOLDERS: Final = ("api", "cli", "deploy", "docs", "redrive", "redrive_client", "shared", "worker")
_TEXTS: Final = {".css", ".html", ".js", ".md", ".mjs", ".py", ".sql", ".yaml", ".yml"}
_WORDS: Final = re.compile(r"\b(?:whoever|nobody|somebody|anybody|everybody)\b", re.IGNORECASE)
_ACCOUNT: Final = re.compile(r"[`\"]nobody[`\"]")
"""A system's account has that name."""


def test_no_text_speaks_of_whoever_nobody_somebody_anybody_or_everybody() -> None:
    files = [path for folder in _FOLDERS for path in (_TOP / folder).rglob("*") if path.suffix in _TEXTS]
    files += _TOP.glob("*.md")
    assert len(files) > 150

    found = [
        f"{path.relative_to(_TOP)}:{number}"
        for path in files
        if "vendor" not in path.parts
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
        if _WORDS.search(_ACCOUNT.sub("", line))
    ]
    assert found == []
