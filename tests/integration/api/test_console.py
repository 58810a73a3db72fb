"""The console's files: what they carry, and that they are the 404 of an unknown path where the console is off.

`redrive-job.js` is for pages of other origins: it is there, alone, where origins are listed.
"""

import gzip
import re
from pathlib import Path
from uuid import uuid4

import pytest

from api.console_files import console_files
from api.console_joined import MODULES, SHEETS, joined
from tests.api_server import NO_TOKEN, Api, Reply, Serve
from tests.integration.api.conftest import module_fixture
from tests.jobs import JobMaker
from tests.tokens import token

pytestmark = pytest.mark.asyncio(loop_scope="module")

FILES = console_files()
SERVED = joined(FILES)
ELEMENT = "redrive-job.js"
CHART = {"chart.mjs", "vendor/uplot.mjs"}
"""Read once the rest of the overview is there."""
FIRST_LIST = "jobs.mjs"
"""Read by start.mjs, as the module of the page that the address names."""
APP = "https://app.example.com"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)


@module_fixture
async def serving_console(database_url: str, serve: Serve) -> Api:
    return await serve(database_url, console="on")


async def get(api: Api, path: str, **headers: str) -> Reply:
    """A file as a browser asks for it: without a token."""
    given = {name.replace("_", "-"): value for name, value in {"Accept_Encoding": "identity", **headers}.items()}
    return await api.get(path, token=NO_TOKEN, headers=given)


def imported(module: str) -> set[str]:
    """The modules that are read before this one runs."""
    named = re.findall(r'^(?:import|export) .*?"\./([^"]+)";$', SERVED[module].decode(), re.MULTILINE)
    return {str(Path(module).parent / each) for each in named}


def needed(*modules: str) -> set[str]:
    """These modules, and all that are read before they run."""
    found: set[str] = set()
    waiting = set(modules)
    while waiting:
        found |= waiting
        waiting = {each for module in waiting for each in imported(module)} - found
    return found


async def test_every_file_is_served_with_the_headers_of_a_page_that_holds_tokens(serving_console: Api) -> None:
    types = {
        ".html": "text/html",
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".css": "text/css",
        ".svg": "image/svg+xml",
        ".txt": "text/plain",
    }
    for path in ["", *SERVED]:
        answer = await get(serving_console, f"/console/{path}")

        assert answer.status == 200, path
        assert answer.body == SERVED[path or "index.html"]
        assert answer.headers["Content-Type"].split(";")[0] == types[Path(path or "index.html").suffix]
        assert answer.headers["Content-Security-Policy"] == POLICY
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        if path != ELEMENT:
            assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert "Access-Control-Allow-Origin" not in answer.headers
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "private, no-cache"
        assert "X-Request-Id" in answer.headers
        assert "RateLimit" not in answer.headers


async def test_a_file_has_a_tag_in_either_coding_and_is_not_sent_twice(serving_console: Api) -> None:
    plain = await get(serving_console, "/console/main.mjs")
    async with serving_console.client.get(
        "/console/main.mjs", headers={"Accept-Encoding": "gzip"}, auto_decompress=False
    ) as answer:
        compressed, headers = await answer.read(), answer.headers

    assert headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(compressed) == plain.body
    assert headers["Vary"] == plain.headers["Vary"] == "Accept-Encoding"
    assert headers["ETag"] != plain.headers["ETag"]
    for tag in (headers["ETag"], plain.headers["ETag"], f"W/{plain.headers['ETag']}"):
        again = await get(serving_console, "/console/main.mjs", If_None_Match=tag)
        assert (again.status, again.body) == (304, b"")
        assert again.headers["Content-Security-Policy"] == POLICY
    assert (await get(serving_console, "/console/main.mjs", If_None_Match='"another"')).status == 200


async def test_parts_are_served_with_what_they_are_joined_to_alone(serving_console: Api) -> None:
    parts = {part for parts in (*MODULES.values(), *SHEETS.values()) for part in parts} - MODULES.keys()

    assert len(parts) > 15
    for part in parts:
        assert (await get(serving_console, f"/console/{part}")).code == "not-found"


async def test_the_folder_is_found_without_its_slash_under_any_prefix(serving_console: Api) -> None:
    answer = await get(serving_console, "/console")

    assert (answer.status, answer.headers["Location"], answer.body) == (308, "console/", b"")


async def test_what_is_no_file_is_not_found_and_no_other_method_is_allowed(serving_console: Api) -> None:
    for path in (
        "/console/nothing",
        "/console/../api/me",
        "/console/%2e%2e/app.py",
        "/console/vendor",
        "/console/vendor/",
    ):
        answer = await get(serving_console, path)
        assert answer.status in (401, 404), path
        assert answer.code in ("not-found", "authentication-required")
    refused = await serving_console.post("/console/", token=NO_TOKEN)
    assert (refused.status, refused.code, refused.headers["Allow"]) == (405, "method-not-allowed", "GET")


async def test_a_console_that_is_off_is_the_404_of_any_unknown_path(api: Api) -> None:
    unknown = await api.get("/nowhere", token=NO_TOKEN, headers={"X-Request-Id": "same"})
    for path in ("/console", "/console/", "/console/main.mjs", "/console/index.html", f"/console/{ELEMENT}"):
        answer = await api.get(path, token=NO_TOKEN, headers={"X-Request-Id": "same"})
        assert answer.without_date == unknown.without_date


@pytest.mark.parametrize("console", ["on", "off"])
async def test_the_element_is_for_pages_of_every_origin_where_some_are_listed(
    database_url: str, serve: Serve, console: str
) -> None:
    api = await serve(database_url, console=console, cors_origins=(APP,))
    answers = [
        await get(api, f"/console/{ELEMENT}", **given)
        for given in ({}, {"Origin": APP}, {"Origin": "https://other.example.com"})
    ]
    again = await get(api, f"/console/{ELEMENT}", If_None_Match=answers[0].headers["ETag"])
    others = {(await get(api, path)).status for path in ("/console", "/console/", "/console/element.html")}

    for answer in (*answers, again):
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "cross-origin"
        assert "Access-Control-Expose-Headers" not in answer.headers
        assert "Origin" in answer.headers["Vary"].split(", ")
    assert {answer.status for answer in answers} == {200}
    assert {answer.body for answer in answers} == {FILES[ELEMENT]}
    assert answers[0].headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert again.status == 304
    assert others == ({200, 308} if console == "on" else {404})


async def test_the_element_is_there_with_the_console_alone(serving_console: Api) -> None:
    answer = await get(serving_console, f"/console/{ELEMENT}")

    assert answer.status == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "cross-origin"


async def test_the_element_is_one_file_of_at_most_6_kb_that_needs_no_other() -> None:
    text = FILES[ELEMENT].decode()

    assert len(text.encode()) <= 6 * 1024
    assert not re.search(r"\b(import|export)\b", text)


async def test_files_are_charged_to_the_address_alone(database_url: str, serve: Serve) -> None:
    api = await serve(database_url, console="on", limit_ip="3/60", limit_read="1/60")
    statuses = [(await get(api, "/console/")).status for _ in range(4)]

    assert statuses == [200, 200, 200, 429]


async def test_what_the_first_list_needs_is_preloaded_and_no_other_page(serving_console: Api) -> None:
    page = (await get(serving_console, "/console/")).body.decode()
    named = re.findall(r'(?:modulepreload" href|type="module"(?: async)? src)="([^"]+)"', page)

    assert {*named, FIRST_LIST} == needed("start.mjs", "main.mjs", FIRST_LIST)
    assert len(named) == len(set(named))


async def test_every_module_is_of_some_page() -> None:
    pages = set(re.findall(r'import\("\./([^"]+)"\)', SERVED["start.mjs"].decode()))

    assert needed("start.mjs", "main.mjs", *pages) == {path for path in SERVED if path.endswith(".mjs")}
    assert needed("chart.mjs") - needed("main.mjs", *(pages - CHART)) == CHART


async def test_the_console_with_a_list_of_200_is_at_most_100_kb_compressed(
    serving_console: Api, jobs: JobMaker
) -> None:
    for number in range(200):
        error = f"SMTPServerDisconnected: timed out after {number} s at smtp{number % 7}.example.com, message {uuid4()}"
        await jobs.failed(kind=f"email.{number % 9}", last_error=error)
    others = {"index.html", "element.html", "element.css", "element.js", ELEMENT, *CHART}
    paths = [f"/console/{path}" for path in SERVED if path not in others and not path.endswith(".txt")]
    sizes = {}
    for path in ["/console/", *paths, "/api/me", "/api/jobs/types", "/api/jobs?status=failed&limit=200"]:
        headers = {"Accept-Encoding": "gzip"}
        if path.startswith("/api/"):
            headers["Authorization"] = f"Bearer {token()}"
        async with serving_console.client.get(path, headers=headers, auto_decompress=False) as answer:
            assert answer.status == 200
            sizes[path] = len(await answer.read())

    assert sum(sizes.values()) <= 100_000, sizes


async def test_no_file_of_ours_is_over_150_lines_or_makes_markup_or_code_from_text() -> None:
    for path, body in FILES.items():
        if path.startswith("vendor/"):
            continue
        text = body.decode()
        assert text.count("\n") <= 150, path
        for word in (
            "innerHTML",
            "outerHTML",
            "dangerouslySetInnerHTML",
            "insertAdjacentHTML",
            "eval(",
            "document.write",
            "style=",
        ):
            assert word not in text, f"{word} in {path}"
