"""What a command says when it cannot do its work: one line, no traceback."""

from collections.abc import Iterator

from shared.errors import RedriveError


class CommandFailed(RedriveError):
    """A command could not do what it was asked for; `str()` is the line to show."""

    code = "command-failed"


def is_expected(error: BaseException) -> bool:
    """Whether `error` is a failure that a user can do something about; anything else is a mistake of ours."""
    return all(isinstance(leaf, RedriveError | OSError) for leaf in _leaves(error))


def line_of(error: BaseException) -> str:
    """The failure in one line; task groups are looked into, and what failed twice is said once."""
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
    last = lines[-1] if lines else ""  # programs that we call say what went wrong last
    if isinstance(error, CommandFailed):
        return last
    if isinstance(error, RedriveError):
        subject = _SUBJECTS.get(type(error).__name__, error.code)
        return f"{subject} ({last})" if last else subject
    return f"{type(error).__name__}: {last}"


# By name, so that saying what went wrong does not load the package that it went wrong in.
_SUBJECTS = {
    "DatabaseUnavailable": "the database does not answer, or not as it should",
    "BrokerUnavailable": "RabbitMQ does not answer, or not as it should",
    "MigrationFailed": "a migration did not go through",
}


def _of_system(error: OSError) -> str:
    # Where there is no file, asyncio has put the address into the text, which says more than the number's own.
    text = error.strerror or str(error) or type(error).__name__
    return text if error.filename is None else f"{error.filename}: {text}"
