"""The errors of Redrive: one class for each decision that a caller can take. HTTP is not known here.

`code` names the error in every answer, log line and command. Texts are fixed, so that nothing of the inside leaks.
"""

from typing import ClassVar


class RedriveError(Exception):
    """The base class of all errors of Redrive."""

    code: ClassVar[str] = "internal"


class InvalidJobId(RedriveError):
    """What was given is not the id of a job."""

    code = "invalid-job-id"


class InvalidJobNumber(InvalidJobId):
    """The same, where the ids of jobs are numbers."""


class JobNotFound(RedriveError):
    """This project has no such job; whether another project has one is not told."""

    code = "job-not-found"


class JobUnreadable(RedriveError):
    """The job's row has something that cannot be shown. Only the table's owner can mend that."""

    code = "job-unreadable"


class JobNotFailed(RedriveError):
    """The job exists; when it was read, it was not failed, so there is nothing to retry."""

    code = "job-not-failed"


class AttemptsExhausted(RedriveError):
    """The job has used all its attempts, and the request does not raise their number."""

    code = "attempts-exhausted"


class JobChanged(RedriveError):
    """The job no longer has the version that the caller has seen: read it again, then decide."""

    code = "job-changed"


class RetryNotFound(RedriveError):
    """No such retry request in this project."""

    code = "retry-not-found"


class RetryAlreadySettled(RedriveError):
    """The request is no longer queued, so it cannot be cancelled."""

    code = "retry-already-settled"


class RetryNotDeadLettered(RedriveError):
    """The request is not dead-lettered, so there is nothing to redrive."""

    code = "retry-not-dead-lettered"


class RetryQueued(RedriveError):
    """Another request is queued for the job; there is at most one at a time."""

    code = "retry-queued"


class BatchNotFound(RedriveError):
    """No such batch of retries in this project."""

    code = "not-found"


class TooManyMatches(RedriveError):
    """The filter matches more jobs than the caller allowed; nothing was written."""

    code = "too-many-matches"


class IdempotencyKeyReused(RedriveError):
    """The key was sent with another request before: a mistake of the client."""

    code = "idempotency-key-reused"


class DatabaseUnavailable(RedriveError):
    """The database is away, overloaded or too slow. The statement may have taken effect. Try again later."""

    code = "unavailable"


class StatementTimeout(DatabaseUnavailable):
    """The database gave a statement up, because it took longer than it may; a smaller one may go through."""


class DatabaseUnfit(DatabaseUnavailable):
    """The database answers, and is not migrated, or rights are missing. `str()` says which.

    A trigger of the table's owner can raise the same for one row: then the same statement for no row succeeds.
    """

    def __init__(self, reason: str = "", *, sqlstate: str = "") -> None:
        super().__init__(reason)
        self.sqlstate = sqlstate


class JobsUnfit(DatabaseUnavailable):
    """`control_plane.jobs` is not what the contract says, so nothing is read or written until that is mended.

    Its owner mends it, and no restart is needed; or REDRIVE_JOB_ID is wrong: then the program is to be started again.

    `str()` says why; it was logged when the program looked.
    """


class BrokerUnavailable(RedriveError):
    """RabbitMQ is away, blocked or too slow, or it refused a message. The ledger still has the request."""

    code = "unavailable"


class TopologyMissing(BrokerUnavailable):
    """RabbitMQ answers, but the exchange, a queue or a binding is not there. Declaring them may help."""


class StatementRefused(RedriveError):
    """The database refused a statement for its content, mostly by a constraint or trigger of the table's owner.

    The same statement would be refused again. Its rows one by one show which of them is refused.
    `str()` is the SQLSTATE.
    """

    code = "statement-refused"

    @property
    def by_unique_index(self) -> bool:
        """Whether another row has what may be there once."""
        return str(self) == "23505"

    @property
    def by_encoding(self) -> bool:
        """Whether the database's encoding cannot hold a text of the statement."""
        return str(self) == "22P05"


class TextUnstorable(RedriveError):
    """The database's encoding cannot hold a text of the body; `place` says which, as in `filter/type`."""

    code = "invalid-body"

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.place = place


class ActorUnstorable(RedriveError):
    """The database's encoding cannot hold the actor, in whose name nothing can be written down."""

    code = "insufficient-scope"


class UnreadableMessage(RedriveError):
    """No worker can read the message, now or later. `str()` gives the reason, without any of its content."""

    code = "unreadable-message"


class SettingsError(RedriveError):
    """Settings are missing or wrong; `problems` names them all, and shows no value."""

    code = "settings"

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
