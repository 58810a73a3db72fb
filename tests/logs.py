"""What the programs log while a test runs them in its own process."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

import pytest
import structlog
from structlog.typing import EventDict

_ERRORS: Final = frozenset({"error", "critical"})
_TROUBLES: Final = _ERRORS | {"warning"}


@dataclass(frozen=True, slots=True)
class Log:
    """Lines of our own, as facts with `level` and `event`, and those of libraries, which `caplog` has."""

    caplog: pytest.LogCaptureFixture
    lines: list[EventDict] = field(default_factory=list)

    @contextmanager
    def recording(self) -> Iterator["Log"]:
        """Keep what is logged while the block runs; it is printed all the same, for the report of a failure."""
        processors = structlog.get_config()["processors"]  # the very list that every logger goes by
        processors.insert(0, self._keep)
        try:
            yield self
        finally:
            processors.remove(self._keep)

    def _keep(self, _: object, method: str, facts: EventDict) -> EventDict:
        self.lines.append({**facts, "level": "error" if method == "exception" else method})
        return facts

    def errors(self) -> list[str]:
        """What was logged as an error, or tells of an exception."""
        return self._of(_ERRORS)

    def troubles(self) -> list[str]:
        """What was logged as a warning or an error, or tells of an exception."""
        return self._of(_TROUBLES)

    def _of(self, levels: frozenset[str]) -> list[str]:
        ours = [str(line) for line in self.lines if line["level"] in levels or line.get("exc_info")]
        theirs = chain.from_iterable(self.caplog.get_records(phase) for phase in ("setup", "call", "teardown"))
        return ours + [r.getMessage() for r in theirs if r.levelname.lower() in levels or r.exc_info]
