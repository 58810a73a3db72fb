"""What the console costs: bytes for the first list, and requests of tabs that are left alone."""

import asyncio

import pytest
from playwright.async_api import Browser, Page, Request, expect

from tests.api_server import Api
from tests.browser.console import PAGES, Console, until_read
from tests.eventually import eventually
from tests.jobs import JobMaker

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("browser")]

SECONDS = 600


async def test_the_console_with_its_first_list_is_at_most_100_kb_on_the_wire(console: Console, jobs: JobMaker) -> None:
    await jobs.many_failed(50)
    finished: list[Request] = []

    def note(request: Request) -> None:  # Playwright marks its listeners, which a built-in method does not allow
        finished.append(request)

    console.page.on("requestfinished", note)

    await console.open_signed_in("#/jobs")
    await expect(console.page.locator("table.rows tbody tr")).to_have_count(50)
    await until_read(console.page, PAGES)

    def names() -> set[str]:
        return {request.url.rpartition("/")[2].partition("?")[0] for request in finished}

    read = {
        "",
        "console.css",
        "start.mjs",
        "preact.mjs",
        *(f"{page}.mjs" for page in PAGES),
        "me",
        "jobs",
        "stats",
        "types",
    }
    await eventually(lambda: names() >= read)
    sizes = [await request.sizes() for request in finished]
    assert sum(size["responseBodySize"] for size in sizes) <= 100_000


class Tab:
    """A window whose requests are counted, and whose clock is turned by hand."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._in_flight = 0
        self.asked = 0
        page.on("request", self._begin)
        page.on("requestfinished", self._end)
        page.on("requestfailed", self._end)

    def _begin(self, _request: Request) -> None:
        self.asked += 1
        self._in_flight += 1

    def _end(self, _request: Request) -> None:
        self._in_flight -= 1

    async def pass_time(self) -> None:
        """Let the clock go on second by second; each answer is there before the next question is due."""
        for _ in range(SECONDS):
            await self._page.clock.run_for(1_000)
            await eventually(lambda: self._in_flight <= 0, every_s=0.01)


@pytest.mark.timeout(300)  # its clock is turned 600 times
async def test_two_tabs_left_alone_for_ten_minutes_ask_at_most_40_times_a_minute_together(
    browser: Browser, api: Api, jobs: JobMaker
) -> None:
    await jobs.failed()
    async with Console.opened(browser, api) as first, Console.opened(browser, api) as second:
        tabs = []
        for console, view in ((first, ""), (second, "")):  # no page asks more often than the overview
            await console.page.clock.install()
            await console.sign_in(view=view)
            tabs.append(Tab(console.page))

        await asyncio.gather(*(tab.pass_time() for tab in tabs))

    assert all(tab.asked > 0 for tab in tabs)
    assert sum(tab.asked for tab in tabs) <= 40 * SECONDS / 60
