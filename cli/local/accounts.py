"""Runs PostgreSQL where `redrive up` runs as root, which PostgreSQL refuses, and changes nothing of the machine.

It runs as the system account `nobody`; no account is made. Two things must be within its reach:

    its data       its working directory, entered before the user changes to `nobody`; the server gets
                   `/proc/self/cwd` as its path, which works whatever the folders above allow
    its programs   used where they are if `nobody` can run them there, else from a copy in a temporary folder

So no folder is opened to others, root's home and the virtual environment least of all.
"""

import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypedDict

from cli.errors import CommandFailed
from cli.local.folder import DataFolder

NAME: Final = "nobody"
WORKING_DIRECTORY: Final = Path("/proc/self/cwd")
_ANSWER_S: Final = 20
_ADVICE: Final = "run `redrive up` as an ordinary user"


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this machine that is not root."""

    uid: int
    gid: int


class Identity(TypedDict, total=False):
    """What `subprocess` is given to run a program as another user; empty for the current one."""

    user: int
    group: int
    extra_groups: list[int]


def identity_of(account: Account | None) -> Identity:
    """How to run a program as the account."""
    return {} if account is None else {"user": account.uid, "group": account.gid, "extra_groups": []}


def account_for(cluster: Path) -> Account | None:
    """The account of the server on `cluster`: None for the current user; for root, the folder's owner, else `nobody`.

    Raises CommandFailed where there is no such account.
    """
    if os.geteuid() != 0:
        return None
    if cluster.exists() and (owner := cluster.stat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid)
    try:
        entry = pwd.getpwnam(NAME)
    except KeyError:
        raise CommandFailed(
            f"PostgreSQL does not run as root, and there is no account {NAME!r} that it could run as: {_ADVICE}"
        ) from None
    return Account(entry.pw_uid, entry.pw_gid)


@contextmanager
def programs_within_reach(programs: Path, account: Account | None, folder: DataFolder) -> Iterator[Path]:
    """The folder of programs, or of a copy that the account can run; a copy is removed when the block ends.

    A copy that a killed `up` has left behind is removed first. Raises CommandFailed where no copy can be run, either.
    """
    _remove_copy(folder)
    if account is None or _can_run(programs, account):
        yield programs
        return
    try:
        for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp")):  # noqa: S108 - mkdtemp's parents
            _remove_copy(folder)
            with suppress(OSError):
                top = Path(tempfile.mkdtemp(prefix="redrive-programs-", dir=parent))
                folder.copy_note.write_text(f"{top}\n", "utf-8")  # before the copy, so that the next start removes it
                copy = copy_programs(programs.parent, top)
                if _can_run(copy / programs.name, account):
                    yield copy / programs.name
                    return
    finally:
        _remove_copy(folder)
    raise CommandFailed(
        f"PostgreSQL does not run as root, and {NAME!r} can run it neither from {programs} nor from a copy: {_ADVICE}"
    )


def _can_run(programs: Path, account: Account) -> bool:
    """Whether the account gets as far as the libraries: tried out, because file modes do not say all."""
    try:
        done = subprocess.run(  # noqa: S603 - our own program
            [programs / "postgres", "--version"],
            cwd="/",
            env={},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ANSWER_S,
            check=False,
            **identity_of(account),
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def copy_programs(install: Path, top: Path) -> Path:
    """Copy what PostgreSQL runs on into the folder `top`, readable for all; returns the copy of `install`.

    By hard links where possible.
    """
    copy = top / install.parent.name / install.name
    shutil.copytree(install, copy, symlinks=True, copy_function=_link_or_copy, ignore=shutil.ignore_patterns("include"))
    libraries = install.parent.with_name(f"{install.parent.name}.libs")  # where wheels keep what they link to
    if libraries.exists():
        shutil.copytree(libraries, top / libraries.name, symlinks=True, copy_function=_link_or_copy)
    for path, _, _ in os.walk(top):
        Path(path).chmod(0o755)
    return copy


def _link_or_copy(source: str, target: str) -> None:
    mode = Path(source).stat().st_mode
    wanted = stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0)
    if mode & wanted == wanted:  # else the original's mode would have to change
        with suppress(OSError):  # on another file system, as a rule
            os.link(source, target)
            return
    shutil.copyfile(source, target)
    Path(target).chmod(stat.S_IMODE(mode) | wanted)


def _remove_copy(folder: DataFolder) -> None:
    with suppress(FileNotFoundError):
        top = Path(folder.copy_note.read_text("utf-8").strip())
        if top.name.startswith("redrive-programs-"):
            shutil.rmtree(top, ignore_errors=True)
        folder.copy_note.unlink()
