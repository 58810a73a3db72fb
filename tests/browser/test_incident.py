"""The incident: find the group, preview, retry with a reason, watch, read why three were rejected, cancel the rest.

By mouse, and by keyboard alone; on an api, a worker, RabbitMQ, and 20,000 jobs.
"""

import re
from typing import Final

import pytest
from playwright.async_api import Locator, Page, expect

from tests.api_server import Api
from tests.browser.console import EVERYTHING, Console
from tests.jobs import JobMaker
from tests.tokens import token
from tests.workers import a_worker

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("browser")]

_MOST_TABS: Final = 60
_COUNTED_MS: Final = 60_000
"""Failures are counted once in 5 s, and the page asks for them every 15 s."""


class Mouse:
    """Points and clicks."""

    def __init__(self, page: Page) -> None:
        self.page = page

    async def press(self, target: Locator) -> None:
        await target.click(timeout=_COUNTED_MS)

    async def type(self, target: Locator, text: str) -> None:
        await target.click()
        await self.page.keyboard.type(text)


class Keyboard:
    """Tab, Enter and letters; it never points."""

    def __init__(self, page: Page) -> None:
        self.page = page

    async def _reach(self, target: Locator) -> None:
        await expect(target).to_be_visible(timeout=_COUNTED_MS)
        for _ in range(_MOST_TABS):
            if await target.evaluate("element => element === document.activeElement"):
                return
            await self.page.keyboard.press("Tab")
        pytest.fail(f"not reached by Tab: {target}")

    async def press(self, target: Locator) -> None:
        await self._reach(target)
        await self.page.keyboard.press("Enter")

    async def type(self, target: Locator, text: str) -> None:
        await self._reach(target)
        await self.page.keyboard.type(text)


@pytest.mark.parametrize("hand", [Mouse, Keyboard])
async def test_the_incident(
    console: Console, jobs: JobMaker, database_url: str, amqp_url: str, hand: type[Mouse | Keyboard]
) -> None:
    kind = f"email.{hand.__name__.lower()}"
    failed = await jobs.make(120, status="failed", kind=kind, last_error="SMTPServerDisconnected: after 30 s")
    await jobs.make(4, status="failed", kind=kind, attempts=3, last_error="SMTPServerDisconnected: after 31 s")
    page, operator = console.page, hand(console.page)
    dialog = page.get_by_role("dialog")
    await console.sign_in()

    await operator.press(page.get_by_role("button", name=f"Retry 120 jobs of {kind}"))
    await expect(dialog).to_contain_text("120 can go back, 4 cannot.")
    await expect(dialog).to_contain_text("4: attempts used up")
    await expect(dialog.get_by_label("reason")).to_be_focused()
    await expect(dialog.get_by_role("button", name="Retry 120 jobs")).to_be_disabled()
    await operator.type(dialog.get_by_label("reason"), "the mail server is back")
    await operator.press(dialog.get_by_role("button", name="Retry 120 jobs"))
    await expect(dialog).to_contain_text("0 of 120")

    for job in failed[:3]:  # they change after the request, so a retry no longer fits them
        await jobs.fail_again(job)
    async with a_worker(database_url, amqp_url):
        await expect(dialog).to_contain_text("Done. 117 went back · 3 rejected", timeout=_COUNTED_MS)
    await expect(dialog.get_by_text("the job had changed after the request")).to_have_count(3)
    await expect(dialog.locator(".now")).to_have_text(re.compile("Of the newest 50 that went back, now: +50 pending"))
    await operator.press(dialog.get_by_role("button", name="Close").last)
    await expect(dialog).to_have_count(0)

    await operator.press(page.get_by_role("button", name=f"Retry 3 jobs of {kind}"))
    await operator.type(dialog.get_by_label("reason"), "once more")
    await operator.press(dialog.get_by_role("button", name="Retry 3 jobs"))
    await operator.press(dialog.get_by_role("link", name="the batch's own page"))
    await operator.press(page.get_by_role("button", name="Cancel what is still queued…"))
    await operator.press(page.get_by_role("button", name="Cancel 3 queued"))
    await expect(page.locator("main")).to_contain_text(re.compile(r"Done\.\s+3 cancelled"))


async def test_a_few_of_a_group_are_tried_before_the_others(
    console: Console, jobs: JobMaker, database_url: str, amqp_url: str
) -> None:
    page, dialog = console.page, console.page.get_by_role("dialog")
    failed = await jobs.make(12, status="failed", kind="trial", last_error="TimeoutError: upstream")
    await jobs.make(3, status="failed", kind="trial", last_error="ConnectionResetError: upstream")
    await console.sign_in(view="#/failures?type=trial")
    await page.get_by_role("button", name="Retry 3 jobs").click()
    await expect(dialog).to_contain_text("3 can go back")
    await expect(dialog.get_by_role("combobox", name="retry")).to_have_count(0)  # so few are few already
    await page.keyboard.press("Escape")

    await page.get_by_role("button", name="Retry 12 jobs").click()
    await dialog.get_by_label("reason").fill("upstream is back")
    await dialog.get_by_role("combobox", name="retry").select_option("5 first, to see how they fare")
    await dialog.get_by_role("button", name="Retry the first 5 jobs").click()
    async with a_worker(database_url, amqp_url):
        await expect(dialog).to_contain_text("Done. 5 went back", timeout=_COUNTED_MS)
        await expect(dialog.locator(".now")).to_have_text(re.compile("Of these, now: +5 pending"), timeout=_COUNTED_MS)

        batch = await dialog.get_by_role("link", name="the batch's own page").get_attribute("href")
        for job in failed:
            await jobs.fail_again(job, last_error="TimeoutError: upstream")
        await dialog.get_by_role("button", name="Go on…").click()
        await expect(dialog).to_contain_text("12 can go back")
        await expect(dialog.get_by_label("reason")).to_be_focused()
        await expect(dialog.get_by_label("reason")).to_have_value("upstream is back")
        await dialog.get_by_role("combobox", name="retry").select_option("5 first, to see how they fare")
        await dialog.get_by_role("button", name="Retry the first 5 jobs").click()
        await expect(dialog.get_by_role("link", name="the batch's own page")).not_to_have_attribute("href", batch or "")
        await expect(dialog).to_contain_text("Done. 5 went back", timeout=_COUNTED_MS)

        await dialog.get_by_role("button", name="Go on…").click()
        await expect(dialog).to_contain_text("7 can go back")
        await dialog.get_by_role("button", name="Retry 7 jobs").click()
        await expect(dialog).to_contain_text("Done. 7 went back", timeout=_COUNTED_MS)
    await expect(dialog.get_by_role("button", name="Go on…")).to_have_count(0)


async def test_a_retry_that_went_back_says_what_its_job_is_now(
    console: Console, api: Api, jobs: JobMaker, database_url: str, amqp_url: str
) -> None:
    page, mine = console.page, token(project_id="now", scope=EVERYTHING)
    again, done = await jobs.make(2, status="failed", kind="pay", project_id="now")
    body = {"ids": [str(again.id), str(done.id)], "reason": "try again"}
    batch = (await api.post("/api/jobs/retry?dry_run=false", body, token=mine)).data["batch_id"]
    async with a_worker(database_url, amqp_url):
        await page.goto(f"{console.url}#token={mine}")
        await console.go(f"#/batches/{batch}")
        await expect(page.locator(".now")).to_have_text(re.compile("Of these, now: +2 pending"), timeout=_COUNTED_MS)
    await jobs.fail_again(again)
    await jobs.pool.execute("UPDATE control_plane.jobs SET status = 'completed' WHERE id = $1::uuid", str(done.id))

    await expect(page.locator(".now")).to_have_text(
        re.compile("Of these, now: +1 failed again +1 completed"), timeout=_COUNTED_MS
    )
    await page.get_by_role("link", name="all its retries").click()
    rows = page.locator("table.retries tbody tr")
    await expect(rows.filter(has_text=str(again.id)[:8])).to_contain_text("went back to pending; now failed again")
    await expect(rows.filter(has_text=str(done.id)[:8])).to_contain_text("went back to pending; now completed")
