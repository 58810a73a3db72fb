"""Ids in paths: which texts are ids is decided before any query."""

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
    """Reads the ids of jobs: UUIDs of certain versions, or, for None, any value of the form, in the usual spelling.

    `uuid.UUID` would also accept braces, `urn:uuid:`, no dashes, and digits of other scripts.
    """

    def __init__(self, versions: frozenset[int] | None) -> None:
        self._pattern = _OURS if versions is None else _pattern_of(versions)
        # Clients poll the same few jobs, and to make a UUID takes longer than to look it up.
        self._remembered = lru_cache(MAX_REMEMBERED)(self._parsed)

    def parse(self, text: str) -> JobId:
        """The id; raises InvalidJobId."""
        return self._remembered(text)

    def _parsed(self, text: str) -> JobId:
        if not self._pattern.fullmatch(text):
            raise InvalidJobId
        return JobId(UUID(text))


def _pattern_of(versions: frozenset[int]) -> re.Pattern[str]:
    digits = "".join(str(version) for version in sorted(versions))
    return re.compile(
        rf"[0-9a-fA-F]{{8}}-[0-9a-fA-F]{{4}}-[{digits}][0-9a-fA-F]{{3}}-[89abAB][0-9a-fA-F]{{3}}-[0-9a-fA-F]{{12}}",
        re.ASCII,
    )


def retry_id_of(text: str) -> RetryId:
    """A retry's id. Raises RetryNotFound for a text that is no UUID."""
    if not _OURS.fullmatch(text):
        raise RetryNotFound
    return RetryId(UUID(text))
