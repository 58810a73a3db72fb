"""Pages of other sites, in a browser whose requests all get a token from a proxy."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, Page

from tests.api_server import Api
from tests.browser.conftest import module_fixture
from tests.browser.console import EVERYTHING
from tests.eventually import eventually
from tests.jobs import JobMaker
from tests.tokens import token

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("browser")]

SITES = {"another site": "localhost", "a neighbour on the same host": "127.0.0.1"}


OpenPage = Callable[[str], Awaitable[Page]]


@module_fixture
async def port() -> AsyncIterator[int]:
    """Of a server with an empty page."""

    async def get_page(_request: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><title>Elsewhere</title><body>", content_type="text/html")

    app = web.Application()
    app.router.add_get("/", get_page)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield int(runner.addresses[0][1])
    await runner.cleanup()


@pytest_asyncio.fixture(loop_scope="module")
async def open_page(browser: Browser, port: int) -> AsyncIterator[OpenPage]:
    """Opens that page under a host's name."""
    context = await browser.new_context(extra_http_headers={"Authorization": f"Bearer {token(scope=EVERYTHING)}"})

    async def open_(host: str) -> Page:
        page = await context.new_page()
        await page.goto(f"http://{host}:{port}/")
        return page

    yield open_
    await context.close()


@pytest.mark.parametrize("host", SITES.values(), ids=SITES.keys())
async def test_a_page_of_another_site_cannot_show_the_console_in_a_frame(
    open_page: OpenPage, api: Api, host: str
) -> None:
    page = await open_page(host)
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))

    await page.evaluate(
        "url => { const frame = document.createElement('iframe'); frame.src = url; document.body.append(frame); }",
        f"http://127.0.0.1:{api.port}/console/",
    )

    await eventually(lambda: any("frame-ancestors" in text for text in refused))
    await eventually(lambda: page.frames[1].url.startswith("chrome-error:"))


@pytest.mark.parametrize("host", SITES.values(), ids=SITES.keys())
@pytest.mark.parametrize("way", ["a form", "a call that reads no answer"])
async def test_a_page_of_another_site_changes_nothing_though_a_proxy_adds_the_token(
    open_page: OpenPage, api: Api, jobs: JobMaker, host: str, way: str
) -> None:
    job = await jobs.failed()
    url = f"http://127.0.0.1:{api.port}/api/jobs/{job.id}/retry"
    page = await open_page(host)
    scripts = {
        "a form": "url => { const form = document.createElement('form'); form.method = 'post'; form.action = url;"
        " document.body.append(form); form.submit(); }",
        "a call that reads no answer": "url => { fetch(url, {method: 'POST', mode: 'no-cors'}); }",
    }

    async with page.expect_response(url) as answered:
        await page.evaluate(scripts[way], url)

    assert (await answered.value).status == 403
    assert await jobs.pool.fetchval("SELECT count(*) FROM redrive.retry_requests WHERE job_id = $1", job.id) == 0
