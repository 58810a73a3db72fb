"""The failures of commands, and the one line that a command prints for each, without a traceback."""

from collections.abc import Iterator

from shared.errors import RedriveError


class CommandFailed(RedriveError):
    """A command could not do what it was asked for; `str()` is the line to show."""

    code = "command-failed"


def is_expected(error: BaseException) -> bool:
    """Whether a user can correct the cause of `error`; any other error is a bug of Redrive."""
    return all(isinstance(leaf, RedriveError | OSError) for leaf in _leaves(error))


def line_of(error: BaseException) -> str:
    """The failure in one line; for a group of errors, each different line once."""
    return "; ".join(dict.fromkeys(_sentence(leaf) for leaf in _leaves(error)))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError):
        return _of_system(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else ""  # the programs that are called print the reason last
    if isinstance(error, CommandFailed):
        return last
    if isinstance(error, RedriveError):
        subject = _SUBJECTS.get(type(error).__name__, error.code)
        return f"{subject} ({last})" if last else subject
    return f"{type(error).__name__}: {last}"


# By name, so that this module need not import the packages that raise them.
_SUBJECTS = {
    "DatabaseUnavailable": "the database does not answer, or answers with an error",
    "BrokerUnavailable": "RabbitMQ does not answer, or answers with an error",
    "MigrationFailed": "a migration failed",
    "MigrationsUnknown": "this release does not continue the schema of the database",
}


def _of_system(error: OSError) -> str:
    # Where there is no file, asyncio has put the address into `strerror`, which is more than the text of the number.
    text = error.strerror or str(error) or type(error).__name__
    return text if error.filename is None else f"{error.filename}: {text}"
