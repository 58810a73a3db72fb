"""One exception class for each decision that a caller can take. No HTTP in here.

`code` is the word for it in every answer, log line and command; texts are fixed, so nothing of the inside leaks.
"""

from typing import ClassVar


class RedriveError(Exception):
    """What Redrive says no with; subclasses name the reason."""

    code: ClassVar[str] = "internal"


class JobNotFound(RedriveError):
    """No such job in this project; whether another project has it is nobody's business."""

    code = "job-not-found"


class JobUnreadable(RedriveError):
    """The job is there, and its row holds something that cannot be shown. Only the table's owner can mend that."""

    code = "job-unreadable"


class JobNotFailed(RedriveError):
    """The job exists; when looked at, it was not failed, so there is nothing to retry."""

    code = "job-not-failed"


class AttemptsExhausted(RedriveError):
    """The job has used all its attempts, and the request does not raise their number."""

    code = "attempts-exhausted"


class JobChanged(RedriveError):
    """The job is not of the version that the caller has seen; look again, then decide."""

    code = "job-changed"


class RetryNotFound(RedriveError):
    """No such retry request in this project."""

    code = "retry-not-found"


class RetryAlreadySettled(RedriveError):
    """The request is no longer queued, so there is nothing to take back."""

    code = "retry-already-settled"


class RetryNotDeadLettered(RedriveError):
    """The request was not given up, so there is nothing to redrive."""

    code = "retry-not-dead-lettered"


class RetryQueued(RedriveError):
    """Another request is queued for the job; there is at most one at a time."""

    code = "retry-queued"


class BatchNotFound(RedriveError):
    """No such batch of retries in this project."""

    code = "not-found"


class TooManyMatches(RedriveError):
    """The filter matches more jobs than the caller said it may; nothing was written."""

    code = "too-many-matches"


class IdempotencyKeyReused(RedriveError):
    """The key stands for another request than this one: a mistake of the client's."""

    code = "idempotency-key-reused"


class DatabaseUnavailable(RedriveError):
    """The database is away, overloaded or too slow; nothing is known of the statement's effect. Try again later."""

    code = "unavailable"


class StatementTimeout(DatabaseUnavailable):
    """The database gave a statement up, because it took longer than it may; a smaller one may go through."""


class DatabaseUnfit(DatabaseUnavailable):
    """The database is there and not as it should be: not migrated, or rights are missing. `str()` says which.

    Or a trigger of the table's owner says so, of one row: where the same statement for no row at all goes through.
    """

    def __init__(self, reason: str = "", *, sqlstate: str = "") -> None:
        super().__init__(reason)
        self.sqlstate = sqlstate


class BrokerUnavailable(RedriveError):
    """RabbitMQ is away, blocked or too slow, or it did not take a message. The ledger still has the request."""

    code = "unavailable"


class TopologyMissing(BrokerUnavailable):
    """RabbitMQ answers, but the exchange, a queue or a binding is not there. Declaring them may help."""


class StatementRefused(RedriveError):
    """The database refused a statement for what is in it: a constraint or trigger of the table's owner, as a rule.

    Trying the same again does not help; trying the rows one by one finds the one that is refused.
    """

    code = "statement-refused"


class UnreadableMessage(RedriveError):
    """A message that no worker can read, now or later. `str()` gives the reason, without any of its content."""

    code = "unreadable-message"


class SettingsError(RedriveError):
    """The settings are missing or wrong; `problems` names them all, and holds no value of theirs."""

    code = "settings"

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
