"""Settings: read once, checked whole, and no value shown."""

import os
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path

import pytest
import structlog

from shared.errors import SettingsError
from shared.secret import current
from shared.setting_types import Limit
from shared.settings import ApiSettings, CheckSettings, Environment, Settings, WorkerSettings, read, variables

SECRET = "canary secret of more than thirty-two bytes"
PUBLIC_KEY = (
    "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----"
)
GOOD = {"REDRIVE_DATABASE_URL": "postgresql://canary:canary@db/redrive", "REDRIVE_JWT_SECRET": SECRET}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment with nothing of ours in it but what is needed."""
    for name in list(os.environ):
        if name.startswith("REDRIVE_"):
            monkeypatch.delenv(name)
    for name, value in GOOD.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def problems(kind: type[Environment] = ApiSettings) -> list[str]:
    with pytest.raises(SettingsError) as refusal:
        read(kind)
    assert "canary" not in str(refusal.value)
    assert "canary" not in repr(refusal.value)
    return refusal.value.problems


@pytest.mark.usefixtures("environment")
def test_little_is_needed_and_the_rest_is_as_documented() -> None:
    found = read(ApiSettings)

    assert (found.host, found.port, found.ops_port) == ("127.0.0.1", 8080, 9090)
    assert (found.limit_ip, found.limit_read) == (Limit(1200, 60), Limit(600, 60))
    assert (found.limit_retry, found.limit_bulk) == (Limit(60, 60), Limit(6, 60))
    assert (found.db_pool_size, found.db_timeout, found.shutdown_grace) == (4, 2.0, 10.0)
    assert (found.max_waiters, found.watch_interval) == (20_000, 0.5)
    assert (found.job_id, found.job_id_versions) == ("uuid", frozenset({4}))
    assert found.trusted_proxies == ()
    assert (found.amqp_url, found.jwt_project_claim) == (None, "project_id")
    assert found.jwt_leeway == 10


def test_a_worker_needs_no_key(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("REDRIVE_JWT_SECRET")

    found = read(WorkerSettings)

    assert (found.ops_port, found.worker_batch_size, found.worker_batch_wait) == (9091, 200, 0.02)


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("LIMIT_READ", "5/1", "limit_read", Limit(5, 1)),
        ("LIMIT_READ", "off", "limit_read", None),
        ("TRUSTED_PROXIES", "10.0.0.0/8, fd00::/8 127.0.0.1", "trusted_proxies",
         (ip_network("10.0.0.0/8"), ip_network("fd00::/8"), ip_network("127.0.0.1"))),
        ("JOB_ID", "bigint", "job_id", "bigint"),
        ("JOB_ID_VERSIONS", "4,7", "job_id_versions", {4, 7}),
        ("JOB_ID_VERSIONS", "any", "job_id_versions", None),
        ("FINAL_STATUSES", "timed out, skipped", "final_statuses", {"timed out", "skipped"}),
        ("REQUIRE_SCOPES", "true", "require_scopes", True),
        ("JWT_PROJECT_CLAIM", "https://example.com/a~2", "jwt_project_claim", "https://example.com/a~2"),
        ("JWT_PROJECT_CLAIM", "/a~1b/c", "jwt_project_claim", "/a~1b/c"),
        ("JWT_LEEWAY", "0", "jwt_leeway", 0),
        ("JWT_LEEWAY", "120", "jwt_leeway", 120),
        ("READ_ONLY", "1", "read_only", True),
        ("PORT", "0", "port", 0),
        ("HOST", "", "host", "127.0.0.1"),
        ("AMQP_URL", "", "amqp_url", None),
    ],
)  # fmt: skip
def test_a_setting_is_read_from_its_variable(
    environment: pytest.MonkeyPatch, name: str, text: str, field: str, value: object
) -> None:
    environment.setenv(f"REDRIVE_{name}", text)

    assert getattr(read(ApiSettings), field) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("DATABASE_URL", "canary"),
        ("DATABASE_URL", "mysql://canary:canary@db/x"),
        ("DATABASE_URL", "postgresql://[canary"),
        ("DATABASE_URL", "postgresql://user:canary/2@db/x"),
        ("DATABASE_URL", "postgresql://user:12/canary@db/x"),
        ("DATABASE_URL", "postgresql://user:canary#2@db/x"),
        ("DATABASE_URL", "postgresql://user:12#canary@db/x"),
        ("DATABASE_URL", "postgresql://user:canary?2@db/x"),
        ("DATABASE_URL", "postgresql://user:p@canary@db/x"),
        ("DATABASE_URL", "postgresql://user:p[canary@db/x"),
        ("DATABASE_URL", "postgresql://canary:port/x"),
        ("DATABASE_URL", "postgresql://canary:0/x"),
        ("DATABASE_URL", "postgresql://canary:65536/x"),
        ("DATABASE_URL", "postgresql://:5432/canary"),
        ("DATABASE_URL", "postgresql://canary,,db/x"),
        ("DATABASE_URL", "postgresql://db,canary:x/x"),
        ("DATABASE_URL", "postgresql:///x?host=canary:x"),
        ("DATABASE_URL", "postgresql:///x?port=canary"),
        ("DATABASE_URL", "postgresql://db/x?canary"),
        ("DATABASE_READ_URL", "postgresql://user:canary/2@db/x"),
        ("AMQP_URL", "http://canary"),
        ("AMQP_URL", "amqp://user:canary/2@mq/"),
        ("AMQP_URL", "amqp://user:12/canary@mq/"),
        ("AMQP_URL", "amqp://user:canary#2@mq/"),
        ("AMQP_URL", "amqp://user:12#canary@mq/"),
        ("AMQP_URL", "amqp://canary:65536/"),
        ("AMQP_URL", "amqp://[canary"),
        ("AMQP_URL", "amqp://user@:5672/canary"),
        ("AMQP_URL", "amqp:///canary"),
        ("JWT_SECRET", "canary too short"),
        ("JWT_SECRET", "ca\u00f1ary"),
        ("JWT_PUBLIC_KEY", "canary"),
        ("JWT_PUBLIC_KEY", PUBLIC_KEY.replace("MCow", "canary")),
        ("JWKS_URL", "file:///canary"),
        ("JWKS_URL", "canary"),
        ("JWKS_URL", "https:///canary"),
        ("JWKS_URL", "https://canary:65536/keys"),
        ("JWT_PROJECT_CLAIM", "/canary~2"),
        ("JWT_PROJECT_CLAIM", "/canary~"),
        ("JWT_LEEWAY", "-1"),
        ("JWT_LEEWAY", "121"),
        ("JWT_LEEWAY", "canary"),
        ("PORT", "canary"),
        ("PORT", "-1"),
        ("PORT", "65536"),
        ("PORT", "80.5"),
        ("DB_TIMEOUT", "0"),
        ("DB_TIMEOUT", "3"),
        ("DB_TIMEOUT", "nan"),
        ("DB_TIMEOUT", "canary"),
        ("DB_POOL_SIZE", "0"),
        ("SHUTDOWN_GRACE", "inf"),
        ("LIMIT_IP", "canary"),
        ("LIMIT_IP", "1"),
        ("LIMIT_IP", "0/60"),
        ("LIMIT_IP", "1/0"),
        ("LIMIT_IP", "-1/60"),
        ("LIMIT_IP", "1/2/3"),
        ("LIMIT_IP", "\u0661/60"),
        ("LIMIT_IP", "9" * 5000 + "/60"),
        ("TRUSTED_PROXIES", "canary"),
        ("TRUSTED_PROXIES", "10.0.0.1/8"),
        ("JOB_ID", "canary"),
        ("JOB_ID", "BIGINT"),
        ("JOB_ID_VERSIONS", "canary"),
        ("JOB_ID_VERSIONS", "44"),
        ("JOB_ID_VERSIONS", "4,any"),
        ("JOB_ID_VERSIONS", ","),
        ("REQUIRE_SCOPES", "canary"),
        ("READ_ONLY", "2"),
        ("LOG_LEVEL", "canary"),
        ("LOG_FORMAT", "xml"),
        ("WATCH_INTERVAL", "0"),
        ("MAX_WAITERS", "-1"),
    ],
)
def test_a_wrong_value_is_one_problem_that_names_its_variable(
    environment: pytest.MonkeyPatch, name: str, text: str
) -> None:
    environment.setenv(f"REDRIVE_{name}", text)
    if name in ("JWT_PUBLIC_KEY", "JWKS_URL"):
        environment.delenv("REDRIVE_JWT_SECRET")

    (problem,) = problems()

    assert problem.startswith(f"REDRIVE_{name}: ")


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("DATABASE_URL", "postgresql://"),
        ("DATABASE_URL", "postgres://user:%2F%23%40@db:5432/x?sslmode=verify-full&application_name=a%40b"),
        ("DATABASE_URL", "postgresql://user@one:5432,two:,[::1]:5433,[::1]/x?target_session_attrs=read-write"),
        ("DATABASE_URL", "postgresql://user:@/x?host=%2Frun%2Fpostgresql"),
        ("DATABASE_URL", "postgresql:///x?host=/run/a,/run/b&port=5432,5433&user=a@b"),
        ("DATABASE_URL", "postgresql://%2Frun%2Fpostgresql/x"),
        ("AMQP_URL", "amqp://mq"),
        ("AMQP_URL", "amqps://user:%2F%23%40@[::1]:5671/%2F?heartbeat=5&cafile=" + __file__),
        ("AMQP_URL", "amqp://user:p@ss@mq/vhost"),
    ],
)
def test_a_url_that_its_client_takes_is_taken(environment: pytest.MonkeyPatch, name: str, url: str) -> None:
    environment.setenv(f"REDRIVE_{name}", url)

    assert getattr(read(WorkerSettings), name.lower()).get_secret_value() == url


def test_a_url_that_cannot_be_read_is_explained(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("REDRIVE_DATABASE_URL", "postgresql://user:canary/2@db/x")

    (problem,) = problems()

    assert problem.startswith(
        "REDRIVE_DATABASE_URL: must be a URL such as postgresql://user:password@host:5432/database"
    )
    assert "percent-encoded" in problem


def test_every_problem_is_named_at_once(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.delenv("REDRIVE_DATABASE_URL")
    environment.setenv("REDRIVE_PORT", "canary")
    environment.setenv("REDRIVE_LIMIT_IP", "canary")
    environment.setenv("REDRIVE_TRUSTED_PROXIES", "canary")
    environment.setenv("REDRIVE_AMQP_URL_FILE", str(tmp_path / "not there"))
    environment.setenv("REDRIVE_JWKS_URL", "https://issuer/keys")

    assert [problem.partition(":")[0] for problem in problems()] == [
        "REDRIVE_AMQP_URL_FILE",
        "REDRIVE_DATABASE_URL (or REDRIVE_DATABASE_URL_FILE)",
        "REDRIVE_JWKS_URL",
        "REDRIVE_LIMIT_IP",
        "REDRIVE_PORT",
        "REDRIVE_TRUSTED_PROXIES",
    ]


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"JWT_SECRET": SECRET, "JWT_PUBLIC_KEY": PUBLIC_KEY},
        {"JWT_SECRET": SECRET, "JWKS_URL": "https://issuer/keys"},
        {"JWT_PUBLIC_KEY": PUBLIC_KEY, "JWKS_URL": "https://issuer/keys"},
        {"JWT_SECRET": SECRET, "JWT_PUBLIC_KEY": PUBLIC_KEY, "JWKS_URL": "https://issuer/keys"},
    ],
)
def test_there_is_exactly_one_kind_of_key(environment: pytest.MonkeyPatch, keys: Mapping[str, str]) -> None:
    environment.delenv("REDRIVE_JWT_SECRET")
    for name, value in keys.items():
        environment.setenv(f"REDRIVE_{name}", value)

    (problem,) = problems()

    assert "exactly one of REDRIVE_JWT_SECRET, REDRIVE_JWT_PUBLIC_KEY and REDRIVE_JWKS_URL must be set" in problem


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("PORT", "abc", "must be a whole number from 0 to 65535"),
        ("PORT", "80.5", "must be a whole number from 0 to 65535, not 80.5"),
        ("PORT", "-1", "must be a whole number from 0 to 65535, not -1"),
        ("PORT", "65536", "must be a whole number from 0 to 65535, not 65536"),
        ("PORT", "9" * 5000, "must be a whole number from 0 to 65535"),
        ("MAX_WAITERS", "-1", "must be a whole number from 0 up, not -1"),
        ("DB_TIMEOUT", "3", "must be a number above 0, up to 2.5, not 3"),
        ("DB_TIMEOUT", "0", "must be a number above 0, up to 2.5, not 0"),
        ("DB_TIMEOUT", "nan", "must be a number above 0, up to 2.5, not nan"),
        ("DB_TIMEOUT", "2s", "must be a number above 0, up to 2.5"),
        ("WATCH_INTERVAL", "0.01", "must be a number from 0.05 to 60, not 0.01"),
        ("READ_ONLY", "2", "must be true or false, not 2"),
        ("READ_ONLY", "maybe", "must be true or false"),
        ("LOG_LEVEL", "debug", "must be DEBUG, INFO, WARNING or ERROR"),
        ("CONSOLE", "true", "must be on or off"),
        ("JWT_SECRET", "\udcff" * 32, "must be text in UTF-8"),
        ("JWT_AUDIENCE", "\udcff", "must be text in UTF-8"),
        ("DATABASE_URL", "postgresql://user:\udcff@db/redrive", "must be text in UTF-8"),
        ("HOST", "\udcff", "must be text in UTF-8"),
        ("HOST", "a..b", "must be an address or a name of this machine, such as 127.0.0.1 or localhost"),
        ("LIMIT_IP", f"{'9' * 5000}/1", "must be requests/seconds, such as 600/60, or off"),
        ("TRACING", "1.5", "must be a number from 0 to 1, or off"),
        ("TRACING", "nan", "must be a number from 0 to 1, or off"),
        ("TRACING", "on", "must be a number from 0 to 1, or off"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_allowed(
    environment: pytest.MonkeyPatch, name: str, text: str, problem: str
) -> None:
    environment.setenv(f"REDRIVE_{name}", text)

    assert problems() == [f"REDRIVE_{name}: {problem}"]


@pytest.mark.parametrize(
    "text", ["canary", "-1", "", " ", "[]", "{}", "9" * 5000, "9" * 5000 + "/1", "\udcff", "1e400", "\u0661"]
)
@pytest.mark.parametrize("kind", [ApiSettings, WorkerSettings, CheckSettings])
def test_no_setting_is_refused_in_a_library_s_words(
    environment: pytest.MonkeyPatch, kind: type[Environment], text: str
) -> None:
    for field in kind.model_fields:
        environment.setenv(f"REDRIVE_{field.upper()}", text)
    try:
        read(kind)
    except SettingsError as refusal:
        told = refusal.problems
    else:
        told = []

    for problem in told:
        variable, _, words = problem.partition(": ")
        assert variable.startswith("REDRIVE_")
        assert words.startswith(("must ", "exactly one of ", "is required")), problem
        assert "canary" not in words


def test_a_secret_can_come_from_a_file(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in GOOD.items():
        environment.delenv(name)
        (tmp_path / name).write_text(f"{value}\n")
        environment.setenv(f"{name}_FILE", str(tmp_path / name))

    found = read(ApiSettings)

    assert found.database_url.get_secret_value() == GOOD["REDRIVE_DATABASE_URL"]
    assert found.jwt_secret is not None
    assert found.jwt_secret.get_secret_value() == SECRET


def test_a_secret_and_its_file_are_not_both_taken(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    environment.setenv("REDRIVE_JWT_SECRET_FILE", str(tmp_path / "secret"))

    assert problems() == ["REDRIVE_JWT_SECRET: and REDRIVE_JWT_SECRET_FILE are both set, keep one"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "_FILE: {path} cannot be read: no such file or directory"),
        (b"\xff\xfe", "_FILE: {path} cannot be read: it is not text in UTF-8"),
        (b"", "_FILE: {path} is empty"),
        (b"\n", "_FILE: {path} is empty"),
        (b"canary", "_FILE (its content): must be at least 32 bytes"),
    ],
    ids=["none", "bytes", "empty", "blank", "short"],
)
def test_a_file_that_holds_no_secret_is_a_problem(
    environment: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, problem: str
) -> None:
    environment.delenv("REDRIVE_JWT_SECRET")
    path = tmp_path / "secret"
    environment.setenv("REDRIVE_JWT_SECRET_FILE", str(path))
    if content is not None:
        path.write_bytes(content)

    assert problems() == [f"REDRIVE_JWT_SECRET{problem.format(path=path)}"]


@pytest.mark.parametrize("ending", ["", "_FILE"])
def test_what_the_check_alone_reads_is_a_problem_of_the_check_alone(
    environment: pytest.MonkeyPatch, ending: str
) -> None:
    environment.setenv(f"REDRIVE_AMQP_MANAGEMENT_URL{ending}", "/canary")

    for kind in (ApiSettings, WorkerSettings):
        assert read(kind).notes == ()
        assert "REDRIVE_AMQP_MANAGEMENT_URL" not in variables(kind)
    with pytest.raises(SettingsError) as refusal:
        read(CheckSettings)
    (problem,) = refusal.value.problems
    assert problem.startswith(f"REDRIVE_AMQP_MANAGEMENT_URL{ending}: ")


def test_a_wrong_url_is_told_under_the_name_of_its_file(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "url").write_text("https://user:canary@h/")
    environment.setenv("REDRIVE_AMQP_URL_FILE", str(tmp_path / "url"))

    (problem,) = problems()

    assert problem.startswith("REDRIVE_AMQP_URL_FILE (its content): must be ")


def test_a_folder_is_no_file(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.setenv("REDRIVE_AMQP_URL_FILE", str(tmp_path))

    assert problems() == [f"REDRIVE_AMQP_URL_FILE: {tmp_path} cannot be read: is a directory"]


@pytest.mark.parametrize(
    "text",
    [
        "canary" * 6,
        "canary/base64+" * 3,
        "postgresql://user:canary@db/x",
        "-----BEGIN canary",
        "canary\nx",
        "canary" * 999,
    ],
)
def test_a_secret_in_place_of_its_file_is_not_shown(environment: pytest.MonkeyPatch, text: str) -> None:
    environment.delenv("REDRIVE_JWT_SECRET")
    environment.setenv("REDRIVE_JWT_SECRET_FILE", text)

    (problem,) = problems()

    assert problem.startswith("REDRIVE_JWT_SECRET_FILE: cannot be read: ")


@pytest.mark.parametrize("kind", [ApiSettings, WorkerSettings])
def test_no_secret_shows_in_settings_that_are_printed(environment: pytest.MonkeyPatch, kind: type[Settings]) -> None:
    environment.setenv("REDRIVE_AMQP_URL", "amqp://canary:canary@mq/")
    found = read(kind)

    assert "canary" not in f"{found!r}{found!s}{found.model_dump_json()}"


@pytest.mark.usefixtures("environment")
def test_settings_do_not_change() -> None:
    found = read(WorkerSettings)

    with pytest.raises(ValueError, match="frozen"):
        setattr(found, "host", "elsewhere")  # noqa: B010 - mypy would not let it pass otherwise


def test_what_is_known_already_is_taken_before_the_environment(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("REDRIVE_PORT", "1")

    assert read(ApiSettings, port=2).port == 2


@pytest.mark.parametrize("beside", [True, False])
def test_the_file_of_what_is_known_already_is_not_looked_at(
    environment: pytest.MonkeyPatch, tmp_path: Path, *, beside: bool
) -> None:
    """Neither where the file cannot be read, nor where the variable is set beside it."""
    if not beside:
        environment.delenv("REDRIVE_DATABASE_URL")
    environment.setenv("REDRIVE_DATABASE_URL_FILE", str(tmp_path / "not there"))
    assert len(problems()) == 1

    found = read(ApiSettings, database_url="postgresql://known@h/x")

    assert found.url("database_url") == "postgresql://known@h/x"


def test_every_variable_is_listed_with_the_files_of_secrets() -> None:
    assert {"REDRIVE_PORT", "REDRIVE_JWT_SECRET", "REDRIVE_JWT_SECRET_FILE", "REDRIVE_AMQP_URL_FILE"} <= variables(
        ApiSettings
    )
    assert "REDRIVE_PORT_FILE" not in variables(ApiSettings)
    assert "REDRIVE_JWT_SECRET" not in variables(WorkerSettings)


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("ca_certs=/etc/ca.crt", "has the parameter ca_certs="),
        ("sslmode=require", "has the parameter sslmode="),
        ("cafile=/nowhere/ca.crt", "cafile= names a file that cannot be read: /nowhere/ca.crt"),
        ("cacertfile=/nowhere/ca.crt", "cacertfile= names a file that cannot be read: /nowhere/ca.crt"),
        ("verify=verify_never", "verify= must be verify_peer or verify_none"),
        ("heartbeat=soon", "heartbeat= must be a whole number"),
        ("interleave=", "interleave= must be a whole number"),
        ("interleave=-1", "interleave= must be a whole number"),
        ("happy_eyeballs_delay=abc", "happy_eyeballs_delay= must be a number of seconds"),
        ("happy_eyeballs_delay=nan", "happy_eyeballs_delay= must be a number of seconds"),
        ("no_verify_ssl=false", "no_verify_ssl= must be 0 or 1"),
        ("p%2Fssw0rd@mq", "has a parameter that is not known"),
    ],
)
def test_a_parameter_that_the_broker_s_url_cannot_have_is_named(
    monkeypatch: pytest.MonkeyPatch, query: str, named: str
) -> None:
    monkeypatch.setenv("REDRIVE_DATABASE_URL", "postgresql://db/app")
    monkeypatch.setenv("REDRIVE_AMQP_URL", f"amqps://user:canary@mq/vhost?{query}")

    with pytest.raises(SettingsError) as error:
        read(WorkerSettings)

    (problem,) = error.value.problems
    assert problem.startswith(f"REDRIVE_AMQP_URL: {named}")
    assert "canary" not in problem
    assert "ssw0rd" not in problem


@pytest.mark.parametrize(
    ("kind", "field", "default"), [(ApiSettings, "port", 8080), (WorkerSettings, "ops_port", 9091)]
)
def test_a_service_link_of_kubernetes_is_no_port(
    environment: pytest.MonkeyPatch, kind: type[Settings], field: str, default: int
) -> None:
    environment.setenv(f"REDRIVE_{field.upper()}", "tcp://10.96.0.10:80")

    found = read(kind)

    assert getattr(found, field) == default
    assert [note.partition(" ")[0] for note in found.notes] == [f"REDRIVE_{field.upper()}"]


def test_versions_of_uuids_that_do_not_count_are_noted(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("REDRIVE_JOB_ID", "bigint")
    assert read(ApiSettings).notes == ()
    environment.setenv("REDRIVE_JOB_ID_VERSIONS", "4,7")

    (note,) = read(ApiSettings).notes

    assert note.startswith("REDRIVE_JOB_ID_VERSIONS is ignored")


def test_a_parameter_that_has_no_effect_is_noted(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("REDRIVE_DATABASE_URL", "postgresql://h/x?connection_limit=5")

    (note,) = read(WorkerSettings).notes

    assert note.startswith("REDRIVE_DATABASE_URL: connection_limit is ignored")


@pytest.mark.parametrize(
    "urls",
    [
        "amqp://u:p@one/v,amqp://u:p@two/v",
        "amqp://u:p@one:5672/v, amqps://u:p@two:5671/v?heartbeat=5",
        "amqp://one,amqp://two/,amqp://three/%2F",
    ],
)
def test_the_nodes_of_a_cluster_are_several_urls(environment: pytest.MonkeyPatch, urls: str) -> None:
    environment.setenv("REDRIVE_AMQP_URL", urls)

    assert read(WorkerSettings).url("amqp_url") == urls


@pytest.mark.parametrize(
    ("urls", "named"),
    [
        ("amqp://u:canary@one/v,amqp://u:canary@two/w", "the URLs must name one virtual host"),
        ("amqp://u:canary@one/v,amqp://u:canary@two", "the URLs must name one virtual host"),
        ("amqp://u:canary@one/v,amqp://u:canary@two/v,", "in URL 2 of 2: must be whole URLs"),
        ("amqp://u:canary@one/v,amqp://x:canary@two/v", "the URLs must have one user and one password"),
        ("amqp://u:canary@one/v,amqp://u:canary2@two/v", "the URLs must have one user and one password"),
        ("amqp://u:canary@one/v,amqp://two/v", "the URLs must have one user and one password"),
        ("amqp://u:canary@one/v,amqp://u:canary@/v", "in URL 2 of 2: must be a URL"),
        ("amqp://u:canary@one/v?cafil=1,amqp://u:canary@two/v", "in URL 1 of 2: has the parameter cafil="),
        ("amqp://u:canary@one/v,http://canary@two/v", "must be whole URLs"),
        ("amqp://u:canary@one,two/v", "must be whole URLs"),
        ("amqp://u:canary@one/v amqp://u:canary@two/v", "must be whole URLs"),
        ("amqp://u:canary@one/v;amqp://u:canary@two/v", "must be whole URLs"),
        ("amqp://u:canary@one/v|amqps://u:canary@two/v", "must be whole URLs"),
        ("amqp://u:canary@one amqp://u:canary@two", "must be whole URLs"),
        ("amqp://u:canary@one;two/v", "must be whole URLs"),
        ("amqp://u:canary@one/v?heartbeat=5 amqp://u:canary@two/v", "must be whole URLs"),
        ("amqp://u:canary@one/v\namqp://u:canary@two/v", "must be whole URLs"),
        ("amqp://u:canary@one/v\ttwo", "must be whole URLs"),
        ("amqp://u:canary@one/v,two", "must be whole URLs"),
    ],
)
def test_urls_that_are_no_nodes_of_one_cluster_are_a_settings_error(
    environment: pytest.MonkeyPatch, urls: str, named: str
) -> None:
    environment.setenv("REDRIVE_AMQP_URL", urls)

    (problem,) = problems()

    assert problem.startswith(f"REDRIVE_AMQP_URL: {named}")
    assert "canary" not in problem


def test_a_url_from_a_file_is_read_again_each_time(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("postgresql://old@h/x\n")
    environment.delenv("REDRIVE_DATABASE_URL")
    environment.setenv("REDRIVE_DATABASE_URL_FILE", str(file))
    url = read(WorkerSettings).url("database_url")

    seen = []
    for content in ("postgresql://new@h/x\n", "postg", "", "postgresql://new@other/y"):
        file.write_text(content)
        seen.append(current(url))
    file.unlink()

    assert seen == ["postgresql://new@h/x"] * 3 + ["postgresql://new@other/y"]
    assert current(url) == "postgresql://new@other/y"


def test_a_rotated_url_is_taken_when_the_file_that_it_names_comes_later(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file, ca = tmp_path / "url", tmp_path / "ca.pem"
    file.write_text("amqp://old@h/")
    environment.setenv("REDRIVE_AMQP_URL_FILE", str(file))
    url = read(WorkerSettings).url("amqp_url")
    assert url is not None
    new = f"amqps://new@h/?cafile={ca}"

    file.write_text(new)
    with structlog.testing.capture_logs() as logged:
        before = [current(url), current(url)]
        ca.write_text("")
        after = current(url)

    assert (before, after) == (["amqp://old@h/"] * 2, new)
    assert [line["event"] for line in logged] == ["secret refused"]


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("https://app.example.com", ("https://app.example.com",)),
        ("https://A.example.com:443, http://b:80 http://localhost:5173", ("https://a.example.com", "http://b", "http://localhost:5173")),
        ("http://[::1]:8080,https://x:80", ("http://[::1]:8080", "https://x:80")),
    ],
)  # fmt: skip
def test_origins_are_read_as_browsers_write_them(
    monkeypatch: pytest.MonkeyPatch, text: str, origins: tuple[str, ...]
) -> None:
    monkeypatch.setenv("REDRIVE_CORS_ORIGINS", text)
    settings = read(ApiSettings, database_url="postgresql://localhost/db", jwt_secret="s" * 32)

    assert settings.cors_origins == origins


@pytest.mark.parametrize(
    "text", ["*", "null", "app.example.com", "https://a/", "https://a/b", "https://u@a", "https://*.a"]
)
def test_what_is_no_origin_is_a_wrong_setting(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("REDRIVE_CORS_ORIGINS", text)
    with pytest.raises(SettingsError, match="REDRIVE_CORS_ORIGINS: must be origins"):
        read(ApiSettings, database_url="postgresql://localhost/db", jwt_secret="s" * 32)
