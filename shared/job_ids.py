"""The ids of jobs: as clients write and read them, and as the database has them.

A JobId is always the text that is shown: in paths, JSON, messages, tokens, cursors and logs. Only what speaks to the
database converts it, because the ledger names every job by a UUID:

    REDRIVE_JOB_ID   shown                                     in the ledger
    uuid             "0193c9a8-4a5b-4c6d-8e7f-000000000001"     the same
    bigint           "42"                                       redrive.job_uuid(42), a UUID of version 8
"""

import re
from collections.abc import Mapping
from typing import Final, Protocol
from uuid import UUID

from shared.errors import InvalidJobId, InvalidJobNumber
from shared.models import JobId
from shared.sql import JobIdType, statements

ANY_VERSION: Final = None
HIGHEST_NUMBER: Final = 2**63 - 1

_FORM: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)
# As redrive.job_uuid makes it.
_OF_NUMBER: Final = re.compile(r"([0-9a-f]{8})-([0-9a-f]{4})-8([0-9a-f]{3})-8([0-9a-f])00-626967696e74", re.ASCII)


class JobIds(Protocol):
    """The ids of the jobs in one deployment."""

    highest: UUID
    """The last position in a list by id, as `stored`."""
    pattern: str
    """What `parse` takes, as a regular expression that JSON Schema knows."""
    are_numbers: bool

    def parse(self, text: str) -> JobId:
        """The id that a client has written. Raises InvalidJobId."""

    def stored(self, job_id: JobId) -> UUID | str:
        """The id as an argument of a statement: a UUID, or its text."""

    def shown(self, stored: UUID) -> JobId:
        """The id that a statement has answered."""

    def statements(self, file: str) -> Mapping[str, str]:
        """The statements of a file, for a table with such ids."""


class UuidIds:
    """UUIDs of certain versions, or, for ANY_VERSION, any value of the form, in the usual spelling.

    `uuid.UUID` would also accept braces, `urn:uuid:`, no dashes, and digits of other scripts.
    """

    highest = UUID(int=2**128 - 1)
    are_numbers = False

    def __init__(self, versions: frozenset[int] | None = ANY_VERSION) -> None:
        self._form = _FORM if versions is None else _form_of(versions)
        self.pattern = f"^{self._form.pattern}$"

    def parse(self, text: str) -> JobId:
        """The UUID, in small letters. Raises InvalidJobId."""
        if not self._form.fullmatch(text):
            raise InvalidJobId
        return JobId(text.lower())

    def stored(self, job_id: JobId) -> UUID | str:
        """The same text: the database's client reads it."""
        return job_id

    def shown(self, stored: UUID) -> JobId:
        """The UUID's text."""
        return JobId(str(stored))

    def statements(self, file: str) -> Mapping[str, str]:
        """The statements of a file, for a table whose ids are UUIDs."""
        return statements(file)


class BigintIds:
    """Decimal integers from 1 to 2^63 - 1, without sign or leading zero."""

    pattern = f"^{_NUMBER.pattern}$"
    are_numbers = True

    def __init__(self) -> None:
        self.highest = _uuid_of(HIGHEST_NUMBER)

    def parse(self, text: str) -> JobId:
        """The number, as it is written. Raises InvalidJobId."""
        if not _NUMBER.fullmatch(text) or int(text) > HIGHEST_NUMBER:
            raise InvalidJobNumber
        return JobId(text)

    def stored(self, job_id: JobId) -> UUID | str:
        """The number's UUID in the ledger; for what `shown` answers as a UUID, that."""
        try:
            return _uuid_of(int(job_id))
        except ValueError:
            return job_id

    def shown(self, stored: UUID) -> JobId:
        """The number; of a request that was made while the ids were UUIDs, the UUID."""
        found = _OF_NUMBER.fullmatch(str(stored))
        if found is None:
            return JobId(str(stored))
        number = int("".join(found.groups()), 16)
        return JobId(str(number if number <= HIGHEST_NUMBER else number - 2**64))

    def statements(self, file: str) -> Mapping[str, str]:
        """The statements of a file, for a table whose ids are bigint."""
        return statements(file, job_id="bigint")


def job_ids(kind: JobIdType, versions: frozenset[int] | None = ANY_VERSION) -> JobIds:
    """The ids that the settings name; `versions` are those of UUIDs."""
    return BigintIds() if kind == "bigint" else UuidIds(versions)


def is_uuid(text: str) -> bool:
    """Whether a text is a UUID in the usual spelling, of any version."""
    return _FORM.fullmatch(text) is not None


def _uuid_of(number: int) -> UUID:
    digits = f"{number % 2**64:016x}"
    return UUID(f"{digits[:12]}8{digits[12:15]}8{digits[15]}00626967696e74")


def _form_of(versions: frozenset[int]) -> re.Pattern[str]:
    digits = "".join(str(version) for version in sorted(versions))
    version = digits if len(digits) == 1 else f"[{digits}]"
    return re.compile(
        rf"[0-9a-fA-F]{{8}}-[0-9a-fA-F]{{4}}-{version}[0-9a-fA-F]{{3}}-[89abAB][0-9a-fA-F]{{3}}-[0-9a-fA-F]{{12}}",
        re.ASCII,
    )
