"""How operators' commands reach the API, and what their failures say.

    --url          or REDRIVE_URL     where the API is; without either, on this machine
    --token-file   or REDRIVE_TOKEN_FILE, REDRIVE_TOKEN   the token: in a file, or itself

Both variables at once are an error; the option takes precedence. Neither is a setting of the programs. A token is never
an argument, because every user of the machine can read the arguments of a process.
"""

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from cli.errors import CommandFailed
from cli.operate.tables import printable
from shared.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from redrive_client import Redrive, RedriveClientError, RedriveProblem

REJECTED: Final = 3
"""The exit status of a retry that was refused, or ended rejected."""
ABOUT_THE_REQUEST: Final = frozenset(
    {
        "bad-request",
        "expectation-failed",
        "invalid-json",
        "invalid-parameter",
        "length-required",
        "method-not-allowed",
        "not-found",
        "payload-too-large",
        "unsupported-media-type",
    }
)
"""Codes of the API that say nothing of a retry: the request went to a wrong path, or has a form that is not read."""
_TIMEOUT_S: Final = 10.0
_LOGIN_HINT: Final = (
    "type `. .redrive/env` (after `redrive up`) or `export REDRIVE_TOKEN=$(redrive token --project PROJECT)`"
)


class RetryRefused(Exception):
    """The API refuses what a retry asks for; `problem` is its answer."""

    def __init__(self, problem: "RedriveProblem") -> None:
        super().__init__(str(problem))
        self.problem = problem


@contextmanager
def asking_for_retries() -> Iterator[None]:
    """Raise RetryRefused where the API refuses what the block asks for.

    A token that is none, a limit, a request that the API cannot read, and an API that is away or fails, are no refusal
    of a retry, and go through as they are.
    """
    from redrive_client import RateLimited, RedriveProblem, Unauthenticated  # noqa: PLC0415 - not for `redrive --help`

    try:
        yield
    except RedriveProblem as problem:
        if problem.status >= 500 or isinstance(problem, Unauthenticated | RateLimited):
            raise
        if problem.code in ABOUT_THE_REQUEST:
            raise
        raise RetryRefused(problem) from problem


def ask(
    url: str, token_file: Path | None, work: "Callable[[Redrive], Awaitable[int | None]]", *, scopes: str = "jobs:read"
) -> None:
    """Run `work` with a client of the API; what it returns is the exit status.

    `scopes`: what a token needs for this, for the message where it lacks one: the API's own answer does not name it.

    Raises SettingsError for a missing token, CommandFailed where the API refuses or does not answer.
    """
    from redrive_client import Redrive, RedriveClientError  # noqa: PLC0415 - not for `redrive --help`
    from shared.urls import check_http_url  # noqa: PLC0415 - likewise

    token = _token(token_file)
    try:
        check_http_url(url)  # the client's parser may quote what it cannot read
        redrive = Redrive(url, token=token, timeout_s=_TIMEOUT_S, on_pause=_note_pause)
    except ValueError as error:
        raise SettingsError([f"REDRIVE_URL: {error}"]) from None

    async def asking() -> int | None:
        async with redrive:
            return await work(redrive)

    try:
        status = asyncio.run(asking())
    except RedriveClientError as error:
        raise CommandFailed(line_of_refusal(error, url, scopes)) from error
    if status:
        raise typer.Exit(status)


def _note_pause(reason: "RedriveClientError", pause_s: float) -> None:
    """Print that the command waits because of a limit, and how long: without it, the command would look broken."""
    from redrive_client import RateLimited  # noqa: PLC0415 - likewise

    if isinstance(reason, RateLimited):
        note(f"rate limit of the API reached (429): waiting {max(1, round(pause_s))} s")


def note(line: str) -> None:
    """Print a note on stderr, beside the command's output."""
    typer.echo(f"redrive: note: {line}", err=True)


async def note_empty(redrive: "Redrive", things: str, chosen: "Mapping[str, object | None]") -> None:
    """Print on a terminal that a list is empty, and of what; a program sees the headings alone.

    `chosen`: the options that choose, with their values; None for those that were not given.
    """
    if not sys.stdout.isatty():
        return
    project = (await redrive.me()).project_id
    given = " ".join(f"{option} {printable(value)}" for option, value in chosen.items() if value is not None)
    note(f"no {things} in project {project} match {given}" if given else f"project {project} has no {things}")


def report_refusal(line: str) -> int:
    """Print why a retry was refused. Returns the exit status for it."""
    typer.echo(f"redrive: {line}", err=True)
    return REJECTED


def line_of_refusal(error: "RedriveClientError", url: str = "", scopes: str = "") -> str:
    """The error of the API in one line, with what to do about it; `scopes` are those that the command needs."""
    from redrive_client import (  # noqa: PLC0415 - likewise
        Forbidden,
        InvalidBody,
        RateLimited,
        RedriveProblem,
        Unauthenticated,
        UnexpectedAnswer,
        Unreachable,
    )

    problem = f"{error} [{error.code}, request {error.request_id}]" if isinstance(error, RedriveProblem) else str(error)
    match error:
        case Unauthenticated():
            line = f"{error} (the token is in --token-file or REDRIVE_TOKEN); for a new one, {_LOGIN_HINT}"
        case Forbidden() if error.code == "insufficient-scope" and scopes:
            line = f"{problem}; this command needs the scopes: {scopes}"
        case InvalidBody() if error.errors:
            line = "; ".join(f"{fault.pointer or 'the request'}: {fault.detail}" for fault in error.errors)
        case RateLimited() if error.retry_after_s is not None:
            line = f"{problem}; try again in {error.retry_after_s:.0f} s"
        case RedriveProblem():
            line = problem
        case Unreachable():
            line = f"the API at {url} cannot be reached: {error}; is `redrive up` or `redrive api` running there?"
        case UnexpectedAnswer():
            line = f"the API at {url}: {error}; is this Redrive's API?"
        case _:
            line = f"the API at {url}: {error}"
    return line


def is_terminal() -> bool:
    """Whether the command can ask its user a question."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def _token(file: Path | None) -> str:
    variable = os.environ.get("REDRIVE_TOKEN_FILE")
    if os.environ.get("REDRIVE_TOKEN") and variable and file == Path(variable):
        raise SettingsError(["REDRIVE_TOKEN: and REDRIVE_TOKEN_FILE are both set, keep one"])
    if file is None:
        text, name = os.environ.get("REDRIVE_TOKEN", ""), "REDRIVE_TOKEN (or --token-file)"
    else:
        name = "REDRIVE_TOKEN_FILE"
        try:
            text = file.read_text("ascii")
        except (OSError, UnicodeDecodeError) as error:
            reason = (getattr(error, "strerror", None) or "it is not ASCII text").lower()
            raise SettingsError([f"{name} (or --token-file): {file} cannot be read: {reason}; {_LOGIN_HINT}"]) from None
    token = text.strip().removeprefix("Authorization:").strip().removeprefix("Bearer ").strip()
    if not token:
        raise SettingsError([f"{name}: is {'required' if file is None else f'empty ({file})'}; {_LOGIN_HINT}"])
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise SettingsError([f"{name}: is not a token; {_LOGIN_HINT}"])
    return token
