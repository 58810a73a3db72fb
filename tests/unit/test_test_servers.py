"""Where the tests' servers come from: containers or programs of this machine. The engines here are fakes."""

import asyncio
import os
import sys
from dataclasses import dataclass

import pytest
from aiohttp import web
from pytest_aiohttp import AiohttpRawServer

from tests.compose import ROOT
from tests.servers.processes import free_port

_IMAGES = {"postgres:18", "rabbitmq:4-management"}


@dataclass(frozen=True, slots=True)
class Engine:
    url: str
    asked: list[str]


async def an_engine(start: AiohttpRawServer, images: set[str], *, pulls: bool) -> Engine:
    """A Docker engine that has some images, and may or may not be able to pull others."""
    asked: list[str] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        route = request.path.removeprefix("/v1.44")
        if route == "/_ping":
            return web.Response(text="OK")
        if route == "/version":
            return web.json_response({"ApiVersion": "1.44", "MinAPIVersion": "1.24"})
        if route == "/images/create":
            if not pulls:
                return web.json_response({"message": "Get registry: no route to host\nat all"}, status=500)
            images.add(f"{request.query['fromImage']}:{request.query['tag']}")
            return web.json_response({"status": "pulled"})
        name = route.removeprefix("/images/").removesuffix("/json")
        if name in images:
            return web.json_response({"Id": "sha256:0", "RepoTags": [name]})
        return web.json_response({"message": f"No such image: {name}"}, status=404)

    server = await start(answer)
    return Engine(f"tcp://127.0.0.1:{server.port}", asked)


async def choice_of(docker_host: str, said: str = "") -> tuple[str, list[str]]:
    """What comes of it in a process of its own: True, False or what is wrong; and the lines on its standard error."""
    program = """
from tests.servers.docker import uses_docker
from tests.servers.processes import ServerFailed
try:
    print(uses_docker())
except ServerFailed as error:
    print(error)
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DOCKER_", "REDRIVE_"))}
    env |= {"DOCKER_HOST": docker_host, "REDRIVE_TEST_SERVERS": said}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, cwd=ROOT, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    return out.decode().strip(), err.decode().splitlines()


@pytest.mark.parametrize("said", ["", "docker"])
async def test_an_engine_that_has_the_images_is_used(said: str, aiohttp_raw_server: AiohttpRawServer) -> None:
    engine = await an_engine(aiohttp_raw_server, set(_IMAGES), pulls=False)
    assert await choice_of(engine.url, said) == ("True", [])


async def test_missing_images_are_pulled(aiohttp_raw_server: AiohttpRawServer) -> None:
    images: set[str] = set()
    engine = await an_engine(aiohttp_raw_server, images, pulls=True)
    assert await choice_of(engine.url) == ("True", [])

    assert images == _IMAGES


@pytest.mark.parametrize("images", [set(), {"postgres:18"}])
async def test_an_engine_that_cannot_pull_leaves_it_to_the_local_servers_and_says_why_in_one_line(
    images: set[str], aiohttp_raw_server: AiohttpRawServer
) -> None:
    engine = await an_engine(aiohttp_raw_server, images, pulls=False)
    used, lines = await choice_of(engine.url)

    assert used == "False"
    (line,) = lines
    assert line.startswith("servers of this machine are used: the Docker engine has no ")
    assert "no route to host at all" in line


async def test_where_no_engine_answers_the_local_servers_are_used_without_a_word() -> None:
    assert await choice_of(f"tcp://127.0.0.1:{free_port()}") == ("False", [])


async def test_local_does_not_ask_the_engine(aiohttp_raw_server: AiohttpRawServer) -> None:
    engine = await an_engine(aiohttp_raw_server, set(_IMAGES), pulls=True)
    assert await choice_of(engine.url, "local") == ("False", [])

    assert engine.asked == []


async def test_docker_fails_where_no_engine_answers() -> None:
    problem, _ = await choice_of(f"tcp://127.0.0.1:{free_port()}", "docker")

    assert problem == "REDRIVE_TEST_SERVERS=docker, but no Docker engine answers"


async def test_docker_fails_where_the_engine_cannot_pull(aiohttp_raw_server: AiohttpRawServer) -> None:
    engine = await an_engine(aiohttp_raw_server, set(), pulls=False)
    problem, _ = await choice_of(engine.url, "docker")

    assert problem.startswith(
        "REDRIVE_TEST_SERVERS=docker, but the Docker engine has no postgres:18 and cannot pull it"
    )


async def test_any_other_choice_is_a_mistake(aiohttp_raw_server: AiohttpRawServer) -> None:
    engine = await an_engine(aiohttp_raw_server, set(_IMAGES), pulls=True)
    problem, _ = await choice_of(engine.url, "podman")

    assert problem == "REDRIVE_TEST_SERVERS=podman is neither docker nor local"
    assert engine.asked == []
