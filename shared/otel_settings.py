"""OpenTelemetry's own variables: which of them have an effect here, and which values they may have.

The SDK takes what it does not know for nothing, or for the default, and says so in a log line at the most: then spans
go nowhere, or to another place than was meant. So a program that is to trace does not start with such a value, and says
which other variables of OpenTelemetry it ignores.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Final, NamedTuple

from shared.urls import check_http_url

PREFIX: Final = "OTEL_"
DISABLED: Final = "OTEL_SDK_DISABLED"

_OTLP: Final = ("OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_")
"""The first goes before the second."""
_BATCHES: Final = ("OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_BSP_SCHEDULE_DELAY")
_DEFAULT_SIZES: Final = {"OTEL_BSP_MAX_QUEUE_SIZE": 2048, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": 512}
HONOURED: Final = frozenset(
    {DISABLED, "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS"}
    | {"OTEL_TRACES_EXPORTER", "OTEL_PROPAGATORS"}
    | {
        f"{prefix}{name}"
        for prefix in _OTLP
        for name in (
            "PROTOCOL", "ENDPOINT", "HEADERS", "TIMEOUT", "COMPRESSION", "CERTIFICATE", "CLIENT_KEY",
            "CLIENT_CERTIFICATE",
        )
    }
    | {*_BATCHES}
    | {f"OTEL_PYTHON_EXPORTER_OTLP_HTTP_{traces}CREDENTIAL_PROVIDER" for traces in ("", "TRACES_")}
)  # fmt: skip
"""Those that have an effect here, or are checked. All others are ignored."""

MAX_TIMEOUT_S: Final = 300
_WHOLE: Final = re.compile(r"[1-9]\d{0,8}", re.ASCII)
_NUMBER: Final = re.compile(r"\d{1,9}(?:\.\d{0,9})?", re.ASCII)
_HEADER: Final = re.compile(r"\s*[!#-'*+.0-9A-Z^-z|~-]+\s*=[ !#-+./0-:<-\[\]-~-]*|\s*", re.ASCII)
"""What the SDK takes for a header; it would log another one whole, with its secret."""


class Findings(NamedTuple):
    """What becomes of traces that REDRIVE_TRACING asks for.

    `problems` keep the program from starting, each as "VARIABLE: must be …". `notes` are lines for its log.
    """

    disabled: bool = False
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class TracesUnfit(ValueError):
    """Traces are asked for and cannot be had; `problems` as in `Findings`."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def findings_in(environment: Mapping[str, str]) -> Findings:
    """What these variables make of traces; to be asked only where REDRIVE_TRACING asks for some."""
    if environment.get(DISABLED, "").strip().lower() == "true":
        return Findings(disabled=True, notes=(f"REDRIVE_TRACING is ignored: {DISABLED} is true",))
    problems = tuple(_problems_in(environment))
    if not _is_installed():
        missing = "OpenTelemetry is not installed: install redrive[otel], or set it to off"
        problems = (*problems, f"REDRIVE_TRACING: {missing}")
    ignored = ", ".join(_ignored_in(environment))
    note = f"of OpenTelemetry's variables, these have no effect on Redrive: {ignored}"
    return Findings(problems=problems, notes=(note,) if ignored else ())


def _is_installed() -> bool:
    try:
        return None not in (find_spec("opentelemetry.sdk"), find_spec("opentelemetry.exporter.otlp.proto.http"))
    except ModuleNotFoundError:  # of a parent
        return False


def _problems_in(environment: Mapping[str, str]) -> Iterator[str]:
    given = {name: value.strip() for name, value in environment.items() if name in HONOURED and value.strip()}
    for name, value in given.items():
        what = name.removeprefix(_OTLP[0]).removeprefix(_OTLP[1])
        is_good, words = _RULES.get(what, _ANY)
        if not is_good(value) and not (name == f"{_OTLP[1]}{what}" and f"{_OTLP[0]}{what}" in given):
            yield f"{name}: {words}"
    queue, batch = (
        int(given[name]) if _WHOLE.fullmatch(given.get(name, "")) else default
        for name, default in _DEFAULT_SIZES.items()
    )
    if batch > queue:
        yield f"OTEL_BSP_MAX_EXPORT_BATCH_SIZE: must be no more than OTEL_BSP_MAX_QUEUE_SIZE, here {queue}"


def _ignored_in(environment: Mapping[str, str]) -> list[str]:
    return sorted(
        name for name, value in environment.items() if name.startswith(PREFIX) and name not in HONOURED and value
    )


def _is_http_url(value: str) -> bool:
    try:
        check_http_url(value)
    except ValueError:
        return False
    return True


def _are_headers(value: str) -> bool:
    return all(_HEADER.fullmatch(header) for header in value.split(","))


def _is_readable(value: str) -> bool:
    return os.access(value, os.R_OK)


def _are_seconds(value: str) -> bool:
    return bool(_NUMBER.fullmatch(value)) and 0 < float(value) <= MAX_TIMEOUT_S


def _is_whole(value: str) -> bool:
    return bool(_WHOLE.fullmatch(value))


def _are_propagators(value: str) -> bool:
    names = {name.strip() for name in value.split(",")}
    return "tracecontext" in names and names <= {"tracecontext", "baggage"}


_FILE: Final = (_is_readable, "must be the path of a file that can be read")
_COUNT: Final = (_is_whole, "must be a whole number from 1 up")
_ANY: Final = (bool, "")
_RULES: Final[Mapping[str, tuple[Callable[[str], bool], str]]] = {
    "PROTOCOL": (
        lambda value: value == "http/protobuf",
        "must be http/protobuf: spans are sent in no other way; collectors take it on port 4318",
    ),
    "ENDPOINT": (_is_http_url, "must be a URL that begins with https:// or http://, and names a host"),
    "HEADERS": (_are_headers, "must be name=value, with a comma between two of them, and URL-encoded values"),
    "CERTIFICATE": _FILE,
    "CLIENT_KEY": _FILE,
    "CLIENT_CERTIFICATE": _FILE,
    "TIMEOUT": (_are_seconds, f"must be seconds, above 0, up to {MAX_TIMEOUT_S} (not milliseconds)"),
    "COMPRESSION": (
        lambda value: value.lower() in {"none", "gzip", "deflate"},
        "must be none, gzip or deflate",
    ),
    "OTEL_TRACES_EXPORTER": (
        lambda value: value == "otlp",
        "must be otlp, the only exporter here; for no traces, set REDRIVE_TRACING to off",
    ),
    "OTEL_PROPAGATORS": (
        _are_propagators,
        "must have tracecontext, and nothing else but baggage: only `traceparent` is read",
    ),
    **dict.fromkeys(_BATCHES, _COUNT),
}
"""By the variable, without what those of the exporter begin with: whether a value is good, and what it must be."""
