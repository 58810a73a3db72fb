"""Processor time: of a program or a server, with all that it has started, and of the whole machine."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

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


def threads_s(pid: int) -> tuple[float, float]:
    """Seconds that a process's main thread has used, and all its other threads that live, to the nanosecond."""
    main_s = others_s = 0.0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            used_s = int((thread / "schedstat").read_text().split()[0]) / 1e9
            if thread.name == str(pid):
                main_s = used_s
            else:
                others_s += used_s
    return main_s, others_s


class Machine(NamedTuple):
    """Seconds of all cores since the machine started; `busy` also while another virtual machine had the core."""

    busy: float
    idle: float


def machine_s() -> Machine:
    """What the kernel counts, in steps of a hundredth of a second for each core."""
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return Machine((user + nice + system + irq + softirq + steal) / _TICKS_PER_S, (idle + iowait) / _TICKS_PER_S)
