"""Processor time of a program or a server, with all that it has started."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.servers import trees

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


def processor_s(root: int) -> float:
    """Seconds that a process of this machine and all its descendants have used, also those that have ended.

    In steps of a hundredth of a second for each process. A descendant that ended before its parent was told so counts
    once the parent has taken notice, as PostgreSQL does of its sessions.
    """
    ticks = 0
    for pid in trees.tree_of(root):
        with suppress(FileNotFoundError, ProcessLookupError):  # gone since the listing: its parent has its time
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS_PER_S
