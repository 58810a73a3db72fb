"""`<redrive-job>` on a page of another origin, with a token that is narrowed to its job, and the page that shows it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
import pytest_asyncio
from aiohttp import web
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, Request, expect

from tests.api_server import Api, Serve
from tests.browser.conftest import module_fixture
from tests.browser.console import Console, hold, see
from tests.eventually import eventually
from tests.jobs import JobMaker, MadeJob
from tests.servers.proxy import Proxy
from tests.tokens import token

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("browser")]

HOSTILE = "<img src=x onerror='window.ran=1'>\u202e"
_NOTE = """
window.told = [];
for (const name of ["redrive-change", "redrive-done"]) {
  document.addEventListener(name, (event) => window.told.push([event.type, event.detail.state]));
}
"""


class Products:
    """A server of product pages: one page, on an origin of its own, under a strict policy."""

    def __init__(self) -> None:
        self.html = ""
        self.api = ""
        self.origin = ""

    async def get_page(self, _request: web.Request) -> web.Response:
        policy = (
            f"default-src 'none'; script-src {self.api}; connect-src {self.api}; require-trusted-types-for 'script'"
        )
        return web.Response(text=self.html, content_type="text/html", headers={"Content-Security-Policy": policy})


@module_fixture
async def products() -> AsyncIterator[Products]:
    served = Products()
    app = web.Application()
    app.router.add_get("/", served.get_page)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    served.origin = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield served
    await runner.cleanup()


@module_fixture
async def element_api(database_url: str, products: Products, serve: Serve) -> Api:
    """An api without the console, that lists the origin of the product pages."""
    running = await serve(database_url, cors_origins=(products.origin,), watch_interval=0.1)
    products.api = f"http://127.0.0.1:{running.port}"
    return running


@dataclass
class Product:
    """A window on a product page, and what it asked the api for."""

    page: Page
    products: Products
    asked: list[Request] = field(default_factory=list)
    streams: set[Request] = field(default_factory=set)
    most_streams: int = 0

    def begin(self, request: Request) -> None:
        if "/api/" in request.url and request.method == "GET":
            self.asked.append(request)
        if request.url.endswith("/events") and request.method == "GET":
            self.streams.add(request)
            self.most_streams = max(self.most_streams, len(self.streams))

    def end(self, request: Request) -> None:
        self.streams.discard(request)

    async def show(self, *elements: str, script: str = "") -> None:
        script_url = f"{self.products.api}/console/redrive-job.js"
        self.products.html = (
            "<!doctype html><html lang=en><title>Orders</title><meta charset=utf-8>"
            f"<script src='{script_url}' defer></script><main><h1>Orders</h1>{''.join(elements)}</main>"
        )
        await self.page.add_init_script(_NOTE + script)
        await self.page.goto(self.products.origin)

    async def told(self) -> list[list[str]]:
        told: list[list[str]] = await self.page.evaluate("window.told")
        return told

    async def hide(self, hidden: str = "hidden") -> None:
        await see(self.page, hidden)

    @property
    def paths(self) -> list[str]:
        return [request.url.removeprefix(self.products.api) for request in self.asked]


@pytest_asyncio.fixture(loop_scope="module")
async def product(browser: Browser, products: Products, element_api: Api) -> AsyncIterator[Product]:
    async with Console.opened(browser, element_api) as window:  # it fails on page errors and violations
        product = Product(window.page, products)
        window.page.on("request", product.begin)
        window.page.on("requestfinished", product.end)
        window.page.on("requestfailed", product.end)
        yield product


def element(made: MadeJob, inner: str = "", **attributes: str) -> str:
    given = {"job": str(made.id), "token": token(jobs=[str(made.id)]), **attributes}
    return f"<p><redrive-job {' '.join(f'{name}={value!r}' for name, value in given.items())}>{inner}</redrive-job></p>"


async def change(jobs: JobMaker, job: MadeJob, status: str) -> None:
    await jobs.pool.execute(
        "UPDATE control_plane.jobs SET status = $3 WHERE project_id = $1 AND id = $2", job.project_id, job.id, status
    )


async def test_a_job_is_followed_by_one_stream_until_it_is_done(product: Product, jobs: JobMaker) -> None:
    job = await jobs.pending()
    await product.show(element(job, "<b slot=completed>Your report is ready.</b>"))
    status = product.page.get_by_role("status")

    await expect(status).to_contain_text("Waiting")
    await change(jobs, job, "running")
    await expect(status).to_contain_text("Running")
    await change(jobs, job, "completed")
    await expect(product.page.get_by_text("Your report is ready.")).to_be_visible()
    await expect(product.page.get_by_text("Running")).to_have_count(0)

    assert await product.told() == [
        ["redrive-change", "pending"], ["redrive-change", "running"], ["redrive-change", "completed"],
        ["redrive-done", "completed"],
    ]  # fmt: skip
    assert product.paths == [f"/api/jobs/{job.id}/events"]
    found = await Axe().run(product.page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa"]})
    assert found.violations_count == 0, found.generate_report()


async def test_a_status_of_the_owners_own_is_shown_as_text(product: Product, jobs: JobMaker) -> None:
    await jobs.pool.execute("ALTER TABLE control_plane.jobs DROP CONSTRAINT IF EXISTS jobs_status_check")
    (job,) = await jobs.make(1, status=HOSTILE)
    await product.show(element(job))

    await expect(product.page.get_by_role("status")).to_have_text("<img src=x onerror='window.ran=1'>\ufffd")
    assert await product.page.evaluate("window.ran === undefined")
    assert await product.told() == [["redrive-change", "other"]]


async def test_nothing_is_asked_while_the_page_is_hidden_and_what_is_missed_is_shown_afterwards(
    product: Product, jobs: JobMaker
) -> None:
    job = await jobs.running()
    await product.page.clock.install()
    await product.show(element(job))
    status = product.page.get_by_role("status")
    await expect(status).to_contain_text("Running")

    await product.hide()
    asked = len(product.asked)
    await change(jobs, job, "failed")
    await product.page.clock.run_for(600_000)
    assert len(product.asked) == asked
    await expect(status).to_contain_text("Running")
    await product.hide("visible")

    await expect(status).to_contain_text("Failed")
    await product.page.clock.run_for(600_000)
    assert len(product.asked) == asked + 1  # it is done, so the stream has ended


async def test_where_streams_are_held_back_the_job_is_followed_by_waiting(product: Product, jobs: JobMaker) -> None:
    job = await jobs.running()
    await product.page.clock.install()
    held = await hold(product.page, "events")
    await product.show(element(job))
    await eventually(lambda: product.asked)
    await product.page.clock.run_for(9_000)

    status = product.page.get_by_role("status")
    await expect(status).to_contain_text("Running")
    await product.page.clock.run_for(31_000)  # whatever Retry-After says, it waits from then on
    await eventually(lambda: any(each.headers.get("prefer") == "wait=25" for each in product.asked))
    await change(jobs, job, "completed")
    await expect(status).to_contain_text("Completed")
    assert product.paths[:2] == [f"/api/jobs/{job.id}/events", f"/api/jobs/{job.id}"]
    assert len(held) == 1
    await held[0].abort()


async def test_a_network_that_swallows_what_is_asked_is_asked_again(product: Product, jobs: JobMaker) -> None:
    job = await jobs.running()
    await product.page.clock.install()
    swallowed = await hold(product.page, "api/jobs/**")
    await product.show(element(job))
    for paths in (1, 2, 3):  # a stream, and then two that wait
        await eventually(lambda paths=paths: len(swallowed) == paths)  # type: ignore[misc]
        await product.page.clock.run_for(41_000)
    await eventually(lambda: len(swallowed) == 4)
    await product.page.unroute("**/api/jobs/**")
    await product.page.clock.run_for(41_000)

    await expect(product.page.get_by_role("status")).to_have_text("Running")


async def test_after_an_outage_the_job_is_followed_by_a_stream_again(
    product: Product, element_api: Api, jobs: JobMaker
) -> None:
    job = await jobs.running()
    await product.page.clock.install()
    async with Proxy("127.0.0.1", element_api.port) as network:
        own, product.products.api = product.products.api, f"http://127.0.0.1:{network.port}"
        try:
            await product.show(element(job))
        finally:
            product.products.api = own
        status = product.page.get_by_role("status")
        await expect(status).to_have_text("Running")
        assert len(product.streams) == 1

        await network.refuse()
        await network.reset()
        await expect(status).to_contain_text("not reached, trying again")
        await product.page.clock.run_for(60_000)
        assert product.asked[-1].url.endswith(str(job.id))  # not by a stream, which may be all that is away
        await network.heal()
        # It waits for news, by the clock of the api.
        async with product.page.expect_response(f"**/api/jobs/{job.id}", timeout=60_000):
            await product.page.clock.run_for(31_000)
        await product.page.clock.run_for(1_000)
        await eventually(lambda: product.streams)
        await expect(status).to_have_text("Running")
        await change(jobs, job, "completed")
        await expect(status).to_have_text("Completed")


async def test_of_several_elements_one_keeps_a_connection_and_all_are_followed(
    product: Product, jobs: JobMaker
) -> None:
    made = [await jobs.running() for _ in range(8)]
    await product.page.clock.install()
    await product.show(*map(element, made))
    await expect(product.page.get_by_text("Running")).to_have_count(8)

    for job in made:
        await change(jobs, job, "completed")
    await product.page.clock.run_for(31_000)

    await expect(product.page.get_by_text("Completed")).to_have_count(8)
    assert product.most_streams == 1


async def test_a_provider_is_asked_for_a_new_token_once_the_old_one_is_refused(
    product: Product, jobs: JobMaker
) -> None:
    job = await jobs.completed()
    good, bad = token(jobs=[str(job.id)]), token(jobs=[str(job.id)], exp=1)
    script = f"""
    window.given = [];
    document.addEventListener("DOMContentLoaded", () => {{
      const element = document.querySelector("redrive-job");
      element.tokenProvider = async () => {{
        window.given.push(1);
        return window.given.length === 1 ? "{bad}" : "{good}";
      }};
    }});
    """
    await product.show(f"<redrive-job job={job.id}></redrive-job>", script=script)

    await expect(product.page.get_by_role("status")).to_contain_text("Completed")
    assert await product.page.evaluate("window.given.length") == 2
    assert all(f"{good}" not in path and f"{bad}" not in path for path in product.paths)


@pytest.mark.parametrize(
    ("attributes", "words", "state"),
    [
        ({"token": token(exp=1)}, "Cannot be shown · the token is not valid", "refused"),
        ({"token": token(jobs=["6ba7b810-9dad-41d1-80b4-00c04fd430c8"])}, "No such job", "gone"),
        ({"job": "nonsense", "token": token()}, "Cannot be shown · not a job id", "refused"),
        ({"token": token(scope="jobs:retry")}, "Cannot be shown · the token does not permit it", "refused"),
    ],
)
async def test_what_cannot_be_shown_is_said_in_words_and_asked_for_once(
    product: Product, jobs: JobMaker, attributes: dict[str, str], words: str, state: str
) -> None:
    job = await jobs.running()
    await product.page.clock.install()
    await product.show(element(job, **attributes))

    await expect(product.page.get_by_role("status")).to_contain_text(words)
    await product.page.clock.run_for(600_000)
    assert len(product.asked) == 1
    assert await product.told() == [["redrive-change", state], ["redrive-done", state]]


async def test_an_api_that_is_away_is_said_and_asked_again(product: Product, jobs: JobMaker) -> None:
    job = await jobs.running()
    await product.page.clock.install()
    await product.page.route(f"**/api/jobs/{job.id}*/**", lambda route: route.abort())
    await product.page.route(f"**/api/jobs/{job.id}", lambda route: route.abort())
    await product.show(element(job))
    status = product.page.get_by_role("status")
    await expect(status).to_contain_text("not reached, trying again")

    await product.page.unroute_all()
    await product.page.clock.run_for(30_000)

    await expect(status).to_have_text("Running")


async def test_an_element_that_is_taken_off_the_page_asks_for_nothing_more(product: Product, jobs: JobMaker) -> None:
    job = await jobs.running()
    await product.page.clock.install()
    await product.show(element(job))
    await expect(product.page.get_by_role("status")).to_contain_text("Running")

    await product.page.evaluate("document.querySelector('redrive-job').remove()")
    asked = len(product.asked)
    await product.page.clock.run_for(600_000)

    assert len(product.asked) == asked


@pytest.mark.parametrize(("theme", "width"), [("light", 1440), ("dark", 390), ("dark", 1024)])
async def test_the_page_that_shows_it_follows_a_job(
    browser: Browser, api: Api, jobs: JobMaker, theme: str, width: int
) -> None:
    job = await jobs.pending()
    async with Console.opened(browser, api, theme=theme, width=width) as console:
        page = console.page
        await page.goto(f"{console.url}element.html#job={job.id}")
        await page.get_by_label("token").fill(token(jobs=[str(job.id)]))
        await page.get_by_label("token").press("Tab")
        await page.keyboard.press("Enter")

        await expect(page.get_by_text("Your report is in line.")).to_be_visible()
        await change(jobs, job, "completed")
        await expect(page.get_by_text("Your report is ready.", exact=True)).to_be_visible()
        await expect(page.get_by_role("list", name="Events")).to_contain_text("redrive-done: completed")
        found = await Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa"]})
        assert found.violations_count == 0, found.generate_report()
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
