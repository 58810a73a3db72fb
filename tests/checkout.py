"""The commit that a measurement or a run of tests was made on."""

import subprocess
from pathlib import Path
from typing import Final

MORE: Final = "+"
_WRITTEN: Final = (":(exclude)bench/results.json", ":(exclude)docs/benchmarks*")
"""What a bench writes after each part: it changes nothing of what is measured next."""


def commit() -> str:
    """The checkout's commit, with a plus where there is more in it than that."""
    root = Path(__file__).parents[1]
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, check=True)
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--", ".", *_WRITTEN], cwd=root, capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.decode().strip() + (MORE if changes.stdout.strip() else "")
