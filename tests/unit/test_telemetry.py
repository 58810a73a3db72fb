"""Trace contexts that may be carried on, and log lines that hold together."""

import json

import pytest
import structlog

from shared.telemetry import configure_logging, traceparent_of

GOOD = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize("header", [GOOD, GOOD.replace("00-4", "01-4"), GOOD[:-2] + "00"])
def test_a_trace_context_is_kept_as_it_is(header: str) -> None:
    assert traceparent_of(header) == header


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        " " + GOOD,
        GOOD + "\n",
        GOOD + "-extra",
        GOOD.upper(),
        GOOD.replace("00-4", "ff-4"),
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
        GOOD.replace("4bf", "٤bf"),
        "x" * 8000,
    ],
)
def test_anything_else_is_dropped(header: str | None) -> None:
    assert traceparent_of(header) is None


def test_a_log_line_stays_one_line_whatever_is_in_its_facts(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="INFO", json=True)

    structlog.stdlib.get_logger("test").info("job seen", given="a\nlevel=error\x00\u2028\x1b[31m")

    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["given"] == "a\nlevel=error\x00\u2028\x1b[31m"


@pytest.mark.parametrize("json_lines", [True, False], ids=["json", "console"])
def test_a_traceback_shows_no_local_variables(capsys: pytest.CaptureFixture[str], *, json_lines: bool) -> None:
    configure_logging(level="INFO", json=json_lines)

    def fail(secret: str) -> None:
        assert secret
        raise LookupError("nowhere")

    try:
        fail("yranac"[::-1])  # a traceback does show the source
    except LookupError:
        structlog.stdlib.get_logger("test").exception("it failed")

    shown = capsys.readouterr().err
    assert "LookupError: nowhere" in shown
    assert "in fail" in shown
    assert "canary" not in shown
