"""The data folder of `redrive up`: the files that stay between two starts.

    lock          locked while an `up` runs on the folder; names its process
    jwt-secret    signs and checks tokens; mode 600
    auth          the last printed token as an HTTP header, for `curl -H @…/auth`; mode 600
    postgres/     the database's files
    postgres.log  the database's log
    env           what the commands need to work on it, for a shell to source; mode 600
    copy          where the copy of PostgreSQL's programs is, while there is one; see cli/local/accounts.py

Deleting the folder, with nothing running on it, deletes all of it.
"""

import fcntl
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from cli.errors import CommandFailed
from shared.setting_types import MIN_SECRET_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class DataFolder:
    """A folder that this process alone works on."""

    path: Path

    @property
    def cluster(self) -> Path:
        """Where the database's files lie."""
        return self.path / "postgres"

    @property
    def log(self) -> Path:
        """Where the database's log goes."""
        return self.path / "postgres.log"

    @property
    def copy_note(self) -> Path:
        """Names the copy of PostgreSQL's programs that is in use, or was left behind."""
        return self.path / "copy"

    @property
    def secret_file(self) -> Path:
        """Where `secret` is kept."""
        return self.path / "jwt-secret"

    def secret(self) -> str:
        """The folder's own secret for tokens: made at the first call, the same afterwards."""
        path = self.secret_file
        if path.exists() and len(found := path.read_text("ascii").strip()) >= MIN_SECRET_BYTES:
            return found
        secret = secrets.token_urlsafe(48)
        _write_private(path, f"{secret}\n")
        return secret

    @property
    def header_file(self) -> Path:
        """Where `write_header` writes."""
        return self.path / "auth"

    def write_header(self, token: str) -> Path:
        """Write `token` as an HTTP header into a file that curl reads; returns the file."""
        path = self.header_file
        _write_private(path, f"Authorization: Bearer {token}\n")
        return path

    def write_environment(self, variables: "Mapping[str, str]") -> Path:
        """Write the variables into a file that a shell can source; returns the file.

        It also adds the folder of the program that runs to the end of PATH, once, so that the shell finds `redrive`.
        """
        path = self.path / "env"
        lines = [f"export {name}={quote(value)}\n" for name, value in variables.items()]
        programs = quote(str(Path(sys.executable).absolute().parent))
        lines.append(f'case ":$PATH:" in *:{programs}:*) ;; *) export PATH="$PATH":{programs} ;; esac\n')
        _write_private(path, "".join(lines))
        return path


@contextmanager
def data_folder(path: Path) -> Iterator[DataFolder]:
    """Make the folder where it is missing, and lock it. Raises CommandFailed where another process has locked it."""
    path = path.expanduser().absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The kernel releases the lock when the process ends in any way; a database left behind has not inherited it.
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CommandFailed(
            f"the data folder {path} cannot be used: {(error.strerror or str(error)).lower()}"
        ) from error
    try:
        _lock(lock, path)
        ignored = path / ".gitignore"
        if not ignored.exists():
            ignored.write_text("*\n", "ascii")  # there is a secret in here
        yield DataFolder(path)
    finally:
        os.close(lock)


def _lock(lock: int, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
        raise CommandFailed(
            f"the data folder {path} is in use by another `redrive up` (process {holder}); "
            "stop that one, or choose another folder with --data-dir"
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode("ascii"), 0)


def _write_private(path: Path, text: str) -> None:
    """Write a file of mode 600, all or nothing."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    new.replace(path)
