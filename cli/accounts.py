"""Whom PostgreSQL runs as where we are root: it refuses to run as root itself.

The account must be able to reach the program and its data. Only what is missing for that is granted: walking through a
folder (o+x), never listing it. What had to be changed outside our own folder is told to the caller, to be said aloud.
"""

import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cli.failures import CommandFailed

NAME = "pgserver"
"""The wheel's own word for it, so both use one account."""


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this machine that is not root."""

    uid: int
    gid: int

    @property
    def name(self) -> str:
        """Its name, for messages."""
        return pwd.getpwuid(self.uid).pw_name


def account_for(cluster: Path) -> Account | None:
    """Who runs the server on `cluster`: None for ourselves; for root, the owner of what is there, else `pgserver`.

    Makes `pgserver` where it is missing. Raises CommandFailed when it cannot.
    """
    if os.geteuid() != 0:
        return None
    if cluster.exists() and (owner := cluster.stat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid)
    try:
        entry = pwd.getpwnam(NAME)
    except KeyError:
        entry = _made()
    return Account(entry.pw_uid, entry.pw_gid)


def _made() -> pwd.struct_passwd:
    program = shutil.which("useradd") or shutil.which("useradd", path="/usr/sbin:/sbin")
    if program is not None:
        command = [program, "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", NAME]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments
        if done.returncode == 0:
            return pwd.getpwnam(NAME)
    raise CommandFailed(
        f"PostgreSQL does not run as root, and the account {NAME!r} for it cannot be made: "
        "make it, or run `redrive up` as an ordinary user"
    )


def make_reachable(folder: Path) -> list[Path]:
    """Let everybody walk through the parents of `folder`; returns those that had to be changed, as a rule none."""
    changed = []
    for parent in folder.absolute().parents:
        mode = parent.stat().st_mode
        if not mode & stat.S_IXOTH:
            parent.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)
            changed.append(parent)
    return changed


def make_readable(tree: Path) -> None:
    """Let everybody read `tree` and run what can be run in it; a strict umask may have been at work on it."""
    for path in (tree, *_within(tree)):
        mode = path.stat().st_mode
        wanted = stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0)
        if mode & wanted != wanted:
            path.chmod(stat.S_IMODE(mode) | wanted)


def _within(tree: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(tree):
        for name in (*names, *files):
            if not (path := Path(folder, name)).is_symlink():
                yield path
