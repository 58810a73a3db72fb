"""What may stand for `{id}` in a path, decided before any query."""

import re
from functools import lru_cache
from typing import Final
from uuid import UUID

from api.problems import InvalidJobId
from shared.errors import RetryNotFound
from shared.models import JobId, RetryId

MAX_REMEMBERED: Final = 4_096

_OURS: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)


class JobIds:
    """A job's id: a UUID of one of some versions, in its one usual spelling.

    `uuid.UUID` would also take braces, `urn:uuid:`, no dashes and digits of other scripts.
    """

    def __init__(self, versions: frozenset[int]) -> None:
        digits = "".join(str(version) for version in sorted(versions))
        self._pattern = re.compile(
            rf"[0-9a-fA-F]{{8}}-[0-9a-fA-F]{{4}}-[{digits}][0-9a-fA-F]{{3}}-[89abAB][0-9a-fA-F]{{3}}-[0-9a-fA-F]{{12}}",
            re.ASCII,
        )
        # Who polls asks for the same few jobs again and again, and a UUID takes longer to make than to find.
        self._remembered = lru_cache(MAX_REMEMBERED)(self._parsed)

    def parse(self, text: str) -> JobId:
        """The id; raises InvalidJobId."""
        return self._remembered(text)

    def _parsed(self, text: str) -> JobId:
        if not self._pattern.fullmatch(text):
            raise InvalidJobId
        return JobId(UUID(text))


def retry_id_of(text: str) -> RetryId:
    """A retry's id. Raises RetryNotFound for what none of ours looks like."""
    if not _OURS.fullmatch(text):
        raise RetryNotFound
    return RetryId(UUID(text))
