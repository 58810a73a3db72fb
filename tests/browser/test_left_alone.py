"""Two tabs that are left alone, in real time: how often they ask, and that hidden ones ask for nothing.

By `make chaos` only: it takes twelve minutes. `test_cost.py` turns the clocks of the tabs by hand.
"""

import asyncio

import pytest
from playwright.async_api import Browser

from tests.acceptance.chaos.tally import scaled
from tests.api_server import Api
from tests.browser.console import Console, see
from tests.jobs import JobMaker

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("browser")]

MOST_A_MINUTE = 40


async def test_two_tabs_left_alone_ask_at_most_40_times_a_minute_together_and_hidden_not_at_all(
    browser: Browser, api: Api, jobs: JobMaker
) -> None:
    await jobs.failed()
    minutes = scaled(1, full=10)
    async with Console.opened(browser, api) as first, Console.opened(browser, api) as second:
        asked: list[str] = []
        for console in (first, second):  # no page asks more often than the overview
            await console.sign_in()
            console.page.on("request", lambda request: asked.append(request.url))
        await asyncio.sleep(60 * minutes)  # what is measured is what happens by itself in this time
        seen = len(asked)

        for console in (first, second):
            await see(console.page, "hidden")
        asked.clear()
        await asyncio.sleep(12 * minutes)
        hidden = len(asked)

    print(f"two tabs, {minutes} minutes: {seen / minutes:.1f} requests a minute, hidden {hidden}")  # noqa: T201 - the figure
    assert 0 < seen <= MOST_A_MINUTE * minutes
    assert hidden == 0
