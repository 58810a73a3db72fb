"""OpenTelemetry's own variables: what is taken, what is refused, and what is said to have no effect."""

import pytest

from shared.errors import SettingsError
from shared.otel_settings import HONOURED
from shared.settings import WorkerSettings, read

ENDPOINT = "must be a URL that begins with https:// or http://, and names a host"
PROTOCOL = "must be http/protobuf: spans are sent in no other way; collectors take it on port 4318"
EXPORTER = "must be otlp, the only exporter here; for no traces, set REDRIVE_TRACING to off"
HEADERS = "must be name=value, with a comma between two of them, and URL-encoded values"
PROPAGATORS = "must have tracecontext, and nothing else but baggage: only `traceparent` is read"
SIZE = "must be a whole number from 1 up"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in HONOURED:
        monkeypatch.delenv(name, raising=False)


def settings_of(tracing: str) -> WorkerSettings:
    return read(WorkerSettings, database_url="postgresql://", tracing=tracing)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", PROTOCOL),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", PROTOCOL),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317", ENDPOINT),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "unix:///run/collector", ENDPOINT),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10000", "must be seconds, above 0, up to 300 (not milliseconds)"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "must be seconds, above 0, up to 300 (not milliseconds)"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", "must be none, gzip or deflate"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "canary", HEADERS),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "api-key=a,x=canary;1", HEADERS),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem", "must be the path of a file that can be read"),
        ("OTEL_TRACES_EXPORTER", "zipkin", EXPORTER),
        ("OTEL_PROPAGATORS", "b3", PROPAGATORS),
        ("OTEL_PROPAGATORS", "tracecontext,b3",
         PROPAGATORS),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "many", SIZE),
        ("OTEL_BSP_SCHEDULE_DELAY", "0", SIZE),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4096", "must be no more than OTEL_BSP_MAX_QUEUE_SIZE, here 2048"),
    ],
)  # fmt: skip
def test_a_variable_that_would_be_swallowed_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError) as refusal:
        settings_of("0.1")

    assert refusal.value.problems == [f"{name}: {problem}"]
    assert settings_of("off").tracing is None


def test_a_variable_of_opentelemetry_is_refused_beside_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("REDRIVE_TRACING", "0.1")

    with pytest.raises(SettingsError) as refusal:
        read(WorkerSettings)

    assert [problem.partition(":")[0] for problem in refusal.value.problems] == [
        "OTEL_EXPORTER_OTLP_PROTOCOL", "REDRIVE_DATABASE_URL (or REDRIVE_DATABASE_URL_FILE)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", ""),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector.example/otlp"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "2.5"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Basic%20Zm9v, x-scope.id=a/b+c==,"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Basic Zm9v"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", __file__),
        ("OTEL_TRACES_EXPORTER", "otlp"),
        ("OTEL_PROPAGATORS", "tracecontext, baggage"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2048"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
    ],
)
def test_a_variable_that_has_an_effect_is_taken(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)

    settings = settings_of("0.1")

    assert (settings.tracing, settings.notes) == (0.1, ())


def test_a_variable_for_all_signals_does_not_matter_where_there_is_one_for_traces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")

    assert settings_of("0.1").tracing == 0.1


def test_variables_without_an_effect_are_said_to_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "")

    assert settings_of("0.1").notes == (
        "of OpenTelemetry's variables, these have no effect on Redrive: OTEL_METRICS_EXPORTER, OTEL_TRACES_SAMPLER",
    )
    assert settings_of("off").notes == ()


def test_what_is_not_asked_for_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("REDRIVE_TRACING", "0.1")

    settings = settings_of("off")  # it goes before the variable

    assert (settings.tracing, settings.notes) == (None, ())


def test_the_share_is_asked_for_however_its_variable_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("redrive_tracing", "0.1")  # taken, as that of every setting

    with pytest.raises(SettingsError) as refusal:
        read(WorkerSettings, database_url="postgresql://")

    assert refusal.value.problems == [f"OTEL_EXPORTER_OTLP_PROTOCOL: {PROTOCOL}"]


@pytest.mark.parametrize("value", ["true", "TRUE"])
def test_a_disabled_sdk_switches_traces_off_whatever_else_is_set(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", value)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")

    settings = settings_of("0.1")

    assert settings.tracing is None
    assert settings.notes == ("REDRIVE_TRACING is ignored: OTEL_SDK_DISABLED is true",)
