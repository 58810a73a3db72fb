"""OpenTelemetry's log lines, retold: one a minute for each kind, in plain words, without what may be a secret."""

import logging
import socket
import ssl
from collections.abc import Iterator

import pytest
import requests
from structlog.testing import capture_logs
from structlog.typing import EventDict

from shared.otel_log import OtelLog
from tests.clocks import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def library(clock: Clock) -> logging.Logger:
    """A logger as the library has."""
    logger = logging.getLogger("a library")
    logger.handlers[:] = [OtelLog(clock.time)]
    logger.propagate = False
    return logger


@pytest.fixture
def lines() -> Iterator[list[EventDict]]:
    with capture_logs() as lines:
        yield lines


def refused() -> requests.ConnectionError:
    """What requests raises while nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        try:
            requests.post(f"http://user:canary@127.0.0.1:{bound.getsockname()[1]}/v1/traces?key=canary", timeout=5)
        except requests.ConnectionError as error:
            return error
    raise AssertionError


def untrusted() -> ssl.SSLCertVerificationError:
    """What ssl raises for a certificate of an unknown authority."""
    error = ssl.SSLCertVerificationError("canary")
    error.verify_message = "self-signed certificate"
    return error


def test_an_exception_is_told_by_its_reason_and_not_by_its_text(
    library: logging.Logger, lines: list[EventDict]
) -> None:
    library.warning("Transient error %s encountered while exporting %s batch, retrying.", refused(), "spans")

    assert lines == [
        {
            "event": "opentelemetry reported trouble",
            "log_level": "warning",
            "reason": "Transient error connection refused encountered while exporting spans batch, retrying.",
            "left_out": 0,
        }
    ]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TimeoutError("timed out"), "no answer in time"),
        (socket.gaierror(-2, "Name or service not known"), "its host name cannot be resolved"),
        (ConnectionResetError(104, "Connection reset by peer"), "connection reset by peer"),
        (requests.exceptions.InvalidURL("http://user:canary@/"), "InvalidURL"),
        (untrusted(), "its certificate is not trusted: self-signed certificate"),
    ],
)
def test_a_reason_is_in_plain_words(
    library: logging.Logger, lines: list[EventDict], error: Exception, words: str
) -> None:
    library.error("Failed to export %s batch code: %s, reason: %s", "spans", None, error)

    assert lines[0]["reason"] == f"Failed to export spans batch code: None, reason: {words}"


def test_a_stack_is_left_out(library: logging.Logger, lines: list[EventDict]) -> None:
    try:
        raise LookupError("canary")
    except LookupError:
        library.exception("Exception while exporting %s.", "Span")

    assert lines[0]["reason"] == "Exception while exporting Span. (LookupError)"
    assert "exc_info" not in lines[0]


def test_a_kind_of_line_comes_once_in_a_minute_and_says_how_many_were_left_out(
    library: logging.Logger, lines: list[EventDict], clock: Clock
) -> None:
    for tick in range(13):
        library.warning("Queue full, dropping %s.", "Span")
        if tick in {0, 12}:
            library.warning("Shutdown in progress, aborting retry.")
        clock.now += 10

    assert [(line["reason"], line["left_out"]) for line in lines] == [
        ("Queue full, dropping Span.", 0),
        ("Shutdown in progress, aborting retry.", 0),
        ("Queue full, dropping Span.", 5),
        ("Queue full, dropping Span.", 5),
        ("Shutdown in progress, aborting retry.", 0),
    ]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("http://user:canary@collector.example:4318/v1/traces?key=canary", "…"),
        ("unix:///canary", "…"),
        ("user:canary@host", "…"),
        ("collector-canary:4318", "…"),
        ("canary.collector.example", "…"),
        ("10.0.0.1", "…"),
        ("[2001:db8::1]:4318", "…"),
        ("/v1/traces?key=canary", "…"),
        ("(url=http://canary/)", "…"),
        (
            "HTTPConnectionPool(host='canary', port=4318): Max retries exceeded with url: /canary",
            "… … Max retries exceeded with url: …",
        ),
        ("Service Unavailable", "Service Unavailable"),
        ("in 0.93s, and/or application/json", "in 0.93s, and/or application/json"),
        ("two\nlines", "two lines"),
    ],
)
def test_words_that_look_like_an_address_are_cut(
    library: logging.Logger, lines: list[EventDict], given: str, reason: str
) -> None:
    library.error("Failed to export %s batch code: %s, reason: %s", "spans", 503, given)

    assert lines[0]["reason"] == f"Failed to export spans batch code: 503, reason: {reason}"


def test_an_address_in_the_reason_of_an_exception_is_cut(library: logging.Logger, lines: list[EventDict]) -> None:
    error = untrusted()
    error.verify_message = "Hostname mismatch, certificate is not valid for 'collector.example'."

    library.error("Failed: %s", error)

    assert lines[0]["reason"] == (
        "Failed: its certificate is not trusted: Hostname mismatch, certificate is not valid for …"
    )


def test_a_percent_sign_without_arguments_is_one(library: logging.Logger, lines: list[EventDict]) -> None:
    library.warning("at 100% of the queue")

    assert lines[0]["reason"] == "at 100% of the queue"


def test_named_arguments_are_filled_in(library: logging.Logger, lines: list[EventDict]) -> None:
    library.warning("%(what)s: %(why)s", {"what": "spans", "why": TimeoutError()})

    assert lines[0]["reason"] == "spans: no answer in time"


def test_exceptions_that_are_each_others_cause_are_told(library: logging.Logger, lines: list[EventDict]) -> None:
    error, other = LookupError(), LookupError()
    error.__cause__, other.__cause__ = other, error

    library.warning("lost: %s", error)

    assert lines[0]["reason"] == "lost: LookupError"


class Untold:
    """An argument that cannot be made text."""

    def __str__(self) -> str:
        raise ValueError("canary")


@pytest.mark.parametrize("arguments", [("one", "too many"), (Untold(),)])
def test_a_line_that_cannot_be_told_is_logged_without_its_words(
    clock: Clock, lines: list[EventDict], arguments: tuple[object, ...]
) -> None:
    # Not through a logger: the handlers of pytest would raise first.
    record = logging.LogRecord("a library", logging.WARNING, "module.py", 7, "canary %s", arguments, None)

    OtelLog(clock.time).handle(record)

    assert lines[0]["reason"] == "a line without words, of line 7 of module"


def test_a_log_that_fails_does_not_reach_the_caller(library: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def fail(event: str, **_: object) -> None:
        called.append(event)
        raise OSError

    monkeypatch.setattr("shared.otel_log.log.warning", fail, raising=False)
    library.warning("Queue full")

    assert called == ["opentelemetry reported trouble"]
