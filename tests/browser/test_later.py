"""What is read later than the first page, and what is asked for before it is there."""

import pytest
from playwright.async_api import Page, expect

from tests.browser.console import PAGES, Console, hold, see, until_read
from tests.jobs import JobMaker
from tests.tokens import token

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("browser")]

HEADINGS = {
    "#/": "Overview",
    "#/failures": "Failures",
    "#/jobs": "Jobs",
    "#/retries": "Retries",
    "#/batches": "Batches",
    "#/dead": "Dead letters",
    "#/me": "You",
}


async def test_the_code_of_every_page_is_read_ahead_and_there_when_the_server_is_away(
    console: Console, jobs: JobMaker
) -> None:
    await jobs.many_failed(3)
    page = console.page
    await console.sign_in(view="#/jobs")
    await until_read(page, PAGES)
    await page.route("**/*", lambda route: route.abort())

    for view, heading in HEADINGS.items():
        await page.evaluate("view => { location.hash = view; }", view)
        await expect(page.locator("main h1")).to_have_text(heading)
        await expect(page.locator("main h1")).to_be_focused()


async def test_a_page_whose_code_cannot_be_read_says_so_and_is_read_when_it_is_asked_for_again(
    console: Console,
) -> None:
    page = console.page
    await page.clock.install()
    await page.route("**/console/failures.mjs", lambda route: route.abort())
    await console.sign_in()
    await page.evaluate("location.hash = '#/failures'")
    await expect(page.get_by_role("alert")).to_contain_text("could not be loaded")

    await page.unroute_all()
    await page.clock.run_for(30_000)  # it takes a while to see to the network
    await page.get_by_role("button", name="try again").click()

    await expect(page.locator("main h1")).to_have_text("Failures")
    await expect(page.locator("main h1")).to_be_focused()
    await expect(page.get_by_role("alert")).to_have_count(0)


async def test_a_dialog_whose_code_cannot_be_read_says_so_in_its_place_and_can_be_closed(
    console: Console, jobs: JobMaker
) -> None:
    await jobs.make(3, status="failed", kind="dialog")
    page, dialog = console.page, console.page.get_by_role("dialog")
    await page.route("**/console/bulk.mjs", lambda route: route.abort())
    await console.sign_in(view="#/failures?type=dialog")
    retry = page.get_by_role("button", name="Retry 3 jobs")
    await retry.click()
    await expect(dialog.get_by_role("alert")).to_contain_text("could not be loaded")
    await dialog.get_by_role("button", name="Close").click()
    await expect(dialog).to_have_count(0)
    await page.unroute_all()

    await retry.click()

    await expect(dialog).to_contain_text("3 can go back")
    await expect(dialog.get_by_label("reason")).to_be_focused()


async def test_a_page_that_is_opened_first_has_the_focus_on_its_heading(console: Console) -> None:
    page = console.page
    held = await hold(page, "console/retries.mjs")
    await console.sign_in()
    await page.evaluate("location.hash = '#/retries'")
    await expect(page.locator("main .loading")).to_have_text("Loading…")

    await held[0].continue_()

    await expect(page.locator("main h1")).to_be_focused()
    await expect(page.locator("main h1")).to_have_text("Retries")


async def test_nothing_is_read_ahead_before_the_sign_in(console: Console) -> None:
    asked: list[str] = []
    page = console.page
    page.on("request", lambda request: asked.append(request.url.rpartition("/")[2]))
    await page.clock.install()
    await page.goto(console.url)
    await expect(page.get_by_label("token", exact=True)).to_be_focused()
    await page.clock.run_for(5_000)

    assert "bulk.mjs" not in asked
    assert "signin.mjs" in asked


def asked_by(page: Page) -> list[str]:
    """What the page asks the API for from now on, without the host."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.partition("/api/")[2]))
    return asked


async def test_what_the_first_page_asks_for_early_is_asked_for_once(console: Console) -> None:
    page = console.page
    asked = asked_by(page)
    held = await hold(page, "console/main.mjs")
    async with page.expect_response("**/api/jobs/series"):  # before there is a page to show it
        await page.goto(f"{console.url}#token={token()}", wait_until="commit")

    await held[0].continue_()

    await expect(page.locator("main h1")).to_have_text("Overview")
    await expect(page.locator(".loading")).to_have_count(0)
    for path in ("me", "jobs/stats", "failures", "retries/stats", "retry-batches?limit=5", "jobs/series"):
        assert asked.count(path) == 1, path


async def test_the_page_of_a_link_with_a_token_is_read_before_it_is_known_who_asks(console: Console) -> None:
    page = console.page
    held = await hold(page, "api/me")

    async with page.expect_response("**/console/overview.mjs"):
        await page.goto(f"{console.url}#token={token()}", wait_until="commit")

    await held[0].continue_()
    await expect(page.locator("main h1")).to_have_text("Overview")


async def test_an_early_answer_is_for_those_alone_who_sign_in_with_its_token(console: Console, jobs: JobMaker) -> None:
    await jobs.make(3, status="failed", kind="early", project_id="early")
    page = console.page
    held = await hold(page, "console/overview.mjs")
    async with page.expect_response("**/api/jobs/stats") as early:
        await page.goto(f"{console.url}#token={token(project_id='early')}", wait_until="commit")
    assert (await (await early.value).json())["data"]["failed"]["count"] == 3
    await expect(page.locator("main .loading")).to_have_text("Loading…")

    async with page.expect_response("**/api/me"):
        await page.evaluate("token => { location.hash = `#token=${token}`; }", token(project_id="empty"))
    await expect(page.locator("a.me")).to_contain_text("empty")
    await held[0].continue_()

    await expect(page.locator("a.count.failed strong")).to_have_text("0")


async def test_nothing_is_asked_for_early_with_a_token_that_is_no_good(console: Console) -> None:
    page = console.page
    asked = asked_by(page)

    await page.goto(f"{console.url}#token={token(exp=1)}")

    await expect(page.get_by_label("token", exact=True)).to_be_focused()
    assert set(asked) - {""} == {"me"}


async def test_an_early_answer_that_has_waited_is_asked_for_anew(console: Console) -> None:
    page = console.page
    asked = asked_by(page)
    await page.clock.install()
    held = await hold(page, "console/main.mjs")
    async with page.expect_response("**/api/jobs/stats"):
        await page.goto(f"{console.url}#token={token()}", wait_until="commit")
    await page.clock.run_for(6_000)

    await held[0].continue_()

    await expect(page.locator("a.count.failed strong")).to_be_visible()
    assert asked.count("jobs/stats") == 2


async def test_a_tab_that_is_hidden_while_an_early_answer_is_due_reads_it_when_it_is_seen_again(
    console: Console,
) -> None:
    page = console.page
    held = await hold(page, "api/jobs?status=completed*")
    await console.open_signed_in("#/jobs?status=completed")
    await expect(page.locator(".loading")).to_have_text("Reading the jobs…")
    await see(page, "hidden")
    await held[0].continue_()
    await page.unroute_all()

    await see(page, "visible")

    await expect(page.locator("table.rows tbody tr").first).to_be_visible()


async def test_a_page_that_is_opened_behind_others_asks_for_nothing_early(console: Console) -> None:
    page = console.page
    asked = asked_by(page)
    await page.add_init_script("Object.defineProperty(document, 'visibilityState', {get: () => 'hidden'})")
    await console.sign_in()
    await until_read(page, ["overview", "groups"])

    assert "me" in asked
    assert not {"jobs/stats", "failures", "jobs/series"} & set(asked)
