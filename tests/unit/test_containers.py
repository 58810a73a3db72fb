"""The image, the containers and their settings, as far as files can tell; test_deploy.py asks real servers."""

import asyncio
import json
import re
import runpy
import shutil
import stat
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from jsonschema import Draft7Validator
from pytest_aiohttp import AiohttpServer

from shared import topology
from shared.settings import PREFIX, ApiSettings, Settings, WorkerSettings, read, variables
from tests import compose
from tests.compose import ROOT
from tests.servers.processes import free_port

_PROGRAMS: Mapping[str, type[Settings]] = {"api": ApiSettings, "worker": WorkerSettings, "migrate": WorkerSettings}
_FOR_TRACES = {"OTEL_EXPORTER_OTLP_ENDPOINT"}  # OpenTelemetry's own
_ALL_SETTINGS = variables(ApiSettings) | variables(WorkerSettings)
_SECRETS_OF = {
    "POSTGRES_PASSWORD": {"postgres"},
    "OWNER_DB_PASSWORD": {"postgres", "migrate"},
    "API_DB_PASSWORD": {"postgres", "api"},
    "WORKER_DB_PASSWORD": {"postgres", "worker"},
    "API_AMQP_PASSWORD": {"api"},
    "WORKER_AMQP_PASSWORD": {"worker"},
    "REDRIVE_JWT_SECRET": {"api"},
}


def assignments(text: str) -> dict[str, str]:
    """The variables of a file of settings; those that are commented out, too."""
    return dict(re.findall(r"^#?([A-Z][A-Z0-9_]*)=(.*)$", text, re.MULTILINE))


@pytest.fixture(scope="module")
def example() -> dict[str, str]:
    return assignments((ROOT / ".env.example").read_text("utf-8"))


@pytest.fixture(scope="module")
def env() -> dict[str, str]:
    """What `make up` writes into .env, as Compose reads it."""
    made = subprocess.run([ROOT / "deploy" / "new-env"], capture_output=True, text=True, check=True).stdout
    return dict(re.findall(r"^([A-Z][A-Z0-9_]*)=(.*)$", made, re.MULTILINE))


@pytest.fixture(scope="module")
def services(env: dict[str, str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose.parsed(env)["services"]
    return found


def dockerfile() -> str:
    """The Dockerfile, one instruction a line."""
    return (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ")


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name}\s+(.*)$", dockerfile(), re.MULTILINE)


def test_the_compose_file_follows_the_compose_specification() -> None:
    schema = json.loads((Path(__file__).parent / "data" / "compose-spec.json").read_text("utf-8"))

    problems = [
        f"{problem.json_path}: {problem.message}" for problem in Draft7Validator(schema).iter_errors(compose.parsed())
    ]

    assert problems == []


def test_the_schema_finds_mistakes() -> None:
    schema = json.loads((Path(__file__).parent / "data" / "compose-spec.json").read_text("utf-8"))

    assert not Draft7Validator(schema).is_valid({"services": {"api": {"image": "x", "restarts": "always"}}})


@pytest.mark.parametrize("program", _PROGRAMS)
def test_every_variable_that_a_program_is_given_is_a_setting_of_it(
    program: str, services: dict[str, dict[str, Any]]
) -> None:
    assert services[program]["command"] == [program]
    assert set(services[program]["environment"]) <= variables(_PROGRAMS[program]) | _FOR_TRACES


def test_every_variable_of_the_image_and_of_the_example_is_a_setting(example: dict[str, str]) -> None:
    of_the_image = set(re.findall(rf"\b({PREFIX}\w+)=", dockerfile()))

    assert of_the_image <= variables(ApiSettings) & variables(WorkerSettings)
    assert {name for name in example if name.startswith(PREFIX)} <= _ALL_SETTINGS


def test_the_example_names_what_the_compose_file_asks_for_and_nothing_else(example: dict[str, str]) -> None:
    assert set(example) == compose.variables()


@pytest.mark.parametrize("program", _PROGRAMS)
def test_the_settings_that_a_new_env_gives_are_right(
    program: str, services: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in _ALL_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    image = dict(re.findall(rf"\b({PREFIX}\w+)=(\S+)", dockerfile()))
    for name, value in (image | services[program]["environment"]).items():
        monkeypatch.setenv(name, value)

    found = read(_PROGRAMS[program])

    assert (found.host, found.ops_port) == ("0.0.0.0", 9090)
    if program != "migrate":
        assert found.amqp_url is not None
        assert int(services[program]["stop_grace_period"].removesuffix("s")) >= 2 * found.shutdown_grace


def test_without_secrets_nothing_starts(example: dict[str, str]) -> None:
    assert {name for name, value in example.items() if re.search("_(SECRET|PASSWORD)$", name) and value} == set()
    for name in _SECRETS_OF:
        with pytest.raises(KeyError, match=name):
            compose.parsed({other: "x" for other in _SECRETS_OF if other != name})


def test_each_secret_is_given_to_those_who_need_it_only(
    env: dict[str, str], services: dict[str, dict[str, Any]]
) -> None:
    holders = {
        name: {service for service, content in services.items() if env[name] in json.dumps(content)}
        for name in _SECRETS_OF
    }

    assert holders == _SECRETS_OF


def test_a_new_env_is_its_owners_to_read_and_full_of_different_secrets(tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    for name in ("Makefile", ".env.example", "deploy/new-env"):
        shutil.copy(ROOT / name, tmp_path / name)

    subprocess.run(["make", ".env"], cwd=tmp_path, check=True, capture_output=True)

    made = tmp_path / ".env"
    secrets = [value for name, value in assignments(made.read_text("utf-8")).items() if name in _SECRETS_OF]
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert len(set(secrets)) == len(_SECRETS_OF)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{48}", secret) for secret in secrets)


def test_every_role_that_the_migrations_give_rights_to_is_made_before_them() -> None:
    # On the tests' server they are there already: its superuser has migrated another database.
    given = set(re.findall(r"\bredrive_\w+", grants()))

    assert given >= {"redrive_api", "redrive_worker", "redrive_scaler"}
    users = (ROOT / "deploy" / "postgres" / "10-users.sql").read_text("utf-8")
    (made,) = re.findall(r"CREATE ROLE %I NOLOGIN', role\)\nFROM unnest\(ARRAY\[(.*?)\]", users)
    assert set(re.findall(r"\w+", made)) == given
    documented = (ROOT / "docs" / "deploying.md").read_text("utf-8")
    assert set(re.findall(r"^CREATE ROLE (\w+) NOLOGIN;", documented, re.MULTILINE)) == given


def grants() -> str:
    """Everything behind the TO of a GRANT, in all migrations."""
    sql = "\n".join(path.read_text("utf-8") for path in (ROOT / "shared" / "migrations").glob("*.sql"))
    return "\n".join(re.findall(r"\bGRANT\b[^;]*?\bTO\b([^;]*;)", sql))


def test_workers_can_be_scaled(services: dict[str, dict[str, Any]]) -> None:
    worker = services["worker"]

    assert not {"ports", "container_name", "hostname", "volumes"} & set(worker)
    assert "front" not in worker["networks"]


@pytest.mark.parametrize("program", _PROGRAMS)
def test_programs_run_with_as_little_as_they_need(program: str, services: dict[str, dict[str, Any]]) -> None:
    service = services[program]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert "user" not in service  # the image's


def test_every_container_is_limited_restarted_and_kept_from_new_privileges(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["logging"]["options"]["max-size"]
        assert service["restart"] == ("no" if name == "migrate" else "unless-stopped")


def test_programs_start_once_the_schema_is_there_and_the_servers_answer(services: dict[str, dict[str, Any]]) -> None:
    for program in ("api", "worker"):
        assert {name: need["condition"] for name, need in services[program]["depends_on"].items()} == {
            "migrate": "service_completed_successfully",
            "postgres": "service_healthy",
            "rabbitmq": "service_healthy",
        }
    assert services["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert all("test" in services[name]["healthcheck"] for name in ("postgres", "rabbitmq", "api", "worker"))


def test_only_the_api_is_published_and_on_this_machine_alone(services: dict[str, dict[str, Any]]) -> None:
    assert {name: service["ports"] for name, service in services.items() if "ports" in service} == {
        "api": ["127.0.0.1:8080:8080"]
    }


def bytes_of(text: str) -> int:
    """A size as RabbitMQ and Compose write it, 1024 to the kilobyte."""
    number, unit = re.fullmatch(r"(\d+)([kmg]?)(?:i?b)?", text.lower()).groups()  # type: ignore[union-attr]
    return int(number) * {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}[unit]


def test_rabbitmq_stops_publishers_well_before_its_container_has_no_memory_left(
    services: dict[str, dict[str, Any]],
) -> None:
    conf = (ROOT / "deploy" / "rabbitmq" / "rabbitmq.conf").read_text("utf-8")
    advanced = (ROOT / "deploy" / "rabbitmq" / "advanced.config").read_text("utf-8")
    settings = dict(re.findall(r"^([a-z._]+) = (.*)$", conf, re.MULTILINE))
    limit = bytes_of(services["rabbitmq"]["deploy"]["resources"]["limits"]["memory"])

    assert bytes_of(settings["vm_memory_high_watermark.absolute"]) <= limit / 2
    logs = re.findall(r"\bwal_max_size_bytes, (\d+)|\bquorum_wal_max_size_bytes, (\d+)", advanced)
    assert len(logs) == 2
    assert all(int(before or since) <= limit / 16 for before, since in logs)


def test_health_is_asked_often_while_a_container_starts_and_seldom_afterwards(
    services: dict[str, dict[str, Any]],
) -> None:
    for check in (service["healthcheck"] for name, service in services.items() if name != "migrate"):
        assert int(check["interval"].removesuffix("s")) >= 15
        assert check["start_interval"] == "1s"
        assert check["start_period"] == "1m"


def test_the_image_says_which_version_it_is() -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', dockerfile()))
    arguments = instructions("ARG")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

    assert labels["version"] == "${VERSION}"
    assert labels["revision"] == "${REVISION:-unknown}"
    assert f"VERSION={project['version']}" in arguments
    assert "REVISION" in arguments


def test_every_file_that_a_container_is_given_is_there(services: dict[str, dict[str, Any]]) -> None:
    for service in services.values():
        for volume in service.get("volumes", []):
            source, _, _ = volume.partition(":")
            assert not source.startswith(".") or (ROOT / source).exists()


def test_the_image_is_pinned_and_not_run_by_root() -> None:
    base = instructions("ARG")[0]

    assert re.fullmatch(r"PYTHON=python:\d+\.\d+[\w.]*-slim-\w+(@sha256:[0-9a-f]{64})?", base)
    assert {line.split()[0] for line in instructions("FROM")} == {"${PYTHON}"}
    (user,) = instructions("USER")
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user)


def test_the_image_holds_the_locked_dependencies_and_those_for_traces() -> None:
    syncs = [line for line in instructions("RUN") if " sync " in line]

    assert len(syncs) == 2
    assert all("--locked --no-dev" in line and "--group" not in line for line in syncs)
    assert [re.findall(r"--extra (\S+)", line) for line in syncs] == [["otel"]] * 2


def test_the_image_has_all_that_the_wheel_is_made_of() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    needed = {
        "pyproject.toml",
        "uv.lock",
        project["project"]["readme"],
        *project["project"]["license-files"],
        *project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"],
        *(f"{member}/pyproject.toml" for member in project["tool"]["uv"]["workspace"]["members"]),
    }
    words = [line.split() for line in instructions("COPY") if "--from" not in line]
    copied = {word for each in words for word in each[:-1] if not word.startswith("--")}
    kept = set(re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text("utf-8"), re.MULTILINE))

    assert needed <= copied
    assert copied - {path for path in copied if any(path.startswith(f"{folder}/") for folder in kept)} == kept
    assert all((ROOT / source).exists() for source in copied)


def test_the_image_stops_and_starts_as_the_programs_expect() -> None:
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    assert instructions("ENTRYPOINT") == ['["redrive"]']
    assert "/livez" in instructions("HEALTHCHECK")[0]


@pytest.mark.parametrize(("path", "code"), [("/livez", 0), ("/readyz", 1), ("/nowhere", 1)])
async def test_the_health_check_believes_a_200_only(path: str, code: int, aiohttp_server: AiohttpServer) -> None:
    async def livez(_request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def readyz(_request: web.Request) -> web.Response:
        return web.Response(status=503)

    app = web.Application()
    app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz)])
    server = await aiohttp_server(app)
    assert await health_of(server.port, path) == code


async def test_the_health_check_fails_where_no_program_listens() -> None:
    assert await health_of(free_port(), "/livez") == 1


@pytest.mark.parametrize("given", [None, "", "tcp://10.96.0.10:9090", "udp://10.96.0.10:53", "9123", " 9123 "])
def test_the_health_check_asks_where_the_settings_have_a_program_listen(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in _ALL_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    if given is not None:
        monkeypatch.setenv("REDRIVE_OPS_PORT", given)
    known = {"database_url": "postgresql://", "jwt_secret": "s" * 32}

    asked = runpy.run_path(str(ROOT / "deploy" / "health"))["ports"]()

    assert set(asked) == {read(ApiSettings, **known).ops_port, read(WorkerSettings, **known).ops_port}


@pytest.mark.parametrize("port", ["tcp://10.96.0.10:9090", "", "eighty", "65536", "-1", "9" * 30])
async def test_the_health_check_ends_without_a_traceback_whatever_the_port_is(port: str) -> None:
    assert await health_of(port, "/nowhere") == 1


async def health_of(port: int | str | None, path: str) -> int:
    """The exit status of the image's health check, run as the image runs it; it says nothing on stderr."""
    command = [sys.executable, "-I", "-S", str(ROOT / "deploy" / "health"), path]
    process = await asyncio.create_subprocess_exec(
        *command, env={"REDRIVE_OPS_PORT": str(port)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    _, err = await process.communicate()
    assert err == b""
    assert process.returncode is not None
    return process.returncode


def test_the_brokers_definitions_are_what_the_programs_declare() -> None:
    definitions = json.loads((ROOT / "deploy" / "rabbitmq" / "topology.json").read_text("utf-8"))
    work = topology._WORK_QUEUE

    assert {vhost["name"] for vhost in definitions["vhosts"]} == {"redrive"}
    assert [(each["name"], each["type"], each["durable"]) for each in definitions["exchanges"]] == [
        (topology.EXCHANGE, "direct", True)
    ]
    assert {queue["name"]: queue["arguments"] for queue in definitions["queues"]} == {
        topology.RETRIES: work,
        topology.RETRIES_BULK: work,
        topology.RETRIES_DEAD: {"x-queue-type": "quorum"},
    }
    assert all(queue["durable"] for queue in definitions["queues"])
    assert {(each["source"], each["routing_key"], each["destination"]) for each in definitions["bindings"]} == {
        (topology.EXCHANGE, topology.KEY_RETRY, topology.RETRIES),
        (topology.EXCHANGE, topology.KEY_BULK, topology.RETRIES_BULK),
        (topology.EXCHANGE, topology.KEY_DEAD, topology.RETRIES_DEAD),
    }


def test_the_brokers_users_have_their_rights_and_no_others(env: dict[str, str]) -> None:
    users = compose.rabbitmq_users(env)

    assert {user["name"]: (user["password"], user["tags"]) for user in users["users"]} == {
        "redrive-api": (env["API_AMQP_PASSWORD"], []),
        "redrive-worker": (env["WORKER_AMQP_PASSWORD"], []),
    }
    rights = {each["user"]: each for each in users["permissions"]}
    assert {each["vhost"] for each in rights.values()} == {"redrive"}
    assert {name for each in rights.values() for name in (each["configure"], each["write"])} == {"^$", "^redrive$"}
    assert rights["redrive-api"]["read"] == "^$"
    readable = re.compile(rights["redrive-worker"]["read"])
    assert all(readable.fullmatch(name) for name in (topology.RETRIES, topology.RETRIES_BULK, topology.RETRIES_DEAD))
    assert not any(readable.fullmatch(name) for name in ("redrive", "redriveXretries", "redrive.retries.else"))
