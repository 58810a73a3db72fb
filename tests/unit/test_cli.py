"""The commands that need no server, run in this process as a shell would run them."""

import base64
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cli.main import main
from cli.operate.filters import FIELDS
from tests.commands import commanded
from tests.servers.processes import free_port

SECRET = "not-a-secret-but-long-enough-to-be-one"


class Answer(NamedTuple):
    status: int
    out: str
    err: str


Redrive = Callable[..., Answer]


@pytest.fixture
def redrive(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Redrive:
    """Run a command with exactly these settings; colours and boxes would only get in the way."""
    for name in [name for name in os.environ if name.startswith("REDRIVE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*args: str, **settings: str) -> Answer:
        with monkeypatch.context() as environment:
            for name, value in settings.items():
                environment.setenv(f"REDRIVE_{name}", value)
            with pytest.raises(SystemExit) as ended:
                main(args)
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int | None)
        return Answer(ended.value.code or 0, out, err)

    return run


def claims_of(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert isinstance(claims, dict)
    return claims


def test_help_names_every_command(redrive: Redrive) -> None:
    answer = redrive("--help")

    assert answer.status == 0
    for command in ("up", "api", "worker", "migrate", "check", "token"):
        assert re.search(rf"^\W*{command} ", answer.out, re.MULTILINE), command


@pytest.mark.parametrize("command", ["up", "api", "worker", "migrate", "check", "token"])
def test_every_command_explains_itself(redrive: Redrive, command: str) -> None:
    answer = redrive(command, "--help")

    assert answer.status == 0
    assert f"Usage: redrive {command}" in answer.out


COMMANDS = [
    *("", "up", "api", "worker", "migrate", "check", "token", "prune", "retry"),
    *("jobs", "jobs list", "jobs get", "jobs wait", "jobs stats"),
    *("retries", "retries list", "retries show", "retries cancel"),
    *("batches", "batches list", "batches get", "batches wait", "batches cancel"),
    *("dead", "dead list", "dead show", "dead redrive", "dead purge"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_80_columns_and_nothing_of_it_is_cut(
    redrive: Redrive, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def words(width: int) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(width))
        out = redrive(*command.split(), "--help").out
        assert max(map(len, out.splitlines())) <= width
        return sorted(re.sub("[─│╭╮╰╯]", " ", out).split())

    assert words(80) == words(200)


def test_the_help_of_retry_names_every_field_of_a_filter(redrive: Redrive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = redrive("retry", "--help").out
    for field in FIELDS:
        assert f"{field}=" in out, field


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_options(redrive: Redrive, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    monkeypatch.setenv("_REDRIVE_COMPLETE", f"source_{shell}")
    script = redrive().out
    assert "_REDRIVE_COMPLETE" in script
    assert "redrive" in script

    monkeypatch.setenv("_REDRIVE_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "redrive retr")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    monkeypatch.setenv("COMP_WORDS", "redrive retr")
    monkeypatch.setenv("COMP_CWORD", "1")
    found = redrive().out
    assert "retry" in found
    assert "retries" in found


def test_the_version_is_that_of_the_distribution(redrive: Redrive) -> None:
    assert re.fullmatch(r"redrive \d+\.\d+\.\d+\n", redrive("--version").out)


@pytest.mark.parametrize(
    "args",
    [
        ["sideways"],
        ["api", "--sideways"],
        ["check", "sideways"],
        ["token"],
        ["token", "--project", "two words"],
        ["token", "--project", "p1\n"],
        ["token", "--project", "p1", "--scope", "jobs:everything"],
        ["token", "--project", "p1", "--ttl", "0"],
        ["token", "--project", "p1", "--job", "no-id"],
        ["token", "--project", "p1", "--ttl", "300000000000"],
        ["token", "--project", "p1", "--sub", ""],
        ["token", "--project", "p1", "--sub", "x" * 256],
        ["token", "--project", "p1", "--sub", "a\nb"],
        ["token", "--project", "p1", "--sub", "\udcff"],
        ["up", "--port", "0"],
        ["up", "--port", "65536"],
        ["up", "--workers", "0"],
        ["up", "--workers", "many"],
        ["up", "--data-dir", __file__],
    ],
)
def test_wrong_usage_is_status_2(redrive: Redrive, args: list[str]) -> None:
    answer = redrive(*args, JWT_SECRET=SECRET)

    assert answer.status == 2
    assert "Usage: redrive" in answer.err
    assert answer.out == ""


@pytest.mark.parametrize("command", ["api", "worker", "migrate"])
def test_missing_settings_are_status_2_and_no_traceback(redrive: Redrive, command: str) -> None:
    answer = redrive(command)

    assert answer.status == 2
    assert "REDRIVE_DATABASE_URL (or REDRIVE_DATABASE_URL_FILE): is required" in answer.err
    assert "Traceback" not in answer.err


def test_settings_errors_are_all_named_at_once_and_show_no_value(redrive: Redrive) -> None:
    answer = redrive(
        "api",
        DATABASE_URL="mysql://user:canary-1@nowhere/db",
        AMQP_URL="http://user:canary-2@nowhere/",
        JWT_SECRET="canary-3",
        JWT_PUBLIC_KEY="canary-4",
        PORT="eighty",
        LIMIT_READ="canary-5",
    )

    assert answer.status == 2
    for name in ("DATABASE_URL", "AMQP_URL", "JWT_SECRET", "PORT", "LIMIT_READ"):
        assert f"  REDRIVE_{name}: " in answer.err, name
    assert "canary" not in answer.err
    assert answer.out == ""


@pytest.mark.parametrize("processes", [(), ("--processes", "2")])
def test_a_wrong_public_key_is_named_beside_other_settings(redrive: Redrive, processes: tuple[str, ...]) -> None:
    answer = redrive(*("api", *processes), DATABASE_URL="postgresql://u@h/db", JWT_PUBLIC_KEY="canary", PORT="eighty")

    assert answer.status == 2
    assert [line.partition(":")[0] for line in answer.err.splitlines()] == [
        "redrive",
        "  REDRIVE_JWT_PUBLIC_KEY",
        "  REDRIVE_PORT",
    ]
    assert "canary" not in answer.err


def test_check_sees_a_wrong_public_key(redrive: Redrive) -> None:
    answer = redrive("check", DATABASE_URL="postgresql://u@127.0.0.1:1/db", JWT_PUBLIC_KEY="canary")

    assert answer.status == 2
    assert "failed   settings of redrive api: REDRIVE_JWT_PUBLIC_KEY: must be an RSA" in answer.out
    assert answer.err == "redrive: not ready: see the lines that say failed\n"
    assert "canary" not in answer.out


@pytest.mark.parametrize("program", [(), ("api",), ("worker",)])
def test_check_sees_a_wrong_setting_that_it_alone_reads(redrive: Redrive, program: tuple[str, ...]) -> None:
    wrong = {"DATABASE_URL": "postgresql://u@127.0.0.1:1/db", "JWT_SECRET": SECRET, "AMQP_MANAGEMENT_URL": "canary"}
    answer = redrive("check", *program, **wrong)

    assert answer.status == 2
    (told,) = [line for line in answer.out.splitlines() if "MANAGEMENT" in line]
    assert told.startswith("failed   settings of redrive check: REDRIVE_AMQP_MANAGEMENT_URL: must be ")
    assert "canary" not in answer.out


@pytest.mark.parametrize(("program", "other", "status"), [("api", "worker", 2), ("worker", "api", 1)])
def test_check_looks_at_one_program_where_only_its_settings_are_there(
    redrive: Redrive, program: str, other: str, status: int
) -> None:
    answer = redrive("check", program, DATABASE_URL="postgresql://u@127.0.0.1:1/db")

    assert answer.status == status  # no key for the api; for the worker, only the database is away
    assert f"settings of redrive {program}" in answer.out
    assert f"settings of redrive {other}" not in answer.out


def test_a_token_opens_one_project_for_an_hour(redrive: Redrive) -> None:
    before = int(time.time())
    answer = redrive("token", "--project", "p1", JWT_SECRET=SECRET)

    claims = claims_of(answer.out.strip())
    assert answer.status == 0
    assert set(claims) == {"iat", "exp", "project_id"}
    assert claims["project_id"] == "p1"
    assert claims["exp"] - claims["iat"] == 3600
    assert before <= claims["iat"] <= time.time()


def test_a_token_may_be_narrowed_to_some_jobs(redrive: Redrive) -> None:
    ids = ["6ba7b810-9dad-41d1-80b4-00c04fd430c8", "7b0c6dc4-9f1f-4f3c-8a50-6d4e7f3b1a11"]
    answer = redrive("token", "--project", "p1", *(part for each in ids for part in ("--job", each)), JWT_SECRET=SECRET)
    too_many = redrive("token", "--project", "p1", *["--job", ids[0]] * 21, JWT_SECRET=SECRET)

    assert claims_of(answer.out.strip())["jobs"] == ids
    assert (too_many.status, "at most 20 ids" in too_many.err) == (2, True)


def test_a_token_carries_what_was_asked_for_and_what_the_settings_check(redrive: Redrive) -> None:
    answer = redrive(
        *("token", "--project", "p1", "--sub", "ana@example.com", "--scope", "jobs:read jobs:retry", "--ttl", "60"),
        JWT_SECRET=SECRET,
        JWT_ISSUER="https://issuer.example",
        JWT_AUDIENCE="redrive",
        JWT_PROJECT_CLAIM="tenant",
    )

    claims = claims_of(answer.out.strip())
    assert claims.pop("exp") - claims.pop("iat") == 60
    assert claims == {
        "tenant": "p1",
        "sub": "ana@example.com",
        "scope": "jobs:read jobs:retry",
        "iss": "https://issuer.example",
        "aud": "redrive",
    }


@pytest.mark.parametrize(
    ("claim", "held"),
    [
        ("https://example.com/project_id", {"https://example.com/project_id": "p1", "sub": "ana"}),
        ("/app_metadata/project_id", {"app_metadata": {"project_id": "p1"}, "sub": "ana"}),
        ("/projects/0", {"projects": {"0": "p1"}, "sub": "ana"}),
    ],
)
def test_a_token_has_its_project_where_the_settings_look_for_it(
    redrive: Redrive, claim: str, held: dict[str, object]
) -> None:
    answer = redrive("token", "--project", "p1", "--sub", "ana", JWT_SECRET=SECRET, JWT_PROJECT_CLAIM=claim)

    claims = claims_of(answer.out.strip())
    assert {name: value for name, value in claims.items() if name not in {"iat", "exp"}} == held


def test_a_token_whose_subject_is_its_project_has_no_other_one(redrive: Redrive) -> None:
    good = redrive("token", "--project", "p1", JWT_SECRET=SECRET, JWT_PROJECT_CLAIM="sub")
    bad = redrive("token", "--project", "p1", "--sub", "ana", JWT_SECRET=SECRET, JWT_PROJECT_CLAIM="sub")

    assert claims_of(good.out.strip())["sub"] == "p1"
    assert (bad.status, bad.out) == (2, "")
    assert "the project is the subject" in bad.err


def test_a_token_is_not_signed_without_a_secret(redrive: Redrive) -> None:
    answer = redrive("token", "--project", "p1", JWKS_URL="https://keys.example/jwks.json")

    assert answer.status == 2
    assert "REDRIVE_JWT_SECRET" in answer.err
    assert answer.out == ""


@pytest.mark.parametrize("secret", ["DATABASE_URL", "DATABASE_READ_URL", "AMQP_URL"])
def test_a_token_needs_none_of_the_secrets_of_servers(redrive: Redrive, tmp_path: Path, secret: str) -> None:
    unread = redrive("token", "--project", "p1", JWT_SECRET=SECRET, **{f"{secret}_FILE": str(tmp_path / "not there")})
    wrong = redrive("token", "--project", "p1", JWT_SECRET=SECRET, **{secret: "canary"})

    assert (unread.status, unread.err) == (0, "")
    assert (wrong.status, wrong.err) == (0, "")


def test_migrations_are_printed_without_a_database(redrive: Redrive) -> None:
    answer = redrive("migrate", "--print")

    assert answer.status == 0
    assert "CREATE TABLE redrive.retry_requests" in answer.out
    assert "migrate:down" not in answer.out


@pytest.mark.parametrize("command", [["migrate"], ["check"]])
def test_a_database_that_is_away_is_one_line_and_status_1(redrive: Redrive, command: list[str]) -> None:
    answer = redrive(*command, DATABASE_URL="postgresql://u:canary@127.0.0.1:1/db", JWT_SECRET=SECRET)

    assert answer.status == 1
    assert re.fullmatch(r"redrive: .+\n", answer.err)
    assert "canary" not in answer.out + answer.err


@pytest.mark.parametrize("command", [["migrate"], ["check"]])
def test_a_parameter_that_cannot_work_is_named_with_status_2(redrive: Redrive, command: list[str]) -> None:
    answer = redrive(*command, DATABASE_URL="postgresql://u:canary@h/db?sslmode=canary", JWT_SECRET=SECRET)

    assert answer.status == 2
    assert "REDRIVE_DATABASE_URL: sslmode: must be disable or allow or" in answer.out + answer.err
    assert "canary" not in answer.out + answer.err


@pytest.mark.parametrize("command", [["migrate"], ["check"]])
def test_a_url_that_only_connecting_finds_wrong_is_not_shown(redrive: Redrive, command: list[str]) -> None:
    answer = redrive(*command, DATABASE_URL="postgresql://u:canary@two..dots/db", JWT_SECRET=SECRET)

    assert answer.status == 1
    assert "the database does not answer, or answers with an error (the URL cannot be used)" in answer.out + answer.err
    assert re.fullmatch(r"redrive: .+\n", answer.err)
    assert "canary" not in answer.out + answer.err


def test_check_warns_of_a_variable_that_nothing_reads(redrive: Redrive) -> None:
    answer = redrive("check", DATABSE_URL="postgresql://nowhere", FAILPOINT="off", TEST_DATABASE_URL="off")

    assert "warning  REDRIVE_DATABSE_URL: there is no such setting; did you mean REDRIVE_DATABASE_URL?" in answer.out
    assert answer.out.count("warning") == 1


def test_check_notes_each_setting_without_effect_once(redrive: Redrive) -> None:
    url = "postgresql://u@127.0.0.1:1/db?connection_limit=5&schema=public"
    answer = redrive("check", DATABASE_URL=url, JWT_SECRET=SECRET, OPS_PORT="tcp://10.96.0.10:80")

    notes = [line.removeprefix("note     ") for line in answer.out.splitlines() if line.startswith("note")]
    assert sorted(note.partition(" is ignored: ")[0] for note in notes) == [
        "REDRIVE_DATABASE_URL: connection_limit",
        "REDRIVE_DATABASE_URL: schema",
        "REDRIVE_OPS_PORT",
    ]


def test_up_refuses_keys_that_it_cannot_sign_with(redrive: Redrive, tmp_path: Path) -> None:
    answer = redrive("up", "--data-dir", str(tmp_path), JWKS_URL="https://keys.example/jwks.json")

    assert answer.status == 2
    assert "REDRIVE_JWKS_URL" in answer.err


@pytest.mark.parametrize("secret", ["DATABASE_URL", "DATABASE_READ_URL"])
@pytest.mark.parametrize("beside", [True, False])
def test_up_ignores_the_file_of_a_database_that_it_brings_itself(
    redrive: Redrive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: str, *, beside: bool
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)  # so that it ends before it starts a server
    given = {**({secret: "postgresql://h/x"} if beside else {}), f"{secret}_FILE": str(tmp_path / "not there")}
    ports = {"PORT": str(free_port()), "OPS_PORT": str(free_port())}
    answer = redrive("up", "--data-dir", str(tmp_path / "data"), **ports, **given)

    assert answer.status == 1
    *notes, last = answer.err.splitlines()
    assert [note.split()[2] for note in notes] == [f"REDRIVE_{name}" for name in given]
    assert "install redrive[embedded]" in last


def test_up_names_wrong_settings_before_it_starts_anything(redrive: Redrive, tmp_path: Path) -> None:
    answer = redrive("up", "--data-dir", str(tmp_path), OPS_PORT="canary", WORKER_BATCH_SIZE="0")

    assert answer.status == 2
    assert "REDRIVE_OPS_PORT: " in answer.err
    assert "REDRIVE_WORKER_BATCH_SIZE: " in answer.err
    assert not (tmp_path / "postgres").exists()


def test_up_without_its_database_says_what_to_install(
    redrive: Redrive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    answer = redrive("up", "--data-dir", str(tmp_path), "--port", str(free_port()), OPS_PORT=str(free_port()))

    assert answer.status == 1
    assert re.fullmatch(r"redrive: .*install redrive\[embedded\].*\n", answer.err)


async def test_files_of_the_current_folder_are_never_imported() -> None:
    """`commanded` runs in a folder of files that are named as our packages are, and as Python's own."""
    done = await commanded("token", "--project", "p1", JWT_SECRET=SECRET)
    assert (done.status, done.err) == (0, "")
    assert claims_of(done.out.strip())["project_id"] == "p1"
