"""Every page: nothing fails in it, nothing is blocked, nothing that it shows runs, and axe finds nothing."""

import json
import re
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Locator, Route, expect

from tests.api_server import Api, Serve
from tests.browser.console import EVERYTHING, Console, hold, see
from tests.jobs import JobMaker, MadeJob
from tests.tokens import token

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("browser")]

EARLY_S = 30
"""How long before its end the page asks for a new token."""
PAYLOAD = '{"big": 12345678901234567890123, "text": "\\"payload\\":{"}'
HOSTILE = "<img src=x onerror='window.ran=1'>\u202e<script>window.ran=1</script>"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def failed(jobs: JobMaker, api: Api) -> AsyncIterator[MadeJob]:
    """A project in trouble: two groups of failures, hostile text in types, errors, payloads and reasons, one batch."""
    await jobs.make(30, status="failed", kind="email.send", last_error="SMTPServerDisconnected: after 30 s")
    await jobs.make(2, status="failed", kind="email.send", attempts=3, last_error="CardDeclined: no funds")
    job = await jobs.failed(kind=HOSTILE, last_error=f"{HOSTILE}\n" + "x" * 100_000)
    body = {"filter": {"type": "email.send"}, "max": 100, "reason": HOSTILE}
    assert (await api.post("/api/jobs/retry?dry_run=false", body, token=token(scope=EVERYTHING))).status == 202
    yield job


async def views_of(api: Api, job: MadeJob) -> list[str]:
    batch = (await api.get("/api/retry-batches")).data[-1]
    return [
        "#/", "#/failures", "#/jobs", "#/jobs?status=completed", f"#/jobs/{job.id}", "#/retries", "#/batches",
        f"#/batches/{batch['id']}", "#/dead", "#/me", "#/nowhere",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("theme", "width"),
    [("light", 1440), ("dark", 1440), ("light", 1024), ("dark", 1024), ("light", 390), ("dark", 390)],
)
async def test_no_page_has_an_error_a_violation_or_a_fault_that_axe_finds(
    browser: Browser, api: Api, failed: MadeJob, theme: str, width: int
) -> None:
    async with Console.opened(browser, api, theme=theme, width=width) as console:
        await console.sign_in()
        for view in await views_of(api, failed):
            await console.go(view)
            await look_for_faults(console, view)
        await console.go("#/failures")
        await console.page.get_by_role("button", name="Retry").first.click()
        await expect(console.page.locator("dialog .verdict")).to_contain_text("can go back")
        await look_for_faults(console, "the bulk dialog")
        await console.page.goto("about:blank")
        await console.page.goto(console.url)
        await console.page.get_by_label("token", exact=True).fill(token(sub=HOSTILE))
        await look_for_faults(console, "the sign-in")


async def look_for_faults(console: Console, where: str) -> None:
    """Nothing that axe finds, nothing wider than the window, nothing that ran, no error and no violation."""
    found = await Axe().run(console.page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa"]})
    assert found.violations_count == 0, f"{where}: {found.generate_report()}"
    assert await console.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), where
    assert await console.page.evaluate("window.ran === undefined"), where
    await console.check()


async def test_the_token_leaves_the_address_bar_and_is_kept_only_where_that_is_ticked(console: Console) -> None:
    page = console.page
    await console.sign_in()

    assert page.url == f"{console.url}#/"
    assert await page.evaluate("JSON.stringify([sessionStorage, localStorage, document.cookie])") == '[{},{},""]'
    await page.reload()
    await expect(page.get_by_text("Paste a token of your project.")).to_be_visible()

    await page.get_by_label("token", exact=True).fill(token(scope="jobs:read"))
    await expect(page.get_by_role("definition").filter(has_text="alice")).to_be_visible()  # the claims, before its use
    await page.get_by_label("keep it for this tab").check()
    await page.get_by_role("button", name="Use this token").click()
    await expect(page.locator("main h1")).to_have_text("Overview")
    await page.reload()
    await expect(page.locator("main h1")).to_have_text("Overview")


async def test_a_token_that_only_reads_finds_reasons_in_place_of_buttons(console: Console, failed: MadeJob) -> None:
    await console.sign_in(scope="jobs:read", view="#/failures")
    await expect(console.page.get_by_text("Your token lacks the scope jobs:retry:bulk.")).to_be_visible()
    assert await console.page.get_by_role("button", name="Retry").count() == 0

    await console.go(f"#/jobs/{failed.id}")
    await expect(console.page.get_by_text("Your token lacks the scope jobs:retry.")).to_be_visible()
    await expect(console.page.get_by_text("Your token lacks the scope jobs:payload.")).to_be_visible()


async def test_hostile_payloads_and_lines_of_a_megabyte_are_text(console: Console, jobs: JobMaker) -> None:
    page = console.page
    long = HOSTILE + "x" * 1_000_000
    (job,) = await jobs.make(
        1,
        status="failed",
        kind="hostile",
        last_error=long[:65_000],
        payload=json.dumps({HOSTILE: HOSTILE, "long": long, "escapes": "\n" * 1_000_000}),
    )
    await console.sign_in(view=f"#/jobs/{job.id}")

    await page.get_by_role("button", name="Show the payload").click()
    await expect(page.locator("pre.payload")).to_contain_text("<img src=x onerror='window.ran=1'>\\u202e<script>")
    assert len(await page.locator("pre.payload").inner_text()) > 1_000_000
    await page.get_by_role("button", name="unfold it all").click()
    await expect(page.locator("pre").first).to_contain_text("\\u202e<script>window.ran=1</script>xxx")
    await look_for_faults(console, "a job with long hostile text")


async def test_halves_of_surrogate_pairs_are_spelled_out(console: Console, jobs: JobMaker) -> None:
    page = console.page
    job = await jobs.failed(kind="halves")
    halves = r"\ud800<b>\udc00</b>\ude00"

    async def change(route: Route) -> None:
        answer = await route.fetch()
        body = (await answer.text()).replace('"it broke"', f'"{halves}"').replace('"halves"', f'"{halves}"')
        body = body.replace('"payload":{}', f'"payload":{{"{halves}":"{halves}"}}')
        await route.fulfill(response=answer, body=body)

    await page.route(f"**/api/jobs/{job.id}*", change)
    await console.sign_in(view=f"#/jobs/{job.id}")
    await page.get_by_role("button", name="Show the payload").click()

    await expect(page.locator("main h1")).to_have_text(halves)
    await expect(page.locator("main pre").first).to_have_text(halves)
    await expect(page.locator("pre.payload")).to_contain_text(f'"{halves}": "{halves}"')
    await page.unroute_all(behavior="ignoreErrors")  # the page waits for the next change


async def test_numbers_of_a_payload_keep_their_digits(console: Console, jobs: JobMaker) -> None:
    (job,) = await jobs.make(1, status="completed", payload=PAYLOAD)
    await console.sign_in(view=f"#/jobs/{job.id}")

    await console.page.get_by_role("button", name="Show the payload").click()

    await expect(console.page.locator("pre.payload")).to_contain_text('"big": 12345678901234567890123')
    await expect(console.page.locator("pre.payload")).to_contain_text('"text": "\\"payload\\":{"')


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (429, '{"code":"rate-limited","status":429}', "used up its share of requests"),
        (503, '{"code":"unavailable","status":503}', "away or too slow"),
        (403, '{"code":"insufficient-scope","status":403}', "does not permit this"),
        (502, "<html>bad gateway</html>", "Something in between answered"),
    ],
)
async def test_a_refusal_is_said_in_words_with_its_request_id(
    console: Console, status: int, body: str, words: str
) -> None:
    kind = "text/html" if body.startswith("<") else "application/problem+json"
    headers = {"Content-Type": kind, "X-Request-Id": "request-77", "Retry-After": "9"}
    await console.page.route("**/api/failures*", lambda route: route.fulfill(status=status, headers=headers, body=body))

    await console.sign_in()
    await console.page.evaluate("location.hash = '#/failures'")

    alert = console.page.get_by_role("alert")
    await expect(alert).to_contain_text(words)
    await expect(alert).to_contain_text("request-77")


class Refused(NamedTuple):
    """A view, and how what it asks for is answered."""

    view: str
    asked: str
    status: int
    code: str
    words: str


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(
    "refused",
    [
        Refused("#/", "jobs/stats", 503, "unavailable", "away or too slow"),
        Refused("#/", "failures", 429, "rate-limited", "Try again in"),
        Refused("#/failures", "failures*", 403, "insufficient-scope", "does not permit this"),
        Refused("#/jobs?error=x", "jobs?*", 503, "unavailable", "away or too slow"),
        Refused("#/jobs?within=x", "jobs?*", 400, "invalid-parameter", "One of the filters cannot be read."),
        Refused("#/jobs/{job}", "jobs/*", 404, "job-not-found", "no such job in this project"),
        Refused("#/jobs/{job}", "jobs/*", 409, "job-unreadable", "something that cannot be shown"),
        Refused("#/retries", "retries?*", 503, "unavailable", "away or too slow"),
        Refused("#/batches", "retry-batches?*", 429, "rate-limited", "Try again in"),
        Refused("#/batches/{job}", "retry-batches/*", 404, "not-found", "There is nothing here."),
        Refused("#/dead", "retries?*", 403, "insufficient-scope", "does not permit this"),
    ],
)
async def test_a_page_that_is_refused_says_so_without_a_fault(
    browser: Browser, api: Api, failed: MadeJob, theme: str, refused: Refused
) -> None:
    view, asked, status, code, words = refused
    headers = {"Content-Type": "application/problem+json", "X-Request-Id": "request-78", "Retry-After": "9"}
    body = json.dumps({"code": code, "status": status})
    async with Console.opened(browser, api, theme=theme, width=390) as console:
        page = console.page
        await page.clock.install()
        await console.sign_in(view="#/me")
        await page.route(f"**/api/{asked}", lambda route: route.fulfill(status=status, headers=headers, body=body))
        await page.evaluate("view => { location.hash = view; }", view.format(job=failed.id))

        await expect(page.get_by_role("alert").first).to_contain_text(words)
        await expect(page.get_by_role("alert").first).to_contain_text("request-78")
        await look_for_faults(console, f"{view} refused with {status}")
        if status in (429, 503):
            await page.unroute_all()
            await page.clock.run_for(10_000)
            await expect(page.get_by_role("alert")).to_have_count(0)


async def test_a_token_that_expires_in_the_bulk_dialog_loses_nothing_that_was_typed(
    console: Console, jobs: JobMaker
) -> None:
    page = console.page
    await jobs.make(3, status="failed", kind="short.lived", last_error="HTTPError: 503")
    await console.sign_in(view="#/failures?type=short.lived", ttl_s=EARLY_S + 8)
    await page.get_by_role("button", name="Retry 3 jobs of short.lived").click()
    bulk = page.get_by_role("dialog", name="Retry short.lived")
    await bulk.get_by_label("spread").select_option("over 5 minutes")
    await bulk.get_by_label("extra attempts").select_option("2")
    await bulk.get_by_label("reason").fill("the gateway is back")

    again = page.get_by_role("dialog", name="Sign in again")
    await expect(again).to_be_visible()
    for _ in range(3):
        await page.keyboard.press("Escape")  # it is not to be dismissed: nothing works without a token
    await again.get_by_label("token", exact=True).fill(token(scope=EVERYTHING))
    await again.get_by_role("button", name="Use this token").click()
    await expect(again).to_have_count(0)

    await expect(bulk.get_by_label("reason")).to_be_focused()
    await expect(bulk.get_by_label("reason")).to_have_value("the gateway is back")
    await expect(bulk.get_by_label("spread")).to_have_value("300")
    await bulk.get_by_role("button", name="Retry 3 jobs").click()
    await expect(bulk).to_contain_text("0 of 3")
    asked = await jobs.pool.fetchrow(
        "SELECT reason, extra_attempts FROM redrive.retry_requests WHERE reason IS NOT NULL ORDER BY requested_at DESC"
    )
    assert asked is not None
    assert tuple(asked) == ("the gateway is back", 2)


async def test_a_token_that_the_api_refuses_in_a_panel_loses_nothing_that_was_typed(
    console: Console, failed: MadeJob
) -> None:
    page = console.page
    await console.sign_in(view=f"#/jobs/{failed.id}")
    await page.get_by_label("reason").fill("the mail server is back")
    refused = '{"code":"invalid-token","status":401}'
    await page.route(
        "**/retry", lambda route: route.fulfill(status=401, content_type="application/problem+json", body=refused)
    )
    await page.get_by_role("button", name="Retry this job").click()

    await expect(page.get_by_role("dialog")).to_contain_text("Sign in again")
    await page.get_by_role("dialog").get_by_label("token", exact=True).fill(token(scope=EVERYTHING))
    await page.get_by_role("button", name="Use this token").click()

    await expect(page.get_by_role("dialog")).to_have_count(0)
    await expect(page.locator("main h1")).to_contain_text("<img")
    await expect(page.get_by_label("reason")).to_have_value("the mail server is back")


async def test_a_hidden_tab_asks_for_nothing(console: Console, api: Api, failed: MadeJob) -> None:
    page = console.page
    await page.clock.install()
    await console.sign_in()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for view in await views_of(api, failed):
        await console.go(view)
        await see(page, "hidden")
        asked.clear()

        await page.clock.run_for(600_000)

        assert asked == [], view
        await see(page, "visible")


async def test_the_timeline_of_a_job_is_in_the_order_in_which_it_happened(console: Console, jobs: JobMaker) -> None:
    page = console.page
    job = await jobs.failed(kind="in.order")
    await console.sign_in(view=f"#/jobs/{job.id}")
    await page.get_by_role("button", name="Retry this job").click()
    await page.get_by_role("button", name="Take it back").click()
    await expect(page.get_by_role("button", name="Retry this job")).to_be_visible()

    await expect(page.locator(".timeline li").first).to_contain_text("retry cancelled")
    await expect(page.locator(".timeline li").nth(1)).to_contain_text("failed")
    await expect(page.locator(".timeline li").last).to_contain_text("created")
    await expect(page.locator(".timeline time").first).to_have_text(re.compile(r"\d\d:\d\d:\d\d$"))


async def test_the_statuses_say_how_many_jobs_each_has(console: Console, jobs: JobMaker) -> None:
    await jobs.make(3, status="failed", project_id="counted")
    await jobs.make(2, status="completed", project_id="counted")
    await console.page.goto(f"{console.url}#token={token(project_id='counted', scope=EVERYTHING)}")
    await console.go("#/jobs")

    statuses = console.page.get_by_role("navigation", name="status").get_by_role("link")

    await expect(statuses).to_have_text(["failed 3", "running 0", "pending 0", "completed 2", "any"])
    await expect(statuses.first).to_have_attribute("aria-current", "true")


async def test_a_status_is_one_click_away_and_opens_a_window_of_its_own_where_a_key_is_held(
    console: Console, jobs: JobMaker
) -> None:
    await jobs.make(1, status="completed", kind="one.click", project_id="clicked")
    await console.page.goto(f"{console.url}#token={token(project_id='clicked', scope=EVERYTHING)}")
    await console.go("#/jobs?error=what")
    completed = console.page.get_by_role("link", name="completed")

    async with console.page.context.expect_page() as opened:
        await completed.click(modifiers=["Control"])
    assert (await opened.value).url.endswith("#/jobs?status=completed")
    assert console.page.url.endswith("#/jobs?error=what")

    await completed.click()
    await expect(console.page.get_by_role("link", name="one.click")).to_be_visible()
    await expect(completed).to_be_focused()
    await expect(console.page.locator(".tabs [aria-current]")).to_have_text(["completed 1"])
    assert console.page.url.endswith("#/jobs?status=completed")


@pytest.mark.parametrize("width", [320, 390, 1440])
async def test_an_address_with_any_status_is_shown_as_wide_as_the_window(
    browser: Browser, api: Api, width: int
) -> None:
    capped = '{"count": 10000, "capped": true, "oldest_at": null}'
    counts = ", ".join(f'"{name}": {capped}' for name in ("pending", "running", "failed", "completed", "other"))
    body = f'{{"data": {{{counts}}}, "as_of": "2026-11-26T00:00:00Z"}}'
    async with Console.opened(browser, api, width=width) as console:
        page = console.page
        await page.route("**/api/jobs/stats*", lambda route: route.fulfill(content_type="application/json", body=body))
        await console.sign_in(view="#/jobs")

        for status in ("__proto__", "constructor", "", "a_status_" * 10):
            await console.go(f"#/jobs?status={status}")
            await expect(page.locator(".tabs a").first).to_have_text(re.compile("failed +10,000[+]"))
            await expect(page.locator(".tabs [aria-current]")).to_contain_text(status or "failed")
            assert await page.evaluate("document.documentElement.scrollWidth") <= width, status
        assert await page.evaluate("Object.getOwnPropertyNames(Object.prototype).filter(name => name.length < 4)") == []


async def test_typing_and_a_click_right_after_it_are_both_kept(console: Console) -> None:
    page = console.page
    await console.sign_in(view="#/retries")

    await page.get_by_label("who").fill("night-shift")
    await page.get_by_role("link", name="rejected").click()

    await page.wait_for_url("**/#/retries?state=rejected&actor=night-shift")
    await expect(page.locator(".tabs [aria-current]")).to_have_text(["rejected"])


async def test_all_that_match_is_not_offered_where_a_bulk_retry_would_take_others_too(
    console: Console, jobs: JobMaker
) -> None:
    page = console.page
    await jobs.make(60, status="failed", kind="used.up", attempts=3, project_id="used")
    await page.goto(f"{console.url}#token={token(project_id='used', scope=EVERYTHING)}")
    offer = page.get_by_role("button", name="Select all that match")
    for view, offered in (("#/jobs", 1), ("#/jobs?retryable=false", 0)):
        await console.go(view)
        await expect(page.locator("table.jobs tbody tr")).to_have_count(50)
        await page.get_by_label("Select all shown").click()
        await expect(page.get_by_role("region", name="Selected jobs")).to_contain_text("50 jobs selected")
        await expect(offer).to_have_count(offered)
        await expect(page.get_by_text("All that match cannot be chosen")).to_have_count(1 - offered)


async def test_a_group_that_needs_extra_attempts_is_opened_with_one(console: Console, jobs: JobMaker) -> None:
    page = console.page
    await jobs.make(2, status="failed", kind="used.up", attempts=3, project_id="extra")
    await page.goto(f"{console.url}#token={token(project_id='extra', scope=EVERYTHING)}")
    await console.go("#/failures")

    await page.get_by_role("button", name="Needs extra attempts").click()

    dialog = page.get_by_role("dialog")
    await expect(dialog.get_by_label("extra attempts")).to_have_value("1")
    await expect(dialog).to_contain_text("2 can go back")


async def test_groups_are_found_by_their_text_and_show_their_share_of_the_largest(
    console: Console, jobs: JobMaker
) -> None:
    page = console.page
    await jobs.make(4, status="failed", kind="mail.send", last_error="Refused: 1", project_id="shares")
    await jobs.make(1, status="failed", kind="image.resize", last_error="Timeout: 2", project_id="shares")
    await page.goto(f"{console.url}#token={token(project_id='shares', scope=EVERYTHING)}")
    await console.go("#/failures")
    rows = page.locator("table.groups tbody tr")
    await expect(rows).to_have_count(2)
    assert [await bar.get_attribute("width") for bar in await page.locator(".amount rect").all()] == ["100", "25"]

    await page.keyboard.press("/")
    await page.keyboard.type("TIMEOUT")

    await expect(rows).to_have_count(1)
    await expect(rows).to_contain_text("image.resize")
    await expect(page.get_by_text("5 failed in 2 groups, of which 1 matches.")).to_be_visible()
    assert await page.locator(".amount rect").get_attribute("width") == "25"
    assert page.url.endswith("#/failures?find=TIMEOUT")
    await page.keyboard.type("?")
    await expect(page.get_by_text("No group matches.")).to_be_visible()
    await page.get_by_role("link", name="Look into the errors").click()
    assert page.url.endswith("#/jobs?error=TIMEOUT%3F")


async def test_a_phone_shows_jobs_in_its_upper_half_and_the_retry_right_below_the_error(
    browser: Browser, api: Api, failed: MadeJob
) -> None:
    async with Console.opened(browser, api, width=390, height=844) as phone:
        await phone.sign_in(view="#/jobs")
        first_y = await _top_of(phone.page.locator("table.jobs tbody tr").first)
        await phone.go(f"#/jobs/{failed.id}")
        headings = phone.page.get_by_role("heading", level=2)
        await expect(headings).to_have_count(5)
        seen = sorted([(await _top_of(each), await each.inner_text()) for each in await headings.all()])

    assert first_y < 844 / 2
    assert [words for _, words in seen] == ["The error", "The way back", "What happened", "Payload", "Facts"]


async def _top_of(element: Locator) -> float:
    box = await element.bounding_box()
    assert box is not None
    return box["y"]


async def test_a_job_is_found_by_its_id(console: Console, failed: MadeJob) -> None:
    page = console.page
    await console.sign_in(view="#/jobs")

    await page.get_by_label("job id").fill(f" {failed.id} ")
    await page.get_by_label("job id").press("Enter")

    await expect(page.locator("main h1")).to_contain_text("<img")
    await page.get_by_role("link", name="all failures of this type").click()
    await expect(page.locator("table.groups tbody tr")).to_have_count(1)


async def test_the_pages_first_words_are_gone_once_it_is_there(console: Console) -> None:
    await console.page.goto(console.url)
    await expect(console.page.get_by_label("token", exact=True)).to_be_focused()
    await expect(console.page.get_by_text("Loading the console")).to_have_count(0)

    await console.sign_in()
    await expect(console.page.get_by_text("Loading the console")).to_have_count(0)


async def test_a_link_that_is_opened_while_the_api_is_away_signs_in_once_it_is_back(console: Console) -> None:
    page = console.page
    await page.route("**/api/**", lambda route: route.abort())
    await page.goto(f"{console.url}#token={token(scope=EVERYTHING)}")
    await expect(page.get_by_role("alert")).to_contain_text("The API does not answer")

    await page.unroute_all()
    await page.get_by_role("button", name="try again").click()

    await expect(page.locator("main h1")).to_have_text("Overview")
    assert page.url == f"{console.url}#/"


async def test_a_bad_link_in_a_window_that_is_signed_in_ends_that_session(console: Console) -> None:
    await console.sign_in()
    await console.page.evaluate("location.hash = '#token=a.b.c'")

    await expect(console.page.get_by_role("alert")).to_contain_text("invalid-token")
    await expect(console.page.get_by_label("token", exact=True)).to_be_visible()


async def test_a_link_with_a_token_that_is_none_leads_to_the_sign_in(console: Console) -> None:
    for wrong in ("%", "%ff", "a.b.c"):
        await console.page.goto("about:blank")
        await console.page.goto(f"{console.url}#token={wrong}")
        await expect(console.page.get_by_role("alert")).to_contain_text("invalid-token")
        assert console.page.url == f"{console.url}#/"


async def test_a_read_only_deployment_has_no_retry_buttons_and_says_why(
    browser: Browser, database_url: str, serve: Serve, failed: MadeJob
) -> None:
    api = await serve(database_url, console="on", read_only=True)
    async with Console.opened(browser, api) as console:
        for view in ("#/failures", f"#/jobs/{failed.id}"):
            await console.sign_in(view=view)
            await expect(console.page.locator("p.banner")).to_contain_text("read-only")
            await expect(console.page.locator("main")).to_contain_text("it shows jobs and changes none")
            assert await console.page.get_by_role("button", name="Retry").count() == 0
            await console.page.goto("about:blank")


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [(412, "job-changed", "The job has changed since you looked"), (409, "job-not-failed", "no longer failed")],
)
async def test_a_retry_that_is_refused_says_why_and_keeps_what_was_typed(
    console: Console, failed: MadeJob, status: int, code: str, words: str
) -> None:
    page = console.page
    await console.sign_in(view=f"#/jobs/{failed.id}")
    body = f'{{"code":"{code}","status":{status}}}'
    await page.route(
        "**/retry", lambda route: route.fulfill(status=status, content_type="application/problem+json", body=body)
    )
    await page.get_by_label("reason").fill("the mail server is back")

    await page.get_by_role("button", name="Retry this job").click()

    await expect(page.get_by_role("alert")).to_contain_text(words)
    await expect(page.get_by_label("reason")).to_have_value("the mail server is back")


async def test_an_api_that_is_lost_is_said_and_the_page_goes_on_once_it_is_back(console: Console) -> None:
    page = console.page
    await page.clock.install()
    await console.sign_in(view="#/failures")
    rows = await page.locator("table.groups tbody tr").count()
    await page.route("**/api/**", lambda route: route.abort())
    await page.clock.run_for(60_000)
    await expect(page.get_by_role("alert").first).to_contain_text("The API does not answer")
    assert await page.locator("table.groups tbody tr").count() == rows  # what it had is kept

    await page.unroute_all()
    await page.clock.run_for(12_000)  # less than the 20 s after which the page takes a call for lost

    await expect(page.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize("width", [390, 720, 1440])
async def test_long_names_and_many_words_make_no_page_wider_than_its_window(
    browser: Browser, api: Api, jobs: JobMaker, width: int
) -> None:
    """720 pixels are a window of 1440 at 200 %."""
    long, words = "VeryLongNameWithoutAnyBreak" * 15, "because the night shift says so " * 15
    job = await jobs.failed(kind=long, last_error=long, project_id="long")
    long_token = token(project_id="long", sub=long[:200], scope=EVERYTHING)
    body = {"filter": {}, "max": 9, "reason": words}
    assert (await api.post("/api/jobs/retry?dry_run=false", body, token=long_token)).status == 202
    (batch,) = (await api.get("/api/retry-batches?limit=1", token=long_token)).data
    async with Console.opened(browser, api, width=width) as console:
        await console.page.goto(f"{console.url}#token={long_token}")
        await expect(console.page.locator("main h1")).to_have_text("Overview")
        for view in (
            "#/",
            "#/failures",
            "#/jobs",
            f"#/jobs/{job.id}",
            "#/retries",
            "#/batches",
            f"#/batches/{batch['id']}",
        ):
            await console.go(view)
            assert await console.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view


async def test_a_project_without_jobs_and_tokens_that_may_little_find_words_on_every_page(
    browser: Browser, api: Api, failed: MadeJob
) -> None:
    tokens = {
        "a project without jobs": token(project_id="empty", scope=EVERYTHING),
        "no scope named": token(),
        "no scope at all": token(scope=""),
        "one job alone": token(jobs=[str(failed.id)]),
    }
    for case, given in tokens.items():
        async with Console.opened(browser, api) as console:
            await console.page.goto(f"{console.url}#token={given}")
            await expect(console.page.locator("main h1")).to_have_text("Overview")
            for view in await views_of(api, failed):
                await console.go(view)
                assert await console.page.locator("main p, main table, main dl").count() > 0, (case, view)
                await console.check()
            if case == "one job alone":
                await console.go(f"#/jobs/{failed.id}")
                await expect(console.page.locator("main h1")).to_contain_text("<img")
                await expect(console.page.get_by_text("narrowed to some jobs").first).to_be_visible()


async def test_going_back_returns_to_the_row_and_the_scroll_position(console: Console, jobs: JobMaker) -> None:
    page = console.page
    await jobs.make(50, status="failed", kind="row.of.fifty", project_id="fifty")
    await page.goto(f"{console.url}#token={token(project_id='fifty', scope=EVERYTHING)}")
    await console.go("#/jobs")
    link = page.locator("table.jobs tbody tr").nth(45).get_by_role("link")
    await link.scroll_into_view_if_needed()
    name, scrolled = await link.get_attribute("href"), await page.evaluate("scrollY")
    await link.focus()
    await page.keyboard.press("Enter")
    await expect(page.locator("main h1")).to_have_text("row.of.fifty")

    await page.keyboard.press("Escape")

    await expect(page.locator("main h1")).to_have_text("Jobs")
    await expect(page.locator(f"table.jobs a[href='{name}']")).to_be_focused()
    assert abs(await page.evaluate("scrollY") - scrolled) < 60


async def test_times_go_on_also_while_the_api_is_away(console: Console, jobs: JobMaker) -> None:
    page = console.page
    await jobs.make(1, status="failed", kind="timed")
    await page.clock.install()
    await console.sign_in(view="#/jobs?type=timed")
    time = page.locator("table.rows time")
    await expect(time).to_have_text(re.compile("^(now|[0-9]+ s ago)$"))
    await page.route("**/api/**", lambda route: route.abort())

    await page.clock.run_for(300_000)

    await expect(time).to_have_text("5m ago")


async def test_older_rows_that_come_late_do_not_disturb_the_list_that_was_chosen_meanwhile(
    console: Console, jobs: JobMaker
) -> None:
    page = console.page
    await jobs.make(60, status="failed", kind="late", project_id="late")
    await jobs.make(2, status="completed", kind="soon", project_id="late")
    await page.clock.install()
    await page.goto(f"{console.url}#token={token(project_id='late', scope=EVERYTHING)}")
    await console.go("#/jobs")
    held = await hold(page, "api/jobs?*cursor=*")
    await page.get_by_role("button", name="Older").click()
    await page.get_by_role("link", name="completed").click()
    await expect(page.locator("table.jobs tbody tr")).to_have_count(2)

    await page.evaluate(
        "new MutationObserver(() => { window.emptied ||= !document.querySelector('table.jobs'); })"
        ".observe(document.body, {childList: true, subtree: true})"
    )
    async with page.expect_response("**/api/jobs?*cursor=*"):
        await held[0].continue_()
    async with page.expect_response("**/api/jobs?status=completed*"):
        await page.clock.run_for(16_000)

    assert not await page.evaluate("window.emptied")
    await expect(page.get_by_role("link", name="soon")).to_have_count(2)
    await page.get_by_role("link", name="failed").click()
    await expect(page.locator("table.jobs tbody tr")).to_have_count(50)
    await page.unroute_all()
    await page.get_by_role("button", name="Older").click()
    await expect(page.locator("table.jobs tbody tr")).to_have_count(60)


async def test_a_bulk_retry_that_another_operator_was_faster_with_says_that_nothing_was_asked_for(
    console: Console, api: Api, jobs: JobMaker
) -> None:
    page = console.page
    await jobs.make(3, status="failed", kind="both.at.once", project_id="two")
    theirs = token(project_id="two", scope=EVERYTHING)
    await page.goto(f"{console.url}#token={theirs}")
    await page.get_by_role("button", name="Retry 3 jobs of both.at.once").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("reason").fill("the other side is back")
    await expect(dialog.get_by_role("button", name="Retry 3 jobs")).to_be_enabled()
    body = {"filter": {"type": "both.at.once"}, "max": 9, "reason": "so say I"}
    assert (await api.post("/api/jobs/retry?dry_run=false", body, token=theirs)).status == 202

    await dialog.get_by_role("button", name="Retry 3 jobs").click()

    await expect(dialog).to_contain_text("Nothing was asked for.")
    await expect(dialog).to_contain_text("3: a retry is queued already")
    await dialog.get_by_role("button", name="Close").last.click()
    await expect(page.locator("a.count.failed")).to_contain_text("3 queued")
